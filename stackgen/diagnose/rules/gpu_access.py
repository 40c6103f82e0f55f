"""Rules for containers that can't reach a working GPU: stale CDI files, SELinux, rootless engines, NVSwitch, AMD.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Input, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.cdi_files import GENERATE

__all__ = ["RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")
# /var/run/cdi has precedence over /etc/cdi (container-device-interface, pkg/cdi/spec-dirs.go)
REGENERATE = (
    "if /var/run/cdi contains nvidia.yaml, run `sudo systemctl restart nvidia-cdi-refresh`, which rewrites this "
    f"file; otherwise run {GENERATE}"
)
KFD = r"[Uu]nable to open /dev/kfd(?: read-write)?: "
HANG = re.compile(r"No available shared memory broadcast block found in (?P<seconds>\d+) seconds")
# each line stands for a minute of waiting; compilation may take two
HANG_LINES = 3


def _find_hang(evidence: Evidence) -> Iterator[Hit]:
    """The processes of vLLM waited for each other for at least three minutes, and no process logged an error."""
    for service in evidence.services:
        lines = lines_since_ready(service.log)
        waits = [line for line in lines if HANG.search(line)]
        later = lines[max((i for i, line in enumerate(lines) if HANG.search(line)), default=0) + 1 :]
        # a later line shows that the work went on, or why it ended
        if len(waits) >= HANG_LINES and not any(line.strip() for line in later):
            yield Hit(service.service, (strip_prefix(waits[-1]).strip(),), {"count": str(len(waits))})


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G044",
        title="the NVIDIA hook does not support `--gpus` in the toolkit's mode",
        cause="`docker run --gpus` and GPU reservations of Compose use a hook of the NVIDIA Container Toolkit. The "
        "hook refuses to work in the toolkit's current mode[[, `{mode}`]]",
        fix="request GPUs in the way that this mode supports: in stack.yaml, set gpu_driver to cdi; with `docker "
        "run`, use `--device nvidia.com/gpu=all`, or `--runtime=nvidia` with NVIDIA_VISIBLE_DEVICES; if nobody chose "
        "the mode on purpose, let the toolkit choose it: `sudo nvidia-ctk config --in-place --set "
        "nvidia-container-runtime.mode=auto`",
        source="The message comes from the NVIDIA container toolkit (cmd/nvidia-container-runtime-hook/hook_config.go, "
        "assertModeIsLegacy), and is quoted in dstackai/dstack issue 2306 (2025-02). The failure was not reproduced.",
        explain="The mode is set in /etc/nvidia-container-runtime/config.toml. The toolkit is installed, and the "
        "driver is not the cause, because the hook stops before it looks for GPUs.",
        patterns=compile_patterns(
            r"(?:Using requested mode |Auto-detected mode as )'(?P<mode>\w+)'.{0,60}?invoking the NVIDIA Container "
            r"Runtime Hook directly",
            r"invoking the NVIDIA Container Runtime Hook directly .{0,80}is not supported",
        ),
        inputs=("log", "compose", "docker"),
        variants=(
            Variant(
                compile_patterns(r"Auto-detected mode as '(?P<mode>csv)'.{0,60}?invoking the NVIDIA Container Runtime"),
                title="on a Jetson, `--gpus` does not work",
                cause="the NVIDIA Container Toolkit has detected a Jetson (mode `{mode}`). On a Jetson, its hook "
                "refuses `docker run --gpus` and GPU reservations of Compose",
                fix="remove `--gpus` and GPU reservations; use `--runtime=nvidia` (in a Compose file `runtime: "
                "nvidia`) with NVIDIA_VISIBLE_DEVICES=all; newer toolkits also support CDI on a Jetson: run `sudo "
                "nvidia-ctk cdi generate`, and set gpu_driver to cdi",
            ),
        ),
    ),
    Rule(
        "SG-G026",
        title="the CDI file does not match the installed driver",
        cause="a CDI file lists {path}, which this machine does not have. The CDI file was generated for another "
        "version of the driver",
        fix=REGENERATE,
        source="The messages come from crun 1.29 (src/libcrun/linux.c), runc 1.5 (libcontainer/rootfs_linux.go) and "
        "container-device-interface (pkg/cdi/container-edits_unix.go). containers/ramalama issue 899 (2025-02), "
        "NVIDIA/nvidia-container-toolkit issue 885 and NVIDIA/nvidia-settings issue 124 (2026-07) quote them. The "
        "failure was not reproduced.",
        explain="A CDI file lists the files of one version of the driver. After an update of the driver, the CDI "
        "file must be generated again. Newer toolkits do this with the service nvidia-cdi-refresh.",
        patterns=compile_patterns(
            r"cannot stat `(?P<path>\S*(?:nvidia|cuda|libEGL|libGL|vulkan)\S*)`: No such file",
            r"error mounting \"(?P<path>/\S*(?:nvidia|cuda)\S*\.so\.[\d.]+)\" to rootfs.*no such file",
            # runc 1.2 and newer
            r"failed to fulfil mount request: open (?P<path>/\S*(?:nvidia|cuda|libEGL|libGL|vulkan)\S*\.so(?:\.[\d.]+)?"
            r"): no such file",
        ),
        inputs=EVERYWHERE,
        drivers=("nvidia", ""),
        shows_gpus=True,
        variants=(
            Variant(
                compile_patterns(r"failed to stat CDI host device \"(?P<path>[^\"]+)\""),
                title="the CDI file does not match the machine's GPUs",
                cause="a CDI file lists the device {path}, which this machine does not have. Either a GPU was added, "
                "removed or renumbered after the CDI file was generated, or the driver is not loaded",
                fix=f"check that `nvidia-smi` works on the host; {REGENERATE}",
            ),
            Variant(
                compile_patterns(
                    r"(?:failed to fulfil mount request: open |error mounting \"|cannot stat `)"
                    r"(?P<path>/\S*/nvidia-persistenced/socket)\b.{0,200}no such file"
                ),
                title="the socket of NVIDIA's persistence daemon is missing",
                cause="the container engine must mount the socket {path}, but it does not exist on the host, because "
                "the service nvidia-persistenced is not running. A CDI file or the toolkit lists this socket",
                fix="run `systemctl status nvidia-persistenced` on the host, and start it (`sudo systemctl enable "
                "--now nvidia-persistenced`); if you don't use this service, generate the CDI file again: "
                f"{REGENERATE}; restarting the container alone does not help",
            ),
        ),
    ),
    Rule(
        "SG-G029",
        title="the container has no permission to use the GPU",
        cause="the driver answers `Insufficient Permissions`. SELinux, or the permissions of /dev/nvidia*, deny the "
        "container access to the GPU's device files",
        fix="set gpu_driver to cdi; if SELinux is active, run `sudo ausearch -m avc -ts recent`, which shows what "
        "SELinux denied; with SELinux, the device files need the type container_file_t",
        source="The message comes from NVML, and is quoted in mudler/LocalAI issue 7412 (2025-12) and "
        "redhat-et/triton-dev-containers issue 61 (2025-03). The failure was not reproduced.",
        explain="The driver works, and the image may be right too: later messages about a missing GPU are consequences "
        "of this error. `ls -lZ /dev/nvidia*` shows the owner, mode and SELinux type of the device files.",
        patterns=compile_patterns(
            r"Failed to initialize NVML: Insufficient Permissions", r"NVMLError_NoPermission|nvml error: insufficient"
        ),
        inputs=EVERYWHERE,
        shows_gpus=True,
    ),
    Rule(
        "SG-G030",
        title="NVIDIA's fabric manager is not running",
        cause="CUDA reports error 802 (system not yet initialized). On a machine with NVSwitch, the fabric manager is "
        "not "
        "running, or its version differs from the driver's",
        fix="on the host, run `systemctl status nvidia-fabricmanager` and `nvidia-smi -q | grep -A2 Fabric`; if the "
        "fabric manager is missing, install the package nvidia-fabricmanager in exactly the version of the driver; "
        "run `sudo systemctl enable --now nvidia-fabricmanager`, and start the stack again",
        source="The message is the text of CUDA error 802 in libcudart 12.9, quoted in MiniMax-AI/MiniMax-M2.5 issue 9 "
        "(2026-03), ollama/ollama issue 12136 and NVIDIA/TensorRT-LLM issue 398. gpustack/gpustack issue 4154 "
        "(2026-01) and hiyouga/LlamaFactory issue 8968 name the fix. The failure was not reproduced.",
        explain="HGX and DGX machines connect their GPUs through NVSwitch, which the fabric manager configures. "
        "`nvidia-smi` works even without the fabric manager. No setting of the stack helps.",
        patterns=compile_patterns(
            r"(?:Error 802|CUDA error|failed to initialize CUDA): system not yet initialized",
            # the second text is the one of NVIDIA's own images
            r"cudaErrorSystemNotReady|System not yet initialized \(error 802\)",
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-G031",
        title="a rootless container engine can't set up the GPU",
        cause="the NVIDIA container toolkit has no permission to change cgroups, because the container engine is "
        "rootless or runs inside another container",
        fix="use CDI (set gpu_driver to cdi), set `no-cgroups = true` in /etc/nvidia-container-runtime/config.toml, "
        "or update the toolkit",
        source="The messages are quoted in NVIDIA/nvidia-container-toolkit issue 139, in which a maintainer writes "
        "that newer toolkits do not change eBPF programs, and in NVIDIA/libnvidia-container issue 154. The failure "
        "was not reproduced.",
        explain="In legacy mode, the toolkit adds the GPU to the device rules of the container's cgroup, which needs "
        "root. With CDI, the container engine adds the GPU itself.",
        patterns=compile_patterns(
            r"nvidia-container-cli: mount error: .*bpf_prog_query\(BPF_CGROUP_DEVICE\) failed: operation not permitted",
            r"nvidia-container-cli: mount error: .*/sys/fs/cgroup/\S*: permission denied",
        ),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-G032",
        title="the container has no access to the AMD GPU",
        cause="the ROCm runtime can't open /dev/kfd ({problem}), although the device file is in the container. The "
        "kernel driver amdgpu does not offer this GPU for computing",
        fix="run `rocminfo` on the host; if it fails too, look for errors of amdgpu and kfd in the kernel log (`sudo "
        "dmesg | grep -iE 'kfd|amdgpu'`); note that ROCm does not support all GPUs",
        source="The message comes from rocminfo, and is quoted in ROCm/rocminfo issue 41 and in issues 1798, 2232, "
        "4043 and 6166 (2026-04) of ROCm/legacy-rocm-build. Docker's message is quoted in "
        "hydrian/stable-diffusion-webui-rocm issue 17 and ROCm/container-toolkit issue 86 (2026-01). The failure was "
        "not reproduced.",
        explain="On most distributions, /dev/kfd belongs to the group `render`. In the container, this group may "
        "have another number. A rootless container engine maps group numbers, so the container does not get the "
        "host's group.",
        patterns=compile_patterns(rf"{KFD}(?P<problem>[^\n.]+)"),
        inputs=EVERYWHERE,
        variants=(
            Variant(
                compile_patterns(rf"{KFD}(?P<problem>Permission denied|Operation not permitted)"),
                cause="the container's user has no permission to open /dev/kfd: {problem}",
                fix="set gpu_driver to amd; if gpu_driver is already amd, list the group numbers of the device files "
                "on the host (`ls -ln /dev/kfd /dev/dri`), and add those of /dev/kfd and /dev/dri/renderD* to "
                "`group_add`",
            ),
            Variant(
                compile_patterns(rf"{KFD}(?P<problem>No such file or directory)"),
                cause="the container has no /dev/kfd",
                fix="[[!gpus|give the model a GPU (set `gpus` to 1); ]]set gpu_driver to amd; if gpu_driver is already "
                "amd, check that /dev/kfd exists on the host",
            ),
            Variant(
                compile_patterns(
                    r"error gathering device information while adding custom device "
                    r"\"(?P<path>/dev/(?:kfd|dri)[^\"]*)\""
                ),
                title="the host has no AMD GPU for computing",
                cause="{path} does not exist on the machine on which Docker runs. Either the driver amdgpu is not "
                "loaded, or Docker Desktop runs containers in a virtual machine without the GPU",
                fix="run `ls -l {path}` and `lsmod | grep amdgpu` on the host; with Docker Desktop, use the Docker "
                "engine of the host (`docker context ls`); on a machine without an AMD GPU, set `gpus` to none",
            ),
        ),
    ),
    Rule(
        "SG-G067",
        title="the engine has no permission to open a device file of the AMD GPU",
        cause="vLLM detects AMD GPUs with AMD's library amdsmi, which can't open a device file ({name}). Most often, "
        "the engine's user has permission to open /dev/kfd, but not /dev/dri/renderD*. Later errors are only "
        "consequences",
        fix="set gpu_driver to amd, which passes both devices and their groups; if gpu_driver is already amd, run `ls "
        "-ln /dev/kfd /dev/dri` on the host and `id` as the engine's user, and add the group number of "
        "/dev/dri/renderD* (often `render`) to `group_add`; for a systemd service, set the group in "
        "SupplementaryGroups; for an unprivileged LXC container, allow access to the device",
        source="The message comes from amdsmi (amdsmi_exception.py), and is quoted in lemonade-sdk/vllm-rocm issue 13 "
        "(2026-06 and 2026-07), whose reporter found the cause. The failure was not reproduced.",
        explain="amd-smi and rocminfo can work for another user, for example root. vLLM then fails later with `cannot "
        "import name 'current_platform'`. The image is not the cause of that message.",
        patterns=compile_patterns(r"\b\d{1,2} \| (?P<name>AMDSMI_STATUS_(?:FILE_ERROR|NO_PERM))\b"),
        inputs=EVERYWHERE,
        shows_gpus=True,
    ),
    Rule(
        "SG-G068",
        title="the NVIDIA container toolkit gets no answer from the driver",
        cause="the toolkit starts a helper that asks the driver for the GPUs. This helper exited or took too long "
        "({problem}). According to the toolkit's maintainers, this is usually because persistence mode is off: the "
        "driver then initializes the GPUs for each program",
        fix="run `nvidia-smi` on the host; if it fails, repair the driver first; if it is slow, turn on persistence "
        "mode (the service nvidia-persistenced, or `sudo nvidia-smi -pm 1` until the next boot); if the helper still "
        "fails, run `sudo nvidia-container-cli -k -d /dev/tty info`, whose last lines show where it fails; look for "
        "libraries in /etc/ld.so.preload (in two reports, the cause was Citrix Workspace, the package icaclient); "
        "then update the toolkit",
        source="The messages come from libnvidia-container (src/driver.c, src/nvc.c), and are quoted in "
        "NVIDIA/nvidia-container-toolkit issues 556 (2024-09 to 2025-11, with a maintainer's answer) and 183, and "
        "NVIDIA/nvidia-docker issue 1691 (2022-10). The failure was not reproduced.",
        explain="The image, the engine and the model are not involved: no container was started.",
        patterns=compile_patterns(
            r"nvidia-container-cli: initialization error: driver (?:rpc )?error: (?P<problem>failed to process request|"
            r"timed out)"
        ),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-G033",
        title="the processes of the engine wait for each other",
        cause="vLLM has reported {count} times that its processes had waited for each other for a minute. Either a "
        "transfer between GPUs hangs, because an IOMMU or ACS blocks peer-to-peer access, or slow work such as "
        "compilation is still running",
        fix='if several GPUs stay at 100 % utilization without progress, set NCCL_P2P_DISABLE to "1" in extra_env '
        "and --disable-custom-all-reduce in extra_args; if that helps, turn off the IOMMU or ACS on the host to get "
        "faster transfers; if one CPU core is busy, wait for the compilation to finish",
        source="The message comes from vLLM (distributed/device_communicators/shm_broadcast.py), and is quoted in "
        "vllm-project/vllm issue 33041 (2026-01). The failure was not reproduced.",
        explain="The message means that processes wait. It does not mean that /dev/shm is too small, so shm_size "
        "does not help.",
        find=_find_hang,
        engines=("vllm",),
        fallback=True,
        shows_gpus=True,
    ),
)
