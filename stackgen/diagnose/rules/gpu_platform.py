"""Rules for a vLLM that recognizes no kind of GPU although the machine may have one: empty libraries, missing names.

None of these failures was reproduced. `source` names the files and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_root_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import has_served, lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant

__all__ = ["CHECK_TOOLKIT", "NOT_SUPPORTED", "NO_AMDSMI", "NO_NVML", "RULES", "WITHOUT_GPU", "find_not_supported",
           "find_without_nvml"]  # fmt: skip

# restarting Docker ends containers, so a test comes first
CHECK_TOOLKIT = (
    "run `docker run --rm --gpus all ubuntu nvidia-smi` on the host; if it fails too, install the NVIDIA container "
    "toolkit and configure it (`sudo nvidia-ctk runtime configure --runtime=docker`, which takes effect when Docker "
    "restarts)"
)
# causes that also leave an engine without a GPU
WITHOUT_GPU = (
    "SG-G002", "SG-G005", "SG-G012", "SG-G013", "SG-G022", "SG-G029", "SG-G030", "SG-G032", "SG-G064", "SG-V066"
)  # fmt: skip
DETECTED = re.compile(
    r"Confirmed \w+ platform is available|Automatically detected platform|Platform plugin \S+ is activated"
)

# the part before the message may be a long path
TOO_SHORT = re.compile(r"(?<![\w.-])(?P<library>lib(?:cuda|nvidia-[\w-]{1,40})\.so[.\d]{0,20}): file too short")
NO_PACKAGE = "The vLLM package was not found, so its version could not be inspected"
WARNED = "cudaGetDeviceCount() returned cudaErrorNotSupported"
WITHOUT_NVML = "CUDA platform is not available because: NVML Shared Library Not Found"
# messages that say more about the driver
TOO_OLD = re.compile(r"driver on your system is too old|driver version is insufficient|Error 80[34]:")
WITHOUT_AMDSMI = "ROCm platform is not available because: No module named 'amdsmi'"
UNSPECIFIED = "No platform detected, vLLM is running on UnspecifiedPlatform"


NOT_SUPPORTED = Variant(
    (),
    title="torch can't use CUDA with this driver",
    cause="CUDA reported cudaErrorNotSupported to torch. Either the NVIDIA driver[[ ({driver})]] is older "
    "than the CUDA version for which torch was built, or this machine has no GPU that CUDA supports",
    fix="compare the CUDA version that `nvidia-smi` prints with torch's CUDA version (`python3 -c 'import "
    "torch; print(torch.version.cuda)'`); if torch's is newer, update the driver (with WSL, the driver of "
    "Windows), or use an image or a build of torch for at most the version that `nvidia-smi` prints; "
    "without an NVIDIA GPU, use an image for the CPU or for your kind of GPU",
    condition="torch warns of cudaErrorNotSupported, and vLLM's log names no platform that it detected",
)
NO_NVML = Variant(
    (),
    cause="vLLM detects no GPU, because the driver's library libnvidia-ml.so.1 is missing where vLLM runs. "
    "The NVIDIA container toolkit mounts it only into containers that reserve a GPU",
    fix=f"[[!gpus|give the model a GPU (set `gpus` to 1); ]]{CHECK_TOOLKIT}; with Ray or Kubernetes, start "
    "`vllm serve` on a node with a GPU; on a machine without a GPU, use the image for the CPU (set `gpus` "
    "to none)",
    condition="vLLM's log says that NVML was not found, and names no platform that it detected",
    consequence_of=(*WITHOUT_GPU, "*"),
)


INSTALL_AMDSMI = (
    "with an AMD GPU, use an image for ROCm, which contains amdsmi; in an environment of your own, run `python3 -c "
    "'import amdsmi'` with the Python of vLLM: if it fails, install the package from ROCm's own folder "
    "(/opt/rocm/share/amd_smi), and use a build of vLLM and torch for ROCm"
)
NO_AMDSMI = Variant(
    (),
    cause="vLLM detects no GPU of either kind: the library of NVIDIA's driver (libnvidia-ml.so.1) is missing where "
    "vLLM runs, and so is the Python package amdsmi, with which vLLM recognizes AMD's GPUs",
    fix=f"with an NVIDIA GPU, [[!gpus|give the model a GPU (set `gpus` to 1), and ]]{CHECK_TOOLKIT}; {INSTALL_AMDSMI}; "
    "with Ray or Kubernetes, start `vllm serve` on a node with a GPU; on a machine without a GPU, use the image for "
    "the CPU (set `gpus` to none)",
    condition="vLLM's log says that NVML was not found and amdsmi is missing, and names no platform that it detected",
    consequence_of=(*WITHOUT_GPU, "*"),
)


def find_not_supported(evidence: Evidence) -> Iterator[Hit]:
    """A warning of torch contains cudaErrorNotSupported, and vLLM detected no other platform."""
    for service, line in _find_without_platform(evidence, WARNED):
        if not TOO_OLD.search(evidence.read_log(service)):
            yield Hit(service, (line,), highlight=WARNED, variant=NOT_SUPPORTED)


def find_without_nvml(evidence: Evidence) -> Iterator[Hit]:
    """A log at level DEBUG says that NVML was not found, and vLLM detected no other platform."""
    for service, line in _find_without_platform(evidence, WITHOUT_NVML):
        # vLLM tries AMD's platform after NVIDIA's; a log that ends before does not show the result
        log = evidence.read_log(service)
        if "ROCm platform is not available" in log or "UnspecifiedPlatform" in log:
            # an image for NVIDIA's GPUs has no amdsmi either, so both remain possible
            missing = [one for one in map(strip_prefix, lines_since_ready(log)) if WITHOUT_AMDSMI in one]
            shown = (line, *(one.strip() for one in missing[-1:]))
            yield Hit(service, shown, highlight=WITHOUT_NVML, variant=NO_AMDSMI if missing else NO_NVML)


def _find_without_amdsmi(evidence: Evidence) -> Iterator[Hit]:
    """A log at level DEBUG says that amdsmi is missing, and vLLM detected no other platform."""
    for service, line in _find_without_platform(evidence, WITHOUT_AMDSMI):
        yield Hit(service, (line,), highlight=WITHOUT_AMDSMI)


def _find_without_platform(evidence: Evidence, words: str) -> Iterator[tuple[str, str]]:
    """Each failed service with its last line that contains `words`, if vLLM logs no platform that it detected."""
    for service in evidence.services:
        lines = [] if service.is_working or words not in service.log else lines_since_ready(service.log)
        found = [line for one in lines if words in (line := strip_prefix(one).strip())]
        # on each platform, vLLM logs why it is none of the others
        if found and not DETECTED.search(service.log) and not has_served(service.log):
            yield service.service, found[-1]


def _find_empty_library(evidence: Evidence) -> Iterator[Hit]:
    """The dynamic linker reports that a library of the NVIDIA driver is too short to be a library."""
    for service in evidence.services:
        lines = [] if service.is_working or "file too short" not in service.log else lines_since_ready(service.log)
        for line in reversed(lines):
            # the engine often logs it as a warning, long before it fails for want of a GPU
            if found := TOO_SHORT.search(strip_prefix(line)):
                yield Hit(service.service, (strip_prefix(line).strip(),), {"library": found["library"]},
                          highlight=found[0])  # fmt: skip
                break


def _find_missing_package(evidence: Evidence) -> Iterator[Hit]:
    """The log says that vLLM does not find its own package, and then recognizes no kind of GPU."""
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in lines_since_ready(service.log)]
        warned = [line for line in lines if line.startswith(NO_PACKAGE)]
        # on AWS Neuron, vLLM prints the warning and works
        unspecified = [line for line in lines if line.startswith(UNSPECIFIED)]
        if warned and unspecified and not service.is_working:
            ends = [root.text for root in find_root_lines(lines_since_ready(service.log))]
            yield Hit(service.service, (warned[-1], unspecified[-1], *ends[-1:]))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G066",
        title="vLLM does not recognize ROCm, because a Python package is missing",
        cause="vLLM recognizes AMD's GPUs with the Python package amdsmi, which is missing where vLLM runs",
        fix=INSTALL_AMDSMI,
        source="The message comes from vLLM (platforms/__init__.py), and is quoted in vllm-project/vllm issue 24576 "
        "(2025-09). A maintainer asks for the package in issue 10653 (2024-11), and pull request 11602 (2025-01) names "
        "its folder. The failure was not reproduced.",
        explain="The GPU, its driver and the model are not the cause of this message. vLLM prints this message only "
        "with VLLM_LOGGING_LEVEL=DEBUG.",
        find=_find_without_amdsmi,
        drivers=("amd",),
        consequence_of=("SG-G032",),
        shows_gpus=True,
    ),
    Rule(
        "SG-G064",
        title="the driver's library in the container is an empty file",
        cause="{library} in the container is empty or cut off, so it is not the driver. Images that were made from a "
        "running container (`docker commit`), and images for Jetson, contain such empty files. In a container with a "
        "GPU, the driver of the host is mounted over them. So either this container got no GPU, or LD_LIBRARY_PATH "
        "names a folder with an empty file",
        fix=f"[[!gpus|give the model a GPU (set `gpus` to 1); ]]with Docker, start the container with `--gpus all` (on "
        f"a Jetson: `--runtime nvidia`); {CHECK_TOOLKIT}; if the container has a GPU, run `ldconfig -p | grep "
        "{library}`, and `ls -lL` for each path that it prints, to find the empty file; remove the folder of this file "
        "from LD_LIBRARY_PATH; use an official image of the engine, which contains no such files",
        source="The message comes from glibc (elf/dl-load.c), and is quoted in dengcao/Qwen3-Reranker-0.6B issue 2 "
        "(2025-07), warmshao/FasterLivePortrait issue 37 (2024-07) and Thinklab-SJTU/R3Det_Tensorflow issue 78 "
        "(2020-10); dusty-nv/jetson-inference issue 1733 (2023-09) reports it for a Jetson. The failure was not "
        "reproduced.",
        explain="libnvidia-container creates an empty file for each library that it mounts into a container. `docker "
        "commit` stores these files in the image.",
        find=_find_empty_library,
        shows_gpus=True,
    ),
    Rule(
        "SG-V066",
        title="vLLM is not installed under its own name",
        cause="vLLM looks up the version of the Python package `vllm`, and does not find it, so it recognizes no kind "
        "of GPU. Either vLLM was installed as a package with another name (such as vllm-pascal), or it runs from its "
        "source without an installation. The GPU and its driver are not the cause of this message",
        fix="run `pip show vllm` where the engine runs; if nothing is found, use an image or a package with the name "
        "`vllm`, or install the source (`pip install -e .`); for vllm-pascal, create a package `vllm` that only points "
        "to it (transient-package, as in sasha0552/pascal-pkgs-ci issue 13)",
        source="The messages come from vLLM 0.7 to 0.33 (platforms/__init__.py, vllm_version_matches_substr), and are "
        "quoted in sasha0552/pascal-pkgs-ci issues 13 (2025-03), 22 (2025-05) and 51 (2026-05). The failure was not "
        "reproduced.",
        explain="On such an installation, vLLM fails later with different errors, for example `NotImplementedError` "
        "in `get_device_name`, or `Failed to infer device type`.",
        find=_find_missing_package,
        engines=("vllm",),
    ),
)
