"""The specification of a stack as the user wrote it: the fields of `stack.yaml` that all engines share.

Each engine adds its own model fields in `stackgen/engines/`. All pydantic models are frozen and reject unknown fields.
`stackgen.stack.mistakes` turns validation errors into messages.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stackgen.spec.addons import Gateway, GatewaySpec, Monitoring, MonitoringSpec, Ui, UiSpec
from stackgen.spec.base import (
    EndpointSpec,
    EndpointsSpec,
    FallbackSpec,
    LoggingSpec,
    ModelSpec,
    StorageSpec,
    Strict,
)
from stackgen.spec.cluster import ClaimSpec, KubernetesModelSpec, KubernetesSpec, TolerationSpec
from stackgen.spec.hosts import HostName, HostSpec
from stackgen.spec.strict import allow_instead
from stackgen.spec.types import (
    NAME,
    PROVIDERS,
    Address,
    EnvValue,
    Gpus,
    Text,
    TokenCount,
    is_exposed,
    is_local,
    parse_token_count,
)

__all__ = [
    "PROVIDERS", "ClaimSpec", "EndpointSpec", "EndpointsSpec", "EnvValue", "FallbackSpec", "GatewaySpec", "Gpus",
    "HostSpec", "KubernetesModelSpec", "KubernetesSpec", "LoggingSpec", "ModelSpec", "MonitoringSpec", "StackSpec",
    "StorageSpec", "Strict", "Text", "TokenCount", "TolerationSpec", "UiSpec", "allow_instead", "is_local",
    "parse_token_count",
]  # fmt: skip


class StackSpec(Strict):
    """A stack. `models` contains instances of the engines' subclasses of `ModelSpec`."""

    name: str = Field(
        pattern=NAME, description="Name of the stack and of its Compose project. Container names start with this name"
    )
    models: tuple[Any, ...] = Field(min_length=1, description="Models to serve. The fields depend on `engine`")
    target: Literal["compose", "kubernetes"] = Field(
        "compose",
        description="What is rendered: `compose` for Docker Compose on one machine, or `kubernetes` for manifests",
    )
    port: int = Field(
        8000,
        ge=1,
        le=65535,
        description="Port of the first endpoint on this machine. The other endpoints use the ports after it. On "
        "Kubernetes: port of the Service `gateway`, inside the cluster and at a load balancer",
    )
    # loopback by default: without a gateway, engines answer many paths without a key
    bind: Address = Field(
        "127.0.0.1",
        description="IP address to bind the ports of the API to. 0.0.0.0 opens the ports to everyone who can reach "
        "this machine. The chat UI has its own address, `ui.bind`",
    )
    gpu_driver: Literal["nvidia", "cdi", "amd"] = Field(
        "nvidia", description="How containers get GPUs: the NVIDIA runtime, CDI device names, or AMD device files"
    )
    cpu_arch: Literal["x86_64", "arm64"] = Field(
        "x86_64",
        description="CPU architecture of vLLM's image for models without a GPU. On ARM machines, for example Apple "
        "silicon and AWS Graviton, set arm64. `init` writes it there, and `doctor` compares it with the machine",
    )
    storage: StorageSpec = Field(StorageSpec(), description="Where the weights are stored")
    # not unless-stopped, which repeats a start that can't succeed (wrong flag, too little memory) forever
    restart: str = Field(
        "on-failure:3",
        pattern=r"^(no|always|unless-stopped|on-failure(:[1-9][0-9]*)?)$",
        description="Docker restart policy. By default, a failed start is retried three times, and the service's log "
        "contains the reason for the failure. An engine that was healthy before it died is always restarted",
    )
    logging: LoggingSpec = Field(LoggingSpec(), description="Log rotation")
    proxy: Text | None = Field(
        None,
        pattern=r"^https?://[^\s@]+$",
        description="URL of the HTTP proxy for what connects to the Internet: the download of weights, the chat UI, "
        "and builds of images. If the proxy needs a password, put the whole URL into .env as STACKGEN_PROXY",
    )
    ca_certificates: Text | None = Field(
        None,
        description="PEM file on this machine with all trusted certificate authorities, for networks that intercept "
        "TLS. The download of weights, the chat UI, image builds, the gateway's connections to a `fallback`, and "
        "Prometheus's connections to `monitoring.alertmanager` use this file instead of the public authorities. All "
        "users must be able to read the file",
    )
    endpoints: tuple[EndpointSpec, ...] = Field(
        (), description="Endpoints outside this stack that `stackgen check` and `stackgen ask` can also use"
    )
    # None and not False: then the number of replicas and `bind` decide
    gateway: Gateway = Field(
        None,
        description="Gateway: one URL for all models, with API keys and an allow-list of paths. Write `true`, `false`, "
        "or settings. Default: `true` with several models or replicas, or if `bind` or `ui.bind` is not a loopback "
        "address",
    )
    monitoring: Monitoring = Field(
        None, description="Prometheus and Grafana. Write `true`, `false`, or settings. Default: `false`"
    )
    ui: Ui = Field(
        None,
        description="Web chat UI that sends its requests to the gateway; without a gateway, to the engine. Write "
        "`open-webui`. Default: no chat UI",
    )

    hosts: dict[HostName, HostSpec] = Field(
        {},
        description="The machines of the stack by name, if the stack runs on several machines without Kubernetes. "
        "`render` writes a folder for each machine. The first machine has the gateway and the chat UI. Default: one "
        "machine",
    )
    host: HostName | None = Field(
        None,
        description="Name of the machine in `hosts` to which this folder belongs. `render` writes this field into the "
        "stack.yaml of each folder",
    )
    kubernetes: KubernetesSpec | None = Field(None, description="Settings of the target `kubernetes`")

    @property
    def front(self) -> str:
        """The host with the gateway for all models: the first one. "" without `hosts`."""
        return next(iter(self.hosts), "")

    def is_follower(self, model: ModelSpec) -> bool:
        """Whether this machine only computes for another one that answers the requests of `model`."""
        return getattr(model, "split_hosts", False) and self.host not in model.host[:1]

    @property
    def is_behind_front(self) -> bool:
        """Whether this part of a stack gets its requests from the gateway of another machine."""
        return bool(self.hosts) and self.host != self.front

    @property
    def cluster(self) -> KubernetesSpec:
        """The settings of the target Kubernetes, with their defaults."""
        return self.kubernetes or KubernetesSpec()

    @property
    def namespace(self) -> str:
        """The namespace of the stack's objects on Kubernetes."""
        # a namespace has no underscores, and starts and ends with a letter or digit
        return self.cluster.namespace or self.name.replace("_", "-").strip("-")

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the ports, that is, `bind` is not a loopback address."""
        return is_exposed(self.bind)
