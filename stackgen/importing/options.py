"""The options of a container (`docker run --help` of Docker 28.5, the Compose specification), and what becomes of them.

Both write the same options: `--shm-size` is `shm_size`. The tables use the names of `docker run`.
"""

from __future__ import annotations

import re

from stackgen.importing.container import Container, GpuAsk, Value, parse_port, parse_size, parse_volume
from stackgen.importing.ledger import Ledger, Word

__all__ = ["ALIASES", "SWITCHES", "apply_option"]

# options of `docker run` and `podman run` without a value
SWITCHES = frozenset(
    [
        "detach",
        "disable-content-trust",
        "help",
        "init",
        "interactive",
        "no-healthcheck",
        "oom-kill-disable",
        "privileged",
        "publish-all",
        "quiet",
        "read-only",
        "rm",
        "sig-proxy",
        "tty",
        "use-api-socket",
        "replace",
        "tls-verify",
        "no-hosts",
        "no-hostname",
    ]
)
ALIASES = {
    "-d": "detach", "-i": "interactive", "-t": "tty", "-e": "env", "-p": "publish", "-v": "volume", "-u": "user",
    "-w": "workdir", "-m": "memory", "-l": "label", "-h": "hostname", "-c": "cpu-shares", "-P": "publish-all",
    "-q": "quiet", "-a": "attach", "--net": "network",
}  # fmt: skip
SUPERVISED = (
    "stackgen starts and restarts containers itself: it tries a start four times, and restarts engines that die later"
)
BUILT_IN = {
    "detach": "`stackgen up` starts containers in the background", "interactive": "a server reads no input",
    "tty": "a server needs no terminal", "rm": "`stackgen down` removes the containers",
    "init": "stackgen sets this option if a service needs it",
    "name": "stackgen chooses the names of containers", "pull": "stackgen pulls images that are missing",
    "quiet": "this only changes what `docker run` prints", "sig-proxy": "this only affects `docker run`",
    "replace": "`stackgen up` recreates containers", "help": "this only prints the help",
    "attach": "this only affects `docker run`",
    "health-cmd": "stackgen's own health check generates a token",
    "healthcheck": "stackgen's own health check generates a token",
    "health-interval": "stackgen has its own health check", "health-retries": "stackgen has its own health check",
    "health-start-interval": "stackgen has its own health check",
    "health-start-period": "stackgen computes the start period",
    "health-timeout": "stackgen has its own health check", "stop-timeout": "stackgen waits until requests have ended",
    "stop-signal": "stackgen stops engines itself", "expose": "containers in the same network can reach all ports of "
    "each other",
    "depends_on": "stackgen computes the order of starts", "link": "services of a stack find each other by name",
    "version": "Compose ignores it", "cap-drop": "stackgen drops all capabilities",
    "container_name": "stackgen chooses the names of containers",
    "pull_policy": "stackgen pulls images that are missing",
    "attach_logs": "this only changes what `docker compose up` prints",
}  # fmt: skip
DROPPED = {
    "ulimit": "stack.yaml has no field for limits of processes; NCCL needs no locked memory inside one machine",
    "memory": "stack.yaml has no memory limit, because an engine that exceeds a limit is killed",
    "cpus": "to limit CPU cores, set `cpuset`",
    "memory-swap": "stack.yaml has no memory limit", "memory-reservation": "stack.yaml has no memory limit",
    "privileged": "engines don't need full access to this machine",
    "cpu-shares": "to limit CPU cores, set `cpuset`", "cap-add": "stackgen's containers run without Linux capabilities",
    "security-opt": "stackgen sets no-new-privileges, and needs no other security option",
    "add-host": "stack.yaml has no field for host names", "hostname": "containers are known by their service's name",
    "dns": "stack.yaml has no field for DNS servers: set them in Docker's daemon.json",
    "platform": "stackgen chooses the platform: set `cpu_arch` for CPU images",
    "workdir": "the paths of a stack don't depend on a working directory",
    "tmpfs": "/tmp is writable in memory; stack.yaml has no field for other places",
    "pid": "stackgen's containers see only their own processes",
    "userns": "stack.yaml has no field for user namespaces",
    "device": "stack.yaml has no field for devices other than GPUs",
    "sysctl": "stack.yaml has no field for kernel settings", "oom-score-adj": "stack.yaml has no field for this "
    "setting",
    "volumes-from": "stack.yaml has no field for this setting: list the folders in `mounts`",
    "profiles": "a stack starts all of its models",
    "secrets": "stack.yaml has no field for further secrets: use `extra_env` with from_env", "configs": "use `mounts`",
    "publish-all": "stackgen publishes only the port of the stack",
    "extra_hosts": "stack.yaml has no field for host names",
    "build": "stackgen does not build your Dockerfile: build the image yourself, and set `image`",
}  # fmt: skip
DANGERS = {
    "privileged": "gave the container full access to this machine; engines don't need it",
    "cap-add": "gave the container rights that engines don't need",
    "pid": "let the container see the processes of this machine",
    "security-opt": "may have removed a protection of the container",
}


def apply_option(container: Container, name: str, word: Word, ledger: Ledger, value: str | None = None) -> None:
    """Puts the option `name` with its value into `container`, or says what becomes of it."""
    text, item = word.text if value is None else value, word.item
    known = Value(text, item, word.unknown)
    if name in DANGERS and str(text).lower() not in ("false", "no-new-privileges", "no-new-privileges:true"):
        ledger.warn(item.place, f"{name} {DANGERS[name]}")
    if name == "env":
        _add_variable(container, text, word)
    elif name == "publish":
        port = parse_port(text, item)
        if port is None:
            item.drop("stackgen publishes single TCP ports: set `port`")
        else:
            container.ports.append(port)
    elif name == "volume":
        mount = parse_volume(text, item)
        if mount is None:
            item.drop("an anonymous volume: its files are lost with the container")
        else:
            container.mounts.append(mount)
    elif name == "gpus":
        container.gpus.append(parse_gpus(text, word))
    elif name == "device" and (ask := _device(text, word)):
        container.gpus.append(ask)
    elif name == "runtime":
        item.build_in("stackgen requests GPUs from Docker, which needs no runtime option")
        if "nvidia" in text and not container.gpus:
            container.gpus.append(GpuAsk(item))
    elif name in ("network", "network_mode"):
        _set_network(container, text, word, ledger)
    elif name == "shm-size" and (size := parse_size(text)):
        item.note = f"written as {size}" if size not in text.lower().split("=")[-1:] else ""
        container.options["shm_size"] = Value(size, item, word.unknown)
    elif name == "ipc":
        item.build_in(
            "stackgen computes `shm_size` instead: set `ipc: host` if the engine needs the machine's shared memory"
        )
        if text == "host":
            ledger.warn(item.place, "ipc: host shares memory segments with the whole machine; the stack has `shm_size`")
    elif name == "user":
        container.options["user"] = known
    elif name == "group-add":
        before = container.options.get("group_add")
        container.options["group_add"] = Value([*(before.value if before else []), text], item)
    elif name == "cpuset-cpus" and re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        container.options["cpuset"] = known
    elif name == "read-only":
        container.options["read_only"] = Value(text != "false", item)
    elif name == "label":
        label, _, content = text.partition("=")
        container.labels[label] = Value(content, item)
    elif name == "restart":
        _set_restart(container, text, word)
    elif name in ("log-driver", "log-opt"):
        _set_logging(container, name, text, word)
    elif name == "platform" and text in ("linux/amd64", "linux/x86_64"):
        item.build_in("this is the default")
    elif name in BUILT_IN:
        item.build_in(BUILT_IN[name])
    else:
        item.drop(DROPPED.get(name, "stack.yaml has no field for this option"))


def _add_variable(container: Container, text: str, word: Word) -> None:
    name, equals, value = text.partition("=")
    # without `=`, Docker passes the variable of the shell
    known = Value(value if equals else f"${{{name}}}", word.item, word.unknown if equals else (name,))
    container.environment[name] = known


def parse_gpus(text: str, word: Word) -> GpuAsk:
    """Parses the value of `--gpus` or `gpus:`: `all`, a number, `device=0,1`, `"device=0,1"`, `count=2`."""
    clean = text.strip("'\" ").replace('"', "").replace("'", "")
    if clean == "all":
        return GpuAsk(word.item, everything=True)
    if clean.isdigit():
        return GpuAsk(word.item, count=int(clean), nothing=int(clean) == 0)
    if match := re.search(r"device=([^;]+)", clean):
        ids = tuple(one for one in re.split(r",", match[1]) if one and "=" not in one)
        # Docker treats `all` in a list of devices as every GPU
        return GpuAsk(word.item, everything=True) if ids == ("all",) else GpuAsk(word.item, ids=ids)
    if match := re.search(r"count=(-?\d+|all)", clean):
        everything, count = match[1] in ("all", "-1"), int(match[1]) if match[1].isdecimal() else 0
        return GpuAsk(word.item, count, everything=everything, nothing=not everything and count == 0)
    return GpuAsk(word.item, everything="all" in clean)


def _device(text: str, word: Word) -> GpuAsk | None:
    """A GPU in the form of a device: a CDI name, or the device files of AMD and NVIDIA."""
    if match := re.fullmatch(r"nvidia\.com/gpu=(.+)", text):
        if match[1] == "all":
            return GpuAsk(word.item, everything=True, driver="cdi")
        return GpuAsk(word.item, ids=(text,), driver="cdi")
    if text.startswith(("/dev/kfd", "/dev/dri")):
        return GpuAsk(word.item, everything=True, driver="amd")
    if match := re.match(r"/dev/nvidia(\d+)", text):
        return GpuAsk(word.item, ids=(match[1],))
    if text.startswith("/dev/nvidia"):
        return GpuAsk(word.item)
    return None


def _set_network(container: Container, text: str, word: Word, ledger: Ledger) -> None:
    if text == "host":
        container.host_network = True
        word.item.build_in("the stack publishes only its port, which the engine needs")
        ledger.warn(
            word.item.place, "the host's network made every port of the container reachable; the stack publishes one"
        )
    elif text in ("bridge", "default"):
        word.item.build_in("a stack has its own network")
    elif text == "none":
        word.item.drop("a server without a network can't be reached")
    else:
        networks = container.options.get("networks")
        container.options["networks"] = Value([*(networks.value if networks else []), text], word.item)


def _set_restart(container: Container, text: str, word: Word) -> None:
    if text == "no":
        container.options["restart"] = Value("no", word.item)
    else:
        word.item.build_in(f"instead of `{text}`: {SUPERVISED}")


def _set_logging(container: Container, name: str, text: str, word: Word) -> None:
    option, _, value = text.partition("=")
    if name == "log-driver" and text in ("json-file", "local"):
        word.item.build_in("stackgen uses the log driver json-file, and limits the size of its logs")
    elif option == "max-size" and re.fullmatch(r"[1-9][0-9]*[kmg]", value.lower()):
        container.options["logging.max_size"] = Value(value.lower(), word.item)
    elif option == "max-file" and value.isdigit():
        container.options["logging.max_file"] = Value(int(value), word.item)
    else:
        word.item.drop("stackgen's containers log to json-file")
