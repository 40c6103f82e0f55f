"""What stands before and beside the models: the gateway with its keys and TLS, monitoring, and a chat page."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from stackgen.spec.base import Strict, Text, short_form

__all__ = ["GatewaySpec", "KeySpec", "MonitoringSpec", "TlsSpec", "UiSpec"]

# Also the name in the log and in metrics
KEY_LABEL = r"^[a-z0-9][a-z0-9_-]{0,31}$"
# HAProxy 3.2 takes no buffer of 256 MB or more, and a body must fit one together with its headers
BODY_SIZE = r"^([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])m$"


class KeySpec(Strict):
    """A client's key, by its name: the key itself stands in no file, only its SHA-256 in `gateway/keys.map`."""

    name: str = Field(pattern=KEY_LABEL, description="Name in logs and metrics; `stackgen keys new NAME` makes its key")
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000, description="Requests in 60 s; more get a 429")
    concurrent_requests: int | None = Field(None, ge=1, le=100_000, description="Requests at once; more get a 429")


class TlsSpec(Strict):
    """HTTPS at the gateway: a certificate of one's own, or a generated one that signs itself."""

    certificate: Text | None = Field(None, description="PEM file: the certificate and its chain")
    key: Text | None = Field(None, description="PEM file of the private key")
    names: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:*-]+$")], ...] = Field(
        ("localhost", "127.0.0.1"), min_length=1, description="Host names and addresses in a generated certificate"
    )
    redirect_port: int | None = Field(None, ge=1, le=65535, description="Port whose plain HTTP is sent on to HTTPS")

    @model_validator(mode="after")
    def _both(self) -> TlsSpec:
        if bool(self.certificate) != bool(self.key):
            raise PydanticCustomError("tls", "needs both `certificate` and `key`, or neither for a generated one")
        return self


def _tls(value: Any) -> Any:
    return {} if value in (True, "generate") else None if value is False else value


def _body_size(value: Any) -> Any:
    if isinstance(value, str) and not re.match(BODY_SIZE, value):
        raise PydanticCustomError("max_body", "must be MiB from 1m to 255m: HAProxy takes no larger buffer")
    return value


class GatewaySpec(Strict):
    """HAProxy before the engines: one URL, keys, an allow-list of paths, balancing and failover."""

    enabled: bool = Field(True, description="`false` turns it off and keeps its settings")
    keys: tuple[KeySpec, ...] = Field(
        (), description="Clients' keys beside that of .env (`default`), which may be listed for its limits"
    )
    tls: Annotated[TlsSpec | None, BeforeValidator(_tls)] = Field(
        None,
        description="HTTPS: `generate`, or `certificate` and `key`",
        json_schema_extra=short_form({"enum": ["generate", True, False]}),
    )
    allow: tuple[Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]*$")], ...] = Field(
        (), description="Paths let through beside the OpenAI API's, e.g. /tokenize; the key is still asked for"
    )
    max_body: Annotated[str, BeforeValidator(_body_size)] = Field(
        "2m",
        description="Largest request, in MiB, 255m at most: memory and time of large ones grow with it",
        json_schema_extra={"pattern": BODY_SIZE},
    )
    timeout: int = Field(600, ge=1, le=86400, description="Seconds of silence from an engine, and of one answer's wait")
    max_queue: int = Field(
        256, ge=0, le=100_000, description="Requests of a model that may wait (0: none); more get a 429"
    )
    queue_timeout: int = Field(60, ge=1, le=3600, description="Seconds that a request may wait for a replica")
    image: Text | None = Field(None, description="Image instead of the pinned HAProxy; name a version")


class MonitoringSpec(Strict):
    """Prometheus and Grafana, on this machine's loopback only."""

    enabled: bool = Field(True, description="`false` turns it off and keeps its settings")
    grafana_port: int = Field(3000, ge=1, le=65535, description="Port of Grafana on 127.0.0.1")
    prometheus_port: int = Field(9090, ge=1, le=65535, description="Port of Prometheus on 127.0.0.1")
    retention: str = Field("15d", pattern=r"^[1-9][0-9]*[hdwy]$", description="How long Prometheus keeps samples")
    ttft_target: float = Field(2.0, gt=0, description="Seconds to the first token above which an alert fires")
    prometheus_image: Text | None = Field(None, description="Image instead of the pinned Prometheus; name a version")
    grafana_image: Text | None = Field(None, description="Image instead of the pinned Grafana; name a version")
    exporter_image: Text | None = Field(None, description="Image that holds stackgen, instead of the one built here")
    dcgm_image: Text | None = Field(None, description="Image instead of the pinned DCGM exporter; name a version")


class UiSpec(Strict):
    """A chat page wired to the gateway."""

    kind: Literal["open-webui"] = Field("open-webui", description="Which page")
    port: int = Field(3080, ge=1, le=65535, description="Port on 127.0.0.1")
    image: Text | None = Field(None, description="Image instead of the pinned one; name a version")


def _switch(value: Any) -> Any:
    """`true` is all defaults, `false` is off."""
    return {"enabled": value} if isinstance(value, bool) else value


def _ui(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


SWITCH = short_form({"type": "boolean"})
Gateway = Annotated[GatewaySpec | None, BeforeValidator(_switch), Field(json_schema_extra=SWITCH)]
Monitoring = Annotated[MonitoringSpec | None, BeforeValidator(_switch), Field(json_schema_extra=SWITCH)]
Ui = Annotated[UiSpec | None, BeforeValidator(_ui), Field(json_schema_extra=short_form({"enum": ["open-webui"]}))]
