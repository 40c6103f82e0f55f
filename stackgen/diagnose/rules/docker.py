"""Rules for Docker and Compose: ports, images, keys, mounts, and container states that no log line explains."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import count_restarts, find_key_lines, has_been_ready, key_lines_before_restart
from stackgen.diagnose.rule import Hit, Input, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.image_pull import ARCHITECTURE

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
        # Docker does not count restarts by supervise.sh, and reports such a container as healthy
        inside = count_restarts(service.log)
        if inside >= 2:
            state = f", {service.state} now" if service.state else ""
            lines = (f"{service.service}: ended {inside} times after it was healthy{state}",
                     *key_lines_before_restart(service.log))  # fmt: skip
            yield Hit(service.service, lines, {"restarts": str(service.restarts + inside)})
        # Docker's count never goes down again, so a service that works now has overcome its restarts
        elif service.restarts >= 2 and not service.is_working:
            lines = (f"{service.service}: {service.restarts} restarts, {service.state}",
                     *find_key_lines(service.log, 4))  # fmt: skip
            yield Hit(service.service, lines, {"restarts": str(service.restarts)})


EXEC = Variant(
    # the message of a start has `create failed` instead
    compile_patterns(
        r"OCI runtime exec failed: .{0,300}?exec: \\*\"(?P<program>[^\"\\]+)\\*\": (?:stat \S+: no such file or "
        r"directory|executable file not found)"
    ),
    title="a command for a running container is not found in its image",
    cause="a health check or `docker exec` calls {program} in a running container, but {program} is not in the image, "
    "or not in a folder of the image's PATH. The container itself has started",
    fix="if the health check calls the program (`docker inspect --format '{{json .State.Health}}' CONTAINER` shows "
    'it), change the health check to a program that the image has, for example `test: [CMD, python3, -c, "import '
    "urllib.request as u; u.urlopen('http://127.0.0.1:PORT/health')\"]`, or `wget`; the image of the server can stay "
    "as it is; for `docker exec`, use another program",
)

# these come before every rule that reads logs: if Compose fails, no service has run
COMPOSE_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D001",
        title="another program uses the port",
        cause="another program, or another stack, uses port {port} of this machine",
        fix="stop the program that uses the port (`ss -ltnp` and `docker ps` show it), or set another `port:` in "
        "stack.yaml",
        source="The messages come from Docker engine 28 and docker-proxy. The failure was reproduced.",
        explain="Docker publishes a port of the host for each endpoint. If another stack uses the port, `stackgen "
        "status` in the folder of that stack shows the port.",
        patterns=compile_patterns(
            # texts of the port allocator, then of docker-proxy and Docker Desktop, then of the port mapper
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
        source="The messages for errno 99 (EADDRNOTAVAIL) come from Docker engine 28 and 29 "
        "(daemon/libnetwork/portallocator/osallocator_linux.go). OpenSIPS/opensips-softswitch-ce issue 4 quotes one.",
        explain="If a router or a cloud maps a public address to this machine, no network interface of the machine "
        "has the public address. In this case, set `bind:` to the machine's internal address. An address that "
        "comes from DHCP or a VPN may no longer exist after a restart.",
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
        source="The messages for errno 13 (EACCES) come from Docker engine 28 and 29 "
        "(daemon/libnetwork/portallocator/osallocator_linux.go) and from rootlesskit (pkg/port/builtin/builtin.go).",
        explain="Only root can open ports below 1024, so a rootless Docker engine can't open these ports.",
        patterns=compile_patterns(
            rf"failed to bind host port (?:for )?{HOST}:(?P<port>\d+)\S*: permission denied",
            rf"listen \S+ {HOST}:(?P<port>\d+): bind: permission denied",
            # the port driver of rootless Docker prints this line
            r"cannot expose privileged port (?P<port>\d+)",
        ),
        inputs=BOTH,
    ),
    ARCHITECTURE,
    Rule(
        "SG-D004",
        title="a key is missing in .env",
        cause="compose.yaml needs the variable {name}, but neither .env nor the environment sets this variable",
        fix="run `stackgen render`, which writes .env with a new key; if you run `docker compose -f` yourself, pass "
        "the path of .env with `--env-file`",
        source="The message comes from Compose 2.40 (interpolation). The failure was reproduced.",
        explain="No rendered file contains a key, because Compose takes the keys from .env. Compose reads .env only "
        "from the project's folder.",
        patterns=compile_patterns(r"required variable (?P<name>\w+) is missing a value"),
        inputs=BOTH,
    ),
    Rule(
        "SG-D005",
        title="the Docker engine does not answer",
        cause="the `docker` command can't connect to a Docker engine. Either the engine is not running, or it "
        "listens at another address",
        fix="run `docker context ls`, which shows the address that the command uses, and `systemctl status docker`; "
        "if the engine is not running, start it (`sudo systemctl start docker`)",
        source="The messages come from the Docker CLI 28 and 29 (moby, client/errors.go and client/request.go) and "
        "Podman 5 (cmd/podman/root.go and pkg/bindings/connection.go).",
        explain="`permission denied` for the file `docker.sock` means that your user is not in the group `docker`.",
        patterns=compile_patterns(
            r"(?i)cannot connect to the docker daemon",
            r"failed to connect to the docker API",
        ),
        inputs=BOTH,
        variants=(
            Variant(
                compile_patterns(r"Cannot connect to Podman\.|unable to connect to Podman socket"),
                title="Podman does not answer",
                cause="the command can't connect to Podman, because Podman's service or virtual machine is not running",
                fix="on Linux, run `systemctl --user status podman.socket`; if it is not active, run `systemctl "
                "--user start podman.socket`; on macOS and Windows, run `podman machine list`, then `podman machine "
                "start`",
            ),
            Variant(
                compile_patterns(r"permission denied while trying to connect to the [Dd]ocker"),
                cause="your user has no permission to use the Docker engine",
                fix="add your user to the group `docker` (`sudo usermod -aG docker $USER`), and log in again; note "
                "that members of this group have root rights on the machine",
            ),
        ),
    ),
    Rule(
        "SG-D006",
        title="a mounted path does not exist",
        cause="{path} does not exist on this machine",
        fix="create {path}, or correct the path in stack.yaml (`model:`, storage.path, chat_template)",
        source="The messages come from Docker engine 28 (daemon/volume). The failure was reproduced.",
        explain="By default, Docker creates a missing path as an empty folder that belongs to root. stackgen's mounts "
        "turn this default off, so that Docker reports a missing path as an error.",
        patterns=compile_patterns(
            r"bind source path does not exist: (?P<path>\S+)",
            r"failed to mount local volume: mount (?P<path>[^:]+):.*: no such file or directory",
            r"error mounting \"(?P<path>[^\"]+)\" to rootfs.*no such file",
        ),
        # the missing path of a CDI file
        consequence_of=("SG-G026",),
        inputs=BOTH,
        variants=(
            Variant(
                compile_patterns(r"failed to fulfil mount request: open (?P<path>/[^:]+): no such file or directory"),
                cause="{path} does not exist on this machine when the container starts. It may have existed when the "
                "container was created",
                fix="if {path} is on another disk or a network share, mount it first; if it is below /run or /tmp, "
                "something must create it after each reboot; if the project has moved, run `docker compose up -d` in "
                "its current folder; otherwise correct the path of the mount",
            ),
            Variant(
                compile_patterns(
                    r"failed to fulfil mount request: open (?P<path>/[^:]+): not a directory",
                    r"error mounting \"(?P<path>[^\"]+)\" to rootfs(?!.*[Aa]re you trying to mount a directory).*not a "
                    r"directory",
                ),
                title="a mounted path is a file where a folder is expected, or the reverse",
                cause="{path} can't be mounted: it is a file on the host and a folder in the image, or the reverse",
                fix="compare the path on the host (`ls -ld`) with the path in the container, and correct the path in "
                "stack.yaml or in the Compose file",
            ),
        ),
    ),
    Rule(
        "SG-D007",
        title="the program to start is not found in the image",
        cause="{program} can't be started. Either the image does not contain it, or its folder is not in the PATH of "
        "the image, or the container's user has no permission to read it (for example a link into /root)",
        fix="look for the program as root: `docker run --rm --user 0 --entrypoint find IMAGE / -name {program} -ls`; "
        "if it is not there, set `image:` to an image that contains {program}; if it is in a folder of its own, remove "
        "`entrypoint:`, or write the program's full path there; if it is a link into /root, only root can use it: use "
        "another image, or run the container as root if your rules allow this; if stackgen wrote compose.yaml and "
        "somebody edited it, run `stackgen render` again",
        source="The messages come from runc 1.1 to 1.3, crun 1.29 (src/libcrun/utils.c), dash, bash and BusyBox. The "
        "failure was reproduced, but not with crun. opea-project/GenAIComps issue 1549 (2025-04) reports a program "
        "that only root can reach.",
        explain="The container ends with code 127, because the command in compose.yaml starts a program that is not "
        "found. Often, `image:` is set to an image of another engine. runc prints the same message if the user has no "
        "permission to enter the folder that a link points to.",
        patterns=compile_patterns(
            # the hooks of the container toolkit run on the host: SG-G001
            r"executable file `(?P<program>[^`]+)` not found",
            r"exec: \"(?P<program>(?!nvidia-c|-)[^\"]+)\": (?:stat \S+: no such file or directory|executable file not "
            r"found)",
            # a shell starts the program, so runc reports nothing; only supervise.sh, because other scripts go on
            r"supervise\.sh: (?:line )?\d+: (?P<program>[^:\s]+): (?:command )?not found",
        ),
        inputs=("log", "health", *BOTH),
        variants=(EXEC,),
    ),
    Rule(
        "SG-D008",
        title="the machine does not have the requested CPU cores",
        cause="the CPU cores {asked} were requested, but this machine has only the cores {there}",
        fix="correct `cpuset` in stack.yaml",
        source="The message comes from Docker engine 28 (daemon/daemon_unix.go). The failure was reproduced.",
        explain="The first core has the number 0, so a machine with four cores has the cores 0-3.",
        patterns=compile_patterns(
            r"Requested CPUs are not available - requested (?P<asked>\S+), available: (?P<there>[\d,-]+)"
        ),
        inputs=BOTH,
    ),
    Rule(
        "SG-D009",
        title="Docker has no free network addresses",
        cause="all of Docker's address pools are in use",
        fix="list the networks (`docker network ls`); stop stacks that nobody uses with `stackgen down` or `docker "
        "compose down` in their folder, which also removes their networks",
        source="The messages come from Docker engine 28.5 (libnetwork/ipamutils). The failure was reproduced.",
        explain="Each stack has its own network, and Docker's address pools are large enough for about 30 networks.",
        patterns=compile_patterns(
            r"all predefined address pools have been fully subnetted|could not find an available.*address pool"
        ),
        inputs=BOTH,
    ),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-D013",
        title="a local process can't be started",
        cause="{program} can't be started: {problem}",
        fix="install {program}, or add it to the engine's virtual environment, which `scripts/engine-env` creates",
        source="The message comes from stackgen's supervisor, which exits with code 127. The failure was reproduced.",
        explain="With `--runtime process`, the engines run as processes of this machine, without containers. stackgen "
        "looks for the programs in `~/.cache/stackgen/engines/ENGINE` first, and then on the PATH.",
        patterns=compile_patterns(r"^stackgen: cannot start (?P<program>.+): (?P<problem>[^:]+)$"),
    ),
    Rule(
        "SG-D011",
        title="the health check probes the wrong port",
        cause="{service} is ready, but its health check connects to a port on which the server does not listen",
        fix="[[?extra_args.--port|remove --port from extra_args, then ]]run `stackgen render`; stackgen sets "
        "the same port for the server and its health check",
        source="The log lines that show a ready server come from vLLM 0.32.0 and FastChat 0.2.36. The failure was "
        "reproduced.",
        explain="Docker marks the container as unhealthy, although the server answers requests. Services that depend "
        "on this container never start.",
        find=_find_wrong_probe,
    ),
    Rule(
        "SG-D012",
        title="the service keeps restarting",
        cause="{service} was restarted {restarts} times and ended again",
        fix="read the log lines before the last restart; to keep a stopped container for inspection, set `restart` "
        'to "no" in stack.yaml',
        source="The number of restarts comes from Docker's RestartCount, and from the lines `the service was healthy "
        "and ended` of stackgen's supervise.sh.",
        explain="With the restart policy `unless-stopped` or `always`, Docker repeats the start forever, even if the "
        "start can't succeed. stackgen's default policy `on-failure:3` limits the number of restarts. If a service "
        "dies after it was healthy, supervise.sh restarts the service inside its container. Docker does not count the "
        "restarts by supervise.sh, so Docker may report such a container as healthy.",
        find=_find_restart_loop,
        # a cause that the log shows also explains the restarts
        fallback=True,
    ),
)
