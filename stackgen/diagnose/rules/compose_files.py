"""Rules for Compose files: rejected ones, mounts, names and networks. `source` names where the messages come from."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.compose_schema import advise_on_key
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

ADDITIONAL = re.compile(
    r"^(?:(?:ERROR: |docker: )?validating .{1,300}?\.ya?ml: )?(?P<problem>(?P<path>\(root\)|"
    r"[\w-]{1,80}(?:\.[\w-]{1,80}){0,9}) "
    r"[Aa]dditional propert(?:y|ies) '?(?P<key>[\w.-]{1,80})'? (?:is |are )?not allowed)"
)


def _find_additional(evidence: Evidence) -> Iterator[Hit]:
    """Compose does not know a key of the file, or does not know it in this place."""
    texts = [(one.service, one.log) for one in evidence.services if not one.is_working]
    for service, text in (("", evidence.compose_output), *texts):
        lines = text.splitlines() if "dditional propert" in text else []
        found = next((one for line in lines if (one := ADDITIONAL.match(strip_prefix(line).strip()))), None)
        if found:
            problem, step = advise_on_key(found["path"], found["key"])
            values = {"problem": found["problem"], "what": problem, "step": step}
            yield Hit(service, (found[0],), values, variant=MISPLACED)
            break


MISPLACED = Variant(
    (),
    cause="Compose rejects the configuration: {what}",
    fix="{step}; run `docker compose config`, which checks the file again",
    condition="Compose reports an additional property",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D010",
        title="Compose rejects the configuration",
        cause="Compose rejects the configuration: {problem}",
        fix="correct the part that the message names, in the file that contains it; to check the file, run `docker "
        "compose config` with the same `-f` and `--env-file`; if stackgen wrote compose.yaml, `stackgen render "
        "--diff` shows manual edits, and `stackgen render --force` overwrites them",
        source="The messages come from Compose 2.24 to 5. Where a key is allowed comes from the schema of the Compose "
        "Specification (June 2026). langflow-ai/openrag pull request 779 (2026-01) and manascb1344/zonos-api issue 2 "
        "(2025-02) quote messages about keys. The failure was reproduced.",
        explain="stackgen validates compose.yaml with Compose before it writes the file. If Compose rejects "
        "compose.yaml later, either the file was edited, or this machine has another version of Compose.",
        patterns=compile_patterns(
            # anchored, because other programs also log `validating data: …`
            r"^validating .{1,300}?\.ya?ml: (?P<problem>.*)",
            r"yaml: (?P<problem>line \d+.*)",
            r"^(?P<problem>.+): invalid compose project",
        ),
        find=_find_additional,
        inputs=("compose",),
        variants=(
            MISPLACED,
            Variant(
                compile_patterns(
                    r"^(?P<problem>service .+ has neither an image nor a build context specified): invalid compose "
                    r"project",
                    r"^(?P<problem>.+ (?:depends on|refers to) undefined .+): invalid compose project",
                ),
                fix="if the stack consists of several Compose files, pass all of them with `-f` or COMPOSE_FILE; "
                "otherwise correct the name in the file",
            ),
            Variant(
                compile_patterns(r"(?P<problem>invalid interpolation format for \S*\w)"),
                fix="in the value that the message names, write a literal dollar sign as `$$`, and a variable as "
                "`${NAME}`",
            ),
        ),
    ),
    Rule(
        "SG-D016",
        title="a mounted file is a folder",
        cause="{path} is a folder in the container, but the program needs a file. The file does not exist on the "
        "host, so the container engine created an empty folder with its name",
        fix="correct the path of the file on the host; then remove the empty folder that was created in its place, and "
        "recreate the container",
        source="The messages come from Python 3 (errno 21) and Docker engine 29.7 (daemon/errors.go), which adds the "
        "question `Are you trying to mount a directory onto a file (or vice-versa)?` to an error of runc. "
        "noonghunna/qwen36-27b-single-3090 issue 2 (2026-04) quotes one. The failure was "
        "not reproduced.",
        explain="Docker creates the missing source of a bind mount in short form (`./file:/file`) as a folder. "
        "stackgen's own mounts report a missing source as an error instead.",
        patterns=compile_patterns(
            r"error mounting \"(?P<path>[^\"]+)\" to rootfs.{0,2000}[Aa]re you trying to mount a directory onto a file",
            # a file has an extension that starts with a letter; folders of models are named `Llama-3.2`
            r"can't find '__main__' module in '(?P<path>[^']+\.[A-Za-z]\w*)'",
            r"(?:IsADirectoryError: )?\[Errno 21\] Is a directory: '(?P<path>[^']+\.[A-Za-z]\w*)'",
        ),
        inputs=("log", "compose", "docker"),
    ),
    Rule(
        "SG-D017",
        title="a path of a mount is empty",
        cause="the mount `{mount}` has an empty part, because a variable in it has no value",
        fix="set the variable in .env, or give it a default in the Compose file (`${VARIABLE:-./folder}`)",
        source="The message comes from compose-go 2.13 (format/volume.go), and is quoted in av/harbor commit "
        "d9948ebb (2026-04). The failure was not reproduced.",
        explain="Compose replaces a variable that has no value with an empty text. In `${FOLDER}:/data`, the path on "
        "the "
        "host is then empty.",
        patterns=compile_patterns(r"invalid spec: (?P<mount>\S*): empty section between colons"),
        inputs=("log", "compose"),
    ),
    Rule(
        "SG-D018",
        title="another container has the same name",
        cause="a container with the name {name} already exists. It may belong to another project",
        fix="list it with `docker ps -a --filter name={name}`; if nobody needs this container, remove it, or change "
        "`container_name:`",
        source="The messages come from Docker engine 29.7 (daemon/errors.go) and Podman 5 (containers/storage, "
        "containers.go). The failure was not reproduced.",
        explain="Names of containers are unique on a machine. stackgen sets no `container_name:`, so that its "
        "containers get the project's name.",
        patterns=compile_patterns(r"[Tt]he container name \"/?(?P<name>[^\"]+)\" is already in use by "),
        inputs=("log", "compose", "docker"),
    ),
    Rule(
        "SG-D019",
        title="an external network or volume does not exist",
        cause="the {kind} {name} is declared as external, but does not exist",
        fix="create it (`docker {kind} create {name}`), or start the stack that creates it first",
        source="The messages come from Compose 5.5 (pkg/compose/create.go). The failure was not reproduced.",
        explain="Compose creates its own networks and volumes, but not those with `external: true`.",
        patterns=compile_patterns(
            r"(?P<kind>network) (?P<name>[\w.-]+) declared as external, but could not be found",
            r"external (?P<kind>volume) \"(?P<name>[^\"]+)\" not found",
        ),
        inputs=("log", "compose"),
    ),
    Rule(
        "SG-D031",
        title="a service waits for a service without a health check",
        cause="another service waits until {container} is healthy, but {container} has no health check, neither in "
        "its image nor in the Compose file",
        fix="add a `healthcheck` for {container} to the Compose file, or set `condition: service_started` in the "
        "service that waits; check override files too, for example for `healthcheck: {disable: true}`",
        source="The message comes from Compose 5 (pkg/compose/convergence.go), and is quoted in "
        "raffomania/ties issue 290 (2026-04). The failure was not reproduced.",
        explain="Compose can wait for a health check only if there is one. If a new version of the image no longer "
        "contains a health check, the other service can't wait for it.",
        patterns=compile_patterns(r"container (?P<container>\S+) has no healthcheck configured"),
        inputs=("log", "compose"),
    ),
    Rule(
        "SG-D020",
        title="Podman does not know from which registry to pull",
        cause="the image name {image} names no registry, and Podman is not configured to try one",
        fix="write the registry in `image:` (for example docker.io/{image})",
        source="The messages come from Podman 5 (containers/image, pkg/shortnames/shortnames.go), and are quoted in "
        "podman-container-tools/podman issue 24989 (2025-01) and containers/podman-compose issue 331. The failure was "
        "not reproduced.",
        explain="Docker adds docker.io to names without a registry. Podman asks, or uses "
        "unqualified-search-registries in /etc/containers/registries.conf.",
        patterns=compile_patterns(r"short-name \"(?P<image>[^\"]+)\" did not resolve to an alias"),
        inputs=("log", "compose", "docker"),
        variants=(
            Variant(
                compile_patterns(r"short-name resolution enforced but cannot prompt without a TTY"),
                cause="the image name names no registry, and several registries are configured. Podman would have to "
                "ask which one to use, but there is no terminal",
                fix="write the registry in `image:` (for example docker.io/NAME)",
            ),
        ),
    ),
)
