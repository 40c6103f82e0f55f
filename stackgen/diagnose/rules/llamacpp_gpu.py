"""Finders of llama.cpp's rules that compare several lines of its log about GPUs: its backends, and the free memory.

The texts come from ggml (src/ggml-backend-reg.cpp, ggml-cuda.cu, ggml-vulkan.cpp) and llama.cpp (src/llama.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import has_certain_error, has_crashed, strip_prefix
from stackgen.diagnose.rule import Hit, Variant, compile_patterns

__all__ = ["COMPUTES", "NO_FLASH_ATTENTION", "find_large_weights", "find_missing_gpu"]

IGNORED_FLAG = re.compile(r"no usable GPU found, (?P<flag>--[\w-]+) option will be ignored")
# llama.cpp's log of its dynamic backends, and what they say without a device
GPU_BACKEND = re.compile(r"load_backend: loaded (?P<backend>CUDA|ROCm|HIP|Vulkan|SYCL|MUSA) backend")
NO_DEVICE = re.compile(r"^ggml_\w+: (?:No devices found|no \S+ devices? found)", re.I)
SOME_DEVICE = re.compile(r"ggml_\w+: (?:[Ff]ound [1-9]\d* |\d+ = )|using device (?:CUDA|ROCm|Vulkan|SYCL)\d")
# words of logs whose GPU the CUDA image can't use
OTHER_THAN_CUDA = re.compile(r"(?i)\bRADV\b|vulkan|\bROCm|\bgfx\d{3,4}|AMD Radeon|\bSYCL\b")
BUFFER = re.compile(r"allocating (?P<wanted>[\d.]+) MiB on device (?P<device>\d+): cudaMalloc failed: out of memory")
FREE = re.compile(r"using device (?:CUDA|ROCm)(?P<device>\d+) .{1,200} - (?P<free>\d+) MiB free")

NO_FLASH_ATTENTION = Variant(
    compile_patterns(r"quantized V cache was requested, but this requires Flash Attention"),
    cause="--cache-type-v is quantized, but llama.cpp has turned flash attention off. Either the setting is "
    "`--flash-attn off`, or the GPU's backend does not support flash attention for this model or for two "
    "different types of K and V",
    fix="if --flash-attn is `off`, remove it; otherwise set --cache-type-k and --cache-type-v to "
    "the same type, with --flash-attn auto; if the message remains, remove --cache-type-v: keys can be "
    "quantized without flash attention",
)


def find_missing_gpu(evidence: Evidence) -> Iterator[Hit]:
    """llama-server logs at startup that it ignores a flag for GPU layers, or that a GPU backend finds no device."""
    for service in evidence.services:
        # the whole log, because the line comes before the server is ready
        match = IGNORED_FLAG.search(service.log) if service.engine in ("llamacpp", "") else None
        # a missing GPU only makes the server slow, so a server that failed has another cause
        if match and (service.is_working or not service.state):
            line = strip_prefix(match.string[match.start() :].partition("\n")[0])
            backend = GPU_BACKEND.search(service.log)
            lines = [strip_prefix(one).strip() for one in service.log.splitlines()]
            reason = next((one for one in lines if NO_DEVICE.search(one)), "")
            values = {**match.groupdict(), **({"backend": backend["backend"]} if backend else {}),
                      **({"reason": reason} if reason else {})}  # fmt: skip
            variant = NO_GPU_SEEN if backend else OTHER_MAKER if OTHER_THAN_CUDA.search(service.log) else None
            yield Hit(service.service, (line, *filter(None, [reason])), values, variant=variant)
        elif service.engine in ("llamacpp", "") and not service.state:
            yield from _find_empty_backend(evidence, service)


def _find_empty_backend(evidence: Evidence, service: ServiceEvidence) -> Iterator[Hit]:
    """The hit for a pasted log in which each GPU backend that was loaded says that it finds no device."""
    model = (evidence.find_model(service.service) or (0, None))[1]
    lines = [strip_prefix(one).strip() for one in service.log.splitlines()]
    reason = next((one for one in lines if NO_DEVICE.search(one)), "")
    # another backend may have found the GPU, an error is a better cause, and a stack may not want a GPU
    is_other = SOME_DEVICE.search(service.log) or has_crashed(service.log) or has_certain_error(service.log)
    if not reason or is_other or (model and not model.gpus):
        return
    backend = GPU_BACKEND.search(service.log)
    maker = {"vulkan": "Vulkan", "cuda": "CUDA", "hip": "ROCm", "sycl": "SYCL"}
    named = backend["backend"] if backend else next((maker[one] for one in maker if one in reason.lower()), "GPU")
    yield Hit(service.service, (reason,), {"backend": named, "reason": reason}, variant=EMPTY_BACKEND)


def find_large_weights(evidence: Evidence) -> Iterator[Hit]:
    """One buffer is larger than the memory that llama.cpp finds free on the GPU; the log has both figures."""
    for service in evidence.services:
        lines = [] if service.is_working else [strip_prefix(one).strip() for one in service.log.splitlines()]
        sizes = [(one, found) for one in lines if (found := BUFFER.search(one))]
        if not sizes:
            continue
        line, wanted = sizes[-1]
        free = [(one, found) for one in lines if (found := FREE.search(one)) and found["device"] == wanted["device"]]
        if free and float(wanted["wanted"]) > float(free[-1][1]["free"]):
            values = {"wanted": wanted["wanted"], "device": wanted["device"], "free": free[-1][1]["free"]}
            yield Hit(service.service, (line, free[-1][0]), values, highlight=wanted[0], variant=LARGER_THAN_FREE)


NO_GPU_SEEN = Variant(
    (),
    cause="{flag} has no effect, because llama.cpp's {backend} backend finds no GPU[[: {reason}]]. Either the "
    "container has no access to the GPU, or the image lacks a library of the driver",
    fix="compare the devices of the container (/dev/dri for Vulkan and AMD, /dev/kfd for ROCm, `nvidia-smi` for "
    "CUDA) with those of the host; if the devices are there, try a newer version of the image; without a GPU, remove "
    "gpu_layers",
    condition="llama.cpp has loaded a backend for GPUs",
)
OTHER_MAKER = Variant(
    (),
    cause="{flag} has no effect, because llama.cpp was built without GPU support, could not load its GPU backend, or "
    "finds no GPU",
    fix="look for an earlier line about a library libggml-*.so, which shows why no backend was loaded; check that the "
    "image is built for this GPU (the log names Vulkan or ROCm); check that the container has the devices of the host "
    "(/dev/dri, and /dev/kfd for ROCm); if all this is right, try another tag of the image; without a GPU, remove "
    "gpu_layers",
    condition="the log names Vulkan, ROCm or a GPU of AMD",
)
EMPTY_BACKEND = Variant(
    (),
    title="llama.cpp's GPU backend finds no GPU",
    cause="llama.cpp has loaded its {backend} backend, but the backend finds no device. Either the container has no "
    "access to the GPU, or the image lacks a library that the GPU's driver needs",
    fix="compare the devices of the container (/dev/dri for Vulkan and AMD, /dev/kfd for ROCm, `nvidia-smi` for "
    "CUDA) and their permissions with those of the host; if the devices are there, the image is the cause: try "
    "another tag of it, newer or older",
    condition="no line names another reason or a device",
)
COMPUTES = Variant(
    # the statement that failed, which ggml-cuda prints below `CUDA error: out of memory`
    compile_patterns(r"(?:^|\s)cuMemCreate\(&handle, reserve_size, &prop, 0\)"),
    title="the GPU has no memory left while llama.cpp computes",
    cause="the model and its KV cache fitted on the GPU, but a temporary buffer for computing did not. llama.cpp "
    "enlarges this buffer when it needs to, for example for a long prompt, and stops if it can't",
    fix="leave more memory free: lower max_model_len or gpu_layers a little, or use a smaller quantization; or lower "
    "--ubatch-size in extra_args (for example to 256), which makes the buffer smaller; end other programs that use the "
    "GPU (`nvidia-smi` lists them)",
)
LARGER_THAN_FREE = Variant(
    (),
    cause="one buffer of {wanted} MiB does not fit on GPU {device}, which has {free} MiB free[[. Processes on the "
    "GPU: {holders}]]",
    fix="give the model more GPUs (`gpus`), lower gpu_layers, or use a smaller quantization; end other processes on "
    "the GPU only if their memory makes up the difference",
    condition="the log contains the size of the buffer and the free memory, and the buffer is larger",
)
