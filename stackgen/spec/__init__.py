"""What the user wrote: the fields of `stack.yaml` that all engines share.

Each engine adds its own fields in its own file (`stackgen/engines/`). All models are frozen and refuse
unknown fields; messages about mistakes are made in `stackgen.stack.load`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stackgen.spec.addons import Gateway, GatewaySpec, Monitoring, MonitoringSpec, Ui, UiSpec
from stackgen.spec.base import (
    NAME,
    PROVIDERS,
    EndpointSpec,
    EndpointsSpec,
    EnvValue,
    FallbackSpec,
    Gpus,
    LoggingSpec,
    ModelSpec,
    Size,
    StorageSpec,
    Strict,
    Text,
    human_int,
    is_local,
)

__all__ = [
    "PROVIDERS", "EndpointSpec", "EndpointsSpec", "EnvValue", "FallbackSpec", "GatewaySpec", "Gpus", "LoggingSpec",
    "ModelSpec", "MonitoringSpec", "Size", "StackSpec", "StorageSpec", "Strict", "Text", "UiSpec", "human_int",
    "is_local",
]  # fmt: skip


class StackSpec(Strict):
    """A whole stack. `models` hold the engines' own subclasses of `ModelSpec`."""

    name: str = Field(pattern=NAME, description="Name of the stack: Compose project, and prefix of its containers")
    models: tuple[Any, ...] = Field(min_length=1, description="The models to serve; fields differ by `engine`")
    port: int = Field(8000, ge=1, le=65535, description="First port on this machine; further endpoints count up")
    bind: str = Field(
        "127.0.0.1",
        pattern=r"^(\d{1,3}(\.\d{1,3}){3}|\[?[0-9a-fA-F:]+\]?)$",
        description="Address the ports bind; 0.0.0.0 opens them to everyone who reaches this machine",
    )
    gpu_driver: Literal["nvidia", "cdi", "amd"] = Field(
        "nvidia", description="How GPUs are reserved: NVIDIA's runtime, CDI names, or AMD device files"
    )
    cpu_arch: Literal["x86_64", "arm64"] = Field("x86_64", description="Architecture of the CPU images")
    storage: StorageSpec = Field(StorageSpec(), description="Where the weights live")
    restart: str = Field(
        "on-failure:3",
        pattern=r"^(no|always|unless-stopped|on-failure(:[1-9][0-9]*)?)$",
        description="Restart policy. The default retries a start three times, then stops and leaves the reason in "
        "the log; an engine that dies after it was healthy is started again every time",
    )
    logging: LoggingSpec = Field(LoggingSpec(), description="Log rotation")
    endpoints: tuple[EndpointSpec, ...] = Field(
        (), description="Endpoints that run elsewhere and that `check` and `ask` know beside the stack's own"
    )
    gateway: Gateway = Field(
        None,
        description="One URL for all models, with keys and an allow-list of paths: `true`, `false`, or its settings. "
        "Default: on for more than one model or replica, and where `bind` is not loopback",
    )
    monitoring: Monitoring = Field(None, description="Prometheus and Grafana: `true`, or their settings")
    ui: Ui = Field(None, description="A chat page wired to the gateway: open-webui")

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the ports: `bind` is not a loopback address."""
        return not self.bind.startswith("127.") and self.bind not in ("::1", "[::1]")
