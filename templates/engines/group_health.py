#!/usr/bin/env python3
"""Health check of a further node of a replica, which answers no requests itself. Runs inside the node's container.

Exits 0 if this container has a connection to the first node at PORT, and tells supervise.sh that this node was healthy.
PORT is torch's store, where all ranks of a replica meet. The connection closes when the first node exits, and without
the first node, this node can't compute. With `--wait`, waits until the first node accepts connections: its name
resolves only after it has an address.
Source: PyTorch 2.x, `torch/csrc/distributed/c10d/TCPStore.cpp` (each client keeps one connection); proc(5), net/tcp.
Usage: group_health.py [--wait] LEADER PORT
"""

import os
import socket
import sys
import time
from pathlib import Path

ESTABLISHED = "01"
READY = Path(os.environ.get("STACKGEN_READY_FILE", "/tmp/stackgen.ready"))


def addresses(leader, port):
    """The addresses of the first node as /proc/net prints them: bytes of each 32-bit word in the machine's order."""
    found = set()
    for family, _, _, _, address in socket.getaddrinfo(leader, port, type=socket.SOCK_STREAM):
        packed = socket.inet_pton(family, address[0])
        if family == socket.AF_INET:
            # a socket for both families shows an IPv4 address in its IPv6 form
            found.add(hexed(b"\0" * 10 + b"\xff\xff" + packed))
        found.add(hexed(packed))
    return found


def hexed(packed):
    words = [packed[index : index + 4] for index in range(0, len(packed), 4)]
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def is_connected(leader, port):
    wanted = {f"{address}:{port:04X}" for address in addresses(leader, port)}
    sockets = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as lines:
                rows = [line.split() for line in lines][1:]
        # a kernel without IPv6 has no tcp6
        except FileNotFoundError:
            continue
        sockets |= {f"socket:[{row[9]}]" for row in rows if row[2] in wanted and row[3] == ESTABLISHED}
    return bool(sockets) and is_own(sockets)


def is_own(sockets):
    """Whether a process of this container has one of `sockets`: the machine's network also shows those of others."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for entry in os.scandir(process / "fd"):
                if os.readlink(entry.path) in sockets:
                    return True
        # another user's process, which may have the connection: better to wait than to end a rank that works
        except PermissionError:
            return True
        # the process or the descriptor is gone
        except OSError:
            continue
    return False


def wait(leader, port):
    said = 0.0
    while True:
        try:
            socket.create_connection((leader, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"stackgen: waiting for {leader} port {port}: {error}", flush=True)
        time.sleep(2)


def main(arguments):
    leader, port = arguments[-2], int(arguments[-1])
    if arguments[0] == "--wait":
        wait(leader, port)
        return
    try:
        connected = is_connected(leader, port)
    except OSError as error:
        sys.exit(f"{leader}: {error}")
    if not connected:
        sys.exit(f"no connection to {leader} port {port}: this node can't compute without it")
    READY.touch()


if __name__ == "__main__":
    main(sys.argv[1:])
