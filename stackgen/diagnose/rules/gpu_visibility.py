"""Rules for a driver that does not fit the image, and for containers in which the GPU or its driver can't be used.

Most of these failures were not reproduced, because no GPU was available. `source` is the origin of each text.
"""

from __future__ import annotations

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns
from stackgen.diagnose.rules.gpu_platform import (
    CHECK_TOOLKIT,
    NO_AMDSMI,
    NO_NVML,
    NOT_SUPPORTED,
    WITHOUT_GPU,
    find_not_supported,
    find_without_nvml,
)

__all__ = ["RULES"]

COMPARE_VERSIONS = (
    "compare the loaded kernel module (`cat /proc/driver/nvidia/version`) with the installed driver (`modinfo -F "
    "version nvidia`)"
)
INSTALLED_NOT_LOADED = "the NVIDIA driver was updated, but the kernel module of the old version is still loaded"
TURING = 7.5
NEEDS_CUDA = compile_patterns(r"unsatisfied condition: (?P<need>cuda ?>= ?[\d.]*\d)")
TOO_OLD = compile_patterns(
    r"CUDA driver version is insufficient for CUDA runtime version|cudaErrorInsufficientDriver",
    r"the provided PTX was compiled with an unsupported toolchain",
)


def _is_jetson(evidence: Evidence, service: str) -> bool:
    """Whether the machine, the words of the logs or stack.yaml name a Jetson."""
    # most logs don't have the message, and the words take long to search
    services = ("", *(one.service for one in evidence.services))
    has_message = any("unsatisfied condition" in evidence.read_log(one) for one in services)
    return has_message and any(evidence.is_jetson(one) for one in services)


def _is_before_turing(evidence: Evidence, service: str) -> bool:
    """Whether the GPU is known to be older than compute capability 7.5, which driver 580 supports as the last one."""
    capability = evidence.gpu_capability(service)
    return capability is not None and capability < TURING


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G002",
        title="the NVIDIA driver is too old for the image",
        cause="the image was built for a newer CUDA version than the NVIDIA driver of this machine[[ ({driver})]] "
        "supports",
        fix="update the driver: CUDA 13 needs driver 580 or newer, and the 580 series is the last one for GPUs "
        "before Turing (GTX 10, Titan V, V100); or set `image:` to an image whose CUDA version is at most the one "
        "that `nvidia-smi` prints",
        source="CUDA errors 803 and 804 are quoted in gpustack/gpustack issue 4678 (2026-02) and vllm-project/vllm "
        "issue 5283. vllm-project/vllm pull requests 33992, 34226 and 34821 (2026-02) describe cuda-compat. The "
        "message `unsatisfied condition` comes from the NVIDIA container toolkit 1.20 "
        "(internal/requirements/constraints/binary.go), and the others from libcudart 12.9 (errors 35 and 222). "
        "cudaErrorNotSupported is from torch (c10/cuda/CUDAFunctions.cpp), in SystemPanic/vllm-windows issue 60 "
        "(2026-05). According to NVIDIA's list of legacy GPUs, driver 580 is the last one for Maxwell, Pascal and "
        "Volta; canonical/inference-snaps issue 255 (2026-03) reports such a GPU.",
        explain="Every image is built for one CUDA version, and each CUDA version needs a minimum driver version. "
        "vllm/vllm-openai:v0.32.0-cu129 is an image of vLLM for CUDA 12.9.",
        patterns=TOO_OLD,
        variants=(
            Variant(
                NEEDS_CUDA,
                cause="the image needs {need}, but the JetPack of this Jetson contains an older CUDA version",
                fix="set `image:` to an image that was built for this JetPack (for example of the Jetson AI Lab), or "
                "update JetPack if the board supports a newer one; don't install a desktop or data center driver, "
                "because on a Jetson the driver is a part of JetPack",
                applies=_is_jetson,
                condition="the machine is a Jetson",
            ),
            Variant(
                (*NEEDS_CUDA, *TOO_OLD),
                cause="the image was built for a newer CUDA version than the NVIDIA driver of this machine[[ "
                "({driver})]] supports[[: the image needs {need}]]. The GPU is older than the Turing generation",
                fix="set `image:` to an image for CUDA 12 whose version is at most the one that `nvidia-smi` prints, "
                "because CUDA 13 does not support this GPU; or update the driver within the 580 series, which is the "
                "last one that supports this GPU",
                applies=_is_before_turing,
                condition="the GPU's compute capability is below 7.5",
            ),
            Variant(
                NEEDS_CUDA,
                cause="the image needs {need}, but the NVIDIA driver of this machine[[ ({driver})]] supports only an "
                "older CUDA version",
            ),
            Variant(
                compile_patterns(r"unsatisfied condition: (?P<need>(?:brand|driver|arch) ?[=<>!]+ ?[\w.]+)"),
                cause="the image accepts only certain combinations of GPU and driver (its NVIDIA_REQUIRE_CUDA), and "
                "this machine has none of these combinations. The last condition was {need}. Most often, the "
                "driver[[ ({driver})]] is too old for the CUDA version of the image",
            ),
            Variant(
                # torch prints CUDA 12.9 as 12090
                compile_patterns(
                    r"The NVIDIA driver on your system is too old \(found version (?P<major>\d\d)0(?P<minor>\d)0\)"
                ),
                cause="the image was built for a newer CUDA version than {major}.{minor}, the newest that the NVIDIA "
                "driver of this machine[[ ({driver})]] supports",
            ),
            Variant(
                compile_patterns(
                    r"Error 803: system has unsupported display driver",
                    r"failed to initialize CUDA: system has unsupported display driver",
                ),
                title="the NVIDIA driver's library and kernel module differ",
                cause="CUDA reports error 803: the driver library libcuda.so.1 that the engine loads does not match "
                "the loaded kernel module. Either the image loads its own library (cuda-compat) in place of a newer "
                "one of the "
                "driver, or the driver was updated without a reboot",
                fix="run `nvidia-smi` on the host; if it fails too, the driver was updated, so reboot when you can; if "
                "it works, run `ldconfig -p | grep libcuda.so` in the container; if a path with `compat` comes first, "
                "the image lists it in /etc/ld.so.conf.d (vllm/vllm-openai does so since 0.15): set LD_LIBRARY_PATH in "
                "extra_env to the folder of the other path (most often /usr/lib/x86_64-linux-gnu), or use an image "
                "without these libraries; if LD_LIBRARY_PATH itself names a folder with `compat`, remove this folder "
                "from LD_LIBRARY_PATH",
            ),
            Variant(
                compile_patterns(
                    r"Error 804: forward compatibility was attempted",
                    r"failed to initialize CUDA: forward compatibility was attempted",
                ),
                cause="CUDA reports error 804: the image is for a newer CUDA version than the driver. The image's "
                "cuda-compat libraries should bridge this gap, but they do not support this GPU",
                fix="update the driver (CUDA 13 needs driver 580 or newer), or set `image:` to an image for an older "
                "CUDA version; if the driver is new enough, remove the folder of cuda-compat from LD_LIBRARY_PATH",
            ),
            NOT_SUPPORTED,
        ),
        find=find_not_supported,
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G003",
        title="the engine finds no GPU driver in the container",
        cause="the driver's library is missing in the container. The NVIDIA container toolkit mounts this library "
        "only into containers that reserve a GPU",
        fix=f"[[!gpus|give the model a GPU (set `gpus` to 1); ]]{CHECK_TOOLKIT}; on a machine without a GPU, set "
        "`gpus` to none",
        source="The messages about missing libraries come from glibc (dlopen). Public reports in vllm-project/vllm "
        "quote the message for libcuda.so.1, and NVIDIA/dcgm-exporter issue 612 (2026-09) and vllm-project/vllm issue "
        "27318 (2025-10) those of NVML. The "
        "messages of vLLM 0.26.0 (config/device.py) and torch 2.11.0 (torch/cuda/__init__.py) were reproduced on an "
        "H100.",
        explain="libcuda is part of the host's driver, and no image contains it. The NVIDIA container toolkit mounts "
        "libcuda into containers that reserve a GPU. A model on the CPU needs the CPU image, which stackgen selects "
        "if `gpus` is set to none. vLLM prints `Failed to infer device type` for every kind of GPU.",
        patterns=compile_patterns(
            # `dlerror:` is TensorFlow's own search for a driver, not a failure of the engine
            r"(?<!dlerror: )libcuda\.so(?:\.1)?: cannot open shared object file",
            r"libnvidia-ml\.so\.1: cannot open shared object file",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"\bllama[\w.-]{0,40}: error while loading shared libraries: libcuda\.so(?:\.1)?: cannot open "
                    r"shared object file"
                ),
                cause="this build of llama.cpp was made for CUDA, and does not start without the library of NVIDIA's "
                "driver, which is missing in the container. The NVIDIA container toolkit mounts this library only "
                "into containers that reserve a GPU",
                fix=f"to use an NVIDIA GPU, [[!gpus|give the model a GPU (set `gpus` to 1), and ]]{CHECK_TOOLKIT}; to "
                "run on the CPU, use an image or a build for the CPU (ghcr.io/ggml-org/llama.cpp:server; in "
                "stack.yaml, set `gpus` to none)",
            ),
            Variant(
                compile_patterns(r"Failed to infer device type|Device string must not be empty"),
                title="the engine detects no GPU",
                cause="vLLM detects no GPU. Either the container got no GPU or no driver, or the image is built for "
                "another kind of GPU",
                fix=f"with an NVIDIA GPU, [[!gpus|give the model a GPU (set `gpus` to 1), and ]]{CHECK_TOOLKIT}; "
                "with an AMD GPU, set gpu_driver to amd, and use an image for ROCm; on a machine without a GPU, set "
                "`gpus` to none; if `nvidia-smi` works in the container itself, set VLLM_LOGGING_LEVEL to DEBUG in "
                "extra_env: vLLM then prints why it rejects each platform, for example a Python package for NVML that "
                "does not fit",
                # vLLM prints this after any error of the driver
                consequence_of=(*WITHOUT_GPU, "*"),
            ),
            Variant(
                # an INFO line, which vLLM prints long before it fails; a log may end after it
                compile_patterns(r"No platform detected, vLLM is running on UnspecifiedPlatform"),
                title="the engine detects no GPU",
                cause="vLLM detects no GPU. Either the container got no GPU or no driver, or the image is built for "
                "another kind of GPU",
                fix="in Kubernetes, request a GPU (`nvidia.com/gpu`), and set the runtime class of the NVIDIA toolkit "
                "if it is not the node's default (`runtimeClassName: nvidia` of the pod, `kubernetes.runtime_class` in "
                f"stack.yaml); with Docker, {CHECK_TOOLKIT}; with an AMD GPU, use an image for ROCm",
                consequence_of=(*WITHOUT_GPU, "*"),
            ),
            NO_NVML,
            NO_AMDSMI,
            Variant(
                # NVIDIA's Go library, as DCGM exporter and the device plugin print it
                compile_patterns(
                    r"(?:init|initialize) NVML(?: library)?[;:].{0,60}ERROR_LIBRARY_NOT_FOUND",
                    r"could not load NVML library: libnvidia-ml\.so",
                ),
                title="a program finds no GPU driver in its container",
                cause="the driver's library libnvidia-ml.so.1 is not found in the container. Either the container got "
                "no GPU, or its root file system is read-only, so that the toolkit's hook could not write the linker's "
                "cache",
                fix="give the container a GPU: in Compose with `gpus` or a reservation, in Kubernetes with the runtime "
                "class of the NVIDIA toolkit (`runtimeClassName: nvidia`); if the container has a GPU, start it once "
                f"without `read_only: true`; otherwise {CHECK_TOOLKIT}",
            ),
            Variant(
                compile_patterns(r"Found no NVIDIA driver on your system"),
                cause="torch finds no NVIDIA driver in the container. Either the container got no GPU, or the "
                "machine has no NVIDIA driver",
                consequence_of=WITHOUT_GPU,
            ),
        ),
        find=find_without_nvml,
        inputs=("log", "compose", "docker"),
        drivers=("nvidia", ""),
        # an image whose libraries can't be loaded finds no driver either
        consequence_of=("SG-G022", "SG-G064"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G005",
        title="the container has no permission to use its GPU",
        cause="NVML fails inside the container. The GPU's device files are there, but the container's cgroup denies "
        "access to them",
        fix="if the container worked before, `systemctl daemon-reload` took its GPU away: recreate the container "
        "(`stackgen down`, then `stackgen up`); if it never worked, look for `no-cgroups = true` in "
        "/etc/nvidia-container-runtime/config.toml, and remove it unless the Docker engine is rootless; to prevent "
        "both, use CDI (set gpu_driver to cdi)",
        source="The messages are quoted in issues 251, 580 and 1227 of NVIDIA/nvidia-container-toolkit. CUDA error 999 "
        "is quoted in ggml-org/llama.cpp issue 7218, and by torch (c10/cuda/CUDAFunctions.cpp) in NVIDIA/NemoClaw "
        "issue 4658 (2026-06). The failures were not reproduced.",
        explain="If Docker uses the systemd cgroup driver, `systemctl daemon-reload` applies systemd's own device "
        "rules again. systemd's rules do not include the rules that the NVIDIA hook wrote, so running containers lose "
        'their GPUs. With "native.cgroupdriver=cgroupfs" in `exec-opts` of /etc/docker/daemon.json, or with CDI, '
        "running containers keep their GPUs.",
        patterns=compile_patterns(r"Failed to initialize NVML: Unknown Error", r"NVMLError_Unknown"),
        variants=(
            Variant(
                compile_patterns(
                    r"Failed to initialize NVML: Driver/library version mismatch", r"NVMLError_LibRmVersionMismatch"
                ),
                title="the NVIDIA driver's library and kernel module differ",
                cause=INSTALLED_NOT_LOADED,
                fix=f"{COMPARE_VERSIONS}; if they differ, reboot the machine when you can",
            ),
            Variant(
                compile_patterns(r"NVMLError_DriverNotLoaded"),
                title="the NVIDIA driver is not loaded",
                cause="the kernel module of the NVIDIA driver is not loaded on this machine",
                fix="run `nvidia-smi` and `lsmod | grep nvidia` on the host; run `sudo modprobe nvidia`, which loads "
                "the module or prints why it can't",
            ),
            Variant(
                compile_patterns(r"Failed to initialize NVML: GPU access blocked"),
                title="Windows blocks access to the GPU",
                cause="WSL has no access to the GPU of Windows",
                fix="run `nvidia-smi` in WSL and in Windows; if it fails only in WSL, update the driver in Windows and "
                "WSL (`wsl --update`)",
            ),
            Variant(
                compile_patterns(
                    r"CUDA error: unknown error|failed to initialize CUDA: unknown error",
                    r"CUDA unknown error - this may be due to an incorrectly set up environment",
                ),
                title="CUDA can't be initialized",
                cause="CUDA reports error 999: CUDA can't be initialized, although the driver answers. Often the "
                "kernel "
                "module nvidia_uvm is not loaded on the host, for example after an update or after sleep",
                fix="on the host, check `lsmod | grep nvidia_uvm`; if it prints nothing, run `sudo modprobe "
                "nvidia_uvm`; otherwise look for messages of the driver in the kernel log (`sudo dmesg | grep -i "
                "nvrm`)",
            ),
        ),
        inputs=("log", "health", "docker", "compose"),
        shows_gpus=True,
    ),
)
