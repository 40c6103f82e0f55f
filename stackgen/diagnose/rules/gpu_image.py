"""Rules for images that do not fit the GPU: missing kernels, old compilers, mixed libraries, other limits.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns
from stackgen.diagnose.rules.amd_kernels import AMD_KERNEL_VARIANTS, NO_AMD_KERNEL, overrides_gfx
from stackgen.diagnose.rules.new_gpus import PTXAS_COMMAND

__all__ = ["RULES"]

NEWER_IMAGE = "set `image:` to a newer image that supports this GPU"
# libraries of CUDA and ROCm that belong to the image; libcuda and libnvidia-ml belong to the driver
TOOLKIT_LIBRARY = (
    r"lib(?:cudart|cublas\w*|cudnn\w*|cusparse\w*|cufft|curand|cusolver\w*|nvrtc\w*|nvJitLink|nccl|cupti|"
    r"amdhip64|hipblas\w*|rocblas|rccl|MIOpen|c10\w*|torch\w*)\.so[.\d]*"
)

ON_CHIP_MEMORY = compile_patterns(
    r"out of resource: shared memory, Required: (?P<wanted>\d+), Hardware limit: (?P<limit>\d+)"
)
EXPERTS = re.compile(r'File "[^"\n]{0,300}/(?:fused_moe|ep_moe|layers/moe|moe_runner)/')
NO_BACKEND = compile_patterns(r"(?P<problem>No valid attention backend found.{0,300})")
# the reasons against each backend, and those of them that no setting changes (vLLM, v1/attention/backend.py)
REASONS = re.compile(r"\b(?P<backend>[A-Z][A-Z0-9_]{3,40}): \[(?P<reasons>[^\]]*)\]")
HARD = re.compile(
    r"sparse not supported|compute capability not supported|not supported on this device|only supported on|"
    r"MLA not supported|head_size not supported|sinks? not supported|not available|not compiled"
)


def _excludes_every_backend(evidence: Evidence, service: str) -> bool:
    """Whether the message lists backends, and each of them for a reason that no setting changes."""
    log = next((one.log for one in evidence.services if one.service == service), "")
    found = [one for line in log.splitlines() if NO_BACKEND[0].search(line) for one in REASONS.finditer(line)]
    return bool(found) and all(HARD.search(one["reasons"]) for one in found)


def _is_in_experts(evidence: Evidence, service: str) -> bool:
    log = evidence.read_log(service)
    # LoRA has its own kernels for the experts
    return "out of resource: shared" in log and bool(EXPERTS.search(log)) and not re.search(r"/lora/\w+", log)


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G018",
        title="the image's compiler does not know this GPU",
        cause="a compiler in the image (Triton's ptxas, or nvcc) is too old for the GPU[[, which has the "
        "architecture {arch}]]",
        fix=f"{NEWER_IMAGE}; if the image contains a newer CUDA toolkit, let Triton use the ptxas of this toolkit: "
        "set TRITON_PTXAS_PATH to /usr/local/cuda/bin/ptxas in extra_env",
        source="NixOS/nixpkgs issue 406675 (2025-07), gpustack/gpustack issue 4372 (2026-01) and triton-lang/triton "
        "issue 8539 quote the messages of ptxas, RLinf/RLinf issue 92 (2025-09) only its command, and "
        "flashinfer-ai/flashinfer issue 1657 (2025-09) those of nvcc. NVIDIA's announcement of CUDA 13.0 (2025-08) "
        "lists the dropped architectures: 5.x, 6.x, 7.0 and 7.2. The failure was not reproduced.",
        explain="Triton and torch.compile compile kernels at startup, with the compiler of the image. sm_120 (RTX 50) "
        "needs CUDA 12.8, sm_121 (GB10, DGX Spark) a later version, and sm_110 (Thor) CUDA 13.",
        patterns=compile_patterns(
            r"PTX \.version \S+ does not support \.target (?P<arch>sm_\w+)",
            r"Value '(?P<arch>sm_\w+)' is not defined for option 'gpu-name'",
        ),
        drivers=("nvidia", ""),
        shows_gpus=True,
        variants=(
            Variant(
                # CUDA 13 compiles for compute capability 7.5 and higher, CUDA 12 for 5.0 and higher
                compile_patterns(
                    r"[Uu]nsupported gpu architecture '(?P<arch>compute_(?:[3-6]\d|7[02]))'",
                    r"Value '(?P<arch>sm_(?:[3-6]\d|7[02]))' is not defined for option 'gpu-name'",
                ),
                title="the image's compiler no longer knows this GPU",
                cause="a compiler in the image (nvcc or ptxas) does not support the architecture {arch}. CUDA 13 no "
                "longer supports GPUs below compute capability 7.5 (Maxwell, Pascal, Volta), and CUDA 12 no longer "
                "supports Kepler (3.x)",
                fix="set `image:` to an image for CUDA 12 (for vLLM, a tag that ends with -cu129), or to an older "
                "release that supports this GPU",
            ),
            PTXAS_COMMAND,
            Variant(
                compile_patterns(r"[Uu]nsupported gpu architecture '(?P<arch>\w+)'"),
                cause="the nvcc of the image is too old for the GPU, which has the architecture {arch}",
                fix=NEWER_IMAGE,
            ),
        ),
    ),
    Rule(
        "SG-G019",
        title="the image has no kernels for this AMD GPU",
        cause="the image's ROCm libraries were not built for this GPU[[, which is {arch}]]",
        fix="set `image:` to an image whose ROCm supports this GPU (`rocminfo` prints its architecture, for example "
        "gfx1151)",
        source="The messages come from HIP (clr, hipamd/src/hip_error.cpp) and rocBLAS, and are quoted in "
        "gpustack/gpustack issue 3786 (2025-12), vllm-project/vllm issue 28460 (2025-11) and ROCm/ROCm issue 2061; "
        "ggml-org/llama.cpp issues 14421 (2025-06) and 22013 (2026-04) report a second GPU, and mudler/LocalAI issue "
        "9313 (2026-04) and ROCm/legacy-rocm-build issue 4625 (2025-04) missing files. It was not reproduced.",
        explain="HIP programs contain machine code for a list of GPU architectures. rocBLAS also needs a file of "
        "kernels for each architecture. `Illegal seek` does not mean that a disk is broken. HSA_OVERRIDE_GFX_VERSION "
        "makes ROCm treat the GPU as a similar architecture, but results can be wrong.",
        patterns=NO_AMD_KERNEL,
        shows_gpus=True,
        variants=AMD_KERNEL_VARIANTS,
    ),
    Rule(
        "SG-G020",
        title="a kernel needs more on-chip memory than the GPU has",
        cause="a Triton kernel needs {wanted} bytes of the GPU's on-chip shared memory, but the GPU has {limit}",
        fix="read the frames above the message in the full log, which name the kernel; use a newer image; for an "
        "attention kernel, choose another attention backend (`--attention-backend` in extra_args)",
        source="The message comes from Triton 3 (runtime/errors.py, OutOfResources), and is quoted in "
        "kyuz0/amd-r9700-vllm-toolboxes issue 17 (2026-08) and QwenLM/Qwen3-Coder issue 461 (2025-07). "
        "sgl-project/sglang pull request 28038 (2026-06) describes the experts. The failure was not reproduced.",
        explain="This shared memory is a part of each compute unit of the GPU (LDS on AMD). It is neither the "
        "container's /dev/shm nor the GPU's memory, so shm_size and gpu_memory_utilization have no effect.",
        patterns=ON_CHIP_MEMORY,
        variants=(
            Variant(
                ON_CHIP_MEMORY,
                cause="a Triton kernel for the experts (MoE) needs {wanted} bytes of the GPU's on-chip shared memory, "
                "but the GPU has {limit}. The engine's block sizes for this model do not suit this GPU",
                fix="use a newer image, which may have block sizes for this GPU; or choose another backend for the "
                "experts: `--moe-backend` in extra_args (SGLang: `--moe-runner-backend`; old vLLM with an FP8 model on "
                'Hopper: set VLLM_USE_DEEP_GEMM to "1" in extra_env); leave the attention backend as it is',
                applies=_is_in_experts,
                condition="the traceback contains the code of the experts (fused_moe), and no LoRA kernel",
            ),
        ),
    ),
    Rule(
        "SG-G021",
        title="no kernel of the image can run this model on this GPU",
        cause="none of the engine's kernels supports this model on this GPU: {problem}",
        fix="use a version of the model with another quantization or data type, use another GPU, or try a newer image",
        source="The messages come from FlashInfer 0.6.18 (utils.py), vLLM 0.32.0 (platforms/cuda.py and rocm.py), "
        "flash-attention 2 (csrc/flash_attn/flash_api.cpp) and Triton 3. noonghunna/club-3090 pull request 784 "
        "(2026-07) quotes the first one, and vllm-project/vllm issues 45317 (2026-06), 54059 (2026-08) and 31480 "
        "that of sparse attention. The failure was not reproduced.",
        explain="FP8 needs compute capability 8.9, and NVFP4 needs 10.0. On older GPUs, some layers have no kernel "
        "for these formats. The reasons in the message show which setting excludes which backend.",
        patterns=compile_patterns(
            r"(?P<problem>No suitable auto backends found for \w+)",
            r"(?P<problem>type fp8e4nv not supported in this architecture)",
        ),
        shows_gpus=True,
        variants=(
            Variant(
                NO_BACKEND,
                title="no attention backend of the image supports this model on this GPU",
                cause="no attention backend in the message supports this model on this GPU. Each one lacks "
                "something, for example sparse attention or support for this compute capability: {problem}",
                fix="use a GPU that supports what the message names, or a model with another kind of attention "
                "(use_sparse=True means sparse attention, as in DeepSeek V3.2 and GLM 5); or use another image whose "
                "release notes name this model and this GPU; changing `--attention-backend` or the KV cache type does "
                "not help",
                applies=_excludes_every_backend,
                condition="each backend has a reason that no setting changes",
            ),
            Variant(
                compile_patterns(
                    r"(?P<problem>Selected backend \S+ is not valid for this configuration.{0,100}kv_cache_dtype not "
                    r"supported.{0,100})"
                ),
                title="the attention backend does not support the type of the KV cache",
                cause="a setting, or vLLM itself, chose an attention backend that does not support the type of the "
                "KV cache: {problem}",
                fix="[[?kv_cache_dtype|remove kv_cache_dtype, or set it to another type; ]][[!kv_cache_dtype|remove "
                "`--kv-cache-dtype` from extra_args (if it is not there, the type comes from the model's "
                "config.json); ]][[?extra_args.--attention-backend|or remove --attention-backend from extra_args; ]]"
                "if the log says that vLLM forces this backend for the model, you can change only the KV cache type",
            ),
            Variant(
                compile_patterns(r"(?P<problem>Selected backend \S+ is not valid for this configuration.{0,200})"),
                cause="the chosen attention backend can't run this model on this GPU: {problem}",
                fix="if a setting chooses the backend (`--attention-backend` in extra_args, or "
                "VLLM_ATTENTION_BACKEND in extra_env), remove the setting; if vLLM itself chose the backend, try "
                "another version of the image",
            ),
            Variant(
                NO_BACKEND,
                fix="read the reasons in the message: for each backend, they name the settings that it does not "
                "support (KV cache type, block size, head size); remove such a setting, or try a newer image",
            ),
            Variant(
                compile_patterns(r"(?P<problem>FlashAttention only supports \w+ GPUs or newer)"),
                fix="choose another attention backend (`--attention-backend` in extra_args), or use a newer GPU",
            ),
        ),
    ),
    Rule(
        "SG-G022",
        title="the image mixes libraries of different versions",
        cause="the packages in the image were built for the library {library}, which the image does not contain",
        fix="use an official image of the engine, or build the image with wheels for one CUDA or ROCm version",
        source="The messages come from glibc (dlopen) and FlashInfer 0.6.18 (jit/env.py), and are quoted in "
        "vllm-project/vllm issues 31018 (2025-12), 36099 (2026-03) and 52300 (2026-08). The failure was not "
        "reproduced.",
        explain="libcudart.so.12 belongs to CUDA 12, and libcudart.so.13 belongs to CUDA 13. These libraries are part "
        "of the image and not of the driver, so a change of the host's driver does not help.",
        patterns=compile_patterns(
            # `dlerror:` is TensorFlow's own search for libraries, not a failure of the engine
            rf"(?<!dlerror: )\b(?P<library>{TOOLKIT_LIBRARY}): cannot open shared object file",
        ),
        variants=(
            Variant(
                compile_patterns(r"ImportError: (?P<library>\S+\.so\S*): undefined symbol"),
                cause="{library} was built for another version of a library (often torch) than the version in the "
                "image",
            ),
            Variant(
                compile_patterns(
                    r"flashinfer[\w-]* version \((?P<one>\S+)\) does not match .{0,40}\((?P<other>[^)]+)\)"
                ),
                cause="two packages of FlashInfer in the image have different versions: {one} and {other}",
                fix="use an official image of the engine, or install the same version of both packages",
            ),
        ),
    ),
    Rule(
        "SG-G024",
        title="the ROCm runtime stopped the program",
        cause="the ROCm runtime ended the program: {problem}. Most often, the image's ROCm does not support this GPU "
        "well. Otherwise, a kernel or the GPU is faulty",
        fix="try an image with a newer ROCm that supports this GPU; if there is no such image, but a similar GPU is "
        "supported, set HSA_OVERRIDE_GFX_VERSION to the version of that GPU (for example 10.3.0 for gfx1034); AMD "
        "intends this variable for debugging, and a wrong value causes this error; if the error remains, look for "
        "errors of amdgpu in the kernel log (`dmesg`)",
        source="The messages come from ROCm's ROCR runtime (core/runtime/runtime.cpp), and are quoted in "
        "ROCm/legacy-rocm-build issue 6182 (2026-06). docs/gpu.md of Ollama describes the variable; ollama/ollama "
        "issue 12131 (2025-08) was solved with the variable, ROCm/legacy-rocm-build issue 5238 (2025-09) without it. "
        "The failure was not reproduced.",
        explain="In this message, `Memory in use` does not mean that the GPU's memory is full, or that another "
        "program uses the GPU.",
        patterns=compile_patterns(
            r"(?P<problem>Memory critical error by agent.*?Reason: [^.]+)",
            r"(?P<problem>Memory access fault by GPU.*?Reason: [^.]+)",
        ),
        shows_gpus=True,
        names_settings=True,
        variants=(
            Variant(
                compile_patterns(r"Memory access fault by GPU.*?Reason: (?P<problem>[DS]RAM ECC failure)"),
                title="the GPU's memory is faulty",
                cause="the ROCm runtime ended the program because the memory of a GPU had an error: {problem}",
                fix="find the GPU with errors (`rocm-smi --showrasinfo`, and `sudo dmesg | grep -i amdgpu`), and set "
                "`gpus` to another one; if the errors come back after the next reboot, return the GPU to its vendor",
            ),
            Variant(
                compile_patterns(r"(?P<problem>Memory access fault by GPU.*?Reason: [^.]+)"),
                cause="the ROCm runtime ended the program: {problem}. HSA_OVERRIDE_GFX_VERSION is set, so ROCm uses "
                "code for another GPU, which may not fit this one",
                fix="as a test, remove HSA_OVERRIDE_GFX_VERSION[[?extra_env| from extra_env]], because newer ROCm "
                "versions know more GPUs; otherwise set it to the supported GPU that is closest to yours "
                "(`rocminfo` prints the gfx number without the variable), or use an image with a newer ROCm",
                applies=overrides_gfx,
                condition="the text or the stack sets HSA_OVERRIDE_GFX_VERSION",
            ),
        ),
    ),
    Rule(
        "SG-G025",
        title="the engine detects no AMD GPU",
        cause="the engine detects no AMD GPU in the container. Either the image is not built for ROCm, or the "
        "container has no access to /dev/kfd and /dev/dri",
        fix="[[?image|remove `image:`, so that stackgen chooses an image for ROCm; ]]set gpu_driver to amd, and use "
        "an image for ROCm; check that /dev/kfd and /dev/dri exist on the host",
        source="The message of vLLM (config/device.py) is quoted in vllm-project/vllm issue 39378 (2026-04) on an AMD "
        "GPU, and the one of torch for ROCm in vllm-project/vllm issue 34573. `no ROCm-capable device` is HIP error "
        "100 (clr, hipamd/src/hip_error.cpp). kyuz0/amd-strix-halo-toolboxes issue 75 (2026-04) reports the kernel "
        "parameter nomodeset as the cause. The failure was not reproduced.",
        explain="The message is the same for all kinds of GPUs. An image for CUDA recognizes no AMD GPU, and an image "
        "for ROCm recognizes no NVIDIA GPU.",
        patterns=compile_patterns(r"Failed to infer device type|Found no NVIDIA driver on your system"),
        drivers=("amd",),
        shows_gpus=True,
        variants=(
            Variant(
                # only a program that was built for ROCm prints these
                compile_patterns(r"No HIP GPUs are available", r"no ROCm-capable device is detected"),
                cause="the ROCm runtime finds no GPU in the container. Either /dev/kfd or /dev/dri is missing in the "
                "container, or the container's user has no permission to open them",
                fix="run `ls -ln /dev/kfd /dev/dri` on the host; if the device files are missing, load the driver "
                "amdgpu; if `lsmod | grep amdgpu` shows nothing, look for `nomodeset` or a blacklist entry for amdgpu "
                "in /proc/cmdline and /etc/modprobe.d, remove it, and reboot when you can; if the device files exist, "
                "[[!gpus|set `gpus`, and ]]add the group numbers of the files to `group_add` of the service",
            ),
        ),
    ),
)
