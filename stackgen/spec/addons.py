"""The fields of the services next to the models: the gateway with its keys and TLS, monitoring, and a chat UI."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from stackgen.spec.base import Strict, short_form
from stackgen.spec.types import Text

__all__ = ["GatewaySpec", "KeySpec", "MonitoringSpec", "TlsSpec", "UiSpec"]

# the name appears in log lines, metric labels and the columns of keys.map: no spaces, no quotes
KEY_LABEL = r"^[a-z0-9][a-z0-9_-]{0,31}$"
# HAProxy 3.2 refuses buffers of 256 MB and more, and a body and its headers must fit in one buffer
BODY_SIZE = r"^([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])m$"


class KeySpec(Strict):
    """An API key of a client, declared by name. `gateway/keys.map` contains only the key's SHA-256, not the key."""

    name: str = Field(
        pattern=KEY_LABEL, description="Name in logs and metrics. `stackgen keys new NAME` creates the key"
    )
    requests_per_minute: int | None = Field(
        None, ge=1, le=1_000_000, description="Requests allowed in 60 s. Further requests get a 429"
    )
    concurrent_requests: int | None = Field(
        None, ge=1, le=100_000, description="Requests allowed in flight at the same time. Further requests get a 429"
    )


class TlsSpec(Strict):
    """HTTPS at the gateway, with your own certificate or a generated self-signed one."""

    certificate: Text | None = Field(None, description="PEM file with the certificate and its chain")
    key: Text | None = Field(None, description="PEM file with the private key")
    names: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:*-]+$")], ...] = Field(
        ("localhost", "127.0.0.1"), min_length=1, description="Host names and IP addresses in the generated certificate"
    )
    redirect_port: int | None = Field(
        None, ge=1, le=65535, description="Port that redirects plain HTTP to HTTPS. Default: none"
    )

    @model_validator(mode="after")
    def _require_both_files(self) -> TlsSpec:
        if bool(self.certificate) != bool(self.key):
            raise PydanticCustomError(
                "tls", "needs both `certificate` and `key`. Leave out both for a generated certificate"
            )
        return self


def _expand_tls(value: Any) -> Any:
    return {} if value in (True, "generate") else None if value is False else value


def _check_body_size(value: Any) -> Any:
    # not a pattern of the field: its error message would show the regular expression instead of the reason
    if isinstance(value, str) and not re.match(BODY_SIZE, value):
        raise PydanticCustomError("max_body", "must be a size in MiB from 1m to 255m, the largest buffer of HAProxy")
    return value


class GatewaySpec(Strict):
    """HAProxy in front of the engines: one URL, API keys, an allow-list of paths, load balancing and failover."""

    enabled: bool = Field(True, description="`false` disables the gateway and keeps its settings in the file")
    keys: tuple[KeySpec, ...] = Field(
        (),
        description="API keys of clients, in addition to the key in .env. List that key as `default` to set its limits",
    )
    tls: Annotated[TlsSpec | None, BeforeValidator(_expand_tls)] = Field(
        None,
        description="HTTPS: `generate` for a self-signed certificate, or `certificate` and `key`. Default: plain HTTP",
        json_schema_extra=short_form({"enum": ["generate", True, False]}),
    )
    allow: tuple[Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]*$")], ...] = Field(
        (),
        description="Paths to allow in addition to the OpenAI API, for example /tokenize. The paths also require a key",
    )
    max_body: Annotated[str, BeforeValidator(_check_body_size)] = Field(
        "2m",
        description="Largest request body in MiB, at most 255m. With a higher limit, large requests use more memory "
        "and have a higher latency",
        json_schema_extra={"pattern": BODY_SIZE},
    )
    timeout: int = Field(
        600,
        ge=1,
        le=86400,
        description="Seconds without a byte from the engine or the client before the gateway gives up. A stream that "
        "continues is not limited",
    )
    max_queue: int = Field(
        256, ge=0, le=100_000, description="Requests that may queue for a model (0: none). Further requests get a 429"
    )
    queue_timeout: int = Field(60, ge=1, le=3600, description="Seconds that a request may queue for a replica")
    image: Text | None = Field(None, description="Image to use instead of the pinned HAProxy. Include a version tag")


class MonitoringSpec(Strict):
    """Prometheus and Grafana, published on 127.0.0.1 only."""

    enabled: bool = Field(True, description="`false` disables monitoring and keeps its settings in the file")
    grafana_port: int = Field(3000, ge=1, le=65535, description="Port of Grafana on 127.0.0.1")
    prometheus_port: int = Field(9090, ge=1, le=65535, description="Port of Prometheus on 127.0.0.1")
    retention: str = Field(
        "15d",
        pattern=r"^[1-9][0-9]*[hdwy]$",
        description="How long Prometheus keeps samples: a number and h, d, w or y",
    )
    ttft_target: float = Field(
        2.0, gt=0, description="Alert if the time to first token (TTFT) exceeds this many seconds"
    )
    prometheus_image: Text | None = Field(
        None, description="Image to use instead of the pinned Prometheus. Include a version tag"
    )
    grafana_image: Text | None = Field(
        None, description="Image to use instead of the pinned Grafana. Include a version tag"
    )
    exporter_image: Text | None = Field(
        None, description="Image that contains stackgen, instead of the image built on this machine"
    )
    dcgm_image: Text | None = Field(
        None, description="Image to use instead of the pinned DCGM exporter. Include a version tag"
    )


class UiSpec(Strict):
    """A web chat UI that talks to the gateway."""

    kind: Literal["open-webui"] = Field("open-webui", description="Which chat UI")
    port: int = Field(3080, ge=1, le=65535, description="Port of the chat UI on 127.0.0.1")
    image: Text | None = Field(None, description="Image to use instead of the pinned Open WebUI. Include a version tag")


def _expand_switch(value: Any) -> Any:
    """Expands `true` and `false` to `enabled: true` and `enabled: false`."""
    return {"enabled": value} if isinstance(value, bool) else value


def _expand_ui(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


SWITCH = short_form({"type": "boolean"})
Gateway = Annotated[GatewaySpec | None, BeforeValidator(_expand_switch), Field(json_schema_extra=SWITCH)]
Monitoring = Annotated[MonitoringSpec | None, BeforeValidator(_expand_switch), Field(json_schema_extra=SWITCH)]
Ui = Annotated[
    UiSpec | None, BeforeValidator(_expand_ui), Field(json_schema_extra=short_form({"enum": ["open-webui"]}))
]
