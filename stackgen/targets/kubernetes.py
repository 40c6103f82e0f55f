"""Kubernetes: pods that reach each other through Services, and YAML scalars that kubectl reads back unchanged.

Sources: Kubernetes 1.37, "DNS for Services and Pods" (names), "Define Dependent Environment Variables" and
`third_party/forked/golang/expansion` (`$(NAME)` in commands and values); LeaderWorkerSet 0.10.0, `pkg/utils/pod` (the
variables of a group).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stackgen.plan import Bind, GpuRequest, GroupNode
from stackgen.targets import yaml
from stackgen.targets.compose import ComposeSite, RawYaml

__all__ = ["FOLDER", "KubernetesSite", "escape", "format_scalar", "uses_pod_address"]

# the manifests' folder in the stack's folder
FOLDER = "kubernetes"
POD_IP = "$(POD_IP)"
GATEWAY = "gateway"
# the references that this module writes; every other `$` in a command is text
REFERENCES = re.compile(r"\$(?!\((?:POD_IP|LWS_WORKER_INDEX|LWS_LEADER_ADDRESS)\))")


@dataclass(frozen=True, slots=True)
class KubernetesSite:
    """Pods in one namespace. Files that the stack file names are read from `stack_dir`, at the time of rendering."""

    stack_dir: Path = Path()
    namespace: str = "default"
    cluster_domain: str = "cluster.local"

    @property
    def uses_containers(self) -> bool:
        return True

    @property
    def is_cluster(self) -> bool:
        return True

    @property
    def nameserver(self) -> str:
        # HAProxy reads the addresses of the cluster's name servers from the pod's /etc/resolv.conf
        return ""

    def url(self, service: str, port: int) -> str:
        # the Service `gateway` has only the published port
        service = f"{service}-internal" if service == GATEWAY else service
        # the whole name, because HAProxy's resolvers ignore search domains
        return f"http://{service}.{self.namespace}.svc.{self.cluster_domain}:{port}"

    def own_url(self, service: str, port: int) -> str:
        # the name of the Service has the addresses of all replicas
        return f"http://{POD_IP}:{port}"

    def group_node(self) -> GroupNode:
        return GroupNode("$(LWS_WORKER_INDEX)", POD_IP, "$(LWS_LEADER_ADDRESS)")

    def local_url(self, service: str, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    def public_url(self, address: str, port: int) -> str:
        return f"http://gateway.{self.namespace}.svc.{self.cluster_domain}:{port}/v1"

    def listen(self, service: str, port: int, *, host_port: int = 0) -> tuple[str, int]:
        return "0.0.0.0", port

    def models_dir(self) -> str:
        return "/models"

    def cache_dir(self) -> str:
        return "/home/vllm/.cache"

    def home_dir(self) -> str:
        return "/tmp"

    def local_path(self, path: str) -> str:
        return self._containers.local_path(path)

    def host_path(self, path: str) -> str:
        return str(self.find_on_disk(path))

    def find_on_disk(self, path: str) -> str:
        return self._containers.find_on_disk(path)

    def mount(self, path: str) -> Bind:
        return Bind(self.find_on_disk(path), self.local_path(path))

    def script(self, name: str) -> str:
        return self._containers.script(name)

    def image_file(self, image: str, name: str) -> str:
        return self._containers.image_file(image, name)

    def gpu_environment(self, gpus: GpuRequest | None) -> tuple[tuple[str, str], ...]:
        # a device plugin shows a container only its own GPUs
        return ()

    @property
    def _containers(self) -> ComposeSite:
        # the paths in a container are the same: they are in the commands of the images
        return ComposeSite(self.stack_dir, self.stack_dir)


def escape(text: str) -> str:
    """Doubles each `$` of a command or value that the kubelet would expand, except in this module's references."""
    return REFERENCES.sub("$$", text) if "$" in text else text


def uses_pod_address(text: str) -> bool:
    """Whether `text` contains the reference to the pod's address."""
    return POD_IP in text


def format_scalar(value: Any) -> str:
    """Formats `value` as a YAML scalar for kubectl. Raises TypeError if it isn't a scalar, or an EnvRef."""
    # most of them are indentation, or the output of a macro
    if isinstance(value, RawYaml):
        return value
    return _format_text(value) if isinstance(value, str) else yaml.format_scalar(value)


@lru_cache(4096)
def _format_text(value: str) -> str:
    # manifests repeat names and labels many times
    return yaml.format_scalar(value)
