"""Docker and Compose: ports, images, keys, mounts; and container states for which no log line shows the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import count_restarts, find_key_lines, has_been_ready, key_lines_before_restart
from stackgen.diagnose.rule import Hit, Input, Rule, compile_patterns

__all__ = ["COMPOSE_RULES", "RULES"]

# Compose prints an error of the engine, and Docker also stores it in the container's State.Error
BOTH: tuple[Input, ...] = ("compose", "docker")
# an address as the engine prints it: IPv4, [IPv6], `::` or empty
HOST = r"(?:\[[^\]\s]*\]|[\w.*-]*|::)"
# as Python and curl print it in a health check
REFUSED = re.compile(r"[Rr]efused|Couldn't connect to server")


def _find_wrong_probe(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        lines = [line.strip() for line in service.health_log.splitlines() if REFUSED.search(line)]
        # a server that is not ready yet refuses its health check as well
        if service.state == "running" and service.health != "healthy" and has_been_ready(service.log) and lines:
            yield Hit(service.service, tuple(lines[-1:]))


def _find_restart_loop(evidence: Evidence) -> Iterator[Hit]:
    """Restarted again and again by Docker, or by supervise.sh inside the container, which Docker does not count."""
    for service in evidence.services:
        inside = count_restarts(service.log)
        if inside >= 2:
            state = f", {service.state} now" if service.state else ""
            lines = (f"{service.service}: was healthy and ended {inside} times{state}",
                     *key_lines_before_restart(service.log))  # fmt: skip
            yield Hit(service.service, lines, {"restarts": str(service.restarts + inside)})
        elif service.restarts >= 2 and not service.is_working:
            lines = (f"{service.service}: {service.restarts} restarts, {service.state}",
                     *find_key_lines(service.log, 4))  # fmt: skip
            yield Hit(service.service, lines, {"restarts": str(service.restarts)})


# tried before every rule that reads logs: if Compose fails, nothing has run
COMPOSE_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D001",
        title="another program holds the port",
        cause="another program, or another stack, holds port {port} of this machine",
        fix="stop the program that holds it (`ss -ltnp`, `docker ps`), or set another `port:` in stack.yaml",
        source="Docker engine 28 and docker-proxy; reproduced",
        explain="Docker publishes a port of the host for each endpoint. `stackgen status` of another stack may show "
        "this port.",
        patterns=compile_patterns(
            rf"Bind for {HOST}:(?P<port>\d+) failed: port is already allocated",
            rf"listen \S+ {HOST}:(?P<port>\d+): bind: address already in use",
            rf"failed to bind host port (?:for )?{HOST}:(?P<port>\d+)\S*: address already in use",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D014",
        title="the address in `bind:` does not belong to this machine",
        cause="no network interface of this machine has the address {address}",
        fix="set `bind:` to an address that `ip -br address` shows, or to 0.0.0.0 for all of them",
        source="Docker engine 28 and 29, libnetwork/portmapper; errno 99, EADDRNOTAVAIL",
        explain="An address that a router or a cloud maps to this machine is not its own: bind the internal address. "
        "An address that comes from DHCP or a VPN may be gone after a restart.",
        patterns=compile_patterns(
            rf"failed to bind host port (?:for )?(?P<address>{HOST}):\d+\S*: cannot assign requested address",
            rf"listen \S+ (?P<address>{HOST}):\d+: bind: cannot assign requested address",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D015",
        title="Docker is not allowed to open this port",
        cause="the Docker engine has no permission to open port {port} of this machine",
        fix="set `port:` to 1024 or higher, or allow rootless Docker to open lower ports: `sudo sysctl "
        "net.ipv4.ip_unprivileged_port_start=80`",
        source="Docker engine 28 and 29, libnetwork/portmapper; rootlesskit, port/builtin; errno 13, EACCES",
        explain="Ports below 1024 belong to root. A rootless Docker engine can't open them.",
        patterns=compile_patterns(
            rf"failed to bind host port (?:for )?{HOST}:(?P<port>\d+)\S*: permission denied",
            rf"listen \S+ {HOST}:(?P<port>\d+): bind: permission denied",
            r"cannot expose privileged port (?P<port>\d+)",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D002",
        title="an image can't be pulled",
        cause="the registry does not provide the image[[: {image}]]",
        fix="check the image name and this machine's connection to the registry, log in (`docker login`), or set "
        "`image:`",
        source="Docker engine 28, distribution; reproduced",
        explain="`denied` and `not found` both mean that the image does not exist or that you have no access to it. "
        "`no such host` is a DNS failure. `x509` is a proxy whose certificate Docker does not trust. Docker Hub "
        "limits pulls without an account.",
        patterns=compile_patterns(
            r"pull access denied for (?P<image>[^,\s]+)",
            r"manifest for (?P<image>\S+) not found",
            r"failed to resolve reference \"(?P<image>[^\"]+)\"",
            r"manifest unknown",
            r"(?:Get|Head) \"https://(?P<image>[^/\"]+)/[^\"]*\": .*(?:no such host|i/o timeout|connection refused|"
            r"Client\.Timeout exceeded|context deadline exceeded|TLS handshake timeout|x509: |network is unreachable|"
            r"server misbehaving|unauthorized: )",
            # only at the start of a line or after an error, because hints of other programs quote the phrase
            r"^(?:.{0,300}(?:[Ee]rror|ERROR|failed).{0,300})?toomanyrequests: .*",
            r"(?:[Ee]rror|ERROR).{0,300}: unauthorized: authentication required",
            r"No such image: (?P<image>\S+)",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D003",
        title="the image is for another CPU architecture",
        cause="the image[[ {image}]] contains programs for another architecture",
        fix="choose an image for this machine: cpu_arch: arm64 or x86_64 in stack.yaml, or another `image:`",
        source="Linux, ENOEXEC, reproduced with a file that is not a program; Docker engine 28",
        explain="`uname -m` prints the machine's architecture, `docker image inspect IMAGE --format "
        "{{.Architecture}}` the image's.",
        patterns=compile_patterns(
            r"image with reference (?P<image>\S+) was found but (?:its platform|does not (?:match|provide))",
            r"no matching manifest for \S+ in the manifest list",
            r"exec \S+: exec format error",
            r"exec format error",
        ),
        inputs=("compose", "docker", "log"),
    ),
    Rule(
        "SG-D004",
        title="a key is missing in .env",
        cause="compose.yaml needs {name}, but neither .env nor the environment sets it",
        fix="`stackgen init` writes .env with a new key; with `docker compose -f`, pass --env-file as well",
        source="Compose 2.40, interpolation; reproduced",
        explain="No rendered file contains a key: Compose takes it from .env. Compose reads .env from the project's "
        "folder only.",
        patterns=compile_patterns(r"required variable (?P<name>\w+) is missing a value"),
        inputs=BOTH,
    ),
    Rule(
        "SG-D005",
        title="the Docker engine does not answer",
        cause="no engine listens where `docker` looks for it",
        fix="start it (`sudo systemctl start docker`), or join its group (`sudo usermod -aG docker $USER`, then log "
        "in again)",
        source="Docker CLI 28 and 29",
        explain="`permission denied` on docker.sock means that your user is not in the group docker.",
        patterns=compile_patterns(
            r"(?i)cannot connect to the docker daemon",
            r"failed to connect to the docker API",
            r"permission denied while trying to connect to the [Dd]ocker",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D006",
        title="a mounted path does not exist",
        cause="{path} does not exist on this machine",
        fix="create it, or correct the path in stack.yaml (`model:`, storage.path, chat_template)",
        source="Docker engine 28, daemon/volume; reproduced",
        explain="Docker would create a missing folder, empty and owned by root. stackgen's mounts tell it not to.",
        patterns=compile_patterns(
            r"bind source path does not exist: (?P<path>\S+)",
            r"failed to mount local volume: mount (?P<path>[^:]+):.*: no such file or directory",
            r"error mounting \"(?P<path>[^\"]+)\" to rootfs.*(?:not a directory|no such file)",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D007",
        title="the image lacks the program",
        cause="the image does not contain {program}",
        fix="use an `image:` of this exact engine, or run `stackgen render` again if compose.yaml was edited",
        source="runc 1.1 to 1.3; reproduced",
        explain="Exit code 127. The command in compose.yaml names a program that this image does not contain. "
        "`image:` may name the wrong engine.",
        patterns=compile_patterns(
            r"exec: \"(?P<program>[^\"]+)\": (?:stat \S+: no such file or directory|executable file not found)"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D008",
        title="the machine does not have the requested CPU cores",
        cause="cores {asked} were requested, but this machine has {there}",
        fix="correct cpuset in stack.yaml",
        source="Docker engine 28, daemon/daemon_unix.go; reproduced",
        explain="Cores count from 0: four cores are 0-3.",
        patterns=compile_patterns(
            r"Requested CPUs are not available - requested (?P<asked>\S+), available: (?P<there>[\d,-]+)"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D009",
        title="Docker has no free network addresses",
        cause="all of Docker's address pools are in use",
        fix="`docker network prune` removes networks that nothing uses",
        source="Docker engine 28.5, libnetwork/ipamutils; reproduced",
        explain="Each stack has its own network, and Docker has addresses for about 30.",
        patterns=compile_patterns(
            r"all predefined address pools have been fully subnetted|could not find an available.*address pool"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D010",
        title="Compose rejects the file",
        cause="Compose rejects compose.yaml: {problem}",
        fix="`stackgen render` writes it again; Compose must be 2.24 or newer",
        source="Compose 2.24 to 5; reproduced",
        explain="stackgen validates the file with Compose before it writes it. So the file was edited since, or "
        "Compose is another version here.",
        patterns=compile_patterns(
            # anchored, because other programs also log `validating data: …`
            r"^validating .{1,300}?\.ya?ml: (?P<problem>.*)",
            r"yaml: (?P<problem>line \d+.*)",
            r"^(?P<problem>.+): invalid compose project",
            r"(?P<problem>invalid interpolation format for \S*\w)",
        ),
        inputs=("compose",),
    ),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D013",
        title="a local process can't be started",
        cause="{program} can't be started: {problem}",
        fix="install it, or add it to the engine's environment; `scripts/engine-env` creates one",
        source="stackgen's supervisor, exit code 127; reproduced",
        explain="With --runtime process the engines are programs of this machine. stackgen looks in "
        "~/.cache/stackgen/engines/ENGINE first.",
        patterns=compile_patterns(r"^stackgen: cannot start (?P<program>.+): (?P<problem>[^:]+)$"),
    ),
    Rule(
        "SG-D011",
        title="the health check probes the wrong port",
        cause="{service} is ready, but its health check is refused: it probes a different port than the server "
        "listens on",
        fix="remove --port from extra_args: stackgen sets it for the server and its health check alike; then run "
        "`stackgen render`",
        source="vLLM 0.32.0 and FastChat 0.2.36 log that they are ready; reproduced",
        explain="Docker marks the container unhealthy although it serves. Services that depend on it never start.",
        find=_find_wrong_probe,
    ),
    Rule(
        "SG-D012",
        title="the service keeps restarting",
        cause="{service} was restarted {restarts} times, and ended again",
        fix='read the log lines above the last restart; restart: "no" in stack.yaml leaves the container as it ended',
        source="Docker: RestartCount; stackgen's supervise.sh, `the service was healthy and ended`",
        explain="`unless-stopped` and `always` loop forever on a start that can't succeed. stackgen's default, "
        "on-failure:3, has a limit. A service that dies after it was healthy is restarted inside its container. "
        "Docker's restart count does not include that, so the container may look healthy at this moment.",
        find=_find_restart_loop,
        fallback=True,
    ),
)
