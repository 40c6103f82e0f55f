"""Rules for the machine's GPU setup, and for kernels that crash. `source` names where the messages are quoted.

None of these failures was reproduced.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Input, Rule, Variant, compile_patterns

__all__ = ["RULES"]

EVERYWHERE: tuple[Input, ...] = ("log", "compose", "docker")

NO_UVA = compile_patterns(
    r"\bUVA is not available", r"(?:offloading|runner) requires (?:UVA|uva) \(pin memory\) support"
)
PIN_MEMORY = (
    'set VLLM_WSL2_ENABLE_PIN_MEMORY to "1" in extra_env, which needs vLLM 0.24 and Linux 4.19.121 or later; or set '
    'VLLM_USE_V2_MODEL_RUNNER to "0", which chooses the model runner that works without pinned '
    "memory[[?extra_args.--cpu-offload-gb|; or remove --cpu-offload-gb, which needs pinned memory]]"
)

FAULT = compile_patterns(
    r"(?:CUDA|HIP|ROCm) error: (?P<problem>an illegal memory access was encountered|misaligned address|"
    r"an illegal instruction was encountered|hardware stack error|"
    r"invalid program counter|operation not supported on global/shared address space|unspecified launch "
    r"failure)"
)
SPECULATES = re.compile(r"speculative_config=SpeculativeConfig\(|speculative_config['\"]?: ?\{|--speculative-|"
                        r"speculative_algorithm='\w|SpecDecoding metrics")  # fmt: skip


def _speculates(evidence: Evidence, service: str) -> bool:
    """Whether the log or stack.yaml shows speculative decoding."""
    model = (evidence.find_model(service) or (0, None))[1]
    return bool(getattr(model, "speculative", None) or SPECULATES.search(evidence.read_log(service)))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G045",
        title="vLLM needs pinned memory, which is turned off",
        cause="vLLM needs pinned memory, which is memory of the host that the GPU can read (UVA). vLLM considers "
        "pinned memory unavailable, which is its default on WSL2",
        fix=f"on WSL2, {PIN_MEMORY}; on other systems, look for the line about `pin_memory` in the log",
        source="The messages come from vLLM 0.24 (v1/worker/gpu/buffer_utils.py and model_executor/offloader/uva.py), "
        "and are quoted in vllm-project/vllm issues 47387, 47292 and 54652 (2026-07 to 2026-09), whose answers "
        "confirm the variable. The failure was not reproduced.",
        explain="The GPU and its driver are not damaged. Models that use the older model runner start without the "
        "variable. Pull request 56908 of vLLM (2026-09) makes the variable unnecessary.",
        patterns=NO_UVA,
        engines=("vllm",),
        variants=(
            Variant(
                NO_UVA,
                cause="vLLM needs pinned memory, which is memory of the host that the GPU can read (UVA). This "
                "engine runs on WSL2, where vLLM turns pinned memory off by default",
                fix=PIN_MEMORY,
                applies=lambda evidence, service: evidence.is_wsl(service),
                condition="the machine runs WSL, or the log names it",
            ),
        ),
    ),
    Rule(
        "SG-G034",
        title="a kernel crashed on the GPU",
        cause="a kernel crashed on the GPU ({problem}). Either this version of the engine has a bug with this model "
        "or GPU, or the GPU is faulty",
        fix="look for errors of the GPU in the kernel log (`sudo dmesg | grep -iE 'xid|amdgpu'`); if there are none, "
        "try another `--attention-backend` in extra_args, enforce_eager, or a newer image",
        source="The messages are the texts of CUDA errors 214, 700, 702, 710 and 714 to 719 in libcudart 12.9, and of "
        "the same errors in HIP (clr, hipamd/src/hip_error.cpp). vllm-project/vllm issues 40756 (2026-05, speculative "
        "decoding) and 50331 (2026-07, FlashInfer), and sgl-project/sglang issue 29993 (2026-07, "
        "DeepGEMM) quote three. The failure was not reproduced.",
        explain="The GPU reports such an error late, so the traceback often shows the wrong function. For the right "
        'traceback, set CUDA_LAUNCH_BLOCKING to "1" in extra_env. Xid 31 and 43 point to a bug in a program. Xid 48, '
        "63, 64, 79, 94 and 95 point to a fault of the GPU.",
        patterns=FAULT,
        fallback=True,
        variants=(
            Variant(
                FAULT,
                title="a kernel crashed on the GPU during speculative decoding",
                cause="a kernel crashed on the GPU ({problem}) while the engine used speculative decoding (MTP, EAGLE "
                "or a draft model). Most often, this version of the engine has a bug with this combination",
                fix="as a test, start without speculative decoding (`speculative` in stack.yaml, "
                "`--speculative-config` or `--speculative-algorithm`), or with fewer tokens (num_speculative_tokens); "
                "if it then works, use a newer image, or leave it off; otherwise look for errors of the GPU in the "
                "kernel log (`sudo dmesg | grep -iE 'xid|amdgpu'`)",
                applies=_speculates,
                condition="the log or stack.yaml shows speculative decoding",
            ),
            Variant(
                compile_patterns(
                    r"\b(?P<kernel>Batch\w+(?:Cache|Attention)\w*|\w*FMHA\w*) failed with error "
                    r"(?P<problem>[a-z][\w /]{3,60})"
                ),
                title="an attention kernel of FlashInfer failed",
                cause="the attention kernel {kernel} of FlashInfer failed on this GPU ({problem}). Most often, "
                "FlashInfer has a bug with this GPU, head size or data type of the KV cache",
                fix="choose another attention backend (vLLM: extra_args [--attention-backend, TRITON_ATTN] or "
                "[--attention-backend, FLASH_ATTN]; SGLang: [--attention-backend, triton]); with a quantized "
                "KV cache, remove kv_cache_dtype (`--kv-cache-dtype`) as a test; or use a newer image",
            ),
            Variant(
                compile_patterns(
                    r"CUDA driver error \(\S{0,200}jit_kernels/\S+\): \d+ \((?P<problem>CUDA_ERROR_(?:LAUNCH_FAILED|"
                    r"ILLEGAL_ADDRESS|ILLEGAL_INSTRUCTION|MISALIGNED_ADDRESS|ASSERT))\)"
                ),
                title="a kernel of DeepGEMM crashed on the GPU",
                cause="a kernel of DeepGEMM, which multiplies FP8 matrices, crashed ({problem}). Most often, this "
                "version "
                "of DeepGEMM does not accept the scales of the model's FP8 weights, or has no support for the GPU",
                fix="turn DeepGEMM off as a test; for SGLang, set `--fp8-gemm-runner-backend` in extra_args to another "
                'backend (triton or cutlass), or SGLANG_ENABLE_JIT_DEEPGEMM to "0" in extra_env; for vLLM, set '
                'VLLM_USE_DEEP_GEMM to "0"; or use another version of the image',
            ),
            Variant(
                compile_patterns(
                    r"(?:CUDA|HIP) error: (?P<problem>too many resources requested for launch|invalid configuration "
                    r"argument)"
                ),
                title="a kernel can't be started on this GPU",
                cause="a kernel needs more registers, threads or memory than this GPU offers ({problem}). The "
                "image has no variant of the kernel for this GPU, or for this size of batch or head",
                fix="choose another `--attention-backend` in extra_args, or a smaller max_num_batched_tokens; use a "
                "newer image, or another quantization of the model; don't replace the GPU, because it is not faulty",
            ),
            Variant(
                compile_patterns(r"(?:CUDA|HIP) error: (?P<problem>device-side assert triggered)"),
                title="an assertion in a GPU kernel failed",
                cause="an assertion in a GPU kernel failed ({problem}). Most often, an index is out of range, for "
                "example a token that the model does not have. The GPU is not faulty",
                fix="look above for the line `Assertion … failed`, which names the assertion; if the tokenizer files "
                "come from another model, use the model's own; otherwise try a newer image",
            ),
            Variant(
                compile_patterns(r"(?:CUDA|HIP) error: (?P<problem>uncorrectable ECC error encountered)"),
                title="the GPU's memory is faulty",
                cause="the memory of a GPU had an uncorrectable error: {problem}",
                fix="find the GPU with errors (`nvidia-smi -q -d ECC`, or `rocm-smi --showrasinfo`), and set `gpus` "
                "to another one; if the errors come back after the next reboot, return the GPU to its vendor",
            ),
            Variant(
                compile_patterns(r"(?:CUDA|HIP) error: (?P<problem>the launch timed out and was terminated)"),
                title="a kernel ran longer than the GPU allows",
                cause="the driver ended a kernel because it ran too long ({problem}). On a GPU that drives a "
                "display, a kernel may run only for a few seconds",
                fix="use a GPU without a display; if no display is connected, look for errors of the GPU in the "
                "kernel log (`sudo dmesg | grep -iE 'xid|amdgpu'`)",
            ),
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-V059",
        title="the model computed numbers that are not valid",
        cause="the probabilities of the next token contain infinite or undefined numbers. Most often, the data type "
        "is too "
        "small for the model (float16 instead of bfloat16), or a quantized file or a kernel is faulty",
        fix="set dtype to bfloat16 (or to float32 if the GPU does not support bfloat16); for a quantized model, test "
        "the original one; then try another `--attention-backend` in extra_args, or another version of the image",
        source="The message comes from torch (aten/src/ATen/native/cuda/MultinomialKernel.cu). The failure was not "
        "reproduced.",
        explain="The message appears when the next token is drawn, long after the wrong number was computed. Sampling "
        "settings such as the temperature are rarely the cause.",
        patterns=compile_patterns(r"probability tensor contains either `inf`, `nan` or element < 0"),
    ),
    Rule(
        "SG-G035",
        title="the GPU is busy or unavailable",
        cause="the driver does not let another program use the GPU. Either a process uses the GPU in exclusive mode, "
        "or the GPU is in a bad state",
        fix="run `nvidia-smi -q -d COMPUTE`; if the compute mode is exclusive, set `gpus` to another GPU, or set the "
        "compute mode to `default` with `sudo nvidia-smi -c 0` (or ask your administrator to do it); otherwise look "
        "for Xid errors in the kernel log",
        source="The message is the text of CUDA error 46 (cudaErrorDevicesUnavailable) in libcudart 12.9, and is "
        "quoted in hiyouga/LlamaFactory issue 10240 (2026-02) and NVIDIA/DIGITS issue 2005. The failure was not "
        "reproduced.",
        explain="In the compute mode `Exclusive_Process`, only one process can use a GPU. A GPU with MIG enabled but "
        "without MIG instances can't be used either.",
        patterns=compile_patterns(r"CUDA-capable device\(s\) is/are busy or unavailable"),
        shows_gpus=True,
    ),
    Rule(
        "SG-G036",
        title="WSL exposes no GPU",
        cause="the NVIDIA container toolkit runs in WSL, but Windows exposes no NVIDIA GPU to WSL",
        fix="install a current NVIDIA driver in Windows, and none in WSL; run `wsl --update` and `wsl --shutdown`; "
        "then check `nvidia-smi` in WSL; without an NVIDIA GPU, set `gpus` to none",
        source="The message comes from libnvidia-container, and is quoted in NVIDIA/nvidia-container-toolkit issue 155 "
        "and xencon/aixcl issue 142 (2025-11). The failure was not reproduced.",
        explain="WSL uses the Windows driver. A Linux driver inside WSL hides the Windows driver.",
        patterns=compile_patterns(r"WSL environment detected but no adapters were found"),
        inputs=EVERYWHERE,
    ),
    Rule(
        "SG-G037",
        title="the NVIDIA container toolkit does not find ldconfig",
        cause="the toolkit is configured for an ldconfig that this machine does not have: {path}",
        fix='set `ldconfig` to "@/sbin/ldconfig" in /etc/nvidia-container-runtime/config.toml, or use CDI (set '
        "gpu_driver to cdi)",
        source="The message comes from libnvidia-container (src/nvc_ldcache.c, nvc_ldcache_update). "
        "NVIDIA/k8s-device-plugin issue 1400 and NVIDIA/nvidia-container-toolkit issue 1246 (2025-08) report an "
        "ldconfig that was killed; in both, CDI helped. NVIDIA/nvidia-container-toolkit issue 1357 "
        "(2025-10) and nicolargo/glances issue 3144 (2025-04) report an error code of ldconfig. The failure was not "
        "reproduced.",
        explain="/sbin/ldconfig.real exists only on Ubuntu. Packages for other distributions configure another path.",
        patterns=compile_patterns(r"ldcache error: open failed: (?P<path>\S+): no such file or directory"),
        inputs=EVERYWHERE,
        variants=(
            Variant(
                compile_patterns(r"ldcache error: process (?P<path>\S+) failed with error code: (?P<code>\d+)"),
                title="ldconfig failed while the NVIDIA container toolkit prepared a container",
                cause="in its legacy mode, the toolkit runs the host's {path} for each container, with the libraries "
                "of the image. This program ended with code {code}. Most often, the program and the image are not "
                "compatible (another system or CPU architecture, a read-only or damaged image), or the path is wrong",
                fix="use CDI, which prepares containers in another way; for a stack, set gpu_driver to cdi; for other "
                "containers, run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` and `sudo nvidia-ctk "
                "config --in-place --set nvidia-container-runtime.mode=cdi`, which takes effect when Docker restarts; "
                "then test another image (`docker run --rm --gpus all ubuntu nvidia-smi`); if that works, the image is "
                "the cause; otherwise check `ldconfig` in /etc/nvidia-container-runtime/config.toml (on Ubuntu "
                '"@/sbin/ldconfig.real", elsewhere "@/sbin/ldconfig")',
            ),
            Variant(
                compile_patterns(r"ldcache error: process (?P<path>\S+) terminated with signal (?P<signal>\d+)"),
                title="ldconfig was killed while the NVIDIA container toolkit prepared a container",
                cause="in its legacy mode, the toolkit runs {path} for each container. Signal {signal} ended this "
                "program. The message does not contain the reason",
                fix="use CDI, which prepares containers in another way; for a stack, set gpu_driver to cdi; for other "
                "containers, run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` and `sudo nvidia-ctk "
                "config --in-place --set nvidia-container-runtime.mode=cdi`, which takes effect when Docker restarts; "
                "with signal 9, check the kernel log for the OOM killer first (`sudo dmesg`)",
            ),
        ),
    ),
    Rule(
        "SG-G038",
        title="Docker finds no GPU",
        cause="Docker did not find the NVIDIA container toolkit when it started. So it looked for GPUs in CDI files, "
        "and found none",
        fix="install nvidia-container-toolkit, and run `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`; "
        "check that `nvidia-ctk cdi list` lists the GPUs; on a machine without a GPU, set `gpus` to none",
        source="The messages come from Docker engine 29.7 (daemon/devices.go and devices_amd_linux.go), and are quoted "
        "in ShaneIsrael/fireshare issue 689 (2026-08) and games-on-whales/wolf issue 386 (2026-04). The failure was "
        "not reproduced.",
        explain="Older versions of Docker report the same problem as `could not select device driver` (SG-G001). "
        "`nvidia-smi` on the host works even without the toolkit.",
        patterns=compile_patterns(r"failed to discover GPU vendor from CDI: no known GPU vendor found"),
        inputs=EVERYWHERE,
        drivers=("nvidia", ""),
        variants=(
            Variant(
                compile_patterns(r"AMD CDI spec not found"),
                title="Docker mistakes an NVIDIA GPU for an AMD GPU",
                cause="Docker found CDI files for NVIDIA GPUs, but not the NVIDIA container toolkit, so it treated "
                "the GPU as an AMD GPU. Either the toolkit was installed after Docker started, or it is not on "
                "Docker's PATH",
                fix="use CDI (set gpu_driver to cdi), which works without the toolkit on Docker's PATH; or restart "
                "Docker at a time when its containers may stop, so that it finds nvidia-container-runtime-hook and "
                "nvidia-cdi-hook",
            ),
        ),
    ),
    Rule(
        "SG-G039",
        title="a worker did not answer in time",
        cause="a worker process did not answer a call in time. Either a kernel or a transfer between GPUs hangs, or "
        "the machine was too slow, for example because its memory was full",
        fix="look for memory pressure at that time (`free -g`, and the OOM killer and Xid errors in `dmesg`); if CPU "
        "and GPU share memory on this machine, lower gpu_memory_utilization; if memory was free, see SG-G033",
        source="The message comes from vLLM (v1/executor/multiproc_executor.py), and is quoted in "
        "eugr/spark-vllm-docker "
        "issue 321 (2026-07) with full unified memory. The failure was not reproduced.",
        explain="vLLM ends if a worker does not answer for VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS (300 by default).",
        patterns=compile_patterns(r"TimeoutError: RPC call to \w+ timed out"),
        fallback=True,
        shows_gpus=True,
    ),
)
