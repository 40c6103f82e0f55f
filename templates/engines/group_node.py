#!/usr/bin/env python3
"""What a container needs that computes one model together with containers of other machines, in its machine's network.

setup ADDRESS [COMMAND...]      prints the variables for the network interface with ADDRESS, and what COMMAND prints
run LEADER PORT COMMAND...      runs COMMAND as soon as LEADER accepts connections at PORT
watch LEADER PORT SECONDS PID   ends PID when its connection to LEADER is lost for SECONDS

Without these variables, Gloo uses the address of the host's name, which is a loopback address on Debian, and NCCL may
choose another network. Sources: PyTorch 2.x, `torch/csrc/distributed/c10d/ProcessGroupGloo.cpp` (GLOO_SOCKET_IFNAME);
NCCL 2, environment variables (NCCL_SOCKET_IFNAME, `=`: exact name); netdevice(7), SIOCGIFCONF; Linux,
net/ipv6/addrconf.c, `if6_seq_show`.
"""

import array
import fcntl
import ipaddress
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from group_health import READY, is_connected, wait

SIOCGIFCONF = 0x8912
# a name of 16 bytes and a union of 24 (linux/if.h, 64 bits)
ENTRY = 40


def interfaces(entries=None, table="/proc/net/if_inet6"):
    """Yields (address, name of its interface) of this machine."""
    if entries is None:
        entries = ipv4_entries()
    for start in range(0, len(entries) - ENTRY + 1, ENTRY):
        name = entries[start : start + 16].partition(b"\0")[0].decode()
        # a second address of an interface has the name of a label, such as eth0:1
        yield ipaddress.ip_address(entries[start + 20 : start + 24]), name.partition(":")[0]
    try:
        lines = Path(table).read_text().splitlines()
    # a kernel without IPv6
    except OSError:
        return
    for line in lines:
        fields = line.split()
        yield ipaddress.ip_address(bytes.fromhex(fields[0])), fields[-1]


def ipv4_entries():
    buffer = array.array("B", bytes(ENTRY * 256))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        address, _ = buffer.buffer_info()
        reply = fcntl.ioctl(probe.fileno(), SIOCGIFCONF, struct.pack("iP", len(buffer), address))
    return buffer.tobytes()[: struct.unpack("iP", reply)[0]]


def setup(address, command):
    wanted = ipaddress.ip_address(address)
    name = next((name for one, name in interfaces() if one == wanted), "")
    if name:
        for variable, value in (("GLOO_SOCKET_IFNAME", name), ("NCCL_SOCKET_IFNAME", f"={name}")):
            # the user's own value takes precedence
            if variable not in os.environ:
                print(f"{variable}={value}", flush=True)
    else:
        print(f"stackgen: no network interface of this machine has the address {address}: correct it in `hosts`",
              file=sys.stderr)  # fmt: skip
    if command:
        sys.exit(subprocess.run(command, check=False).returncode)


def watch(leader, port, seconds, pid):
    connected, seen = time.monotonic(), 0
    while alive(pid):
        time.sleep(1)
        try:
            if is_connected(leader, port):
                connected, seen = time.monotonic(), seen + 1
        except OSError:
            pass
        # Until it connects, the rank still imports its libraries. Once is not enough: `run` connects for a moment.
        if seen < 3 and not READY.exists():
            connected = time.monotonic()
        if time.monotonic() - connected >= seconds:
            print(f"stackgen: no connection to the first machine ({leader} port {port}) for {seconds:g} s: ending this "
                  "rank, which can't compute without it", file=sys.stderr, flush=True)  # fmt: skip
            end(pid)
            return


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def end(pid):
    """Ends `pid`, at first with SIGTERM."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.2)


def main(arguments):
    what, *rest = arguments
    if what == "setup":
        setup(rest[0], rest[1:])
    elif what == "run":
        wait(rest[0], int(rest[1]))
        os.execvp(rest[2], rest[2:])
    elif what == "watch":
        watch(rest[0], int(rest[1]), float(rest[2]), int(rest[3]))


if __name__ == "__main__":
    main(sys.argv[1:])
