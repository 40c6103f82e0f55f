"""The names and addresses under which other machines reach this one, for the generated certificate.

Interfaces of container networks are left out: no other machine reaches them. Sources: Linux 6.1, netdevice(7) for
SIOCGIFADDR, and net/ipv6/addrconf.c, `if6_seq_show`, for the columns of /proc/net/if_inet6.
"""

from __future__ import annotations

import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["find_names"]

SIOCGIFADDR = 0x8915
VIRTUAL = re.compile(r"lo|docker|br-|veth|virbr|cni|flannel|cali|podman|lxc|vmnet|vboxnet")
HOST_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
# flags of IPv6 addresses (linux/if_addr.h): such an address changes every day
TEMPORARY = 0x01
GLOBAL_SCOPE = 0x00


def find_names(bind: str) -> tuple[str, ...]:
    """Returns the host name and the addresses at which a port bound to `bind` is reachable; () for a loopback address.

    For `0.0.0.0` and `::`, these are the addresses of all interfaces, and otherwise `bind` alone.
    """
    address = ipaddress.ip_address(bind.strip("[]"))
    if address.is_loopback:
        return ()
    if not address.is_unspecified:
        return (*_host_names(), str(address))
    # a port bound to `::` also accepts IPv4
    found = [*_ipv4_addresses(), *(_ipv6_addresses() if address.version == 6 else ())]
    return tuple(dict.fromkeys((*_host_names(), *found)))


def _host_names() -> Iterator[str]:
    name = socket.gethostname()
    if HOST_NAME.fullmatch(name) and name != "localhost":
        yield name
        if "." not in name:
            # multicast DNS (RFC 6762), with which machines without a DNS server find each other
            yield f"{name}.local"


def _ipv4_addresses() -> Iterator[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            if VIRTUAL.match(name):
                continue
            # an interface without an address; other systems have another number for the request
            with suppress(OSError):
                reply = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield socket.inet_ntoa(reply[20:24])
        # the address of the default route; for UDP, connect() sends nothing
        with suppress(OSError):
            probe.connect(("192.0.2.1", 9))
            if not (own := str(probe.getsockname()[0])).startswith("127."):
                yield own


def _ipv6_addresses() -> Iterator[str]:
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, _, _, scope, flags, name = line.split()
            if int(scope, 16) == GLOBAL_SCOPE and not int(flags, 16) & TEMPORARY and not VIRTUAL.match(name):
                yield str(ipaddress.IPv6Address(int(digits, 16)))
