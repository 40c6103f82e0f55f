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
from stackgen.spec.types import NAME, PROVIDERS, EnvValue, Gpus, Text, TokenCount, is_local, parse_token_count

__all__ = [
    "PROVIDERS", "EndpointSpec", "EndpointsSpec", "EnvValue", "FallbackSpec", "GatewaySpec", "Gpus", "LoggingSpec",
    "ModelSpec", "MonitoringSpec", "StackSpec", "StorageSpec", "Strict", "Text", "TokenCount", "UiSpec",
    "is_local", "parse_token_count",
]  # fmt: skip


class StackSpec(Strict):
    """A stack. `models` contains instances of the engines' subclasses of `ModelSpec`."""

    name: str = Field(
        pattern=NAME, description="Name of the stack: the Compose project and the prefix of its containers"
    )
    models: tuple[Any, ...] = Field(min_length=1, description="Models to serve. The fields depend on `engine`")
    port: int = Field(
        8000, ge=1, le=65535, description="First port on this machine. Further endpoints use the next ports"
    )
    bind: str = Field(
        "127.0.0.1",
        pattern=r"^(\d{1,3}(\.\d{1,3}){3}|\[?[0-9a-fA-F:]+\]?)$",
        description="IP address to bind the ports to. 0.0.0.0 opens them to everyone who can reach this machine",
    )
    gpu_driver: Literal["nvidia", "cdi", "amd"] = Field(
        "nvidia", description="How containers get GPUs: the NVIDIA runtime, CDI device names, or AMD device files"
    )
    cpu_arch: Literal["x86_64", "arm64"] = Field(
        "x86_64", description="CPU architecture of the images for models without a GPU"
    )
    storage: StorageSpec = Field(StorageSpec(), description="Where the weights are stored")
    # not unless-stopped, which repeats a start that can't succeed (wrong flag, too little memory) forever
    restart: str = Field(
        "on-failure:3",
        pattern=r"^(no|always|unless-stopped|on-failure(:[1-9][0-9]*)?)$",
        description="Docker restart policy. The default retries a failed start three times and then leaves the reason "
        "in the log. An engine that dies after it was healthy is always restarted",
    )
    logging: LoggingSpec = Field(LoggingSpec(), description="Log rotation")
    endpoints: tuple[EndpointSpec, ...] = Field(
        (), description="Endpoints outside this stack that `stackgen check` and `stackgen ask` can also use"
    )
    gateway: Gateway = Field(
        None,
        description="One URL for all models, with API keys and an allow-list of paths: `true`, `false`, or settings. "
        "Default: `true` with several models or replicas, or if `bind` is not a loopback address",
    )
    monitoring: Monitoring = Field(
        None, description="Prometheus and Grafana: `true`, `false`, or settings. Default: `false`"
    )
    ui: Ui = Field(None, description="Web chat UI that uses the gateway: open-webui. Default: none")

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the ports, that is, `bind` is not a loopback address."""
        # 127.0.0.0/8 is loopback as a whole (RFC 1122, 3.2.1.3)
        return not self.bind.startswith("127.") and self.bind not in ("::1", "[::1]")
