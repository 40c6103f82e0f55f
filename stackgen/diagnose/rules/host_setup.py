"""Rules for what a host prepares for containers: MIG, signed modules, Ascend's driver, Podman's DNS server, sudo.

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
        fix="list the clients on the host (`sudo fuser -v /dev/nvidia*` and `nvidia-smi`), and stop them; the GPU "
        "Operator's MIG manager stops only the operator's own pods: set WITH_SHUTDOWN_HOST_GPU_CLIENTS, so that it "
        "also stops services of the host; then switch the mode again, and reset the GPU when nothing uses it, or "
        "reboot the machine; if the mode stays pending after a reboot, try another version of the driver",
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
        "SG-G062",
        title="the kernel refuses the driver's module because of its signature",
        cause="the kernel loads only modules with a signature that it trusts, and the module of the GPU's driver has "
        "none, so the driver does not run. Kernels require such a signature if Secure Boot is on, or if they run with "
        "module.sig_enforce=1 (such as Talos)",
        fix="check `mokutil --sb-state` on the host; if Secure Boot is on, install the driver from the distribution's "
        "signed packages (Ubuntu: linux-modules-nvidia-…); for a module that DKMS built, you can enroll its key "
        "instead (`sudo mokutil --import /var/lib/shim-signed/mok/MOK.der` on Ubuntu, then confirm it on the screen of "
        "the next boot); if Secure Boot is off, install the module that was built and signed together with this kernel "
        "(for Talos: the extension of the same release)",
        source="The messages come from Linux (kernel/module/signing.c) and kmod. NVIDIA/gpu-driver-container issue 44 "
        "(2024-06), siderolabs/talos issue 7174 (2023-05) and secureblue/secureblue issue 1043 (2025-05) report them. "
        "The failure was not reproduced.",
        explain="The line `module verification failed: signature and/or required key missing - tainting kernel` alone "
        "is harmless: there, the kernel has loaded the module. Turning Secure Boot off in the firmware also works, at "
        "the price of its protection.",
        patterns=compile_patterns(
            r"Loading of (?:unsigned module|module with un\w+ (?:key|crypto)) is rejected",
            r"could not insert '?nvidia[\w-]*'?: (?:Key was rejected by service|Required key not available)",
            r"load nvidia\S* failed: key was rejected by service",
        ),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-G063",
        title="the driver's library of the Ascend NPUs is not in the container",
        cause="torch_npu needs {library}, which belongs to the driver of Huawei's Ascend NPUs on the host, and the "
        "container has neither the library nor, most likely, the devices",
        fix="on the host, check `npu-smi info`; start the container with `-v "
        "/usr/local/Ascend/driver/lib64/:/usr/local/Ascend/driver/lib64/`, `-v "
        "/usr/local/dcmi:/usr/local/dcmi` and the devices (/dev/davinci0, /dev/davinci_manager, /dev/devmm_svm, "
        "/dev/hisi_hdc), as vLLM Ascend's installation page lists them; don't turn off the loading of the backend "
        "(TORCH_DEVICE_BACKEND_AUTOLOAD=0), because the NPUs would not be used",
        source="The message comes from glibc; vllm-project/vllm-ascend issue 1440 (2025-06) quotes it. The mounts are "
        "those of vLLM Ascend's documentation for CANN 9.0 (2026-06). The failure was not reproduced.",
        explain="stackgen renders no stacks for Ascend NPUs.",
        patterns=compile_patterns(
            r"(?P<library>libascend_hal\.so|libdrvdsmi_host\.so|libdcmi\.so): cannot open shared object file",
        ),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-D044",
        title="Podman's DNS server for containers can't start",
        cause="aardvark-dns, which resolves the names of containers, can't listen on {address}, because the network's "
        "bridge does not have this address (yet), so Podman does not start the container",
        fix="run `ip addr` on the host while the command runs, which shows the bridge and its addresses; if the IPv6 "
        "address is `tentative`, `dadfailed` or missing, IPv6 is the cause: update netavark and aardvark-dns, or use a "
        "network without IPv6; if the network's subnet is also used elsewhere on the host, choose another subnet; if "
        "the containers don't need each other's names, create the network without a DNS server (`podman network create "
        "--disable-dns`)",
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
                "name server in the host's /etc/resolv.conf (older versions can't read an IPv6 address with an "
                "interface)",
                fix="update aardvark-dns; or remove this name server from /etc/resolv.conf (most often, the network's "
                "router announces it), if another one is there",
            ),
        ),
    ),
    Rule(
        "SG-D045",
        title="sudo does not find a program",
        cause="sudo looks for programs only in its own list of folders (`secure_path` in /etc/sudoers). Either "
        "`{program}` is in none of these folders, or it is not installed",
        fix="run `command -v {program}` without sudo; if it prints a path, use this path with sudo (`sudo $(command -v "
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
        cause="crun crashed while it prepared the container. Its parent process reports only that crun did not answer. "
        "A known cause is a bug of crun with containers that have both CDI devices and their own user namespace (a pod "
        "or container with uid maps)",
        fix="look for a crash in the journal (`journalctl -b | grep -i crun`, `coredumpctl list crun`); update crun; "
        "as a test, use `podman --runtime runc run …`, or start the container without the uid maps",
        source="The message comes from crun (src/libcrun/container.c); containers/crun issue 1948 (2025-12) quotes it. "
        "The failure was not reproduced.",
        explain="`File exists` in the message is the last error number, and not the cause.",
        patterns=compile_patterns(r"crun: read (?:status |pid )?from sync socket: .{3,60}"),
        inputs=EVERYWHERE,
    ),
)
