"""Local processes: every service on 127.0.0.1 with a port of its own, and the host's own paths."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from stackgen.plan import GpuRequest
from stackgen.resources import templates_dir

__all__ = ["LOOPBACK", "ProcessSite", "hub_dir"]

LOOPBACK = "127.0.0.1"
# Where scripts lie that a container finds mounted at one place
SCRIPTS = ("images/common", "engines")


def hub_dir() -> Path:
    """The user's Hugging Face folder, whose `hub/` is the cache: what was fetched by hand is found there.

    Source: huggingface_hub, constants.py: HF_HOME, else `huggingface` in XDG_CACHE_HOME, else in `~/.cache`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser().absolute()


@dataclass(slots=True)
class ProcessSite:
    """Services are processes of this machine; relative paths of the stack file start at `stack_dir`.

    `state_dir` is a private folder for what they write. `storage` is the folder for weights (None: the user's own
    Hugging Face cache). Internal services get their default port, or the next one that neither another service
    nor `reserved` (the ports that the stack publishes) holds; `ports` tells who got which, in order of asking.
    """

    stack_dir: Path
    state_dir: Path
    storage: str | None = None
    reserved: frozenset[int] = frozenset()
    ports: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def containers(self) -> bool:
        return False

    def url(self, service: str, port: int) -> str:
        return f"http://{LOOPBACK}:{self._port(service, port)}"

    def local_url(self, service: str, port: int) -> str:
        return self.url(service, port)

    def public_url(self, address: str, port: int) -> str:
        # whatever `bind` says: without a container around it, only the key would stand before the program
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

    def script(self, name: str) -> str:
        for folder in SCRIPTS:
            if (found := templates_dir() / folder / name).is_file():
                return str(found)
        raise FileNotFoundError(f"no script {name} in {' or '.join(SCRIPTS)} of {templates_dir()}")

    def image_file(self, image: str, name: str) -> str:
        return str(templates_dir() / "images" / image / name)

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        # a container without a reservation sees no card: here that must be said
        if gpus is None:
            return (("CUDA_VISIBLE_DEVICES", ""),)
        # CDI names end in the index or UUID: nvidia.com/gpu=0
        ids = tuple(id.rpartition("=")[2] for id in gpus.ids) or tuple(map(str, range(gpus.count)))
        if not ids or ids == ("all",):
            return ()
        if gpus.driver == "amd":
            return (("ROCR_VISIBLE_DEVICES", ",".join(ids)),)
        # CUDA counts the fastest card first; nvidia-smi, and so the stack file, counts by the bus
        return (("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), ("CUDA_VISIBLE_DEVICES", ",".join(ids)))

    def _port(self, service: str, port: int) -> int:
        if (service, port) not in self.ports:
            taken = self.reserved | set(self.ports.values())
            self.ports[service, port] = next(number for number in range(port, 65536) if number not in taken)
        return self.ports[service, port]
