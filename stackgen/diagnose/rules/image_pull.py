"""Rules for images that can't be pulled. The texts are those of Docker engine 28 and of registries."""

from __future__ import annotations

import re

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["ARCHITECTURE", "RULES"]

# what a container engine asked, and did not get an answer to; these messages name no image, only the registry
ASKED = r"(?:Get|Head) \"https://(?P<registry>[^/\"]+)/[^\"]*\": .*"
RESOLVING = r"failed to resolve reference \"(?P<image>[^\"\s]+)\".*"
NETWORK = (
    r"(?:no such host|i/o timeout|connection refused|Client\.Timeout exceeded|context deadline exceeded|TLS handshake "
    r"timeout|network is unreachable|server misbehaving)"
)

# of Docker and of Podman
OTHER_PLATFORM = re.compile(r"image(?:'s)? platform \(\S+\) does not match the (?:expected|detected host) platform")
ARCHITECTURE = Rule(
    "SG-D003",
    title="the image is for another CPU architecture",
    cause="the image[[ {image}]] contains programs for another CPU architecture",
    fix="choose an image for this machine's CPU: set cpu_arch to arm64 or x86_64 in stack.yaml, or set another "
    "`image:`",
    source="The messages come from Linux (ENOEXEC, execve(2)) and Docker engine 29.7 (daemon/containerd/image.go "
    "and image_pull.go). ENOEXEC was reproduced with a file that is not a program.",
    explain="`uname -m` prints the architecture of the machine. `docker image inspect IMAGE --format "
    "{{.Architecture}}` prints the architecture of the image.",
    patterns=compile_patterns(
        r"image with reference (?P<image>\S+) was found but (?:its platform|does not (?:match|provide))",
        r"(?i)exec format error",
    ),
    inputs=("compose", "docker", "log"),
    variants=(
        Variant(
            compile_patterns(
                r"(?i)exec (?:container process )?`?(?P<program>[^\s`]+\.(?:sh|bash|py))`?: exec format error"
            ),
            title="a script can't be started",
            cause="the kernel can't run the script {program}. Either its first line is not `#!` with the path of "
            "an interpreter, or the interpreter is for another CPU architecture",
            fix="look at the first line of the script (`head -c 60`): it must be `#!` with a path, for example "
            "`#!/bin/sh`; if the line is right, set `image:` to an image for this machine's CPU",
        ),
        Variant(
            # a warning, which may also be about an emulated platform
            compile_patterns(r"(?i)exec format error"),
            cause="the image is for a different CPU architecture from this machine's. An earlier warning in the log "
            "names the platform of the image and the expected platform",
            fix="choose an image for the expected platform in `image:` (vLLM has separate images for arm64 and "
            "x86_64 on the CPU); cpu_arch in stack.yaml must be the CPU of this machine",
            applies=lambda evidence, service: bool(OTHER_PLATFORM.search(evidence.read_log(service))),
            condition="the log has a warning about the platform of the image",
        ),
        Variant(
            compile_patterns(r"no matching manifest for (?P<platform>\S+) in the manifest list"),
            cause="the registry has this image, but not for the CPU of this machine ({platform})",
            fix="choose an image or a tag for this CPU in `image:`; cpu_arch in stack.yaml must be the CPU of this "
            "machine",
        ),
    ),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D002",
        title="an image can't be pulled",
        cause="the registry does not have the image[[ {image}]]. The name or the tag is wrong, the tag was deleted, "
        "or the image was renamed",
        fix="look up the image on the page of its project, and correct the name or the tag (`image:` in stack.yaml); "
        "use the tag of a release, because nightly tags are deleted after some weeks",
        source="The messages come from Docker engine 28 (distribution). The failure was reproduced.",
        explain="`docker manifest inspect IMAGE` asks the registry for an image without pulling it.",
        patterns=compile_patterns(
            r"manifest for (?P<image>\S+) not found",
            RESOLVING + r": not found",
            r"manifest unknown",
        ),
        variants=(
            Variant(
                compile_patterns(r"No such image: (?P<image>\S+)"),
                cause="this machine does not have the image {image}, and Docker did not pull it",
                fix="run `docker pull {image}`, which shows why Docker can't pull it; if the name is wrong, correct "
                "`image:` in stack.yaml",
                # a pull that failed for another reason leaves no image
                consequence_of=("SG-H008", "*"),
            ),
            Variant(
                # only at the start of a line or after an error, because hints of other programs quote the phrase
                compile_patterns(
                    r"^(?:.{0,300}(?:[Ee]rror|ERROR|failed).{0,300})?toomanyrequests: .*",
                    RESOLVING + r"429 Too Many Requests",
                ),
                cause="this address has reached the registry's pull limit",
                fix="wait a few hours, because the limit counts recent pulls, or log in (`docker login`), because "
                "accounts have a higher limit",
            ),
            Variant(
                compile_patterns(ASKED + r"x509: (?P<problem>.*)", RESOLVING + r"x509: (?P<problem>.*)"),
                cause="Docker does not trust the certificate of the registry[[ {registry}]]: {problem}. Most often, "
                "a proxy on this network intercepts TLS, or the clock of this machine is wrong",
                fix="check the clock of this machine (`timedatectl`); behind a proxy that intercepts TLS, add the "
                "certificate of your network's authority to the trusted certificates of this machine, or as "
                "/etc/docker/certs.d/REGISTRY/ca.crt",
            ),
            Variant(
                compile_patterns(
                    ASKED + r"http: server gave HTTP response to HTTPS client",
                    RESOLVING + r"http: server gave HTTP response to HTTPS client",
                ),
                title="the registry has no TLS",
                cause="the registry[[ {registry}]][[ of {image}]] accepts only plain HTTP. The container engine uses "
                "HTTPS unless its configuration allows HTTP for this registry",
                fix="give the registry a certificate; or, in a network that you trust, allow HTTP on each machine that "
                "pulls: Docker: `insecure-registries` in daemon.json, then restart Docker; containerd: "
                '/etc/containerd/certs.d/REGISTRY:PORT/hosts.toml with `server = "http://REGISTRY:PORT"`; k3s: '
                "/etc/rancher/k3s/registries.yaml; Podman: `insecure = true` in registries.conf",
            ),
            Variant(
                compile_patterns(ASKED + NETWORK, RESOLVING + NETWORK),
                cause="this machine can't connect to the registry[[ {registry}]][[, which has {image}]]",
                fix="check the machine's network, DNS and proxy, for example with `curl -I https://REGISTRY/v2/`; "
                "check Docker's own setting for a proxy (`docker info` prints it)",
            ),
            Variant(
                compile_patterns(
                    ASKED + r"unauthorized: ",
                    r"(?:[Ee]rror|ERROR).{0,300}: unauthorized: authentication required",
                    RESOLVING + r"(?:401 Unauthorized|403 Forbidden|unauthorized|denied)",
                ),
                cause="the registry[[ {registry}]] requires a login[[ for {image}]]",
                fix="log in with an account that has permission to read the image (`docker login REGISTRY`)",
            ),
            Variant(
                compile_patterns(r"pull access denied for (?P<image>[^,\s]+)"),
                cause="the registry denies access to {image}. Either the image does not exist, or it is private and "
                "you are not logged in",
                fix="check the spelling of `image:`; for a private image, log in (`docker login`)",
            ),
            Variant(
                compile_patterns(r"failed to resolve reference \"(?P<image>[^\"\s]+)\"(?!.*: not found)"),
                cause="Docker could not ask the registry for {image}",
                fix="read the end of the message, which names the reason; to repeat the request, run `docker pull "
                "{image}`",
            ),
        ),
        inputs=("compose", "docker"),
    ),
)
