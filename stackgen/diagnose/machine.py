"""The kind of machine behind a failure: WSL, a virtual machine, a Jetson, and the generation of its GPUs.

The facts come from this machine (`stackgen.runtimes.observation.host_kind`) or from words in the logs. Without either,
a kind is unknown, and no rule may treat unknown as no.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Machine", "find_capability", "is_jetson_text", "is_virtual_text", "is_wsl_text"]

WSL = re.compile(r"\bWSL ?2?\b|microsoft-standard|/usr/lib/wsl/|dxgkrnl|docker-desktop-data", re.I)
JETSON = re.compile(r"(?i)nv_tegra|\bjetson|\bjetpack|\bL4T\b|\borin\b|nvgpu\b|tegra-ubuntu|\bNvMapMem")
VIRTUAL = re.compile(
    r"(?i)\bproxmox\b|\bqemu\b|\bkvm64\b|x86-64-v2-AES|\bvmware\b|\bhyper-v\b|hypervisor|virtual machine"
)
# of a GPU that exists, not of what a kernel needs: llama.cpp's list of devices, torch's and vLLM's messages
CAPABILITY = re.compile(
    r"(?:\bDevice \d+: [^\n]{3,80}?, |\bGPU has |\b(?:NVIDIA|GeForce|Tesla|Quadro|RTX|GTX|TITAN)[\w .-]{2,40} \()"
    r"compute capability:? (?P<version>\d{1,2}\.\d)\b"
)
# the names of GPUs before Turing, whose last driver series is 580
BEFORE_TURING = re.compile(
    r"\bGTX (?:9[5-8]0|10[1-8]0)\b|\bTITAN (?:X|Xp|V)\b|\bTesla (?:M\d+|P\d+|V100)|\bV100-|\bQuadro (?:M|P|GV)\d|"
    r"\bP(?:40|100)-PCIE"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known about this machine. `jetson` is the release of Jetson Linux (`R36 4.7`), "" on other machines."""

    wsl: bool = False
    virtual: bool = False
    jetson: str = ""


def is_wsl_text(text: str) -> bool:
    """Whether the words of `text` show WSL."""
    return bool(WSL.search(text))


def is_jetson_text(text: str) -> bool:
    """Whether the words of `text` name a Jetson."""
    return bool(JETSON.search(text))


def is_virtual_text(text: str) -> bool:
    """Whether the words of `text` show a virtual machine."""
    return bool(VIRTUAL.search(text))


def find_capability(text: str) -> float | None:
    """The lowest compute capability of the GPUs in `text`, or 6.1 if it names a GPU before Turing; None otherwise."""
    found = [float(one["version"]) for one in CAPABILITY.finditer(text)]
    return min(found) if found else 6.1 if BEFORE_TURING.search(text) else None
