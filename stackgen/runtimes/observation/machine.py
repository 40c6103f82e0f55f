"""The facts of this machine. Every probe is short, they run side by side, and one that fails leaves "unknown"."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.doctor.facts import Container, Disk, Host, Listener
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.observation.gpu_tools import SECONDS, ask_tool, cdi_kinds, has_toolkit, nvidia

if TYPE_CHECKING:
    from stackgen.stack.folder import Stack

__all__ = ["gather_host", "read_addresses", "read_cpu", "read_meminfo", "read_tcp"]


def gather_host(stack: Stack | None = None) -> Host:
    """The facts of this machine, as far as they can be had within about three seconds."""
    storage = stack.spec.storage if stack else None
    path = str(stack.folder / os.path.expanduser(storage.path)) if stack and storage and storage.path else ""
    probes: list[Callable[[], dict[str, Any]]] = [
        lambda: _docker(storage.volume if storage and not path else ""), _compose, _buildx, lambda: nvidia(ask_tool)
    ]  # fmt: skip
    # with a remote engine, ports, memory and cards of this machine tell nothing about where the containers run
    if os.environ.get("DOCKER_HOST", "").startswith(("tcp:", "ssh:", "http")):
        probes = probes[:3]
    else:
        probes += [_memory, _cpu, _listeners, _addresses, _paths, lambda: _storage(path)]
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(len(probes)) as pool:
        for done in [pool.submit(_safe, probe) for probe in probes]:
            found |= done.result()
    return Host(**found)


def _safe(probe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    # whatever a machine answers, doctor must go on with the rest
    try:
        return probe()
    except Exception:
        return {}


def _docker(volume: str) -> dict[str, Any]:

    found: dict[str, Any] = {"docker_cli": shutil.which("docker") is not None}
    try:
        _knock(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
        client = sdk().from_env(timeout=SECONDS)
        info = client.info()
    except (sdk().errors.DockerException, OSError) as error:
        text = str(error)
        state = "denied" if "Permission" in text else "missing" if re.search("No such file|refused", text) else "silent"
        return found | {"engine_state": state, "engine_error": text[:200]}
    with closing(client):
        root = info.get("DockerRootDir") or ""
        found |= {
            "engine_state": "ok",
            "engine": info.get("ServerVersion"),
            "cgroup": int(info["CgroupVersion"]) if str(info.get("CgroupVersion", "")).isdecimal() else None,
            "runtimes": tuple(sorted(info.get("Runtimes") or ())),
            "images": tuple(tag for image in client.api.images() for tag in image.get("RepoTags") or ()),
            "containers": tuple(_container(one) for one in client.api.containers()),
        }
        if os.path.isdir(root):
            found["docker_disk"] = _disk(root)
        if volume:
            found["storage_root"] = _volume(client, volume)
    return found


def _knock(host: str) -> None:
    """Raises OSError where the socket refuses: the library would leave its own half-open."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(SECONDS)
            knocking.connect(host.removeprefix("unix://"))


def _container(about: dict[str, Any]) -> Container:
    ports = tuple(
        dict.fromkeys((p.get("IP") or "0.0.0.0", p["PublicPort"]) for p in about["Ports"] if "PublicPort" in p)
    )
    project = (about.get("Labels") or {}).get("com.docker.compose.project", "")
    return Container((about["Names"] or ["/?"])[0].lstrip("/"), project, ports)


def _volume(client: Any, name: str) -> str | None:
    """The volume's folder where this user may read it, "" where there is no such volume yet, else None."""
    try:
        path = client.api.inspect_volume(name).get("Mountpoint") or ""
    except sdk().errors.NotFound:
        return ""
    return path if path and os.access(path, os.R_OK | os.X_OK) else None


def _compose() -> dict[str, Any]:
    done = ask_tool(["docker", "compose", "version", "--short"])
    if done is None:
        return {"compose_missing": True} if not shutil.which("docker") else {}
    return {"compose": done[1].strip()} if done[0] == 0 else {"compose_missing": True}


def _buildx() -> dict[str, Any]:
    done = ask_tool(["docker", "buildx", "version"])
    if done is None:
        return {"buildx_missing": True} if not shutil.which("docker") else {}
    match = re.search(r"v?\d+\.\d+\S*", done[1])
    return {"buildx": match[0] if match else done[1].strip()} if done[0] == 0 else {"buildx_missing": True}


def _disk(path: str) -> Disk:
    return Disk(path, shutil.disk_usage(path).free, os.stat(path).st_dev)


def _storage(path: str) -> dict[str, Any]:
    if not path:
        return {}
    if not os.path.isdir(path):
        return {"storage_root": ""}
    return {"storage_disk": _disk(path), "storage_root": path if os.access(path, os.R_OK | os.X_OK) else None}


def _memory() -> dict[str, Any]:
    total, available = read_meminfo(Path("/proc/meminfo").read_text())
    try:
        size = os.statvfs("/dev/shm")
        shm = size.f_blocks * size.f_frsize
    except OSError:
        shm = None
    return {"memory_total": total, "memory_available": available, "shm": shm}


def read_meminfo(text: str) -> tuple[int | None, int | None]:
    """All memory and what is available, in bytes, from /proc/meminfo."""
    values = dict(re.findall(r"(?m)^(MemTotal|MemAvailable):\s+(\d{1,15}) kB", text, re.ASCII))
    total, available = (int(values[name]) * 1024 if name in values else None for name in ("MemTotal", "MemAvailable"))
    return total, available


def _cpu() -> dict[str, Any]:
    arch = {"amd64": "x86_64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    # of the whole machine, as Docker hands out its cores, and not of this process
    return {"cpu_arch": arch, "cpu_count": os.cpu_count(), "cpu_flags": read_cpu(Path("/proc/cpuinfo").read_text())}


def read_cpu(text: str) -> frozenset[str] | None:
    """The instruction sets in /proc/cpuinfo; None where it names none."""
    match = re.search(r"(?m)^(?:flags|Features)\s*:\s*(.*)$", text)
    return frozenset(match[1].split()) if match else None


def _listeners() -> dict[str, Any]:
    rows: list[tuple[str, int, str]] = []
    for name in ("tcp", "tcp6"):
        try:
            rows += read_tcp(Path("/proc/net", name).read_text())
        except FileNotFoundError:  # no IPv6 here
            continue
    holders = _holders({inode for _, _, inode in rows})
    return {"listeners": tuple(Listener(address, port, holders.get(inode, "")) for address, port, inode in rows)}


def read_tcp(text: str) -> list[tuple[str, int, str]]:
    """Listening sockets of /proc/net/tcp or tcp6, as (address, port, inode); lines that are none are left out."""
    found = []
    for line in text.splitlines():
        cells = line.split()
        # 0A is TCP_LISTEN
        if len(cells) < 10 or cells[3] != "0A":
            continue
        match = re.fullmatch(r"([0-9A-Fa-f]{8}|[0-9A-Fa-f]{32}):([0-9A-Fa-f]{4})", cells[1])
        if match:
            found.append((_address(match[1]), int(match[2], 16), cells[9]))
    return found


def _address(text: str) -> str:
    """The kernel prints each 32 bits in the machine's own byte order."""
    words = [int(text[place : place + 8], 16) for place in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return str(IPv4Address(packed)) if len(packed) == 4 else str(IPv6Address(packed))


def _holders(inodes: set[str]) -> dict[str, str]:
    """Sockets' inodes to the processes that hold them, as far as this user may see."""
    found: dict[str, str] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or len(found) == len(inodes):
            continue
        try:
            held = {_socket(folder / "fd" / name) for name in os.listdir(folder / "fd")} & inodes
            if held:
                name = (folder / "comm").read_text().strip()
                found |= dict.fromkeys(held, f"{name} (pid {folder.name})")
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def _socket(path: Path) -> str:
    """The inode of the socket behind a file descriptor, "" for anything else and for one closed meanwhile."""
    try:
        link = os.readlink(path)
    except OSError:
        return ""
    return link[8:-1] if link.startswith("socket:[") else ""


def _addresses() -> dict[str, Any]:
    return {"addresses": read_addresses(Path("/proc/net/fib_trie").read_text()) or None}


def read_addresses(text: str) -> tuple[str, ...]:
    """This machine's own IPv4 addresses, from /proc/net/fib_trie."""
    return tuple(dict.fromkeys(re.findall(r"\|-- ([\d.]{7,15})\n\s+/32 host LOCAL", text)))


def _paths() -> dict[str, Any]:
    return {"toolkit": has_toolkit(), "cdi": cdi_kinds(), "amd": os.path.exists("/dev/kfd")}
