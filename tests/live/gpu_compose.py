"""`docker compose` on the second Docker engine of `gpu_engine`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.live.gpu_image import FAKE_IMAGE

if TYPE_CHECKING:
    from tests.live.gpu_engine import GpuEngine

__all__ = ["Compose"]


class Compose:
    """`docker compose` for a file and project on a `GpuEngine`. Sets the variables that the file requires."""

    def __init__(self, engine: GpuEngine, file: Path, name: str) -> None:
        self.engine, self.file, self.name = engine, file, name
        text = file.read_text("utf-8")
        # `${NAME:?why}` anywhere, and secrets that come from the environment
        required = re.findall(r"(?<!\$)\$\{(\w+):?\?", text)
        required += re.findall(r"^\s+environment: \"?(\w+)\"?\s*(?:#.*)?$", text, re.M)
        self.env = dict.fromkeys(required, "sk-fake")
        # shared volumes are created once per machine, and this engine is another machine
        for name in self._shared_volumes():
            engine.docker("volume", "create", name)

    def __call__(self, *args: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs `docker compose ARGS` with all profiles."""
        start = ("compose", "-f", str(self.file), "-p", self.name, "--profile", "*")
        return self.engine.docker(*start, *args, check=check, timeout=timeout, env=self.env)

    def up(self, wait: bool = False, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Starts all services. `wait`: until they are healthy, which takes a health check's `start_interval`."""
        until = ("--wait", "--wait-timeout", "60") if wait else ()
        return self("up", "-d", "--no-build", "--pull", "never", *until, check=check)

    def images(self) -> dict[str, str]:
        """Returns the platform by image of the services; "" means the engine's own platform."""
        wanted = {service["image"]: service.get("platform", "") for service in self._services()}
        wanted.pop(FAKE_IMAGE, None)
        return wanted

    def missing_binds(self) -> list[Path]:
        """Returns the host paths that services mount and that don't exist yet."""
        mounts = [mount for service in self._services() for mount in service.get("volumes", ())]
        paths = {self.file.parent / mount["source"] for mount in mounts if mount["type"] == "bind"}
        return sorted(path for path in paths if not path.exists())

    def containers(self, service: str = "", state: str = "") -> list[str]:
        """Returns the ids of the project's containers, started or not, filtered by service and state."""
        filters = self._filters(*([f"com.docker.compose.service={service}"] if service else ()))
        if state:
            filters["status"] = [state]
        return [one["Id"] for one in self.engine.api("GET", "/containers/json", all="true", filters=filters)]

    def container(self, service: str) -> str:
        """Returns the id of the service's container, started or not."""
        (found,) = self.containers(service)
        return found

    def remove(self) -> None:
        """Removes the project's containers, networks and volumes, except volumes that another project uses."""
        for container in self.containers():
            self.engine.api("DELETE", f"/containers/{container}", force="true", v="true")
        for network in self.engine.api("GET", "/networks", filters=self._filters()):
            self.engine.api("DELETE", f"/networks/{network['Id']}")
        for volume in self.engine.api("GET", "/volumes", filters=self._filters())["Volumes"] or ():
            # another test may have created one with the same name
            users = {"volume": [volume["Name"]]}
            if not self.engine.api("GET", "/containers/json", all="true", filters=users):
                self.engine.api("DELETE", f"/volumes/{volume['Name']}")

    def _shared_volumes(self) -> list[str]:
        volumes = (yaml.safe_load(self.file.read_text("utf-8")).get("volumes") or {}).values()
        return [one["name"] for one in volumes if one and one.get("external")]

    def _services(self) -> list[dict[str, Any]]:
        """The services of the file. Rendered files need no interpolation to name images and mounts."""
        return list(yaml.safe_load(self.file.read_text("utf-8"))["services"].values())

    def _filters(self, *labels: str) -> dict[str, list[str]]:
        return {"label": [f"com.docker.compose.project={self.name}", *labels]}
