"""Rules for commands on the host that prepare GPUs and containers: MIG, Podman's DNS server, sudo.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Input, Rule, Variant, compile_patterns

__all__ = ["RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G061",
        title="the MIG mode of a GPU can't change while programs use the GPU",
        cause="a program uses the GPU, so the new MIG mode stays pending, and MIG instances can't be created yet. "
        "Every client counts: engines, the kubelet's device plugin, DCGM and its exporter, nvidia-persistenced, a "
        "desktop",
        fix="list the clients on the host (`sudo fuser -v /dev/nvidia*` and `nvidia-smi`), and stop them (with the GPU "
        "Operator, its MIG manager does this only for its own pods: set WITH_SHUTDOWN_HOST_GPU_CLIENTS for services of "
        "the host); then switch the mode again, and reset the GPU when nothing uses it, or reboot the machine; if the "
        "mode stays pending after a reboot, try another version of the driver",
        source="The first message comes from nvidia-smi, the second from NVIDIA/mig-parted, which checks the mode "
        "before it applies a configuration. NVIDIA/gpu-operator issue 1845 (2025-10) quotes both, with driver 580. "
        "The failure was not reproduced.",
        explain="`nvidia-smi -q | grep -A2 'MIG Mode'` shows the current and the pending mode. Hopper GPUs and newer "
        "ones need no reset.",
        patterns=compile_patterns(
            r"MIG mode is in pending (?:enable|disable) state for GPU",
            r"unable to apply MIG config with MIG mode disabled",
            r"Unable to (?:enable|disable) MIG Mode for GPU .{0,60}In use by another client",
        ),
        inputs=EVERYWHERE,
        drivers=("nvidia", ""),
    ),
    Rule(
        "SG-D044",
        title="Podman's DNS server for containers can't start",
        cause="aardvark-dns, which resolves the names of containers, can't listen on {address}, because the network's "
        "bridge does not have this address (yet), so Podman does not start the container",
        fix="run `ip addr` on the host while the command runs, which shows the bridge and its addresses (an IPv6 "
        "address that is `tentative` or `dadfailed`, or that is missing because IPv6 is turned off, is the reason); "
        "for IPv6, update netavark and aardvark-dns, or use a network without IPv6; a network whose subnet is also "
        "used elsewhere on the host needs another subnet; without names of other containers, `podman network create "
        "--disable-dns` avoids the DNS server",
        source="The messages come from netavark and aardvark-dns (src/server/serve.rs); containers/aardvark-dns "
        "issues 725 and 535 (2024-11) and containers/netavark issue 1174 (2025-02) quote them. The failure was not "
        "reproduced.",
        explain="The address belongs to Podman's bridge on the host, not to a server in the container.",
        patterns=compile_patterns(
            r"(?i)failed to bind (?:udp|tcp) listener on (?P<address>\S+?:53): (?:io error: )?cannot assign requested",
        ),
        inputs=EVERYWHERE,
        variants=(
            Variant(
                compile_patterns(
                    r"(?i)failed to bind (?:udp|tcp) listener on (?P<address>\S+?:53): (?:io error: )?address "
                    r"(?:already )?"
                    r"in use"
                ),
                cause="aardvark-dns, which resolves the names of containers, can't listen on {address}, because "
                "another DNS server of the host listens there, or on port 53 of all addresses",
                fix="run `sudo ss -lunp 'sport = :53'`, which shows the other server (dnsmasq, Pi-hole, AdGuard, "
                "named), and let it listen on its own addresses only; or set another port for Podman: `dns_bind_port` "
                "in the section `[network]` of containers.conf",
            ),
            Variant(
                compile_patterns(
                    r"failed to get upstream nameservers, .{0,60}?(?P<address>\S+): parse address: invalid IP"
                ),
                cause="aardvark-dns, which resolves the names of containers, can't read the address {address} of a "
                "name server in the host's /etc/resolv.conf (older versions read no IPv6 address with an interface)",
                fix="update aardvark-dns; or remove this name server from /etc/resolv.conf (most often, the network's "
                "router announces it), if another one is there",
            ),
        ),
    ),
    Rule(
        "SG-D045",
        title="sudo does not find a program",
        cause="sudo searches programs only in its own list of folders (`secure_path` in /etc/sudoers), and `{program}` "
        "is in none of them, or is not installed",
        fix="run `command -v {program}` without sudo: if it prints a path, use this path with sudo (`sudo $(command -v "
        "{program}) …`), or add its folder to `secure_path` (`sudo visudo`); if it prints nothing, install the package "
        "of the program (nvidia-ctk: nvidia-container-toolkit, amd-ctk: amd-container-toolkit)",
        source="The message comes from sudo; ROCm/container-toolkit issue 139 (2026-07) quotes it for amd-ctk, which "
        "worked without sudo. The failure was not reproduced.",
        explain="sudo does not use the PATH of your shell.",
        patterns=compile_patterns(r"^sudo: (?P<program>[\w.+-]+): command not found"),
        inputs=("log", "compose"),
        fallback=True,
    ),
    Rule(
        "SG-D046",
        title="the container runtime crun crashed",
        cause="crun ended while it prepared the container, and its parent process reports only that the answer is "
        "missing. One known reason is a fault of crun with a user namespace of its own (a pod or container with uid "
        "maps) together with CDI devices",
        fix="look for a crash in the journal (`journalctl -b | grep -i crun`, `coredumpctl list crun`); update crun; "
        "as a test, use `podman --runtime runc run …`, or start the container without the uid maps",
        source="The message comes from crun (src/libcrun/container.c); containers/crun issue 1948 (2025-12) quotes it. "
        "The failure was not reproduced.",
        explain="`File exists` in the message is the last error number, and not the reason.",
        patterns=compile_patterns(r"crun: read (?:status |pid )?from sync socket: .{3,60}"),
        inputs=EVERYWHERE,
    ),
)
