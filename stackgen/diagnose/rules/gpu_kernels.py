"""Rules for kernels that do not exist for this GPU, for a GPU that was lost, and for what NCCL logs about its failure.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, detect_engine
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.messages import find_advice, find_messages, find_settings
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

ARCH = (
    r"(?:\bgfx\d\w{1,5}|\bsm_?\d{2,3}[af]?\b|\bSM ?\d{2,3}[af]?\b|"
    r"(?:[Cc]ompute )?capabilit(?:y|ies):? (?:of )?(?:>=? ?)?\d[\d.]*)"
)
NVIDIA_ARCH = re.compile(r"(?i)\bsm_?\d\d|compute capabilit")
NO_KERNEL = (
    re.compile(
        r"(?:requires|needs|only supports?|is only supported on|only runs on) "
        rf"(?:a GPU with |GPUs? |arch(?:itecture)? )?{ARCH}"
    ),
    re.compile(
        r"(?:not (?:supported|implemented|available|compiled|built)|[Uu]nsupported|[Nn]o (?:compatible |matching "
        r"|valid )?(?:kernel|code|cubin)\w*|[Nn]o compiled \w+)\b"
        rf".{{0,80}}?{ARCH}"
    ),
    re.compile(rf"{ARCH}\b.{{0,60}}? (?:is not (?:supported|compatible)|unsupported|not in the list)"),
    # DeepGEMM's layout of scale factors, which has a case for each architecture
    re.compile(r"deep_?gemm\S*: ?\d*\)?:? ?Unknown (?:SF transformation|recipe|architecture)", re.I),
    re.compile(r"Unsupported (?:GPU )?arch(?:itecture)?\b(?! .{0,20}(?:model|gguf))", re.I),
)
# words of a message, of its frames or of the log before it: the library, and the variable that turns it off in vLLM
LIBRARIES = (
    ("DeepGEMM", re.compile(r"deep_?gemm", re.I), 'VLLM_USE_DEEP_GEMM to "0"', "nvidia"),
    ("AITER's MLA", re.compile(r"mla_gluon|aiter\S*mla", re.I), 'VLLM_ROCM_USE_AITER_MLA to "0"', "amd"),
    ("AITER's FP4 products", re.compile(r"MXFP4 quantization is not supported on gfx|fp4bmm|a16wfp4"),
     'VLLM_ROCM_USE_AITER_FP4BMM to "0"', "amd"),
    ("AITER", re.compile(r"aiter", re.I), 'VLLM_ROCM_USE_AITER to "0"', "amd"),
    ("FlashInfer's sampler", re.compile(r"flashinfer\S*sampl", re.I), 'VLLM_USE_FLASHINFER_SAMPLER to "0"', "nvidia"),
)  # fmt: skip
OTHER_IMAGE = (
    "set `image:` to an image whose release notes name this GPU, or avoid the kernel with another attention backend "
    "or another quantization of the model"
)
AT_LEAST = re.compile(
    r"(?i)at least|>=|\bmin\b|required capab|SM ?\d+\+|or (?:higher|above|newer|later|greater|better)|minimum|"
    r"\+ ?(?:GPU|is required)"
)
OTHER_BUILD = "set `image:` to an image that was built for this GPU (its release notes list the architectures)"
NCCL_CALL = re.compile(r"NCCL WARN (?:Cuda|CUDA|HIP|Hip) failure (?:\d+ )?'(?P<reason>[^']{3,120})'")


# the name of an exception, and the prefix of HIP's own log: level, file, line and time
LEADING = re.compile(r"^(?:[\w.]+(?:Error|Exception): |:\d:[\w.]+ *:\d+ *: *\d+ us: *)")


def _find_missing_kernel(evidence: Evidence) -> Iterator[Hit]:
    """An error that ended the start says that a kernel needs another GPU architecture than this machine's."""
    for message in find_messages(evidence, hints=True):
        found = next((match for one in NO_KERNEL if (match := one.search(message.text))), None)
        if not found:
            continue
        maker = evidence.gpu_maker(message.service.service)
        if not maker:
            maker = "amd" if "gfx" in message.text else "nvidia" if NVIDIA_ARCH.search(message.text) else ""
        # the frames above the error, because few messages name their library
        near = "\n".join(message.before[-12:])
        library = next((one for text in (message.text, near) for one in LIBRARIES
                        if one[1].search(text) and maker in (one[3], "")), None)  # fmt: skip
        values = {"problem": LEADING.sub("", message.text)}
        values["remedy"] = OTHER_IMAGE
        if message.service.engine == "llamacpp":
            values["remedy"] = f"{OTHER_BUILD}{', or the image for Vulkan' if maker == 'amd' else ''}"
        if library:
            values["library"] = library[0]
        # the variables are those of vLLM
        if library and (message.service.engine or detect_engine(message.service.log)) in ("vllm", ""):
            values["remedy"] = f"set {library[2]} in extra_env, so that vLLM chooses another kernel; or {OTHER_IMAGE}"
        if advice := find_advice(message.text):
            values["advice"] = advice
        variant = None
        if AT_LEAST.search(message.text):
            model = (evidence.find_model(message.service.service) or (0, None))[1]
            settings = find_settings(message.text, message.service.engine, model)
            values.update({"settings": ", ".join(settings)} if settings else {})
            variant = OLD_GPU
        yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=variant)


def _find_nccl_call(evidence: Evidence) -> Iterator[Hit]:
    """NCCL logs with NCCL_DEBUG which call of CUDA or HIP failed."""
    for service in evidence.services:
        if found := NCCL_CALL.search(service.log) if not service.is_working else None:
            variant = next((one for pattern, one in CALL_KINDS if pattern.search(found["reason"])), None)
            yield Hit(service.service, (found[0],), {"reason": found["reason"]}, variant=variant)


OLD_GPU = Variant(
    (),
    title="the GPU is too old for a feature",
    cause="the engine chose a kernel that needs a newer GPU than this one: {problem}",
    fix="[[follow the message: {advice}; otherwise ]]turn the feature off[[ ({settings})]], or use the model in "
    "another data type or quantization that this GPU supports; if the model ran on this GPU with another version of "
    "the image, use that version again, because each version may choose another backend",
    condition="the message names a minimum architecture or compute capability",
)
VIRTUAL = Variant(
    (),
    cause="a call that NCCL makes at startup failed with `operation not supported`. This GPU, driver or virtual "
    "machine lacks a feature that NCCL uses. A known case is virtual GPUs without unified memory",
    fix="in a virtual machine, request unified memory for the virtual GPUs (VMware: pciPassthruN.cfg.enable_uvm), or "
    "GPUs in passthrough mode; until then, use one GPU per model (tensor_parallel_size 1); to find the call, read the "
    "NCCL INFO lines after the warning",
    condition="the call is `operation not supported`",
)

CRASHED = Variant(
    (),
    title="a kernel crashed while the GPUs of a model communicated",
    cause="NCCL reports that a GPU kernel crashed ({reason}). CUDA reports such a crash late, so either NCCL's own "
    "kernel or an earlier kernel crashed. The line does not point to the driver, the network or /dev/shm",
    fix="set `image:` to a version with another NCCL (with NCCL_DEBUG=INFO, the log contains NCCL's version); on "
    "GeForce and RTX PRO GPUs of the Blackwell generation without NVLink, NCCL 2.26.2 (part of PyTorch 2.7) crashes "
    "like this, but NCCL 2.31 does not; set tensor_parallel_size to 1 to test whether one GPU works; look for Xid "
    "errors in the log of the Linux kernel (`sudo dmesg | grep -i xid`), which point to a faulty GPU",
    condition="the error says that a kernel crashed",
)
NO_MEMORY = Variant(
    (),
    title="NCCL finds no free memory",
    cause="NCCL could not allocate memory for the communication of the GPUs: {reason}",
    fix="run `nvidia-smi`, which shows the processes that use the GPUs, and lower gpu_memory_utilization; if much "
    'GPU memory is free, NCCL may be unable to map the host\'s memory: as a test, set NCCL_CUMEM_HOST_ENABLE to "0" '
    "in extra_env",
    condition="the error is a failed allocation",
)
# the texts of CUDA's errors 2, 700 to 719 and 801
CALL_KINDS = (
    (re.compile("operation not supported"), VIRTUAL),
    (re.compile("illegal memory access|misaligned address|launch failure|device-side assert|illegal instruction|"
                "invalid program counter|hardware stack error"), CRASHED),
    (re.compile("out of memory"), NO_MEMORY),
)  # fmt: skip

# torch, about compiled functions of vLLM and SGLang
NO_FUNCTION = re.compile(
    r"'_OpNamespace' '(?P<library>_C\w*|_moe_C|_rocm_C|_vllm_fa\d_C|sgl_kernel)' object has no attribute "
    r"'(?P<name>\w+)'"
)
# on a platform without such a library, vLLM logs ModuleNotFoundError and needs none
FAILED_IMPORT = re.compile(r"Failed to import from vllm\.(?P<library>\w+) with ImportError\((?P<reason>.{3,300})\)")
NOT_LOADED = Variant(
    (),
    title="a compiled library of vLLM could not be loaded",
    cause="vLLM could not load its compiled library {library}, so it has no function {name}. The reason is in the "
    "warning: {reason}",
    fix="use an official image of vLLM for your kind of GPU, in which all libraries match; in your own image or "
    "installation, install vLLM and torch together, so that their versions match, and look at the library that the "
    "warning names",
    condition="the log also says that vLLM failed to import this library",
)


def _find_unloaded_library(evidence: Evidence) -> Iterator[Hit]:
    """A compiled function is missing, and an earlier warning of vLLM says why its library could not be loaded."""
    for service in evidence.services:
        lines = [] if service.is_working or "_OpNamespace" not in service.log else lines_since_ready(service.log)
        plain = [strip_prefix(line).strip() for line in lines]
        missing = next(((line, found) for line in plain if (found := NO_FUNCTION.search(line))), None)
        failed = [(line, one) for line in plain if (one := FAILED_IMPORT.search(line))]
        if missing and (own := [each for each in failed if each[1]["library"] == missing[1]["library"]]):
            line, found = own[-1]
            yield Hit(service.service, (line, missing[0]), {**missing[1].groupdict(), "reason": found["reason"]},
                      variant=NOT_LOADED)  # fmt: skip


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G040",
        title="a kernel of the image does not support this GPU",
        cause="the engine chose a kernel[[ of {library}]], but this version of the kernel does not support this GPU: "
        "{problem}",
        fix="[[follow the message: {advice}; otherwise ]]{remedy}",
        page_fix="if the message gives advice, follow it. Otherwise, choose another kernel. Turn the library off "
        "with its variable in extra_env (`stackgen diagnose` names the variable), or set `image` to a build of the "
        "engine for this GPU",
        source="vllm-project/vllm issues 47436 (2026-07, DeepGEMM) and 51964 (2026-08, AITER), 34641 (2026-02, FP4) "
        "and 32109 (2026-01) quote such messages. The "
        "variables are those of vLLM 0.27 (envs.py).",
        explain="Only one library in the image lacks the kernel. The driver, the GPU's memory and the model's files "
        "are not the cause. Most engines have another kernel that does the same work.",
        find=_find_missing_kernel,
        shows_gpus=True,
        fallback=True,
    ),
    Rule(
        "SG-G041",
        title="the driver reset the GPU, or lost it",
        cause="the GPU stopped answering while it worked ({problem}). The kernel driver resets a GPU if a "
        "computation exceeds the time limit, or if the GPU is faulty",
        fix="read the kernel log of that moment (`sudo dmesg | grep -iE 'amdgpu|nvidia|xid|reset|timeout'`); if it "
        "shows a timeout, shorten each step with smaller batches (llama.cpp: `--batch-size` and `--ubatch-size`), or "
        "raise the driver's time limit (amdgpu: the kernel parameter `amdgpu.lockup_timeout`); as a test, try "
        "another backend of the image, or another version of the kernel or driver",
        source="The messages are those of Vulkan (VK_ERROR_DEVICE_LOST) and Mesa's radv, quoted in ggml-org/llama.cpp "
        "issue 25664 (2026-07). The failure was not reproduced.",
        explain="The model's files are not the cause. The memory was not full either, because a program that runs "
        "out of memory prints another message.",
        patterns=compile_patterns(
            r"(?P<problem>ErrorDeviceLost|VK_ERROR_DEVICE_LOST|vk::DeviceLostError)",
            r"(?P<problem>The CS has been cancelled because the context is lost)",
        ),
    ),
    Rule(
        "SG-G042",
        title="NCCL reports a failed call",
        cause="NCCL logged that a call of CUDA or HIP failed: {reason}",
        fix="search for this error first; to find the call, read the NCCL INFO lines after the warning; set "
        "tensor_parallel_size to 1 to test whether one GPU works; run `nvidia-smi` or `rocm-smi` to test the driver",
        source="The message comes from NCCL 2.27 (include/checks.h), and is quoted in NVIDIA/nccl issues 2101 "
        "(2026-04) and 2418 (2026-09), vllm-project/vllm issue 19890 (2025-06) and pytorch/pytorch issues 152780 and "
        "152302 (2025-05). The failure was not reproduced.",
        explain="The later exception (`unhandled cuda error`) is the same for every failed call. NCCL logs the call "
        "at the level WARN.",
        find=_find_nccl_call,
        variants=(VIRTUAL, CRASHED, NO_MEMORY),
    ),
    Rule(
        "SG-G065",
        title="this installation of the engine lacks a compiled function",
        cause="the engine called {name}, a compiled function of {library}, but {library} does not contain it here. "
        "Either this build for your kind of GPU or CPU has no such kernel (builds for Intel GPUs, AMD GPUs and CPUs "
        "have fewer kernels), or {library} could not be loaded, or its version does not match the Python code",
        fix="search the start of the log for `Failed to import`, which shows why a library could not be loaded; use "
        "the official image for your kind of GPU, or a newer one; if the image is official, use a version of the "
        "model with another quantization, which needs other kernels; leave the driver as it is",
        source="The message comes from torch (torch/_ops.py), and is quoted for an Intel GPU in vllm-project/vllm "
        "issue 32410 (2026-01), and for NVIDIA GPUs in issues 18967 (2025-05) and 22225 (2025-08). The failure was not "
        "reproduced.",
        explain="vLLM's kernels are in compiled libraries next to its Python code. If such a library can't be loaded, "
        "vLLM logs a warning, continues, and fails when it first uses the missing function.",
        patterns=(NO_FUNCTION,),
        find=_find_unloaded_library,
        variants=(NOT_LOADED,),
        # why the library could not be loaded
        consequence_of=("SG-G003", "SG-G022", "SG-G043", "SG-G064", "SG-D029"),
    ),
)
