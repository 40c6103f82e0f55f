"""Collects facts about this machine. The probes run in parallel. If a probe fails, its facts are unknown (None)."""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.doctor.facts import Disk, Host, Listener
from stackgen.runtimes.compose.docker_sdk import check_socket, sdk
from stackgen.runtimes.compose.project import PROJECT_LABEL
from stackgen.runtimes.observation.containers import list_projects, read_containers
from stackgen.runtimes.observation.gpu_tools import (
    TOOL_TIMEOUT,
    has_nvidia_toolkit,
    read_cdi_kinds,
    read_nvidia_facts,
    run_tool,
)
from stackgen.runtimes.observation.proxies import has_daemon_proxy, read_proxy_facts
from stackgen.stack.project import is_remote_engine

if TYPE_CHECKING:
    from stackgen.stack.folder import Stack

__all__ = [
    "collect_host_facts", "collect_neighbour_facts", "parse_cpu_flags", "parse_local_addresses", "parse_meminfo",
    "parse_tcp_listeners",
]  # fmt: skip


def collect_host_facts(stack: Stack | None = None, limit: float | None = None) -> Host:
    """The facts about this machine that can be collected within `limit` seconds, by default about three.

    A fact of a probe that has not ended by then is None: unknown.
    """
    storage = stack.spec.storage if stack else None
    path = str(stack.folder / os.path.expanduser(storage.path)) if stack and storage and storage.path else ""
    uses_gpus = bool(stack) and any(service.gpus for service in stack.plan.services)  # type: ignore[union-attr]
    probes: list[Callable[[], dict[str, Any]]] = [
        lambda: _docker_facts(storage.volume if storage and not path else "", uses_gpus),
        _compose_facts,
        _buildx_facts,
        read_proxy_facts,
        lambda: read_nvidia_facts(run_tool),
    ]
    # with a remote engine, the containers don't use this machine's ports, memory and GPUs
    if is_remote_engine():
        probes = probes[:4]
    else:
        probes += [_memory_facts, _cpu_facts, _listener_facts, _address_facts, _path_facts]
        probes.append(lambda: _storage_facts(path))
    return _run_probes(probes, limit)


def collect_neighbour_facts(stack: Stack, limit: float) -> Host:
    """The running containers on this machine, their ports and GPUs, and the projects that have a container.

    For a command that starts nothing: a fact that takes longer than `limit` seconds is None, and so are all others.
    """
    uses_gpus = any(service.gpus for service in stack.plan.services)
    probes: list[Callable[[], dict[str, Any]]] = [lambda: _container_facts(uses_gpus)]
    # the indices of UUIDs
    if uses_gpus and not is_remote_engine():
        probes.append(lambda: read_nvidia_facts(run_tool))
    return _run_probes(probes, limit)


def _run_probes(probes: list[Callable[[], dict[str, Any]]], limit: float | None) -> Host:
    found: dict[str, Any] = {}
    # one thread for each probe, so that doctor takes only as long as the slowest probe
    pool = ThreadPoolExecutor(len(probes))
    try:
        done, _ = wait([pool.submit(_run_probe, probe) for probe in probes], timeout=limit)
        for one in done:
            found |= one.result()
    finally:
        # a probe that is still running ends by the time limit of its tool
        pool.shutdown(wait=limit is None)
    return Host(**found)


def _run_probe(probe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    # an unexpected answer of one tool must not hide the facts of the others
    try:
        return probe()
    except Exception:
        return {}


def _docker_facts(volume: str, uses_gpus: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"docker_cli": shutil.which("docker") is not None}
    try:
        check_socket(TOOL_TIMEOUT)
        client = sdk().from_env(timeout=TOOL_TIMEOUT)
        info = client.info()
    except (sdk().errors.DockerException, OSError) as error:
        # the SDK wraps the socket's error, so only the text shows which error it was
        text = str(error)
        state = "denied" if "Permission" in text else "missing" if re.search("No such file|refused", text) else "silent"
        return found | {"engine_state": state, "engine_error": text[:200]}
    with closing(client):
        root = info.get("DockerRootDir") or ""
        found |= {
            "engine_state": "ok",
            "engine": info.get("ServerVersion"),
            "cgroup": int(info["CgroupVersion"]) if str(info.get("CgroupVersion", "")).isdecimal() else None,
            "daemon_proxy": has_daemon_proxy(info),
            "runtimes": tuple(sorted(info.get("Runtimes") or ())),
            # the low-level API: client.images.list() would inspect every image with a request of its own
            "images": tuple(tag for image in client.api.images() for tag in image.get("RepoTags") or ()),
            "containers": tuple(read_containers(client, uses_gpus)),
            "projects": list_projects(client.api.containers(all=True, filters={"label": [PROJECT_LABEL]})),
        }
        # with Docker Desktop or a remote engine, this folder is not on this machine
        if os.path.isdir(root):
            found["docker_disk"] = _read_disk(root)
        if volume:
            # a storage.path is read without Docker
            found["storage_root"] = _volume_folder(client, volume)
    return found


def _container_facts(uses_gpus: bool) -> dict[str, Any]:
    # without an engine, the SDK is not worth its import
    check_socket(TOOL_TIMEOUT)
    with closing(sdk().from_env(timeout=TOOL_TIMEOUT)) as client:
        return {
            "containers": tuple(read_containers(client, uses_gpus)),
            "projects": list_projects(client.api.containers(all=True, filters={"label": [PROJECT_LABEL]})),
        }


def _volume_folder(client: Any, name: str) -> str | None:
    """The volume's folder if this user can read it; "" if the volume does not exist yet; None otherwise."""
    try:
        path = client.api.inspect_volume(name).get("Mountpoint") or ""
    except sdk().errors.NotFound:
        return ""
    return path if path and os.access(path, os.R_OK | os.X_OK) else None


def _compose_facts() -> dict[str, Any]:
    done = run_tool(["docker", "compose", "version", "--short"])
    if done is None:
        return {"compose_missing": True} if not shutil.which("docker") else {}
    return {"compose": done[1].strip()} if done[0] == 0 else {"compose_missing": True}


def _buildx_facts() -> dict[str, Any]:
    done = run_tool(["docker", "buildx", "version"])
    if done is None:
        return {"buildx_missing": True} if not shutil.which("docker") else {}
    # `github.com/docker/buildx 0.29.1+ds1 0.29.1+ds1-4`, or v0.29.1 in other builds
    match = re.search(r"v?\d+\.\d+\S*", done[1])
    return {"buildx": match[0] if match else done[1].strip()} if done[0] == 0 else {"buildx_missing": True}


def _read_disk(path: str) -> Disk:
    return Disk(path, shutil.disk_usage(path).free, os.stat(path).st_dev)


def _storage_facts(path: str) -> dict[str, Any]:
    if not path:
        return {}
    if not os.path.isdir(path):
        return {"storage_root": ""}
    return {"storage_disk": _read_disk(path), "storage_root": path if os.access(path, os.R_OK | os.X_OK) else None}


def _memory_facts() -> dict[str, Any]:
    total, available = parse_meminfo(Path("/proc/meminfo").read_text())
    try:
        size = os.statvfs("/dev/shm")
        shm = size.f_blocks * size.f_frsize
    except OSError:
        shm = None
    return {"memory_total": total, "memory_available": available, "shm": shm}


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """Total and available memory in bytes, from /proc/meminfo; None for a missing line."""
    values = dict(re.findall(r"(?m)^(MemTotal|MemAvailable):\s+(\d{1,15}) kB", text, re.ASCII))
    total, available = (int(values[name]) * 1024 if name in values else None for name in ("MemTotal", "MemAvailable"))
    return total, available


def _cpu_facts() -> dict[str, Any]:
    # the names in stack.yaml's cpu_arch
    arch = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    # the cores of the machine, not of this process, because Docker can assign all of them
    flags = parse_cpu_flags(Path("/proc/cpuinfo").read_text())
    return {"cpu_arch": arch, "cpu_count": os.cpu_count(), "cpu_flags": flags}


def parse_cpu_flags(text: str) -> frozenset[str] | None:
    """The instruction sets in /proc/cpuinfo; None if there are none."""
    match = re.search(r"(?m)^(?:flags|Features)\s*:\s*(.*)$", text)
    return frozenset(match[1].split()) if match else None


def _listener_facts() -> dict[str, Any]:
    rows: list[tuple[str, int, str]] = []
    for name in ("tcp", "tcp6"):
        try:
            rows += parse_tcp_listeners(Path("/proc/net", name).read_text())
        except FileNotFoundError:  # IPv6 is disabled
            continue
    holders = _find_socket_holders({inode for _, _, inode in rows})
    return {"listeners": tuple(Listener(address, port, holders.get(inode, "")) for address, port, inode in rows)}


def parse_tcp_listeners(text: str) -> list[tuple[str, int, str]]:
    """The listening sockets in /proc/net/tcp or tcp6, as (address, port, inode); other lines are skipped."""
    found = []
    for line in text.splitlines():
        cells = line.split()
        # 0A is TCP_LISTEN
        if len(cells) < 10 or cells[3] != "0A":
            continue
        match = re.fullmatch(r"([0-9A-Fa-f]{8}|[0-9A-Fa-f]{32}):([0-9A-Fa-f]{4})", cells[1])
        if match:
            found.append((_format_address(match[1]), int(match[2], 16), cells[9]))
    return found


def _format_address(text: str) -> str:
    """An address of /proc/net/tcp in the usual notation."""
    # the kernel prints each 32-bit word in the machine's byte order
    words = [int(text[place : place + 8], 16) for place in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return str(IPv4Address(packed)) if len(packed) == 4 else str(IPv6Address(packed))


def _find_socket_holders(inodes: set[str]) -> dict[str, str]:
    """Socket inode -> `NAME (pid N)` of the process that holds it, as far as this user can see."""
    found: dict[str, str] = {}
    for folder in Path("/proc").iterdir():
        # once every socket has its process, the rest of /proc need not be read
        if not folder.name.isdecimal() or len(found) == len(inodes):
            continue
        try:
            held = {_socket_inode(folder / "fd" / name) for name in os.listdir(folder / "fd")} & inodes
            if held:
                name = (folder / "comm").read_text().strip()
                found |= dict.fromkeys(held, f"{name} (pid {folder.name})")
        except OSError:  # the process has exited, or belongs to another user
            continue
    return found


def _socket_inode(path: Path) -> str:
    """The inode of a file descriptor's socket; "" if the descriptor is not a socket or was closed."""
    try:
        link = os.readlink(path)
    except OSError:
        return ""
    return link[8:-1] if link.startswith("socket:[") else ""


def _address_facts() -> dict[str, Any]:
    return {"addresses": parse_local_addresses(Path("/proc/net/fib_trie").read_text()) or None}


def parse_local_addresses(text: str) -> tuple[str, ...]:
    """This machine's own IPv4 addresses, from /proc/net/fib_trie."""
    return tuple(dict.fromkeys(re.findall(r"\|-- ([\d.]{7,15})\n\s+/32 host LOCAL", text)))


def _path_facts() -> dict[str, Any]:
    return {"toolkit": has_nvidia_toolkit(), "cdi": read_cdi_kinds(), "amd": os.path.exists("/dev/kfd")}
