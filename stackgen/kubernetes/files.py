"""The files that become ConfigMaps: scripts, the gateway's configuration, and files that the stack file names.

A ConfigMap has at most 1 MiB (Kubernetes 1.37, "ConfigMaps"), and its keys have only letters, digits, `-`, `_` and `.`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.plan import Plan, Service
from stackgen.render.read import read_regular
from stackgen.render.templating import RenderedFile, render_document
from stackgen.resources import templates_dir

__all__ = ["MAX_CONFIG_MAP", "FileMaps"]

MAX_CONFIG_MAP = 2**20
ENDPOINTS = "monitoring/endpoints.yaml"


@dataclass(slots=True)
class FileMaps:
    """Collects the files of one plan while its pods are built."""

    plan: Plan
    own_scripts: set[str] = field(default_factory=set)
    user_files: dict[str, str] = field(default_factory=dict)

    def scripts_of(self, service: Service) -> str:
        """The name of the ConfigMap with the scripts that `service` runs."""
        return {"gateway": "gateway-scripts", "download": "download-scripts"}.get(service.role, "scripts")

    def add_script(self, name: str) -> None:
        """Adds a script that only pods need."""
        self.own_scripts.add(name)

    def add_file(self, source: str, target: str) -> str:
        """Adds a file that the stack file names, and returns its key. Raises StackgenError if it can't be read."""
        path = Path(source)
        try:
            text = read_regular(path).decode("utf-8")
        except UnicodeDecodeError:
            raise _unusable(path, "is not text in UTF-8") from None
        except OSError as error:
            raise _unusable(path, f"can't be read: {error.strerror}") from None
        if len(text) > MAX_CONFIG_MAP // 2:
            raise _unusable(path, "is too large for a ConfigMap")
        # two files may have the same name; not the source, which differs on each machine
        digest = hashlib.sha256(target.encode()).hexdigest()[:6]
        key = f"{digest}-{re.sub(r'[^A-Za-z0-9._-]', '-', path.name)}"
        self.user_files[key] = text
        return key

    def scripts(self) -> tuple[RenderedFile, ...]:
        """The scripts of the plan, without those that only pods need."""
        return tuple(one for one in self._copies() if one.path.startswith("scripts/"))

    def _copies(self) -> Iterator[RenderedFile]:
        for asset in self.plan.assets:
            if asset.path.startswith(("scripts/", "gateway/", "monitoring/dashboards/")):
                yield RenderedFile(asset.path, (templates_dir() / asset.template).read_text("utf-8"))

    def rendered(self) -> Iterator[RenderedFile]:
        """All files that kustomize reads, except the manifests."""
        yield from self._copies()
        for name in sorted({*self.own_scripts, "gateway_reload.sh"}):
            yield RenderedFile(f"scripts/{name}", (templates_dir() / "kubernetes" / name).read_text("utf-8"))
        for document in self.plan.documents:
            # alerts and scrape jobs become objects of the operator
            if not document.path.startswith("monitoring/") or document.path == ENDPOINTS:
                yield render_document(document)
        for key, text in sorted(self.user_files.items()):
            yield RenderedFile(f"files/{key}", text)


def _unusable(path: Path, why: str) -> StackgenError:
    return StackgenError(
        f"{path} {why}",
        "pods get the file from a ConfigMap, so it must be text of at most 512 KiB. Put larger files into the "
        "PersistentVolumeClaim for weights",
    )
