"""Local processes: every service listens on 127.0.0.1 with its own port, and uses the host's paths."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from stackgen.plan import Bind, GpuRequest, GroupNode
from stackgen.resources import templates_dir

__all__ = ["LOOPBACK", "ProcessSite", "hub_dir"]

LOOPBACK = "127.0.0.1"
# the folders of scripts in templates/; containers have all scripts in one mounted folder
SCRIPTS = ("images/common", "engines")


def hub_dir() -> Path:
    """The user's Hugging Face folder, which contains the cache `hub/`.

    Source: huggingface_hub, constants.py: HF_HOME, else `huggingface` in XDG_CACHE_HOME, else in `~/.cache`.
    """
    # the user's own cache, so that models downloaded by hand are found
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser().absolute()


@dataclass(slots=True)
class ProcessSite:
    """Processes on this machine. Relative paths in the stack file are relative to `stack_dir`.

    - `state_dir`: private folder for files that the services write.
    - `storage`: folder for weights; None for the user's Hugging Face cache.
    - `reserved`: ports that the stack publishes.
    - `ports`: port by (service, default port). Internal services get their default port, or the next one that is
      neither reserved nor assigned to another service.
    """

    stack_dir: Path
    state_dir: Path
    storage: str | None = None
    reserved: frozenset[int] = frozenset()
    ports: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def uses_containers(self) -> bool:
        return False

    @property
    def is_cluster(self) -> bool:
        return False

    @property
    def nameserver(self) -> str:
        return ""

    def url(self, service: str, port: int) -> str:
        return f"http://{LOOPBACK}:{self._port(service, port)}"

    def own_url(self, service: str, port: int) -> str:
        return self.url(service, port)

    def group_node(self) -> GroupNode:
        raise NotImplementedError("local processes run on one machine")

    def local_url(self, service: str, port: int) -> str:
        return self.url(service, port)

    def public_url(self, address: str, port: int) -> str:
        # ignores `bind`: without a container and a gateway, the key would be the engine's only protection
        return f"http://{LOOPBACK}:{port}/v1"

    def listen(self, service: str, port: int, *, host_port: int = 0) -> tuple[str, int]:
        if host_port:
            self.ports[service, port] = host_port
        return LOOPBACK, self._port(service, port)

    def models_dir(self) -> str:
        return self.host_path(self.storage) if self.storage else str(hub_dir())

    def cache_dir(self) -> str:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return str(cache.absolute() / "stackgen" / "compiled")

    def home_dir(self) -> str:
        return str(self.state_dir.absolute() / "home")

    def local_path(self, path: str) -> str:
        return self.host_path(path)

    def host_path(self, path: str) -> str:
        return os.path.normpath(self.stack_dir.absolute() / os.path.expanduser(path))

    def find_on_disk(self, path: str) -> str:
        return self.host_path(path)

    def mount(self, path: str) -> Bind:
        # a process needs no mount, and follows links by itself
        return Bind(self.host_path(path), self.local_path(path))

    def script(self, name: str) -> str:
        for folder in SCRIPTS:
            if (path := templates_dir() / folder / name).is_file():
                return str(path)
        raise FileNotFoundError(f"{templates_dir()} contains no script {name} in {' or '.join(SCRIPTS)}")

    def image_file(self, image: str, name: str) -> str:
        return str(templates_dir() / "images" / image / name)

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        # a process sees all GPUs, unlike a container without a reservation
        if gpus is None:
            return (("CUDA_VISIBLE_DEVICES", ""),)
        # CDI names end in the index or UUID: nvidia.com/gpu=0
        ids = tuple(id.rpartition("=")[2] for id in gpus.ids) or tuple(map(str, range(gpus.count)))
        if not ids or ids == ("all",):
            return ()
        if gpus.driver == "amd":
            return (("ROCR_VISIBLE_DEVICES", ",".join(ids)),)
        # by default CUDA numbers the fastest GPU first; nvidia-smi and the stack file number by PCI bus
        return (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", ",".join(ids)))

    def _port(self, service: str, port: int) -> int:
        if (service, port) not in self.ports:
            # two engines may have the same default port
            taken = self.reserved | set(self.ports.values())
            self.ports[service, port] = next(number for number in range(port, 65536) if number not in taken)
        return self.ports[service, port]
