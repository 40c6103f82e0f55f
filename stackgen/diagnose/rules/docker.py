"""Docker and Compose: ports, images, keys, mounts; and what containers show when nothing else tells the cause."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import ended, last_said, telling, was_ready
from stackgen.diagnose.rule import Hit, Place, Rule, patterns

__all__ = ["FIRST", "RULES"]

BOTH: tuple[Place, ...] = ("compose", "docker")
HOST = r"(?:\[[^\]\s]*\]|[\w.*-]*|::)"
# as Python and as curl say it
REFUSED = re.compile(r"[Rr]efused|Couldn't connect to server")


def _wrong_probe(evidence: Evidence) -> Iterator[Hit]:
    for service in evidence.services:
        lines = [line.strip() for line in service.health_log.splitlines() if REFUSED.search(line)]
        if service.state == "running" and service.health != "healthy" and was_ready(service.log) and lines:
            yield Hit(service.service, tuple(lines[-1:]))


def _loops(evidence: Evidence) -> Iterator[Hit]:
    """Docker started it again and again, or supervise.sh did within the container, which Docker does not count."""
    for service in evidence.services:
        again = ended(service.log)
        if again >= 2:
            state = f", {service.state} now" if service.state else ""
            lines = (f"{service.service}: was healthy and ended {again} times{state}", *last_said(service.log))
            yield Hit(service.service, lines, {"restarts": str(service.restarts + again)})
        elif service.restarts >= 2 and not service.works:
            lines = (f"{service.service}: {service.restarts} restarts, {service.state}", *telling(service.log, 4))
            yield Hit(service.service, lines, {"restarts": str(service.restarts)})


FIRST: tuple[Rule, ...] = (
    Rule(
        "SG-D001",
        "the port is held by another program",
        "another program, or another stack, holds port {port} of this machine",
        "stop who holds it (`ss -ltnp`, `docker ps`), or set another `port:` in stack.yaml",
        "Docker engine 28 and docker-proxy; provoked for real",
        "Docker publishes a port of the machine for each endpoint. `stackgen status` of another stack may show it.",
        patterns(
            rf"Bind for {HOST}:(?P<port>\d+) failed: port is already allocated",
            rf"listen \S+ {HOST}:(?P<port>\d+): bind: address already in use",
            rf"failed to bind host port (?:for )?{HOST}:(?P<port>\d+)\S*: address already in use",
        ),
        places=BOTH,
    ),
    Rule(
        "SG-D014",
        "the address in `bind:` is not one of this machine",
        "no network card of this machine has the address {address}",
        "set `bind:` to an address that `ip -br address` shows, or to 0.0.0.0 for all of them",
        "Docker engine 28 and 29, libnetwork/portmapper; errno 99, EADDRNOTAVAIL",
        "An address that a router or a cloud maps to this machine is not its own: bind the inner one. An address that "
        "comes by DHCP or a VPN may be gone after a restart.",
        patterns(
            rf"failed to bind host port (?:for )?(?P<address>{HOST}):\d+\S*: cannot assign requested address",
            rf"listen \S+ (?P<address>{HOST}):\d+: bind: cannot assign requested address",
        ),
        places=BOTH,
    ),
    Rule(
        "SG-D015",
        "Docker may not open this port",
        "the Docker engine has no permission to open port {port} of this machine",
        "set a `port:` from 1024 on, or allow lower ones to rootless Docker: "
        "`sudo sysctl net.ipv4.ip_unprivileged_port_start=80`",
        "Docker engine 28 and 29, libnetwork/portmapper; rootlesskit, port/builtin; errno 13, EACCES",
        "Ports below 1024 belong to root. A Docker engine that runs without root may not open them.",
        patterns(
            rf"failed to bind host port (?:for )?{HOST}:(?P<port>\d+)\S*: permission denied",
            rf"listen \S+ {HOST}:(?P<port>\d+): bind: permission denied",
            r"cannot expose privileged port (?P<port>\d+)",
        ),
        places=BOTH,
    ),
    Rule(
        "SG-D002",
        "an image can't be pulled",
        "the registry does not give the image[[: {image}]]",
        "check the name and this machine's way to the registry, log in (`docker login`), or set `image:`",
        "Docker engine 28, distribution; provoked for real",
        "`denied` and `not found` both mean: no such image, or no right to it. `no such host` is DNS, `x509` a proxy "
        "whose certificate Docker does not know. Docker Hub limits pulls without an account.",
        patterns(
            r"pull access denied for (?P<image>[^,\s]+)",
            r"manifest for (?P<image>\S+) not found",
            r"failed to resolve reference \"(?P<image>[^\"]+)\"",
            r"manifest unknown",
            r"(?:Get|Head) \"https://(?P<image>[^/\"]+)/[^\"]*\": .*(?:no such host|i/o timeout|connection refused|"
            r"Client\.Timeout exceeded|context deadline exceeded|TLS handshake timeout|x509: |network is unreachable|"
            r"server misbehaving|unauthorized: )",
            r"^(?:.{0,300}(?:[Ee]rror|ERROR|failed).{0,300})?toomanyrequests: .*",
            r"(?:[Ee]rror|ERROR).{0,300}: unauthorized: authentication required",
            r"No such image: (?P<image>\S+)",
        ),
        places=BOTH,
    ),
    Rule(
        "SG-D003",
        "the image is for another processor",
        "the image[[ {image}]] holds programs for another architecture",
        "choose an image for this machine: cpu_arch: arm64 or x86_64 in stack.yaml, or another `image:`",
        "Linux, ENOEXEC, provoked for real with a file that is no program; Docker engine 28",
        "`uname -m` says what the machine is, `docker image inspect IMAGE --format {{.Architecture}}` what the image "
        "is for.",
        patterns(
            r"image with reference (?P<image>\S+) was found but (?:its platform|does not (?:match|provide))",
            r"no matching manifest for \S+ in the manifest list",
            r"exec \S+: exec format error",
            r"exec format error",
        ),
        places=("compose", "docker", "log"),
    ),
    Rule(
        "SG-D004",
        "a key is missing in .env",
        "compose.yaml needs {name}, and neither .env nor the environment has it",
        "`stackgen init` writes .env with a new key; with `docker compose -f` give --env-file as well",
        "Compose 2.40, interpolation; provoked for real",
        "No rendered file holds a key: Compose takes it from .env. Compose reads .env from the project's folder only.",
        patterns(r"required variable (?P<name>\w+) is missing a value"),
        places=BOTH,
    ),
    Rule(
        "SG-D005",
        "the Docker engine does not answer",
        "no engine listens where `docker` looks for it",
        "start it (`sudo systemctl start docker`), or join its group (`sudo usermod -aG docker $USER`, log in again)",
        "Docker CLI 28 and 29",
        "`permission denied` on docker.sock: the user is not in the group docker.",
        patterns(
            r"(?i)cannot connect to the docker daemon",
            r"failed to connect to the docker API",
            r"permission denied while trying to connect to the [Dd]ocker",
        ),
        places=BOTH,
    ),
    Rule(
        "SG-D006",
        "a mounted path does not exist",
        "{path} is not on this machine",
        "create it, or correct the path in stack.yaml (`model:`, storage.path, chat_template)",
        "Docker engine 28, daemon/volume; provoked for real",
        "Docker would create a missing folder, empty and owned by root; stackgen's mounts ask it not to.",
        patterns(
            r"bind source path does not exist: (?P<path>\S+)",
            r"failed to mount local volume: mount (?P<path>[^:]+):.*: no such file or directory",
            r"error mounting \"(?P<path>[^\"]+)\" to rootfs.*(?:not a directory|no such file)",
        ),
        places=BOTH,
    ),
    Rule(
        "SG-D007",
        "the image lacks the program",
        "the image has no {program}",
        "use an `image:` of this very engine, or render again if compose.yaml was edited",
        "runc 1.1 to 1.3; provoked for real",
        "Exit code 127. The command of compose.yaml names a program that this "
        "image does not hold; `image:` may name the wrong engine.",
        patterns(r"exec: \"(?P<program>[^\"]+)\": (?:stat \S+: no such file or directory|executable file not found)"),
        places=BOTH,
    ),
    Rule(
        "SG-D008",
        "the machine has not the CPU cores that were asked for",
        "cores {asked} were asked for, there are {there}",
        "correct cpuset in stack.yaml",
        "Docker engine 28, daemon/daemon_unix.go; provoked for real",
        "Cores count from 0: four of them are 0-3.",
        patterns(r"Requested CPUs are not available - requested (?P<asked>\S+), available: (?P<there>[\d,-]+)"),
        places=BOTH,
    ),
    Rule(
        "SG-D009",
        "Docker has no free network addresses",
        "all of Docker's address pools are used up",
        "`docker network prune` removes networks that nothing uses",
        "Docker engine 28.5, libnetwork/ipamutils; provoked for real",
        "Each stack has a network of its own, and Docker has about 30.",
        patterns(r"all predefined address pools have been fully subnetted|could not find an available.*address pool"),
        places=BOTH,
    ),
    Rule(
        "SG-D010",
        "Compose does not take the file",
        "Compose refuses compose.yaml: {problem}",
        "`stackgen render` writes it anew; Compose must be 2.24 or newer",
        "Compose 2.24 to 5; provoked for real",
        "stackgen asks Compose before it writes the file: it was edited since, or Compose is another here.",
        patterns(
            r"^validating .{1,300}?\.ya?ml: (?P<problem>.*)",
            r"yaml: (?P<problem>line \d+.*)",
            r"^(?P<problem>.+): invalid compose project",
            r"(?P<problem>invalid interpolation format for \S*\w)",
        ),
        places=("compose",),
    ),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D013",
        "a local process can't be started",
        "{program} can't be started: {problem}",
        "install it, or put it into the engine's environment; `scripts/engine-env` makes one",
        "stackgen's supervisor, exit code 127; provoked for real",
        "With --runtime process the engines are programs of this machine, first of ~/.cache/stackgen/engines/ENGINE.",
        patterns(r"^stackgen: cannot start (?P<program>.+): (?P<problem>[^:]+)$"),
    ),
    Rule(
        "SG-D011",
        "the health check asks the wrong port",
        "{service} is ready, and its health check is refused: it asks another port than the server listens on",
        "take --port out of extra_args: stackgen sets it for the server and its check alike; then `stackgen render`",
        "vLLM 0.32.0 and FastChat 0.2.36 log that they are ready; provoked for real",
        "Docker calls the container unhealthy although it serves. What depends on it never starts.",
        find=_wrong_probe,
    ),
    Rule(
        "SG-D012",
        "the service is started again and again",
        "{service} was started again {restarts} times, and ended again",
        'read the lines above the last restart; restart: "no" in stack.yaml leaves the container as it ended',
        "Docker: RestartCount; stackgen's supervise.sh, `the service was healthy and ended`",
        "`unless-stopped` and `always` loop for ever on a start that can't work. stackgen's "
        "default, on-failure:3, has a bound. What dies after it was healthy is started again within its container, "
        "which Docker's count does not show: it may look healthy at this moment.",
        find=_loops,
        fallback=True,
    ),
)
