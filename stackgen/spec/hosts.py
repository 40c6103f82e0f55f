"""The field `hosts`: the machines of a stack that runs on several machines without Kubernetes."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from stackgen.spec.strict import Strict
from stackgen.spec.types import Text

__all__ = ["HostName", "HostSpec", "ModelHosts"]

# the name of a folder, and of a server in HAProxy's configuration
HOST_NAME = r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$"
HostName = Annotated[str, StringConstraints(pattern=HOST_NAME)]


def _check_private(value: Any) -> Any:
    try:
        if not isinstance(value, str) or "%" in value:
            raise ValueError
        address = ipaddress.ip_address(value)
    except ValueError:
        raise PydanticCustomError("host", "must be an IP address of this host, for example 10.0.0.2") from None
    if address.is_unspecified:
        text = (
            "with {value}, the engines would listen on all interfaces. Write this host's own address in your "
            "private network"
        )
        raise PydanticCustomError("host", text, {"value": value})
    if address.is_loopback or address.is_link_local or address.is_multicast:
        text = "other hosts can't reach {value}. Write this host's address in your private network"
        raise PydanticCustomError("host", text, {"value": value})
    # 100.64.0.0/10 is neither private nor global: carriers and VPNs such as Tailscale use it (RFC 6598)
    if address.is_global:
        text = (
            "{value} is a public address, and requests between the hosts are not encrypted. Write an address in your "
            "private network or VPN, for example 10.0.0.2"
        )
        raise PydanticCustomError("host", text, {"value": value})
    return value


def _expand_hosts(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


PrivateAddress = Annotated[str, BeforeValidator(_check_private), WithJsonSchema({"type": "string"})]
ModelHosts = Annotated[
    tuple[HostName, ...],
    BeforeValidator(_expand_hosts),
    WithJsonSchema({
        "anyOf": [{"type": "string", "pattern": HOST_NAME},
                  {"type": "array", "items": {"type": "string", "pattern": HOST_NAME}}],
    }),
]  # fmt: skip


class HostSpec(Strict):
    """Describes one machine of a stack that runs on several. The first host has the gateway and the chat UI."""

    address: PrivateAddress | None = Field(
        None,
        description="IP address of the host in your private network. The gateway of the first host connects to it. "
        "Required for all hosts except the first one",
    )
    port: int | None = Field(
        None, ge=1, le=65535, description="Port of the host's own gateway at `address`. Default: `port` of the stack"
    )
    gpus: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Number of GPUs in the host. If you set this field, a model that needs more GPUs is an error",
    )
    gpu_driver: Literal["nvidia", "cdi", "amd"] | None = Field(
        None, description="How containers get GPUs on this host. Default: `gpu_driver` of the stack"
    )
    cpu_arch: Literal["x86_64", "arm64"] | None = Field(
        None, description="CPU architecture of this host. Default: `cpu_arch` of the stack"
    )
    storage_path: Text | None = Field(
        None, pattern=r"^/", description="Folder on this host for the weights. Default: `storage` of the stack"
    )
