"""The fields `gateway` (with `keys` and `tls`), `monitoring` and `ui`."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from stackgen.spec.alerting import Alertmanagers
from stackgen.spec.base import Strict, short_form
from stackgen.spec.keys import KeyDefaults, KeySpec, apply_defaults
from stackgen.spec.types import Address, Text, is_exposed

__all__ = ["GatewaySpec", "KeySpec", "MonitoringSpec", "TlsSpec", "UiSpec"]

# HAProxy 3.2 refuses buffers of 256 MB and more, and a body and its headers must fit in one buffer
BODY_SIZE = r"^([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])m$"

# the Origin header of a browser: scheme and host (or IPv6 address) in lower case, and port
ORIGIN = r"(https?://(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]))(:[0-9]{1,5})?"
# labels of letters, digits, dashes and, in local networks, underscores; only the first may be a wildcard (RFC 6125)
LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST_NAME = rf"(\*\.)?{LABEL}(\.{LABEL})*\.?"
DEFAULT_PORTS = {"http:": ":80", "https": ":443"}


def _check_certificate_name(value: Any) -> Any:
    message = (
        "must be a host name or an IP address, for example gpu1.example.org, *.example.org or 192.168.1.20, without "
        "port and http://"
    )
    try:
        # a certificate has no zone of an address, as in fe80::1%eth0
        if isinstance(value, str) and "%" not in value:
            ipaddress.ip_address(value)
            return value
    except ValueError:
        # a number with dots that is no address is no host name either (RFC 1123, 2.1)
        if re.fullmatch(HOST_NAME, value) and len(value) <= 253 and not re.fullmatch(r"[0-9.]+", value):
            return value
    raise PydanticCustomError("names", "{message}", {"message": message})


CertificateName = Annotated[
    str, BeforeValidator(_check_certificate_name), WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9.:*_-]+$"})
]


class TlsSpec(Strict):
    """Turns on HTTPS at the gateway, with your own certificate or a generated, self-signed certificate."""

    certificate: Text | None = Field(None, description="PEM file with the certificate and its chain")
    key: Text | None = Field(None, description="PEM file with the private key")
    names: tuple[CertificateName, ...] | None = Field(
        None,
        min_length=1,
        description="Additional host names and IP addresses for the generated certificate. It always has localhost, "
        "127.0.0.1 and, if `bind` is not a loopback address, the host name and addresses of this machine",
    )
    redirect_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port that redirects plain HTTP to HTTPS: to the API, or, if other machines reach only the chat UI "
        "(`ui.bind`), to the chat UI. Default: none",
    )

    @model_validator(mode="after")
    def _require_both_files(self) -> TlsSpec:
        if bool(self.certificate) != bool(self.key):
            raise PydanticCustomError(
                "tls", "needs both `certificate` and `key`. Leave out both for a generated certificate"
            )
        return self


def _expand_tls(value: Any) -> Any:
    if isinstance(value, str) and value != "generate":
        raise PydanticCustomError("tls", "must be `generate` for a self-signed certificate, or a mapping with "
                                  "`certificate` and `key`")  # fmt: skip
    return {} if value in (True, "generate") else None if value is False else value


def _check_body_size(value: Any) -> Any:
    # not a pattern of the field: its error message would show the regular expression instead of the reason
    if isinstance(value, str) and not re.fullmatch(BODY_SIZE, value):
        raise PydanticCustomError(
            "max_body", "must be a size from 1m to 255m (m: MiB), because the largest buffer of HAProxy is 255 MiB"
        )
    return value


def _check_origin(value: Any) -> Any:
    if not isinstance(value, str) or value == "*":
        return value
    if not (found := re.fullmatch(ORIGIN, value.strip().lower())):
        raise PydanticCustomError(
            "cors", "must be an origin: http:// or https://, a host, and a port if it is not the default one. "
            "For example https://app.example.com, or * for all origins"
        )  # fmt: skip
    # browsers send no default port
    return found[1] + ("" if found[2] == DEFAULT_PORTS[found[1][:5]] else found[2] or "")


class GatewaySpec(Strict):
    """Puts HAProxy in front of the engines: one URL, API keys, an allow-list, load balancing and failover."""

    enabled: bool = Field(True, description="`false` disables the gateway and keeps its settings in the file")
    keys: tuple[KeySpec, ...] = Field(
        (),
        description="API keys of clients, in addition to the key in .env. To limit "
        "the key in .env, list that key as `default`",
    )
    key_defaults: KeyDefaults | None = Field(
        None,
        description="Limits for all keys of clients without limits of their own, including keys that are not "
        "listed. They don't apply to the key in .env. In `keys`, `null` removes a default limit",
    )
    count_tokens: bool | None = Field(
        None,
        description="Count the tokens of each key, for `stackgen keys usage` and metrics. Default: `true` if a key has "
        "`tokens_per_day`",
    )
    tls: Annotated[TlsSpec | None, BeforeValidator(_expand_tls)] = Field(
        None,
        description="HTTPS: `generate` for a self-signed certificate, or `certificate` and `key`. `true` means the "
        "same as `generate`. `false` turns HTTPS off, as if the field were missing. On Kubernetes, nothing "
        "is generated: `kubernetes.tls_secret` names the certificate. Default: plain HTTP",
        json_schema_extra=short_form({"enum": ["generate", True, False]}),
    )
    allow: tuple[Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]*$")], ...] = Field(
        (),
        description="Paths to allow in addition to the OpenAI API, for example /tokenize. These paths also require "
        "a key",
    )
    cors: tuple[Annotated[str, BeforeValidator(_check_origin)], ...] = Field(
        (),
        description="Origins of web pages that may call the gateway from a browser, for example "
        "https://app.example.com, or `*` for all origins. Requests still need a key. Default: none",
    )
    max_body: Annotated[str, BeforeValidator(_check_body_size)] = Field(
        "2m",
        description="Largest request body, with the unit m for MiB: for example 2m, at most 255m. With a higher "
        "limit, large requests use more memory and have a higher latency",
        json_schema_extra={"pattern": BODY_SIZE},
    )
    timeout: int = Field(
        600,
        ge=1,
        le=86400,
        description="The gateway ends a request after this many seconds without a byte from the engine or the client. "
        "A stream that keeps sending is not limited",
    )
    routing: Literal["least-busy", "prefix"] = Field(
        "least-busy",
        description="How a replica is chosen. `least-busy`: the least busy of eight random replicas. `prefix`: "
        "requests with the same session id or the same beginning go to the same replica, whose prefix cache contains "
        "the beginning. If that replica is busy or down, another replica gets the request",
    )
    prefix_bytes: int = Field(
        1024,
        ge=16,
        le=16384,
        description="Only with `routing: prefix`. Number of bytes of the first user message, or of the prompt, that "
        "the gateway compares. The complete system prompt is always compared",
    )
    max_queue: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Maximum number of requests in the queue of a model (0: no queue). Further requests get a 429",
    )
    queue_timeout: int = Field(
        60, ge=1, le=3600, description="Maximum number of seconds that a request waits in the queue for a replica"
    )
    image: Text | None = Field(None, description="Image to use instead of the pinned HAProxy. Include a version tag")

    @property
    def limited_keys(self) -> tuple[KeySpec, ...]:
        """`keys` with the limits of `key_defaults`."""
        return tuple(apply_defaults(key, self.key_defaults) for key in self.keys)


class MonitoringSpec(Strict):
    """Adds Prometheus and Grafana, which are published on 127.0.0.1 only."""

    enabled: bool = Field(True, description="`false` disables monitoring and keeps its settings in the file")
    grafana_port: int = Field(3000, ge=1, le=65535, description="Port of Grafana on 127.0.0.1")
    prometheus_port: int = Field(9090, ge=1, le=65535, description="Port of Prometheus on 127.0.0.1")
    retention: str = Field(
        "15d",
        pattern=r"^[1-9][0-9]*[hdwy]$",
        description="How long Prometheus keeps samples: a number with the unit `h`, `d`, `w` or `y`",
    )
    scrape_interval: int = Field(
        15,
        ge=1,
        le=60,
        description="Seconds between two scrapes of an engine or the gateway, and between two evaluations of the alert "
        "rules. Prometheus scrapes the exporter and itself half as often",
    )
    check_interval: int = Field(
        30, ge=1, le=300, description="Seconds between two checks of an endpoint by the exporter"
    )
    reload_interval: int = Field(
        30, ge=1, le=3600, description="Maximum number of seconds until Prometheus loads a changed configuration"
    )
    ttft_target: float = Field(
        2.0, gt=0, description="Alert if the time to first token (TTFT) exceeds this many seconds"
    )
    alertmanager: Alertmanagers = Field(
        (),
        description="URL of the Alertmanager that gets the alerts, for example http://10.0.0.5:9093, or a list of all "
        "Alertmanagers of a cluster. Prometheus connects from its container, so 127.0.0.1 is refused. For https, the "
        "certificate must be signed by a public authority or by one in `ca_certificates`. Default: alerts are only "
        "shown in Prometheus and Grafana",
    )
    prometheus_image: Text | None = Field(
        None, description="Image to use instead of the pinned Prometheus. Include a version tag"
    )
    grafana_image: Text | None = Field(
        None, description="Image to use instead of the pinned Grafana. Include a version tag"
    )
    exporter_image: Text | None = Field(
        None,
        description="Image of the exporter. The image must contain stackgen. Default: an image that "
        "is built on this machine",
    )
    dcgm_image: Text | None = Field(
        None, description="Image to use instead of the pinned DCGM exporter. Include a version tag"
    )


class UiSpec(Strict):
    """Adds a web chat UI that sends requests to the gateway."""

    kind: Literal["open-webui"] = Field("open-webui", description="Which chat UI")
    port: int = Field(3080, ge=1, le=65535, description="Port of the chat UI on this machine")
    bind: Address = Field(
        "127.0.0.1",
        description="IP address to bind the port to. The `bind` of the stack does not apply to the chat UI. With an "
        "address that other machines can reach, the gateway serves the chat UI, with the gateway's TLS",
    )
    sign_up: bool = Field(
        False,
        description="Whether everybody who reaches the chat UI can create an account, which an administrator must "
        "approve. By default, only administrators create accounts",
    )
    admin_email: str = Field(
        "admin@localhost",
        pattern=r"^[^@\s]+@[^@\s]+$",
        description="Name of the administrator, whose account is created at the first start. The password is "
        "WEBUI_ADMIN_PASSWORD in .env",
    )
    direct_connections: bool = Field(
        False,
        description="Let people add the gateway with a key of their own in the settings of the chat UI. Their browser "
        "then sends the requests, so limits and usage are those of their key. Needs `gateway.cors`",
    )
    image: Text | None = Field(None, description="Image to use instead of the pinned Open WebUI. Include a version tag")

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the page, that is, `bind` is not a loopback address."""
        return is_exposed(self.bind)

    def is_left_behind(self, bind: str) -> bool:
        """Whether other machines reach the stack's address `bind`, but not the page, and nobody has written so."""
        return is_exposed(bind) and "bind" not in self.model_fields_set


def _expand_switch(value: Any) -> Any:
    """Expands `true` and `false` to `enabled: true` and `enabled: false`."""
    return {"enabled": value} if isinstance(value, bool) else value


def _expand_ui(value: Any) -> Any:
    if value is True:
        raise PydanticCustomError("ui", "must name the chat UI. Write `ui: open-webui`")
    if value is False:
        raise PydanticCustomError("ui", "must name the chat UI. To have no chat UI, remove `ui`")
    return {"kind": value} if isinstance(value, str) else value


SWITCH = short_form({"type": "boolean"})
Gateway = Annotated[GatewaySpec | None, BeforeValidator(_expand_switch), Field(json_schema_extra=SWITCH)]
Monitoring = Annotated[MonitoringSpec | None, BeforeValidator(_expand_switch), Field(json_schema_extra=SWITCH)]
Ui = Annotated[
    UiSpec | None, BeforeValidator(_expand_ui), Field(json_schema_extra=short_form({"enum": ["open-webui"]}))
]
