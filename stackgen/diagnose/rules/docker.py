"""Rules for Docker and Compose: ports, images, keys, mounts, and container states that no log line explains."""

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
    """The log shows that the server is ready, but connections of its health check are refused."""
    for service in evidence.services:
        lines = [line.strip() for line in service.health_log.splitlines() if REFUSED.search(line)]
        # a server that is not ready yet refuses its health check as well
        if service.state == "running" and service.health != "healthy" and has_been_ready(service.log) and lines:
            yield Hit(service.service, tuple(lines[-1:]))


def _find_restart_loop(evidence: Evidence) -> Iterator[Hit]:
    """Docker, or supervise.sh inside the container, restarted the service at least twice."""
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


# these come before every rule that reads logs: if Compose fails, no service has run
COMPOSE_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D001",
        title="another program uses the port",
        cause="another program, or another stack, uses port {port} of this machine",
        fix="stop the program that uses the port (`ss -ltnp` and `docker ps` show it), or set another `port:` in "
        "stack.yaml",
        source="Docker engine 28 and docker-proxy; failure reproduced",
        explain="Docker publishes a port of the host for each endpoint. If another stack uses the port, `stackgen "
        "status` of that stack shows the port.",
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
        fix="set `bind:` to an address that `ip -br address` shows, or to 0.0.0.0 for all addresses",
        source="Docker engine 28 and 29, libnetwork/portmapper; errno 99, EADDRNOTAVAIL",
        explain="A router or a cloud may map a public address to this machine. No network interface has this public "
        "address, so set `bind:` to the internal address. An address that comes from DHCP or a VPN may be gone after "
        "a restart.",
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
        explain="Only root can open ports below 1024, so a rootless Docker engine can't open them.",
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
        "`image:` to another image",
        source="Docker engine 28, distribution; failure reproduced",
        explain="`denied` and `not found` both mean that the image does not exist or that you have no access to the "
        "image. `no such host` means that DNS failed. `x509` means that Docker does not trust the certificate of a "
        "proxy. Docker Hub limits pulls without an account.",
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
        cause="the image[[ {image}]] contains programs for another CPU architecture",
        fix="choose an image for this machine's CPU: set cpu_arch: arm64 or cpu_arch: x86_64 in stack.yaml, or set "
        "another `image:`",
        source="Linux ENOEXEC, reproduced with a file that is not a program; Docker engine 28",
        explain="`uname -m` prints the architecture of the machine. `docker image inspect IMAGE --format "
        "{{.Architecture}}` prints the architecture of the image.",
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
        fix="run `stackgen init`, which writes .env with a new key; if you run `docker compose -f`, pass --env-file "
        "as well",
        source="Compose 2.40, interpolation; failure reproduced",
        explain="No rendered file contains a key, because Compose takes the keys from .env. Compose reads .env only "
        "from the project's folder.",
        patterns=compile_patterns(r"required variable (?P<name>\w+) is missing a value"),
        inputs=BOTH,
    ),
    Rule(
        "SG-D005",
        title="the Docker engine does not answer",
        cause="the `docker` command can't connect to a Docker engine",
        fix="start the engine (`sudo systemctl start docker`), or add your user to the group docker (`sudo usermod "
        "-aG docker $USER`, then log in again)",
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
        fix="create {path}, or correct the path in stack.yaml (`model:`, storage.path, chat_template)",
        source="Docker engine 28, daemon/volume; failure reproduced",
        explain="By default, Docker creates a missing folder that is empty and owned by root. stackgen's mounts turn "
        "this default off.",
        patterns=compile_patterns(
            r"bind source path does not exist: (?P<path>\S+)",
            r"failed to mount local volume: mount (?P<path>[^:]+):.*: no such file or directory",
            r"error mounting \"(?P<path>[^\"]+)\" to rootfs.*(?:not a directory|no such file)",
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D007",
        title="the image does not contain the program to start",
        cause="the image does not contain {program}",
        fix="set `image:` to an image of this engine; if compose.yaml was edited, run `stackgen render` again",
        source="runc 1.1 to 1.3; failure reproduced",
        explain="The exit code is 127. The command in compose.yaml starts a program that this image does not contain. "
        "`image:` may be set to an image of another engine.",
        patterns=compile_patterns(
            r"exec: \"(?P<program>[^\"]+)\": (?:stat \S+: no such file or directory|executable file not found)"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D008",
        title="the machine does not have the requested CPU cores",
        cause="CPU cores {asked} were requested, but this machine has cores {there}",
        fix="correct cpuset in stack.yaml",
        source="Docker engine 28, daemon/daemon_unix.go; failure reproduced",
        explain="The numbers of cores start at 0, so four cores are 0-3.",
        patterns=compile_patterns(
            r"Requested CPUs are not available - requested (?P<asked>\S+), available: (?P<there>[\d,-]+)"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D009",
        title="Docker has no free network addresses",
        cause="all of Docker's address pools are in use",
        fix="run `docker network prune`, which removes unused networks",
        source="Docker engine 28.5, libnetwork/ipamutils; failure reproduced",
        explain="Each stack has its own network, and Docker has addresses for about 30 networks.",
        patterns=compile_patterns(
            r"all predefined address pools have been fully subnetted|could not find an available.*address pool"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D010",
        title="Compose rejects compose.yaml",
        cause="Compose rejects compose.yaml: {problem}",
        fix="run `stackgen render` to write compose.yaml again, and use Compose 2.24 or newer",
        source="Compose 2.24 to 5; failure reproduced",
        explain="stackgen validates compose.yaml with Compose before it writes the file. If Compose rejects "
        "compose.yaml later, the file was edited or this machine has another version of Compose.",
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
        fix="install {program}, or add {program} to the engine's environment; `scripts/engine-env` creates this "
        "environment",
        source="stackgen's supervisor, exit code 127; failure reproduced",
        explain="With --runtime process, the engines run as programs of this machine. stackgen looks for these "
        "programs in ~/.cache/stackgen/engines/ENGINE first.",
        patterns=compile_patterns(r"^stackgen: cannot start (?P<program>.+): (?P<problem>[^:]+)$"),
    ),
    Rule(
        "SG-D011",
        title="the health check probes the wrong port",
        cause="{service} is ready, but its health check is refused because it probes a different port than the server "
        "listens on",
        fix="remove --port from extra_args, then run `stackgen render`; stackgen sets the same port for the server "
        "and its health check",
        source="vLLM 0.32.0 and FastChat 0.2.36 log that they are ready; failure reproduced",
        explain="Docker marks the container unhealthy although the server answers requests. Services that depend on "
        "this container never start.",
        find=_find_wrong_probe,
    ),
    Rule(
        "SG-D012",
        title="the service keeps restarting",
        cause="{service} was restarted {restarts} times and ended again",
        fix='read the log lines before the last restart; to keep the stopped container, set restart: "no" in '
        "stack.yaml",
        source="Docker: RestartCount; stackgen's supervise.sh, `the service was healthy and ended`",
        explain="With `unless-stopped` and `always`, Docker repeats forever a start that can't succeed. stackgen's "
        "default, on-failure:3, limits the number of restarts. If a service dies after it was healthy, supervise.sh "
        "restarts the service inside its container. Docker's restart count does not include these restarts, so the "
        "container may look healthy at this moment.",
        find=_find_restart_loop,
        fallback=True,
    ),
)
