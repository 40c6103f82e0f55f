"""Variants of the rule for AMD GPUs without kernels in the image: a second GPU, and files of rocBLAS that are missing.

The texts come from rocBLAS (library/src/tensile_host.cpp) and llama.cpp (ggml-cuda.cu).
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Variant, compile_patterns
from stackgen.diagnose.templates import has_field

__all__ = ["AMD_KERNEL_VARIANTS", "NO_AMD_KERNEL", "overrides_gfx"]

NO_AMD_KERNEL = compile_patterns(
    r"(?:HIP|ROCm) error: (?:invalid device function|no kernel image is available|device kernel image is invalid)",
    r"rocBLAS error: Cannot read \S+Tensile\S+.*GPU arch ?: ?(?P<arch>gfx\w+)",
    r"hipErrorNoBinaryForGpu",
)
# llama.cpp's list of GPUs
DEVICE = re.compile(r"^\s*Device \d+: .{0,80}?\b(?P<arch>gfx[0-9a-f]{3,4})\b", re.M)


def _has_other_gpus(evidence: Evidence, service: str) -> bool:
    return len({found["arch"] for found in DEVICE.finditer(evidence.read_log(service))}) > 1


def overrides_gfx(evidence: Evidence, service: str) -> bool:
    """Whether HSA_OVERRIDE_GFX_VERSION is set in stack.yaml, or the log contains it."""
    found = evidence.find_model(service)
    is_set = bool(found and has_field(found[1], "extra_env.HSA_OVERRIDE_GFX_VERSION"))
    return is_set or bool(re.search(r"\bHSA_OVERRIDE_GFX_VERSION[=:]", evidence.read_log(service)))


AMD_KERNEL_VARIANTS = (
    Variant(
        NO_AMD_KERNEL,
        title="the image has no kernels for one of the AMD GPUs",
        cause="llama.cpp uses several AMD GPUs of different architectures, and the image has no kernels for one of "
        "them[[, which is {arch}]]. Most often, this is the graphics unit inside the processor",
        fix="use only the GPU that the image supports: set `gpus`, or HIP_VISIBLE_DEVICES in extra_env, to the number "
        "of this GPU; the lines `Device N` in the log show the numbers, and `current device` is the GPU that failed; "
        "without stackgen, pass `--device ROCm0` to llama.cpp",
        applies=_has_other_gpus,
        condition="the log lists GPUs of different architectures",
    ),
    Variant(
        compile_patterns(
            r"rocBLAS error: Could not load (?P<path>\S*TensileLibrary\S*)",
            r"rocBLAS error: Could not initialize Tensile (?:library|host)",
        ),
        title="rocBLAS lacks its kernel files for this AMD GPU",
        cause="rocBLAS can't load its kernel file[[ {path}]]. Either the image's ROCm version no longer supports this "
        "GPU (for example, ROCm 6.4 and newer do not support gfx906), or the image lacks the files of rocblas/library",
        fix="set `image:` to an image whose ROCm version supports this GPU (an older GPU needs an older ROCm); to see "
        "the GPU's architecture, run `rocminfo`; don't copy single files from another ROCm, because their versions "
        "differ; llama.cpp's image for Vulkan (server-vulkan) does not need rocBLAS",
    ),
)
