"""Finds published ports that don't answer, although Docker reports the port as published and the container as healthy.

Docker's forwarder of a port (docker-proxy) is a process of its own on the host. If it ends, Docker starts no new one,
and `docker ps` still lists the port (measured with Docker 28.5.2). The health check runs inside the container, so it
does not notice the missing forwarder.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import Any

__all__ = ["find_unreachable_ports"]

# a forwarder on this machine accepts a connection at once
CONNECT_SECONDS = 1.0
RETRY_SECONDS = 0.2
# "any address" of this machine
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def find_unreachable_ports(inspected: Any) -> tuple[str, ...]:
    """Returns the published TCP ports of a healthy container that don't accept a connection, as `address:port`.

    `inspected` is the output of `docker inspect`. Empty if this can't be judged: the container is not healthy, or the
    Docker engine publishes ports elsewhere (another machine, a virtual machine, or outside of this container).
    """
    state, network = inspected["State"], inspected["NetworkSettings"]
    health = (state.get("Health") or {}).get("Status", "")
    if (
        health != "healthy"
        or state["Status"] != "running"
        or not any(map(_is_here, (network.get("Networks") or {}).values()))
    ):
        return ()
    ports = network["Ports"] or {}
    bindings = [one for port, found in ports.items() if port.endswith("/tcp") for one in found or ()]
    silent = [one for one in bindings if not _answers(one)]
    if silent:
        # asked twice, because Compose may just replace the container
        time.sleep(RETRY_SECONDS)
    return tuple(f"{one['HostIp']}:{one['HostPort']}" for one in silent if not _answers(one))


def _is_here(network: Any) -> bool:
    """Whether this machine has the gateway address of a container's network, which the Docker engine creates."""
    gateway = network.get("Gateway") or ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, suppress(OSError):
        # only an address of this machine can be bound
        if gateway:
            one.bind((gateway, 0))
            return True
    return False


def _answers(binding: Any) -> bool:
    address = LOOPBACK.get(binding["HostIp"], binding["HostIp"])
    try:
        socket.create_connection((address, int(binding["HostPort"])), CONNECT_SECONDS).close()
    except (ConnectionRefusedError, TimeoutError):
        return False
    except OSError:
        # for example a machine without IPv6: that says nothing about the forwarder
        return True
    return True
