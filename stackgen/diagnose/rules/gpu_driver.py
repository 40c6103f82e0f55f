"""Rules for GPUs before a model runs: hardware, driver, container toolkit, CDI, and the image's CUDA version.

Most of these failures were not reproduced, because no GPU was available. `source` is the origin of each text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Hit, Rule, compile_patterns

__all__ = ["RULES"]

# the GPU no longer answers: texts of nvidia-smi and of the kernel
LOST_GPU = re.compile(
    r"Unable to determine the device handle for GPU ?(?P<device>\S+): (?:GPU is lost|Unknown Error|Not Found).*|"
    r"GPU has fallen off the bus|fallen off the bus and is not responding|GPU is lost|ERROR_GPU_IS_LOST"
)
# NVIDIA's catalogue of Xids: 48 double bit error, 63 and 64 row remapping, 94 and 95 contained and uncontained errors
ECC_XID = re.compile(r"NVRM: Xid .*?: (?:48|63|64|94|95),")
DEAD_DRIVER = re.compile(
    r"couldn't communicate with the NVIDIA driver|Driver/library version mismatch|Failed to initialize NVML"
)
CONFIGURE_TOOLKIT = "`sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker`"


def _failed_gpu_services(evidence: Evidence) -> list[str]:
    """The services that failed and have NVIDIA GPUs in the plan."""
    failed = [one.service for one in evidence.services if one.has_failed or (one.state and not one.is_working)]
    return [name for name in failed if evidence.plan is None or evidence.may_use_nvidia(name)]


def _find_lost_gpu(evidence: Evidence) -> Iterator[Hit]:
    """nvidia-smi or the kernel log reports a lost GPU, and a service with planned GPUs failed."""
    state, services = evidence.gpus, _failed_gpu_services(evidence)
    lines = [line for line in (state.error, *reversed(state.xids or ())) if LOST_GPU.search(line)] if state else []
    # a GPU that works again after a reboot is no longer in the kernel log, which starts at boot
    if lines and services:
        yield Hit(services[0], tuple(lines[:2]))


def _find_dead_driver(evidence: Evidence) -> Iterator[Hit]:
    """nvidia-smi gets no answer from the driver of this machine, and a service with planned GPUs failed."""
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
        cause="a GPU of this machine no longer answers: it fell off the bus",
        fix="restart the machine; if the GPU is lost again, check its power, temperature and seating, and return it "
        "to its vendor",
        source="texts of nvidia-smi and the kernel log in NVIDIA/open-gpu-kernel-modules issues 387 and 507, "
        "NVIDIA/NVSentinel issue 155; failure not reproduced",
        explain="The kernel log shows Xid 79 (`sudo dmesg | grep -i xid`). No container can make a lost GPU work "
        "again.",
        find=_find_lost_gpu,
        shows_gpus=True,
    ),
    Rule(
        "SG-G013",
        title="the host's NVIDIA driver does not answer",
        cause="the NVIDIA driver of this machine does not work: {said}",
        fix="after a driver update, restart the machine; after a kernel update, reinstall the driver's kernel module "
        "(dkms)",
        source="nvidia-smi output quoted in NVIDIA/nvidia-container-toolkit issues and on NVIDIA's forums; failure "
        "not reproduced",
        explain="`Driver/library version mismatch` means that the driver was updated while it was loaded, so its "
        "libraries no longer match its kernel module. `couldn't communicate` means that the driver's kernel module is "
        "not loaded.",
        patterns=compile_patterns(r"nvidia-container-cli: initialization error: (?P<said>nvml error: driver[^:]*)"),
        find=_find_dead_driver,
        inputs=("compose", "docker"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G014",
        title="the GPU's memory is faulty",
        cause="GPU {gpu_index} has counted {count} uncorrected memory errors since boot",
        fix="restart the machine; if the errors come back, return the GPU to its vendor, and use another GPU until "
        "then: gpus: [1]",
        source="nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total; NVIDIA's catalogue of Xids; failure not "
        "reproduced",
        explain="Xids 48, 63, 64, 94 and 95 in the kernel log report memory errors. The driver ends a program that "
        "hits a memory error. The program's message does not explain the reason: `CUDA error: unspecified launch "
        "failure`, or `uncorrectable ECC error encountered`.",
        find=_find_faulty_memory,
        fallback=True,
        shows_gpus=True,
    ),
    Rule(
        "SG-G001",
        title="Docker can't give GPUs to containers",
        cause='Docker has no device driver "{driver}": the NVIDIA container toolkit is missing or not configured',
        fix=f"install nvidia-container-toolkit, then run {CONFIGURE_TOOLKIT}; or use CDI (gpu_driver: cdi); on a "
        "machine without a GPU, set gpus: none",
        source="Docker engine 28, daemon/devices.go; failure reproduced",
        explain="A GPU reservation needs the NVIDIA container toolkit on the host, and the toolkit must be registered "
        "with Docker. The driver alone is not enough, even if `nvidia-smi` works. If Docker was started before the "
        "toolkit was installed, restart Docker. Docker from snap, and Docker Desktop on Linux, can't reach the driver.",
        patterns=compile_patterns(
            # reports quote it with escaped quotes, or without the name of the driver
            r'could not select device driver [\\"]*(?P<driver>[^"\\\s]*?)[\\"]*\s*with capabilities',
            r"unknown or invalid runtime name: (?P<driver>nvidia)",
            r"(?P<driver>nvidia)-container-runtime-hook.*(?:not found|no such file)",
        ),
        inputs=("compose", "docker"),
    ),
    Rule(
        "SG-G002",
        title="the NVIDIA driver is too old for the image",
        cause="the image needs a newer NVIDIA driver than this machine has[[ ({driver})]][[: {need}]]",
        fix="update the driver (CUDA 13 needs 580 or newer), or set `image:` to an image for an older CUDA version "
        "(for vLLM: vllm/vllm-openai:v0.32.0-cu129)",
        source="CUDA errors 803 and 804 in gpustack/gpustack issue 4678 and vllm-project/vllm issue 5283; "
        "nvidia-container-cli",
        explain="Every image is built for one CUDA version, and each CUDA version needs a minimum driver version. "
        "Error 803 means that the driver's kernel module and its libraries have different versions: reboot after a "
        "driver update. Error 804 means that forward compatibility was attempted on a GPU that does not support it: "
        "remove the `cuda-compat` libraries from LD_LIBRARY_PATH.",
        patterns=compile_patterns(
            r"unsatisfied condition: (?P<need>cuda ?>= ?[\d.]+)",
            r"Error 80[34]: (?:system has unsupported display driver|forward compatibility was attempted)",
            r"The NVIDIA driver on your system is too old \(found version (?P<need>\d+)\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
        ),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G003",
        title="no NVIDIA driver in the container",
        cause="libcuda.so.1 or the GPU's device files are missing: the container got no GPU, or the NVIDIA container "
        "toolkit did not mount the driver",
        fix=f"give the model GPUs (gpus: 1), and configure the NVIDIA container toolkit: {CONFIGURE_TOOLKIT}; on a "
        "machine without a GPU, set gpus: none",
        source="glibc, dlopen; public reports (vllm-project/vllm, `libcuda.so.1: cannot open shared object file`); "
        "vLLM 0.26.0, config/device.py, and torch 2.11.0, torch/cuda/__init__.py, reproduced on an H100",
        explain="libcuda is part of the host's driver, and no image contains libcuda. The NVIDIA container toolkit "
        "mounts libcuda into containers that reserve a GPU. A model on the CPU needs another image, which `gpus: "
        "none` selects.",
        patterns=compile_patterns(
            # `dlerror:` is TensorFlow's own search for a driver, not a failure of the engine
            r"(?<!dlerror: )libcuda\.so(?:\.1)?: cannot open shared object file",
            r"libnvidia-ml\.so\.1: cannot open shared object file",
            r"Failed to infer device type",
            r"Found no NVIDIA driver on your system",
        ),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G004",
        title="the image has no kernels for this GPU",
        cause="the image was not compiled for the GPU's compute capability",
        fix="set `image:` to a newer image if the GPU is new, or to an older image if the GPU is old",
        source="CUDA error 209 (cudaErrorNoKernelImageForDevice); torch 2.11.0's text, reproduced on an H100",
        explain="vLLM's wheels contain kernels for compute capability 7.0 (Volta) and higher. Newer wheels start at "
        "7.5 or 8.0. An image also lacks kernels for a GPU that is newer than the image. `nvidia-smi "
        "--query-gpu=compute_cap --format=csv` prints the compute capability of your GPU.",
        patterns=compile_patterns(
            r"no kernel image is available for execution on the device",
            r"with CUDA capability sm_(?P<capability>\d+) is not compatible with the current PyTorch",
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-G005",
        title="the container lost its GPU",
        cause="NVML fails inside the container: after `systemctl daemon-reload`, the container lost access to the "
        "GPU's device files",
        fix="recreate the container (`stackgen down`, then `stackgen up`); to prevent this failure, use CDI "
        '(gpu_driver: cdi), or set `"exec-opts": ["native.cgroupdriver=cgroupfs"]` in /etc/docker/daemon.json',
        source="NVIDIA/nvidia-container-toolkit, issues 251 and 1227",
        explain="With the systemd cgroup driver, a daemon reload applies again the device rules that systemd knows. "
        "systemd does not know the rules that the NVIDIA hook wrote, so running containers lose their GPUs. "
        "Containers that get their GPUs through CDI are not affected.",
        patterns=compile_patterns(
            r"Failed to initialize NVML: (?:Unknown Error|Driver/library version mismatch|GPU access blocked)",
            r"NVMLError_(?:Unknown|DriverNotLoaded|LibRmVersionMismatch)",
            r"CUDA error: unknown error",
        ),
        inputs=("log", "health", "docker", "compose"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G016",
        title="Docker has no CDI specification for the GPUs",
        cause="no CDI file defines {device}: the files that describe the GPUs were never generated, or are not in a "
        "folder that Docker reads",
        fix="run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`; `nvidia-ctk cdi list` shows the known "
        "devices",
        source="cncf-tags/container-device-interface, pkg/cdi/cache.go; NVIDIA/nvidia-container-toolkit issues 146 and "
        "434",
        explain="With gpu_driver: cdi, Docker reads the CDI files in /etc/cdi and /var/run/cdi. Generate the CDI "
        'files again after a driver update, or when GPUs change. Docker before 28.3 needs `"features": {"cdi": true}` '
        "in daemon.json.",
        # `all` and 0 exist on every machine with a GPU; another id that CDI does not know is SG-G006
        patterns=compile_patterns(r"unresolvable CDI devices (?P<device>\S+=(?:all|0)\b)"),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
    ),
)
