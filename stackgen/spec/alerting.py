"""The field `monitoring.alertmanager`: one or several URLs of Alertmanager, and what Prometheus needs of each."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from stackgen.spec.types import is_loopback

__all__ = ["AlertmanagerUrl", "Alertmanagers", "parse_alertmanager"]

HOST = r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]"
URL = rf"^https?://({HOST}):[1-9][0-9]{{0,4}}(/[A-Za-z0-9._~/-]*)?$"


class AlertmanagerUrl(NamedTuple):
    """The parts of a URL as Prometheus has them: `target` is HOST:PORT, and `prefix` is "" for the root."""

    scheme: str
    target: str
    prefix: str


def parse_alertmanager(url: str) -> AlertmanagerUrl:
    """Splits a valid URL."""
    parts = urlsplit(url)
    return AlertmanagerUrl(parts.scheme, parts.netloc, parts.path.rstrip("/"))


def _check_url(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(URL, value):
        raise PydanticCustomError(
            "alertmanager",
            "must look like http://10.0.0.5:9093 or https://alerts.example.org:443/prefix, with a port, and without "
            "credentials, query or fragment",
        )
    try:
        # ValueError: brackets without an address, or a port above 65535
        parts = urlsplit(value)
        host = parts.hostname or ""
        if parts.port and (":" in host or re.fullmatch(r"[0-9.]+", host)):
            ipaddress.ip_address(host)
    except ValueError as error:
        raise PydanticCustomError("alertmanager", "is not a URL: {reason}", {"reason": str(error)}) from None
    if re.search(r"/api/v[12](/|$)", parts.path):
        raise PydanticCustomError("alertmanager", "must end before /api, because Prometheus adds the path of the API")
    if is_loopback(host):
        raise PydanticCustomError(
            "alertmanager",
            "{host} is Prometheus's own container. Write this machine's IP address in the local network, where "
            "Alertmanager must listen, or the name of a service in compose.override.yaml, for example "
            "http://alertmanager:9093",
            {"host": host},
        )
    return value


def _expand(value: Any) -> Any:
    """Expands one URL to a list; its errors name the field, and not an entry of a list."""
    return value if isinstance(value, (list, tuple)) else (_check_url(value),)


Url = Annotated[str, BeforeValidator(_check_url), WithJsonSchema({"type": "string", "pattern": URL})]
Alertmanagers = Annotated[
    tuple[Url, ...],
    BeforeValidator(_expand),
    WithJsonSchema({
        "anyOf": [{"type": "string", "pattern": URL}, {"type": "array", "items": {"type": "string", "pattern": URL}}],
    }),
]  # fmt: skip
