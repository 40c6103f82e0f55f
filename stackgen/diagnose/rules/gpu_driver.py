"""Rules for GPUs before a model runs: hardware, driver, container toolkit, CDI, and the image's CUDA version.

Most of these failures were not reproduced, because no GPU was available. `source` is the origin of each text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.cdi_files import CDI_VARIANTS
from stackgen.diagnose.rules.new_gpus import NEWER_GPU, OLDER_GPU, find_generation

__all__ = ["RULES"]

# the GPU no longer answers: texts of nvidia-smi and of the kernel
LOST_GPU = re.compile(
    r"Unable to determine the device handle for GPU ?(?P<device>\S+): (?:GPU is lost|Unknown Error|Not Found).*|"
    r"GPU has fallen off the bus|fallen off the bus and is not responding|GPU is lost|ERROR_GPU_IS_LOST"
)
# NVIDIA's catalog of Xids: 48 double bit error, 63 and 64 row remapping, 94 and 95 contained and uncontained errors
ECC_XID = re.compile(r"NVRM: Xid .*?: (?:48|63|64|94|95),")
DEAD_DRIVER = re.compile(
    r"couldn't communicate with the NVIDIA driver|Driver/library version mismatch|Failed to initialize NVML"
)
# reports quote the driver with escaped quotes, or without its name
NO_DRIVER = r'could not select device driver [\\"]*(?P<driver>[^"\\\s]*?)[\\"]*\s*with capabilities'
CONFIGURE_TOOLKIT = (
    "`sudo nvidia-ctk runtime configure --runtime=docker`; then restart Docker (`sudo systemctl restart docker`) at "
    "a time when its containers may stop"
)


def _failed_gpu_services(evidence: Evidence) -> list[str]:
    """The services that failed and have NVIDIA GPUs in the plan."""
    # while every service works, a broken GPU is not a cause
    failed = [one.service for one in evidence.services if one.has_failed or (one.state and not one.is_working)]
    return [name for name in failed if evidence.plan is None or evidence.may_use_nvidia(name)]


def _find_lost_gpu(evidence: Evidence) -> Iterator[Hit]:
    """nvidia-smi or the kernel log reports a lost GPU, and a service that reserves GPUs failed."""
    state, services = evidence.gpus, _failed_gpu_services(evidence)
    lines = [line for line in (state.error, *reversed(state.xids or ())) if LOST_GPU.search(line)] if state else []
    # a GPU that works again after a reboot is no longer in the kernel log, which starts at boot
    if lines and services:
        yield Hit(services[0], tuple(lines[:2]))


def _talks_to_desktop(evidence: Evidence, service: str) -> bool:
    """Whether a text shows that the context of Docker Desktop is in use."""
    texts = (evidence.compose_output, *(one.log for one in evidence.services))
    return any(re.search(r"^desktop-linux \*", text, re.M) for text in texts)


def _find_dead_driver(evidence: Evidence) -> Iterator[Hit]:
    """nvidia-smi gets no answer from the driver of this machine, and a service that reserves GPUs failed."""
    state, services = evidence.gpus, _failed_gpu_services(evidence)
    if state and DEAD_DRIVER.search(state.error) and services:
        yield Hit(services[0], (state.error,), {"said": state.error.rstrip(".")})


def _find_faulty_memory(evidence: Evidence) -> Iterator[Hit]:
    """A GPU of a failed service has uncorrected memory errors."""
    state = evidence.gpus
    for service in _failed_gpu_services(evidence) if state else ():
        for device in evidence.gpu_devices(service):
            if device.ecc_errors:
                # the newest Xids are the last ones
                lines = [line for line in (state.xids or ()) if ECC_XID.search(line)][-2:] if state else []
                yield Hit(service, (f"GPU {device.index}: {device.ecc_errors} uncorrected memory errors", *lines),
                          {"gpu_index": str(device.index), "count": str(device.ecc_errors)})  # fmt: skip
                break


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G012",
        title="a GPU is lost",
        cause="a GPU of this machine no longer answers (it has fallen off the bus)",
        fix="restart the machine; if the GPU is lost again, check its power supply, its temperature and its slot; if "
        "the GPU stays unreliable, return it to its vendor",
        source="The messages of nvidia-smi and of the kernel log are quoted in issues 387 and 507 of "
        "NVIDIA/open-gpu-kernel-modules and in issue 155 of NVIDIA/NVSentinel. The failure was not reproduced.",
        explain="When a GPU is lost, the kernel log shows Xid 79 (`sudo dmesg | grep -i xid`). No container can make "
        "a lost GPU work again.",
        find=_find_lost_gpu,
        shows_gpus=True,
    ),
    Rule(
        "SG-G013",
        title="the host's NVIDIA driver does not answer",
        cause="the NVIDIA driver of this machine does not work: {said}",
        fix="after a driver update, restart the machine when you can; after a kernel update, rebuild the driver's "
        "kernel module with dkms",
        source="The output of nvidia-smi is quoted in issues 251 and 580 of NVIDIA/nvidia-container-toolkit, and the "
        "messages of nvidia-container-cli in NVIDIA/k8s-device-plugin issue 1431. The failure was not reproduced.",
        explain="`Driver/library version mismatch` means that the driver was updated while the old kernel module was "
        "loaded, so the new libraries don't match it. `couldn't communicate` means that the driver's kernel module "
        "is not loaded.",
        # the container toolkit prints this line; `find` reads what nvidia-smi prints on the host
        patterns=compile_patterns(
            r"nvidia-container-cli: initialization error: (?P<said>nvml error: driver/library version mismatch)"
        ),
        find=_find_dead_driver,
        inputs=("compose", "docker"),
        shows_gpus=True,
        variants=(
            Variant(
                compile_patterns(
                    r"nvidia-container-cli: initialization error: (?P<said>nvml error: driver not loaded)"
                ),
                fix="run `nvidia-smi` and `lsmod | grep nvidia` on the host; run `sudo modprobe nvidia`, which loads "
                "the kernel module or prints why it can't; after a kernel update, dkms must rebuild the module first",
            ),
            Variant(
                compile_patterns(
                    r"nvidia-container-cli: initialization error: (?P<said>nvml error: unable to load[^:]*)"
                ),
                title="the host's NVIDIA driver is not installed",
                cause="the container toolkit finds no library of the NVIDIA driver on this machine: {said}",
                fix="run `nvidia-smi` on the host; if it fails, install the NVIDIA driver; if it works, Docker runs in "
                "a virtual machine or as a snap, where it can't reach the driver: use a Docker engine that is "
                "installed on the host itself",
            ),
        ),
    ),
    Rule(
        "SG-G014",
        title="the GPU's memory is faulty",
        cause="GPU {gpu_index} has counted {count} uncorrected memory errors since boot",
        fix="restart the machine; if the errors come back, return the GPU to its vendor; until it is replaced, set "
        "`gpus` to another GPU",
        source="The number of errors comes from `nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total` (NVML, "
        "nvmlDeviceGetTotalEccErrors in pynvml.py). The meaning of the Xids comes from NVIDIA's catalog of Xids. The "
        "failure was not reproduced.",
        explain="Xid 48, 63, 64, 94 and 95 in the kernel log report memory errors. The driver ends a program that "
        "hits a memory error. The program then prints only `unspecified launch failure` or `uncorrectable ECC error "
        "encountered`, without the reason.",
        # a fallback: the count starts at boot, so the errors may be older than this failure
        find=_find_faulty_memory,
        fallback=True,
        shows_gpus=True,
    ),
    Rule(
        "SG-G001",
        title="Docker can't give GPUs to containers",
        cause='Docker has no device driver "{driver}": the NVIDIA container toolkit is missing or not configured',
        fix=f"install nvidia-container-toolkit, and run {CONFIGURE_TOOLKIT}; or use CDI (set gpu_driver to cdi); if "
        "both are done already, run `docker context ls`, which shows whether `docker` talks to Docker Desktop; on a "
        "machine without a GPU, set `gpus` to none",
        source="The messages come from Docker engine 28 (daemon/devices.go). The failure was reproduced.",
        explain="A GPU reservation needs the NVIDIA container toolkit on the host, and the toolkit must be registered "
        "with Docker. The driver alone is not enough, even if `nvidia-smi` works on the host. If Docker was started "
        "before the toolkit was installed, restart Docker. Docker from snap, and Docker Desktop on Linux, can't reach "
        "the driver.",
        patterns=compile_patterns(
            NO_DRIVER,
            r"unknown or invalid runtime name: (?P<driver>nvidia)",
            r"(?P<driver>nvidia)-container-runtime-hook.*(?:not found|no such file)",
        ),
        inputs=("compose", "docker"),
        variants=(
            Variant(
                compile_patterns(NO_DRIVER),
                title="docker talks to Docker Desktop, which has no GPU on Linux",
                cause="the current context of `docker` is Docker Desktop. On Linux, its engine runs in a virtual "
                "machine, which can't reach the driver of the host. The toolkit belongs to the host's own engine",
                fix="use the engine of the host: `docker context use default`, or `docker --context default` for one "
                "command; then start again",
                applies=_talks_to_desktop,
                condition="the text shows that the context of Docker Desktop is in use",
            ),
            Variant(
                compile_patterns(r'could not select device driver [\\"]*(?P<driver>cdi)[\\"]*\s*with capabilities'),
                title="CDI is not enabled in Docker",
                cause='Docker has no device driver "{driver}". CDI is turned off in this Docker engine, or the '
                "engine is too old",
                fix="use Docker 28.3 or newer, or set `cdi` to true in `features` of /etc/docker/daemon.json; to see "
                "the CDI devices, run `docker info`",
            ),
        ),
    ),
    Rule(
        "SG-G004",
        title="the image has no kernels for this GPU",
        cause="the image was not compiled for the GPU's compute capability",
        fix="set `image:` to a newer image if the GPU is new, or to an older image if the GPU is old",
        source="The messages are the texts of CUDA errors 209 and 200 in libcudart 12.9. torch 2.11.0 "
        "(torch/cuda/__init__.py) was reproduced on an H100. The other messages come from llama.cpp "
        "(ggml-cuda/common.cuh, quoted in LostRuins/koboldcpp issue 1579 and ggml-org/llama.cpp issue 7055), FlashMLA "
        "and CUTLASS. verl-project/verl issue 6949 (2026-07) and vllm-project/vllm issue 28707 (2025-11) report a "
        "B300, and vllm-project/vllm pull request 39878 (2026-04) reports a V100.",
        explain="Older wheels of vLLM contain kernels for compute capability 7.0 (Volta) and higher. Newer wheels of "
        "vLLM need compute capability 7.5 or 8.0. No image contains kernels for a GPU that is newer than the image. "
        "`nvidia-smi --query-gpu=compute_cap --format=csv` prints the compute capability of your GPU.",
        patterns=compile_patterns(
            # HIP's errors have the same texts: SG-G019
            r"(?<!HIP error: )(?<!ROCm error: )no kernel image is available for execution on the device",
            r"with CUDA capability sm_(?P<capability>\d+) is not compatible with the current PyTorch",
            # printed by a kernel, without the form of an error; the next error is only a launch failure
            r"[Tt]his kernel only supports sm[_\[]?\d+",
        ),
        find=find_generation,
        variants=(
            NEWER_GPU,
            OLDER_GPU,
            Variant(
                compile_patterns(r"(?<!HIP error: )(?<!ROCm error: )device kernel image is invalid"),
                cause="CUDA reports error 200: the driver can't load a kernel of the image. The kernel was compiled "
                "for "
                "another kind of GPU, or for a CUDA version that is too new for the driver",
                fix="compare the CUDA version of `image:` with the CUDA version that `nvidia-smi` prints; if the "
                "image's version is newer, update the driver, or use an image for an older CUDA version; otherwise "
                "use a newer image",
            ),
            Variant(
                compile_patterns(r"has no device code compatible with (?:CUDA|HIP) arch (?P<arch>\d+)"),
                cause="a kernel of llama.cpp has no code for this GPU (architecture {arch}). Either the image was "
                "not compiled for the GPU, or this build chose a kernel that the GPU does not support",
                fix="set `image:` to another build of llama.cpp; if the message names flash_attn, set extra_args to "
                '[--flash-attn, "off"]',
            ),
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-G016",
        title="the container engine has no CDI specification for the GPUs",
        cause="no CDI file defines {device}. CDI files describe the GPUs. Either they were never generated, or they "
        "are in a folder that the container engine does not read, or their format version is too new for this engine",
        fix="run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`; to see the known devices, run "
        "`nvidia-ctk cdi list`",
        source="The message comes from cncf-tags/container-device-interface (pkg/cdi/cache.go). Issues 146, 434 and "
        "1537 of NVIDIA/nvidia-container-toolkit quote the message. gpustack/gpustack issue 4130 (2026-01) and "
        "NVIDIA/nvidia-container-toolkit issue 1239 (2025-08) report it for the vendor management.nvidia.com. "
        "moby/moby issue "
        "47633 (2024-03) and cncf-tags/container-device-interface issue 250 (2025-02) report a device without edits.",
        explain="If `gpu_driver` is `cdi`, Docker reads the CDI files in /etc/cdi and /var/run/cdi. Generate the CDI "
        "files again after a driver update, or when GPUs change. If Docker is older than 28.3, also set `cdi` to "
        "true in `features` of daemon.json.",
        # `all` and 0 exist on every machine with a GPU; another id that CDI does not know is SG-G006
        patterns=compile_patterns(r"(?<!setting up CDI devices: )unresolvable CDI devices (?P<device>\S+=(?:all|0)\b)"),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
        variants=(
            *CDI_VARIANTS,
            Variant(
                compile_patterns(
                    r"unresolvable CDI devices (?P<device>runtime\.nvidia\.com/\w+=(?:all|0)\b)",
                ),
                title="the NVIDIA Container Toolkit could not describe the GPUs",
                cause="the NVIDIA Container Toolkit describes {device} itself when a container starts, and this "
                "failed. No file is missing. Most often, the driver or its library NVML does not work on this machine",
                fix="run `nvidia-smi` on the host; if it fails, fix the driver first; if it works, run `sudo "
                "nvidia-ctk --debug cdi generate`, which prints the error that this version of the toolkit hides",
                # their lines show why NVML does not work
                consequence_of=("SG-G005", "SG-G029", "SG-G003"),
            ),
            Variant(
                compile_patterns(
                    r"(?<!setting up CDI devices: )unresolvable CDI devices "
                    r"(?P<device>management\.nvidia\.com/(?P<class>\w+)=[\w-]+)",
                ),
                title="a node has no CDI specification for the vendor that the pod asks for",
                cause="no CDI file on the node defines {device}. Files for nvidia.com, which `nvidia-ctk cdi generate` "
                "writes by default, do not define devices of management.nvidia.com",
                fix="run `nvidia-ctk cdi list` on the node, which shows the devices that are defined; with the GPU "
                "Operator, read the log of its toolkit pod, which generates this file; without the operator, run "
                "`sudo nvidia-ctk cdi generate --vendor=management.nvidia.com --class={class} "
                "--output=/var/run/cdi/management.nvidia.com-{class}.yaml`",
            ),
        ),
    ),
    Rule(
        "SG-G017",
        title="a GPU hook needs a writable root file system",
        cause="a hook of the NVIDIA Container Toolkit could not write to the container's root file system, which is "
        "read-only[[: {what}]]",
        fix="remove `read_only: true` from the model in stack.yaml; if it is not there, run `stackgen render`, "
        "because earlier versions made the root file system of GPU services read-only",
        source="The messages are quoted in pull request 5711 of kserve/kserve (2026-06) and in issue 2026 of "
        "NVIDIA/nvidia-container-toolkit (2026-08). The failure was not reproduced.",
        explain="The toolkit's hooks run before the engine starts. They create links and folders in the container, for "
        "example the linker's cache or /etc/nvidia. A folder that you mount read-only over one of these paths has the "
        "same effect.",
        patterns=compile_patterns(
            r"hook.*(?P<what>mkdirat \S+): read-only file system",
            r"failed to create application profiles directory: (?P<what>.*): read-only file system",
            r"(?:nvidia-cdi-hook|nvidia-ctk|createContainer hook|nvidia-container-cli).*[Rr]ead-only file system",
        ),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
    ),
)
