"""Rules for libraries of CUDA that fail in an engine, and for GPU memory that several processes share.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

NO_MEMORY = (
    "run `nvidia-smi`, which shows the processes that use the GPU; lower the engine's share of the GPU's memory "
    "(vLLM: gpu_memory_utilization, SGLang: mem_fraction_static, llama.cpp: gpu_layers or a smaller context)"
)
OWN_LIBRARIES = (
    'as a test, start with an empty LD_LIBRARY_PATH (`unset LD_LIBRARY_PATH` in a shell, LD_LIBRARY_PATH: "" in '
    "extra_env): then torch loads the libraries that it was built with"
)
SHARE_MEMORY = (
    "add the capability SYS_PTRACE to the container, which lets its processes read each other's memory (`docker run "
    "--cap-add SYS_PTRACE`, in Compose `cap_add: [SYS_PTRACE]`, in Kubernetes securityContext.capabilities)"
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G049",
        title="cuBLAS can't multiply matrices",
        cause="cuBLAS, CUDA's library for matrices, returned {status}. Most often, the loaded cuBLAS has a different "
        "version from the one that torch was built with",
        fix=f"{OWN_LIBRARIES}; if this does not help, set `image:` to an official image of the engine, newer or older; "
        "don't change memory settings",
        source="The messages come from torch (aten/src/ATen/cuda/CUDABlas.cpp). vllm-project/vllm issue 35608 "
        "(2026-02) quotes CUBLAS_STATUS_INVALID_VALUE, which `unset LD_LIBRARY_PATH` solved. "
        "ggml-org/llama.cpp issue 10080 (2024-10) quotes CUBLAS_STATUS_NOT_INITIALIZED. The failure was not "
        "reproduced.",
        explain="Images and shells with a CUDA toolkit set LD_LIBRARY_PATH to its folder. The loader then prefers the "
        "toolkit's libraries to those of torch's packages.",
        patterns=compile_patterns(
            r"CUDA error: (?P<status>CUBLAS_STATUS_(?:INVALID_VALUE|NOT_SUPPORTED|ARCH_MISMATCH|INTERNAL_ERROR))",
        ),
        variants=(
            Variant(
                compile_patterns(r"CUDA error: (?P<status>CUBLAS_STATUS_(?:NOT_INITIALIZED|ALLOC_FAILED))"),
                title="cuBLAS finds no free memory on the GPU",
                cause="cuBLAS, CUDA's library for matrices, could not start ({status}). Most often, the GPU's memory "
                "is full. Less often, a cuBLAS of another version was loaded",
                fix=f"{NO_MEMORY}; if much memory is free, {OWN_LIBRARIES}",
            ),
            Variant(
                compile_patterns(r"CUDA error: (?P<status>CUBLAS_STATUS_EXECUTION_FAILED)"),
                title="a matrix multiplication crashed on the GPU",
                cause="a matrix multiplication of cuBLAS failed on the GPU ({status}). Either an earlier kernel "
                "crashed, or a cuBLAS of another version was loaded, or the GPU is faulty",
                fix="look for an earlier error of CUDA in the log, and for Xid errors (`sudo dmesg | grep -i xid`); "
                f"if there are none, {OWN_LIBRARIES}; then try a newer image",
            ),
        ),
        fallback=True,
        shows_gpus=True,
    ),
    Rule(
        "SG-G050",
        title="cuDNN failed",
        cause="cuDNN, CUDA's library for neural networks, returned {status}. Most often, the loaded cuDNN has a "
        "different version from the one that torch was built with",
        fix=f"{OWN_LIBRARIES}; if this does not help, set `image:` to an official image of the engine, newer or older",
        source="The names are those of cuDNN 9 (cudnnStatus_t), and the first words come from torch "
        "(aten/src/ATen/cudnn/Exceptions.h). NVIDIA/dgx-spark-playbooks issue 107 (2026-08) quotes "
        "CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER. The failure was not reproduced.",
        explain="cuDNN consists of several files, which must have the same version.",
        patterns=compile_patterns(
            r"(?P<status>CUDNN_STATUS_(?:NOT_INITIALIZED|SUBLIBRARY_(?:VERSION_MISMATCH|LOADING_FAILED)|"
            r"VERSION_MISMATCH))",
        ),
        variants=(
            Variant(
                compile_patterns(r"(?P<status>CUDNN_STATUS_EXECUTION_FAILED(?:_CUDA_DRIVER|_CUBLAS|_CUDART)?)\b"),
                title="a kernel of cuDNN crashed on the GPU",
                cause="a kernel of cuDNN failed on the GPU ({status}). Most often, the image's cuDNN or FlashInfer has "
                "a bug on this GPU, and a setting such as an FP8 KV cache chose the kernel",
                fix="as a test, start without a quantized KV cache (kv_cache_dtype, `--kv-cache-dtype`), then with "
                "another attention backend (`--attention-backend`); if both fail, use a newer image",
            ),
            Variant(
                compile_patterns(
                    r"(?P<status>CUDNN_STATUS_(?:ALLOC_FAILED|INTERNAL_ERROR_(?:DEVICE|HOST)_ALLOCATION_"
                    r"FAILED))"
                ),
                title="cuDNN finds no free memory",
                cause="cuDNN, CUDA's library for neural networks, could not allocate memory ({status})",
                fix=NO_MEMORY,
            ),
        ),
        fallback=True,
        shows_gpus=True,
    ),
    Rule(
        "SG-G051",
        title="the container does not let its processes share GPU memory",
        cause="the engine's processes share GPU memory through a file handle of another process (pidfd_getfd), and "
        "the container's security settings forbid this",
        fix="if PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF contains expandable_segments:True, remove this value "
        f"from the variable[[?extra_env| (in extra_env)]]; otherwise {SHARE_MEMORY}",
        source="The messages come from torch (c10/cuda/CUDACachingAllocator.cpp) and FlashInfer "
        "(comm/mnnvl.py), and are quoted in pytorch/pytorch issue 165685 (2025-10), verl-project/verl issue 3377 "
        "(2025-09), alibaba/ROLL issue 417 (2026-04) and flashinfer-ai/flashinfer pull request 4089 (2026-07). The "
        "failure was not reproduced.",
        explain="The system call needs the right to trace the other process. Docker's default seccomp profile and "
        "the kernel's setting kernel.yama.ptrace_scope=1 both forbid it without the capability SYS_PTRACE. A larger "
        "/dev/shm does not help.",
        patterns=compile_patterns(r"pidfd_(?:getfd|open)\b(?:\([^)]{0,60}\))?.{0,40}?Operation not permitted"),
    ),
    Rule(
        "SG-G052",
        title="the GPUs can't read each other's memory",
        cause="the engine's own all-reduce needs GPUs that read each other's memory (peer access), and these GPUs "
        "do not support it",
        fix="add `--disable-custom-all-reduce` to extra_args, so that the engine uses NCCL instead",
        source="The message is the text of CUDA error 217 (cudaErrorPeerAccessUnsupported) in libcudart 12.9, and is "
        "quoted in sgl-project/sglang issues 4814 (2025-03) and 552 (2024-06) and ai-dynamo/dynamo issue 1229 "
        "(2025-05), and vllm-project/vllm issue 56180 (2026-09) quotes another error of the same file. The failure "
        "was not reproduced.",
        explain="GeForce GPUs such as the RTX 3090, 4090 and 5090 do not support peer access with NVIDIA's own driver. "
        "Many virtual machines do not support it either. The GPUs, the driver and NCCL are not faulty.",
        variants=(
            Variant(
                compile_patterns(
                    r"[Cc]uda error \S{0,200}custom_all_reduce\S{0,20}:\d+ '(?P<problem>(?!peer access)[^']+)'"
                ),
                title="the engine's own all-reduce failed",
                cause="the engine's own all-reduce, which combines the results of several GPUs, failed ({problem}). "
                "Most often, the GPUs or the container do not allow one process to open memory of another",
                fix="as a test, add `--disable-custom-all-reduce` to extra_args, so that the engine uses NCCL; remove "
                "expandable_segments:True from PYTORCH_CUDA_ALLOC_CONF and PYTORCH_ALLOC_CONF; if it fails only "
                "after some requests, look for an earlier error of a kernel",
            ),
        ),
        patterns=compile_patterns(
            r"(?:CUDA(?:RT)? error|[Cc]uda error \S{1,200}):? '?peer access is not supported between these two devices"
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-V050",
        title="CUDA was used before the worker processes were started",
        cause="the main process had already used CUDA when it started its workers with `fork`, and a forked process "
        "can't use CUDA",
        fix="set VLLM_WORKER_MULTIPROC_METHOD to spawn in extra_env; in your own script, also put the code that "
        'starts the engine below `if __name__ == "__main__":`, and call no function of torch.cuda before it',
        source="The message comes from torch (torch/cuda/__init__.py, _lazy_init), and is quoted in lm-sys/FastChat "
        "issue 3507 (2024-08) and vllm-project/vllm issues 8893 (2024-09) and 7151 (2024-08). The failure was not "
        "reproduced.",
        explain="Even a plugin or a package that only reads the GPU's name uses CUDA. `vllm serve` normally chooses "
        "`spawn` "
        "by itself in this case. The GPU and the driver are not the cause.",
        patterns=compile_patterns(r"Cannot re-initialize CUDA in forked subprocess"),
    ),
    Rule(
        "SG-G055",
        title="the image has no code for the device on which the model runs",
        cause="the operation {op} of the engine has no code for the device {backend}. The image was built for a "
        "different kind of device from the one that the model runs on",
        fix="on a machine without a GPU, use an image of the engine for the CPU (set `gpus` to none); with a GPU, find "
        "out why the engine did not use it: read the first lines of the log, and run `nvidia-smi` or `rocm-smi` in the "
        "container",
        source="The message comes from torch (c10/core/dispatch and aten/src/ATen/core/dispatch/OperatorEntry.cpp), "
        "for "
        "an operator of vLLM or SGLang. The failure was not reproduced.",
        explain="torch itself runs on all devices, but the engine's own operators exist only for one kind.",
        patterns=compile_patterns(
            r"Could not run '(?P<op>(?:_C\w*|_moe_C|vllm|sgl_kernel)::\w+)' with arguments from the '(?P<backend>\w+)' "
            r"backend"
        ),
    ),
    Rule(
        "SG-G056",
        title="a kernel of CUTLASS can't run on this GPU",
        cause="a kernel of CUTLASS, usually for FP8 or FP4 weights, failed when it was started (internal error). Most "
        "often, the kernel needs more shared memory than this GPU has, or another architecture",
        fix="for a mixture-of-experts model, choose another backend in extra_args (vLLM: [--moe-backend, triton] or "
        "[--moe-backend, marlin]; SGLang: [--moe-runner-backend, triton]); or use a newer image, or another "
        "quantization of the model",
        source="The words are those of CUTLASS (cutlassGetStatusString), as vLLM (csrc/cutlass_extensions/common.hpp) "
        "and the kernels of TensorRT-LLM in FlashInfer print them. vllm-project/vllm issues 22713 (2025-08) and 11763 "
        "(2025-01) and PaddlePaddle/FastDeploy issue 2889 (2025-07) quote them. The failure was not reproduced.",
        explain="The model's files, the driver and the memory of the GPU are not the cause.",
        patterns=compile_patterns(
            r"RuntimeError: Error Internal\s*$",
            r"(?i)cutlass.{0,80}: Error Internal",
        ),
        fallback=True,
        shows_gpus=True,
    ),
    Rule(
        "SG-G057",
        title="torch can't reserve GPU memory in segments",
        cause="a call of torch to CUDA's driver failed ({problem}). torch calls the driver directly for its expandable "
        "segments of memory. Some drivers, virtual GPUs and libraries next to torch do not support this",
        fix="remove expandable_segments:True from PYTORCH_CUDA_ALLOC_CONF and PYTORCH_ALLOC_CONF (`env | grep "
        "ALLOC_CONF`); if neither is set, turn off other features that reserve memory in this way, such as "
        "`--enable-sleep-mode`",
        source="The words come from torch (c10/cuda/driver_api.h), and vllm-project/vllm issue 12873 (2025-02) "
        "quotes them "
        "for a start with expandable_segments. The failure was not reproduced.",
        explain="Expandable segments only reduce the fragmentation of memory. The model works without them.",
        patterns=compile_patterns(
            r"CUDA driver error: (?P<problem>invalid argument|operation not supported|invalid device context|unknown "
            r"error)"
        ),
        # SG-G058
        unless=compile_patterns(r"_symmetric_memory|symm_mem"),
        fallback=True,
        shows_gpus=True,
    ),
)
