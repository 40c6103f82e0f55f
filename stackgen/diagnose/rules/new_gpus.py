"""Finds the generation of the GPU in a log whose image has no kernels for it, for the rule SG-G004.

The compute capabilities and the first CUDA version of each come from NVIDIA's tables of GPUs and release notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Variant, compile_patterns

__all__ = ["NEWER_GPU", "OLDER_GPU", "PTXAS_COMMAND", "find_generation"]

# Triton writes the compiler's own message into a temporary file, so it is not in the log
PTXAS_COMMAND = Variant(
    compile_patterns(
        r"Command '\S*ptxas .{0,300}?--gpu-name=(?P<arch>sm_1\d\d\w?) .{0,300}? returned non-zero exit status"
    ),
    title="the image's compiler can't compile for this GPU",
    cause="Triton's ptxas could not compile a kernel for the GPU, which has the architecture {arch}. The log does not "
    "contain the message of ptxas. Usually, ptxas is older than the GPU",
)

NO_KERNEL = re.compile(r"(?<!HIP error: )(?<!ROCm error: )no kernel image is available for execution on the device")
# torch's warning, which comes before the error
WARNED = re.compile(r"with CUDA capability sm_\d+ is not compatible with the current PyTorch")
NEWEST = "CUDA 13"
CC = r"(?:compute capability|\(CC\)|capability)"
# words of a log, what they stand for, and the CUDA version of images for it; "" for GPUs that CUDA 13 dropped
GENERATIONS = tuple(
    (re.compile(words), gpu, cuda)
    for words, gpu, cuda in (
        (rf"\bG?B300\b|\bsm_?103a?\b|{CC} 10\.3\b", "B300 and GB300 (compute capability 10.3)", "CUDA 13"),
        (rf"\bG?B200\b|\bsm_?100a?\b is not|{CC} 10\.0\b", "B200 and GB200 (compute capability 10.0)", "CUDA 12.8"),
        (rf"\bGB10\b|DGX Spark|\bsm_?121a?\b|{CC} 12\.1\b", "GB10 (compute capability 12.1)", "CUDA 13"),
        (rf"RTX 50[5-9]0|RTX PRO \d000 Blackwell|\bsm_?120a?\b is not|{CC} 12\.0\b",
         "RTX 50 and RTX PRO Blackwell (compute capability 12.0)", "CUDA 12.8"),
        (rf"\bThor\b|\bsm_?110a?\b|{CC} 11\.0\b", "Thor (compute capability 11.0)", "CUDA 13"),
        (rf"\bV100\b|TITAN V\b|\bsm_?70\b is not|{CC} 7\.0\b", "Volta (compute capability 7.0)", ""),
        (rf"\b(?:P100|P40|P4)\b|GTX 10[5-8]0|\bsm_?6[012]\b is not|{CC} 6\.[012]\b", "Pascal (compute capability 6)",
         ""),
    )
)  # fmt: skip


def find_generation(evidence: Evidence) -> Iterator[Hit]:
    """A kernel is missing in the image, and the log names exactly one generation of GPUs, a new or an old one."""
    for service in evidence.services:
        lines = [strip_prefix(one).strip() for one in service.log.splitlines()]
        shown = next((one for words in (NO_KERNEL, WARNED) for one in lines if words.search(one)), "")
        # torch lists what it was built for in lines of their own
        text = "\n".join(one for one in lines if not re.search(r"supports (?:hardware|CUDA capabilities)", one))
        named = [(gpu, cuda) for words, gpu, cuda in GENERATIONS if words.search(text)] if shown else []
        if len(named) == 1:
            gpu, cuda = named[0]
            values = {"gpu": gpu, **({"cuda": cuda} if cuda else {}), **({"tag": "-cu130"} if cuda == NEWEST else {})}
            found = NO_KERNEL.search(shown) or WARNED.search(shown)
            yield Hit(service.service, (shown,), values, found[0] if found else "",
                      variant=NEWER_GPU if cuda else OLDER_GPU)  # fmt: skip


NEWER_GPU = Variant(
    (),
    cause="the image was not compiled for this GPU. The log names {gpu}. These GPUs need an image for {cuda} or newer",
    fix="set `image:` to an image for {cuda} or newer[[ (vLLM 0.20 and newer: a tag without `-cu129`; older versions: "
    "a tag that ends with {tag})]]; if the image already has such a CUDA version, a kernel for the model's "
    "quantization is missing: use a newer release, or another quantization",
    condition="the log names one generation of new GPUs",
)
OLDER_GPU = Variant(
    (),
    cause="the image was not compiled for this GPU. The log names {gpu}. CUDA 13 and many new images no longer support "
    "these GPUs",
    fix="set `image:` to an image for CUDA 12 (vLLM: a tag that ends with -cu129); if this image lacks the kernels "
    "too, use an older release; the list that torch prints in the log shows which GPUs an image supports",
    condition="the log names one generation of old GPUs",
)
