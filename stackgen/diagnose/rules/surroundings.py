"""Rules for what is around an engine: Compose's variables, container runtime, firewall, file locks, proxies, signals.

None of these failures was reproduced, unless `source` says so. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.container_states import SIGNALS
from stackgen.diagnose.error_lines import CRASH_BANNER, find_error_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import (
    has_crashed,
    has_served,
    last_status,
    lines_since_ready,
    strip_prefix,
)
from stackgen.diagnose.rule import Hit, Input, Rule, Variant, compile_patterns

__all__ = ["LAST_RULES", "RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")
UNSET = re.compile(r'The \\?"(?P<name>\w+)\\?" variable is not set\. Defaulting to a blank string')
# what a program says about an argument without a value, or about the value that took its place
BLANK = re.compile(
    r"invalid argument: (?!-)|expected (?:one|at least one) argument|unrecognized arguments: (?!-)|"
    r"invalid reference format|invalid (?:hostPort|containerPort|\w+ value: '')|empty (?:section|string)|"
    r"requires a value|error while handling argument|Repo id must"
)
# a missing secret leaves no gap in the arguments
SECRET = re.compile(r"TOKEN|KEY|PASSWORD|SECRET|PROXY", re.I)
LOCK = re.compile(r"still waiting to acquire lock on (?P<path>\S+)")
SOFT_LOCK = re.compile(r"does not appear to support flock|SoftFileLock")
UPSTREAM = re.compile(
    r"(?P<slow>upstream timed out) \(110: [^)]+\) while (?P<what>reading|connecting|sending)|"
    r"(?P<refused>connect\(\) failed \(\d+: [^)]+\) while connecting to upstream|no live upstreams)|"
    r"(?P<large>client intended to send too large body)"
)
ENDED = re.compile(r"^(?:[\w.-]+ )?exited with code (?P<code>132|134|135|136|139)\b")


def _find_unset_variable(evidence: Evidence) -> Iterator[Hit]:
    """Compose warns that a variable is not set, and a program then rejects an argument or finds none."""
    texts = [("", evidence.compose_output), *((one.service, one.log) for one in evidence.services)]
    warned = next(((found["name"], strip_prefix(line)) for _, text in texts for line in text.splitlines()
                   if (found := UNSET.search(line)) and not SECRET.search(found["name"])), None)  # fmt: skip
    if warned is None:
        return
    for service in evidence.services:
        lines = [] if service.is_working else lines_since_ready(service.log)
        error = next((plain for line in reversed(lines) if BLANK.search(plain := strip_prefix(line))
                      and not UNSET.search(plain)), None)  # fmt: skip
        if error:
            yield Hit(service.service, (warned[1].strip(), error.strip()), {"name": warned[0], "error": error.strip()})


def _find_lock(evidence: Evidence) -> Iterator[Hit]:
    """A download logs again and again that it waits for a lock file, and makes no progress."""
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        waits = [(line, found) for line in lines[-60:] if (found := LOCK.search(line))]
        if len(waits) >= 3 and not (service.role == "download" and service.exit_code == 0):
            soft = next((line for line in lines if SOFT_LOCK.search(line)), "")
            line, found = waits[-1]
            yield Hit(service.service, (line, *([soft] if soft else [])), {"path": found["path"]}, highlight=found[0])


def _find_proxy_timeout(evidence: Evidence) -> Iterator[Hit]:
    """A proxy logs that it stopped waiting for the engine's answer, and the engine's log shows no failure."""
    # if an engine failed, the proxy's errors follow from it
    if any(one.has_failed or has_crashed(one.log) for one in evidence.services):
        return
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        hits = [(line, found) for line in lines if (found := UPSTREAM.search(line))]
        status = last_status(service.log)
        # a proxy that has since passed on an answer is no failure
        if hits and (status is None or status >= 400):
            line, found = hits[-1]
            is_reached = found["slow"] and found["what"] != "connecting"
            variant = TOO_LARGE if found["large"] else None if is_reached else UNREACHABLE
            yield Hit(service.service, (line,), {}, highlight=found[0], variant=variant)


def _find_signal(evidence: Evidence) -> Iterator[Hit]:
    """A signal that the program itself caused (for example SIGSEGV) ended it, and the log shows no earlier error.

    At the start, only an illegal instruction counts, which has one cause; other crashes there have many.
    """
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()]
        places = [(index, found) for index, line in enumerate(lines) if (found := ENDED.match(line))]
        if places:
            (place, found), before = places[-1], lines[: places[-1][0]]
            code, shown = found["code"], lines[place]
        else:
            code, before = str(service.exit_code), lines
            shown = f"{service.service} is {service.state}, exit code {code}"
        # a start that crashes has many reasons, from a wrong image to a full memory
        text = "\n".join(before)
        is_served, is_illegal = has_served(text), code == "132" and "Illegal instruction" in text
        others = any(one.certain and not CRASH_BANNER.match(one.text) for one in find_error_lines(before))
        if code in SIGNALS and not service.is_working and (is_served or is_illegal) and not others:
            last = [line for line in before if line][-2:]
            variant = ILLEGAL if is_illegal else None
            yield Hit(service.service, (shown, *last), {"signal": SIGNALS[code], "code": code}, variant=variant)


ILLEGAL = Variant(
    (),
    title="the program ended at an illegal instruction",
    cause="the program ended with exit code {code} ({signal}). Most often, it was compiled for a CPU with other "
    "instructions, such as AVX-512 or AMX. Docker did not stop it. The out-of-memory killer did not end it either, "
    "because the exit code would then be 137",
    fix="set `image:` to an image for this CPU, or to one that detects the CPU at run time: another version, or the "
    "official image; to compare, `lscpu` lists the CPU's features, and the log often lists those that the program "
    "needs; in a virtual machine, pass the host's CPU through",
    condition="the exit code is 132",
)


UNREACHABLE = Variant(
    (),
    title="a proxy can't reach the engine",
    cause="the proxy could not connect to the engine. Either the engine does not listen at this address, or the "
    "network between them drops packets",
    fix="compare the address in the message with `docker compose ps` and the engine's port; test the connection with "
    "`curl` in the proxy's container",
    condition="the proxy waited for the connection",
)

TOO_LARGE = Variant(
    (),
    title="a proxy refuses a large request",
    cause="the proxy in front of the engine refuses requests of this size, so the request did not reach the engine",
    fix="raise the proxy's limit (nginx: client_max_body_size, 1m by default), or send smaller requests, for example "
    "with smaller images",
    condition="the proxy reports a body that is too large",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D021",
        title="a variable of the Compose file is not set",
        cause="the variable {name} is not set, so Compose replaced it with nothing, and an argument lost its value. "
        "A program rejects the remaining arguments: {error}",
        fix="set {name} in the file `.env` next to the Compose file, or in the shell; to see the arguments that the "
        "program gets, run `docker compose config`",
        source="The warning comes from Compose (compose-go, template), and is quoted in StartupHakk/OpenMonoAgent.ai "
        "issue 23 (2026-05). The failure was not reproduced.",
        explain="A flag with an empty value takes the next flag as its value. The value of that next flag then "
        "belongs to no flag. The compose.yaml that stackgen renders needs only variables that stackgen writes to "
        ".env.",
        find=_find_unset_variable,
    ),
    Rule(
        "SG-D022",
        title="Docker's own firewall chain is missing",
        cause="the Docker daemon can't add its firewall rule, because its chain[[ {chain}]] does not exist. Either "
        "something on this machine replaced the firewall rules after the daemon had started, or the version of "
        "Docker and the machine's iptables are not compatible",
        fix="run `sudo iptables -S | grep DOCKER`, which shows whether the chain exists; if it is missing, find out "
        "what removed it (often firewalld, scripts with iptables-restore, or an update of Docker); to create the "
        "chains again, restart the Docker daemon at a time when all containers may stop (with live-restore, they "
        "keep running)",
        source="The message comes from iptables 1.8, through libnetwork, and is quoted in docker/cli issue 6691 "
        "(2025-12) and srl-labs/containerlab issue 2944 (2025-11). The failure was not reproduced.",
        explain="The stack is not the cause: Docker can't create any network until the chain exists.",
        patterns=compile_patterns(
            r"iptables failed: .{0,600}Chain (?P<chain>'[\w-]+') does not exist",
            r"iptables failed: .{0,600}(?:No|no) chain/target/match by that name",
        ),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-D023",
        title="the container runtime can't start the container",
        cause="the container runtime ({runtime}) failed before a program of the image ran: {problem}",
        fix="read the last part of the message, which names the mount, device, user or program that the runtime could "
        "not prepare; check this part on the host and in the image; if the message names a system call, try another "
        "runtime or version (`docker info` and `podman info` show the current one)",
        source="The message comes from crun and runc, and is quoted in containers/crun issue 2104 (2026-06). The "
        "failure was not reproduced.",
        explain="The runtime prepares mounts, namespaces and devices. Its errors come from the host's kernel, file "
        "systems and packages.",
        patterns=compile_patterns(
            # the end of a nested message has the cause
            r"OCI runtime (?:create failed|error): (?:[\w/.-]*/)?(?P<runtime>crun|runc|runsc|youki)(?: [\w ]+)?: "
            r".{0,4000}?(?<!\w)(?P<problem>\w.{2,299})$",
        ),
        inputs=EVERYWHERE,
        fallback=True,
        variants=(
            Variant(
                # crun and runc log in JSON
                compile_patterns(r"(?P<runtime>crun|runc|youki): ?\{\"msg\":\"(?P<problem>(?:[^\"\\]|\\.){3,300})\"")
            ),
            Variant(
                compile_patterns(
                    r"(?:^|[ /])(?P<runtime>crun|runc|runsc|youki): (?P<problem>.{3,200}: Function not implemented)"
                ),
                cause="this build of the container runtime {runtime}, or the kernel, does not support a system "
                "call that is needed to start the container: {problem}",
                fix="use {runtime} from the distribution's packages or a newer version, or another runtime (Podman: "
                "`--runtime runc`); to see which runtime is in use, run `podman info` or `docker info`",
            ),
        ),
    ),
    Rule(
        "SG-D025",
        title="this version of Docker or Compose does not support a command",
        cause="the installed version does not support what the command asks for: {problem}",
        fix="compare `docker version` and `docker compose version` with the versions that the command needs, and "
        "update the program that is older; `docker --help` and `docker compose --help` list what this version "
        "supports; if the command `docker compose` is missing, install the plugin docker-compose-plugin",
        source="The messages come from docker/cli (cmd/docker/docker.go), pflag (flag.go) and moby "
        "(server/middleware/version.go). The order of the folders comes from docker/cli "
        "(cli-plugins/manager/manager_unix.go); docker/compose issue 13389 (2025-11) reports an old plugin. The "
        "failure "
        "was not reproduced.",
        explain="The client, the daemon and the Compose plugin are updated separately.",
        patterns=compile_patterns(
            r"^(?P<problem>unknown (?:shorthand )?flag: .*)",
            r"^docker: (?P<problem>'[\w-]+' is not a docker command|unknown command: docker \S+)",
            r"(?P<problem>client version \S+ is too new\. .{0,100}API version is [\d.]*\d)",
        ),
        inputs=("compose",),
        variants=(
            Variant(
                compile_patterns(
                    r"client version (?P<client>1\.\d+) is too old\. Minimum supported API version is "
                    r"(?P<minimum>[\d.]*\d)"
                ),
                title="a client of Docker is too old for the daemon",
                cause="a client uses version {client} of Docker's API, but this daemon needs at least {minimum}. "
                "`docker version` shows only the version of the `docker` command. Compose, buildx and other clients "
                "have their own versions",
                fix="if a `docker compose` command failed, run `docker compose version`, and update Compose; look "
                "for old copies with `ls -l` in ~/.docker/cli-plugins and /usr/local/lib/docker/cli-plugins, and "
                "replace them: they have priority over the plugin of the package in /usr/libexec/docker/cli-plugins; "
                "for a client in a container (Portainer, Traefik, Watchtower …), use a newer image of it",
            ),
        ),
    ),
    Rule(
        "SG-L010",
        title="a download waits for a lock file",
        cause="the download waits for the lock {path}. Either another download holds the lock, or an interrupted "
        "download left it behind, which happens on network file systems without flock",
        fix="check whether another download of this model is running (`docker ps`, also on other machines that use "
        "this storage), and let this download finish; only if no download is running, remove this lock file and "
        "nothing else, and start the stack again; to prevent this, set storage.path to a local disk",
        source="The messages come from huggingface_hub (utils/_fixes.py) and are quoted in huggingface/huggingface_hub "
        "issue 2543. The failure was not reproduced.",
        explain="Without flock, huggingface_hub uses a file as a lock (SoftFileLock). If the process that holds the "
        "lock is killed, the file remains. The files that have already arrived are not damaged.",
        find=_find_lock,
    ),
    Rule(
        "SG-C012",
        title="a proxy stopped waiting for the engine's answer",
        cause="the proxy in front of the engine ended a request, because no byte passed between the proxy and the "
        "engine within the proxy's time limit (60 seconds by default in nginx). If an answer is not streamed, the "
        "engine sends nothing until the answer is complete",
        fix="raise the proxy's time limit for these paths (nginx: proxy_read_timeout and proxy_send_timeout, for "
        "example 600s), or let clients stream; don't restart the engine, because it works",
        source="The message comes from nginx (ngx_http_upstream.c), and is quoted in oasm-platform/open-asm issue 451 "
        "(2026-06). The failure was not reproduced.",
        explain="stackgen's own gateway is HAProxy. This rule is about another proxy, in front of the gateway or of "
        "the engine. The client gets HTTP 504.",
        find=_find_proxy_timeout,
    ),
)

# a signal describes how a program ended; if an error explains it, the error is the cause
LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D024",
        title="the program crashed",
        cause="the program ended with exit code {code} ({signal}), so it crashed in native code. Docker did not stop "
        "it. The out-of-memory killer did not end it either, because the exit code would then be 137",
        fix="look at the last requests before the crash; if one kind of request repeats the crash, stop sending such "
        "requests; try a newer image, because most such crashes are bugs of one version; the kernel log names the "
        "library that crashed (`sudo dmesg | grep -iE 'segfault|xid|amdgpu'`)",
        source="Shells and Docker report 128 plus the number of the signal. ggml-org/llama.cpp issue 27427 (2026-08) "
        "reports such a crash.",
        explain="A crash in native code leaves no traceback. If the server has answered before, the model's files "
        "are rarely the cause.",
        find=_find_signal,
        fallback=True,
    ),
)
