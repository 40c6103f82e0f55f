"""Rules for the GPUs of a model: ids, counts, compute capability, data types, NCCL.

`source` shows which failures were reproduced.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Change, Rule, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G006",
        title="the requested GPU does not exist",
        cause="this machine does not have the GPU that stack.yaml requests[[: {device}]]",
        fix="set `gpus` to ids that `nvidia-smi -L` prints, for example gpus: [0]",
        source="nvidia-container-cli and CDI texts in NVIDIA/nvidia-container-toolkit issues 29 and 434, not "
        "reproduced; CUDA error 101 of torch 2.11.0 and the NVML error in vLLM 0.26.0, reproduced on an H100",
        explain="GPU indices start at 0, in the order of `nvidia-smi -L`. The UUID of a GPU stays the same when the "
        "GPU moves to another PCIe slot.",
        patterns=compile_patterns(
            r"nvidia-container-cli: device error: (?P<device>\S+): unknown device",
            r"unresolvable CDI devices (?P<device>[^\s,:]+)",
            r"CUDA error: invalid device ordinal",
            # CUDA_VISIBLE_DEVICES contains no existing GPU: vLLM queries NVML while it inspects the model's class
            r"NVMLError_InvalidArgument",
        ),
        inputs=("log", "compose", "docker"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G015",
        title="the model needs more GPUs than the container has",
        cause="the model is split across {wanted} GPUs, but only {count} are available",
        fix="give the model {wanted} GPUs (`gpus: {wanted}`), or lower tensor_parallel_size and pipeline_parallel_size",
        source="vLLM 0.32.0, config/parallel.py, __post_init__; failure reproduced with 0.26.0 on an H100",
        explain="The model needs tensor_parallel_size times pipeline_parallel_size GPUs. CUDA_VISIBLE_DEVICES in "
        "extra_env can hide GPUs of the container.",
        patterns=compile_patterns(
            r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<count>\d+)\)"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-G007",
        title="no GPU is visible in the container",
        cause="the program was built for CUDA but finds no GPU",
        fix="give the model GPUs (gpus: 1), and remove CUDA_VISIBLE_DEVICES from extra_env",
        source="torch 2.x, torch/cuda/__init__.py, and vLLM 0.26.0, v1/worker/gpu_worker.py init_device, reproduced "
        "on an H100; CUDA error 100",
        explain="The container has the driver's library but no GPU. Either no GPU is reserved, or "
        "CUDA_VISIBLE_DEVICES contains no existing GPU, or the GPU fell off the bus (`dmesg | grep -i xid`).",
        patterns=compile_patterns(
            r"No CUDA GPUs are available",
            r"CUDA error: no CUDA-capable device is detected",
            # what vLLM prints if CUDA_VISIBLE_DEVICES hides the GPU
            r"local rank \d+ is out of bounds for 0 devices",
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-G008",
        title="the image is built without CUDA",
        cause="the model is set to run on a GPU, but torch in this image is built for the CPU",
        fix="set `gpus:` and run `stackgen render`, so that the CUDA image is built, or remove `--device cuda` from "
        "extra_args",
        source="torch 2.x, torch/cuda/__init__.py, _lazy_init; failure reproduced",
        explain="FastChat's image has a CPU variant and a CUDA variant. stackgen chooses the variant by `gpus:` of "
        "the models.",
        patterns=compile_patterns(r"Torch not compiled with CUDA enabled"),
    ),
    Rule(
        "SG-G009",
        title="the GPU does not support bfloat16",
        cause="the model uses bfloat16, but the GPU does not support bfloat16[[: {card} has compute capability "
        "{capability}, and 8.0 is needed]]",
        fix="set dtype: float16",
        source="vLLM 0.32.0, platforms/cuda.py, check_if_supports_dtype",
        explain="GPUs before Ampere (T4, V100, RTX 20) have float16 but no bfloat16. float16 has a smaller range than "
        "bfloat16. A few models (Gemma) give wrong output in float16 and need float32.",
        patterns=compile_patterns(
            r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0\. Your (?P<card>.+?) GPU "
            r".*?(?P<capability>\d\.\d)\.",
            r"Bfloat16 is only supported on GPUs with compute capability",
        ),
        engines=("vllm",),
        change=Change("dtype", "float16"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G010",
        title="the GPU is too old for the quantization",
        cause="the quantization {method} needs compute capability {minimum}, but the GPU has {capability}",
        fix="use a version of the model with another quantization (AWQ or GPTQ run on compute capability 7.5 and "
        "higher), or a newer GPU",
        source="vLLM 0.32.0, config/vllm.py, _get_quantization_config",
        explain="vLLM prints the compute capability times ten: 89 means 8.9 (Ada), 90 is Hopper, 80 is A100, 75 is "
        "T4, and 70 is V100.",
        patterns=compile_patterns(
            r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: "
            r"(?P<minimum>\d+)\. Current capability: (?P<capability>\d+)"
        ),
        engines=("vllm",),
        shows_gpus=True,
    ),
    Rule(
        "SG-G011",
        title="NCCL can't connect the GPUs",
        cause="NCCL failed, so the GPUs of one model can't communicate",
        fix="add shared memory (shm_size: 8g, or ipc: host); if the GPUs have no direct connection, set `extra_env: "
        '{NCCL_P2P_DISABLE: "1"}`; for more log output, set NCCL_DEBUG: INFO in extra_env',
        source="torch 2.x, torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp; vLLM 0.32.0, pynccl_wrapper.py",
        explain="Tensor parallelism needs NCCL between the GPUs of a replica. NCCL fails if /dev/shm is too small, or "
        "if an IOMMU or a virtual machine blocks peer-to-peer access. NCCL also fails if it selects the wrong network "
        "interface (NCCL_SOCKET_IFNAME sets the interface).",
        patterns=compile_patterns(
            r"NCCL error(?:: | in: .{0,300}?, )(?:unhandled (?:cuda|system) error|internal error|invalid usage|"
            r"remote process exited)",
            r"ncclUnhandledCudaError|ncclSystemError|ncclInternalError|ncclInvalidUsage|ncclRemoteError",
            r"Watchdog caught collective operation timeout",
        ),
        shows_gpus=True,
    ),
)
