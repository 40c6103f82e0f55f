"""GPUs: driver, container toolkit, compute capability, NCCL. Texts no machine here can make: see `source`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Change, Hit, Rule, patterns

__all__ = ["RULES"]

# the card does not answer any more: nvidia-smi's words, and the kernel's
LOST = re.compile(
    r"Unable to determine the device handle for GPU ?(?P<device>\S+): (?:GPU is lost|Unknown Error|Not Found).*|"
    r"GPU has fallen off the bus|fallen off the bus and is not responding|GPU is lost|ERROR_GPU_IS_LOST"
)
# NVIDIA's catalogue of Xids: 48 double bit error, 63 and 64 row remapping, 94 and 95 contained and uncontained errors
ECC_XID = re.compile(r"NVRM: Xid .*?: (?:48|63|64|94|95),")
DEAD = re.compile(
    r"couldn't communicate with the NVIDIA driver|Driver/library version mismatch|Failed to initialize NVML"
)


def _stricken(evidence: Evidence) -> list[str]:
    """The services that failed and were planned with NVIDIA's cards."""
    failed = [one.service for one in evidence.services if one.failed or (one.state and not one.works)]
    return [name for name in failed if evidence.plan is None or evidence.uses_gpus(name)]


def _lost(evidence: Evidence) -> Iterator[Hit]:
    """The tool or the kernel says that a card is gone, and a service that was planned with cards failed."""
    state, services = evidence.gpus, _stricken(evidence)
    said = [line for line in (state.error, *reversed(state.xids or ())) if LOST.search(line)] if state else []
    # a card that was lost and is back after a restart is in the kernel's log of an earlier boot only
    if said and services:
        yield Hit(services[0], tuple(said[:2]))


def _driver_dead(evidence: Evidence) -> Iterator[Hit]:
    """nvidia-smi gets no answer from the driver of this machine."""
    state, services = evidence.gpus, _stricken(evidence)
    if state and DEAD.search(state.error) and services:
        yield Hit(services[0], (state.error,), {"said": state.error.rstrip(".")})


def _bad_memory(evidence: Evidence) -> Iterator[Hit]:
    """Uncorrected errors of a card that a failed service uses."""
    state = evidence.gpus
    for service in _stricken(evidence) if state else ():
        for card in evidence.cards(service):
            if card.ecc_errors:
                lines = [line for line in (state.xids or ()) if ECC_XID.search(line)][-2:] if state else []
                yield Hit(service, (f"GPU {card.index}: {card.ecc_errors} uncorrected memory errors", *lines),
                          {"card": str(card.index), "count": str(card.ecc_errors)})  # fmt: skip
                break


TOOLKIT = "`sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker`"

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G012",
        "a card is lost",
        "a card of this machine does not answer any more: it fell off the bus",
        "restart the machine; if it happens again, look at power, heat and the card's seat, and send the card in",
        "nvidia-smi and the kernel's log in NVIDIA/open-gpu-kernel-modules issues 387 and 507, NVIDIA/NVSentinel issue "
        "155; not provoked",
        "Xid 79 in the kernel's log (`sudo dmesg | grep -i xid`). No container can get such a card back.",
        find=_lost,
        cards=True,
    ),
    Rule(
        "SG-G013",
        "the machine's own driver does not answer",
        "the NVIDIA driver of this machine itself does not work: {said}",
        "restart the machine after a driver update; after a kernel update install the driver's module again (dkms)",
        "nvidia-smi, as NVIDIA/nvidia-container-toolkit issues and NVIDIA's forums quote it; not provoked",
        "A driver that was updated while it was loaded has other libraries than its module: `Driver/library version "
        "mismatch`. `couldn't communicate` means that no module is loaded at all.",
        patterns(r"nvidia-container-cli: initialization error: (?P<said>nvml error: driver[^:]*)"),
        find=_driver_dead,
        places=("compose", "docker"),
        cards=True,
    ),
    Rule(
        "SG-G014",
        "the card's memory is faulty",
        "GPU {card} counts {count} uncorrected memory errors since it was started",
        "restart the machine; if they come back, send the card in, and use another one meanwhile: gpus: [1]",
        "nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total; NVIDIA's catalogue of Xids; not provoked",
        "Xids 48, 63, 64, 94 and 95 in the kernel's log are memory errors. A program that met one is ended by the "
        "driver with messages that tell nothing: `CUDA error: unspecified launch failure`, or `uncorrectable ECC error "
        "encountered`.",
        find=_bad_memory,
        fallback=True,
        cards=True,
    ),
    Rule(
        "SG-G001",
        "Docker can't hand out GPUs",
        'Docker knows no device driver "{driver}": the NVIDIA container toolkit is missing or not configured',
        f"install nvidia-container-toolkit, then {TOOLKIT}; or use CDI (gpu_driver: cdi); without a GPU: gpus: none",
        "Docker engine 28, daemon/devices.go; provoked for real",
        "A GPU reservation needs the NVIDIA container toolkit on the machine, registered with Docker. The driver "
        "alone (`nvidia-smi` works) is not enough. Docker started before the toolkit was installed must be restarted. "
        "Docker from snap, and Docker Desktop on Linux, can't reach the driver.",
        patterns(
            r'could not select device driver [\\"]*(?P<driver>[^"\\\s]*?)[\\"]*\s*with capabilities',
            r"unknown or invalid runtime name: (?P<driver>nvidia)",
            r"(?P<driver>nvidia)-container-runtime-hook.*(?:not found|no such file)",
        ),
        places=("compose", "docker"),
    ),
    Rule(
        "SG-G002",
        "the NVIDIA driver is too old for the image",
        "the image needs a newer driver than this machine has[[ ({driver})]][[: {need}]]",
        "update the driver (CUDA 13 wants 580 or newer), or set `image:` to one that is built for an older CUDA (of "
        "vLLM: vllm/vllm-openai:v0.32.0-cu129)",
        "CUDA errors 803, 804: gpustack/gpustack issue 4678, vllm-project/vllm issue 5283; nvidia-container-cli",
        "Every image is built for one CUDA version, and that wants a driver of at least its own age. Error 803: the "
        "driver in the kernel and its libraries differ (reboot after an update). Error 804: forward compatibility is "
        "tried on a card that does not support it; take the `cuda-compat` libraries out of LD_LIBRARY_PATH.",
        patterns(
            r"unsatisfied condition: (?P<need>cuda ?>= ?[\d.]+)",
            r"Error 80[34]: (?:system has unsupported display driver|forward compatibility was attempted)",
            r"The NVIDIA driver on your system is too old \(found version (?P<need>\d+)\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
        ),
        places=("log", "compose", "docker"),
        cards=True,
    ),
    Rule(
        "SG-G003",
        "no NVIDIA driver in the container",
        "libcuda.so.1 or the card's device files are not there: the container got no GPU, or the toolkit did not mount "
        "the driver",
        f"give the model GPUs (gpus: 1), and configure the toolkit: {TOOLKIT}; on a machine without a GPU: gpus: none",
        "glibc, dlopen; public reports (vllm-project/vllm, `libcuda.so.1: cannot open shared object file`); vLLM "
        "0.26.0, config/device.py, and torch 2.11.0, torch/cuda/__init__.py, provoked for real on an H100",
        "libcuda comes with the driver of the machine and is mounted into containers that reserve a GPU. It is in no "
        "image. The CPU needs another image, which `gpus: none` chooses.",
        patterns(
            r"(?<!dlerror: )libcuda\.so(?:\.1)?: cannot open shared object file",
            r"libnvidia-ml\.so\.1: cannot open shared object file",
            r"Failed to infer device type",
            r"Found no NVIDIA driver on your system",
        ),
        places=("log", "compose", "docker"),
        cards=True,
    ),
    Rule(
        "SG-G004",
        "the image has no kernels for this card",
        "the card's compute capability is not among those that the image was compiled for",
        "use a newer image (new cards) or an older one (old cards): set `image:`",
        "CUDA error 209 (cudaErrorNoKernelImageForDevice); torch 2.11.0's text, provoked for real on an H100",
        "vLLM's wheels hold kernels from compute capability 7.0 (Volta), newer ones from 7.5 or 8.0; a card newer "
        "than the image lacks them as well. `nvidia-smi --query-gpu=compute_cap --format=csv` prints yours.",
        patterns(
            r"no kernel image is available for execution on the device",
            r"with CUDA capability sm_(?P<capability>\d+) is not compatible with the current PyTorch",
        ),
        cards=True,
    ),
    Rule(
        "SG-G005",
        "the container lost its GPU",
        "NVML fails inside the container: after `systemctl daemon-reload` the GPU's device files were taken from it",
        "recreate the container (`stackgen down` and `stackgen up`); for good: use CDI (gpu_driver: cdi), or "
        '`"exec-opts": ["native.cgroupdriver=cgroupfs"]` in /etc/docker/daemon.json',
        "NVIDIA/nvidia-container-toolkit, issues 251 and 1227",
        "With the systemd cgroup driver, a daemon reload re-applies the device rules that systemd knows, and it does "
        "not know those that the NVIDIA hook wrote. Running containers lose their cards. CDI is not hit.",
        patterns(
            r"Failed to initialize NVML: (?:Unknown Error|Driver/library version mismatch|GPU access blocked)",
            r"NVMLError_(?:Unknown|DriverNotLoaded|LibRmVersionMismatch)",
            r"CUDA error: unknown error",
        ),
        places=("log", "health", "docker", "compose"),
        cards=True,
    ),
    Rule(
        "SG-G016",
        "Docker has no CDI description of the cards",
        "CDI knows no {device}: the files that describe the cards were never made, or are not where Docker looks",
        "`sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`; `nvidia-ctk cdi list` shows what there is",
        "cncf-tags/container-device-interface, pkg/cdi/cache.go; NVIDIA/nvidia-container-toolkit issues 146 and 434",
        "With gpu_driver: cdi Docker reads /etc/cdi and /var/run/cdi. They are made anew after an update of the "
        'driver, or when cards change. Docker before 28.3 wants `"features": {"cdi": true}` in daemon.json.',
        patterns(r"unresolvable CDI devices (?P<device>\S+=(?:all|0)\b)"),
        places=("log", "compose", "docker"),
        cards=True,
    ),
    Rule(
        "SG-G006",
        "a GPU that is not there was asked for",
        "the machine has not the GPU that stack.yaml names[[: {device}]]",
        "choose ids that `nvidia-smi -L` prints: gpus: [0]",
        "nvidia-container-cli: NVIDIA/nvidia-container-toolkit issue 29; Docker's CDI: its issue 434; not provoked; "
        "CUDA error 101 of torch 2.11.0 and NVML's refusal in vLLM 0.26.0, provoked for real on an H100",
        "Indices count from 0 in the order of `nvidia-smi -L`. UUIDs stay the same when cards move.",
        patterns(
            r"nvidia-container-cli: device error: (?P<device>\S+): unknown device",
            r"unresolvable CDI devices (?P<device>[^\s,:]+)",
            r"CUDA error: invalid device ordinal",
            # CUDA_VISIBLE_DEVICES names no card: vLLM asks NVML for it while it looks at the model's class
            r"NVMLError_InvalidArgument",
        ),
        places=("log", "compose", "docker"),
        cards=True,
    ),
    Rule(
        "SG-G015",
        "more GPUs are wanted than the container has",
        "the model is to be split over {wanted} GPUs, and {count} are there",
        "give the model as many (`gpus: {wanted}`), or lower tensor_parallel_size and pipeline_parallel_size",
        "vLLM 0.32.0, config/parallel.py, __post_init__; provoked for real with 0.26.0 on an H100",
        "tensor_parallel_size times pipeline_parallel_size cards are wanted. CUDA_VISIBLE_DEVICES in extra_env hides "
        "cards that the container was given.",
        patterns(r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<count>\d+)\)"),
        engines=("vllm",),
        cards=True,
    ),
    Rule(
        "SG-G007",
        "no GPU is visible in the container",
        "the program was built for CUDA and sees no GPU",
        "give the model GPUs (gpus: 1), and leave CUDA_VISIBLE_DEVICES out of extra_env",
        "torch 2.x, torch/cuda/__init__.py, and vLLM 0.26.0, v1/worker/gpu_worker.py init_device, provoked for real on "
        "an H100; CUDA error 100",
        "The driver's library is there, but no card: none is reserved, CUDA_VISIBLE_DEVICES names none of them, or "
        "the card fell off the bus (`dmesg | grep -i xid`).",
        patterns(
            r"No CUDA GPUs are available",
            r"CUDA error: no CUDA-capable device is detected",
            r"local rank \d+ is out of bounds for 0 devices",
        ),
        cards=True,
    ),
    Rule(
        "SG-G008",
        "the image is built without CUDA",
        "the model shall run on a GPU, and torch in this image is built for the CPU",
        "render again with `gpus:` set, so that the CUDA image is built, or take `--device cuda` out of extra_args",
        "torch 2.x, torch/cuda/__init__.py, _lazy_init; provoked for real",
        "FastChat's image has two variants; stackgen chooses by `gpus:` of the models.",
        patterns(r"Torch not compiled with CUDA enabled"),
    ),
    Rule(
        "SG-G009",
        "the card has no bfloat16",
        "the model is bfloat16, and the card has none[[: {card} has capability {capability}, and 8.0 is needed]]",
        "use float16",
        "vLLM 0.32.0, platforms/cuda.py, check_if_supports_dtype",
        "Cards before Ampere (T4, V100, RTX 20) compute in float16 only. float16 has a smaller range: a few models "
        "(Gemma) give wrong output in it and need float32.",
        patterns(
            r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0\. Your (?P<card>.+?) GPU "
            r".*?(?P<capability>\d\.\d)\.",
            r"Bfloat16 is only supported on GPUs with compute capability",
        ),
        engines=("vllm",),
        change=Change("dtype", "float16"),
        cards=True,
    ),
    Rule(
        "SG-G010",
        "the card is too old for the quantization",
        "{method} needs compute capability {minimum}, and the card has {capability}",
        "take a version of the model in another quantization (AWQ or GPTQ run from 7.5), or a newer card",
        "vLLM 0.32.0, config/vllm.py, _get_quantization_config",
        "Capabilities are printed times ten: 89 is 8.9 (Ada), 90 Hopper, 80 A100, 75 T4, 70 V100.",
        patterns(
            r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: "
            r"(?P<minimum>\d+)\. Current capability: (?P<capability>\d+)"
        ),
        engines=("vllm",),
        cards=True,
    ),
    Rule(
        "SG-G011",
        "NCCL can't connect the GPUs",
        "the cards of one model can't talk to each other: NCCL failed",
        'more shared memory (shm_size: 8g, or ipc: host), and `extra_env: {NCCL_P2P_DISABLE: "1"}` where cards '
        "have no direct way; NCCL_DEBUG: INFO tells more",
        "torch 2.x, torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp; vLLM 0.32.0, pynccl_wrapper.py",
        "Tensor parallel needs NCCL between the cards of a replica. It fails on too little /dev/shm, on IOMMU or "
        "virtual machines that block peer-to-peer access, and on a second network interface that is chosen by mistake "
        "(NCCL_SOCKET_IFNAME).",
        patterns(
            r"NCCL error(?:: | in: .{0,300}?, )(?:unhandled (?:cuda|system) error|internal error|invalid usage|"
            r"remote process exited)",
            r"ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclInvalidUsage|ncclRemoteError",
            r"Watchdog caught collective operation timeout",
        ),
        cards=True,
    ),
)
