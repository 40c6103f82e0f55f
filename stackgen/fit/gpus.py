"""The GPUs that `--gpu` knows, from gpus.tsv, which names the source of each row."""

from __future__ import annotations

import difflib
import functools
import re
from dataclasses import dataclass
from importlib.resources import files

from stackgen.errors import StackgenError

__all__ = ["DRIVER_SHARE", "GIB", "GPUS_FILE", "Gpu", "find_gpu", "known_gpus", "observed_gpu", "parse_memory"]

GIB = 2**30
GPUS_FILE = "gpus.tsv"
# of the memory that nvidia-smi lists; the rows of gpus.tsv with a log have 0.3 to 3 %
DRIVER_SHARE = 0.015


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    - `memory`: bytes as CUDA or ROCm reports them. `bandwidth`: GB/s; 0 if unknown.
    - `compute`: compute capability such as `9.0`, or AMD's `gfx942`; "" if unknown.
    - `unified`: the GPU shares the machine's memory with the CPU and with other programs.
    """

    name: str
    memory: int
    bandwidth: float = 0.0
    compute: str = ""
    unified: bool = False
    source: str = ""

    @property
    def is_amd(self) -> bool:
        """Whether the GPU needs `gpu_driver: amd`."""
        return self.compute.startswith("gfx")

    @property
    def capability(self) -> tuple[int, int] | None:
        """The compute capability as numbers; None if it is unknown, or if this is not an NVIDIA GPU."""
        match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", self.compute, re.ASCII)
        return (int(match[1]), int(match[2])) if match else None


@functools.cache
def known_gpus() -> dict[str, Gpu]:
    """All GPUs of gpus.tsv, by name and by alias in lower case."""
    found: dict[str, Gpu] = {}
    text = files("stackgen.fit").joinpath(GPUS_FILE).read_text("utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, aliases, _mib, gib, bandwidth, compute, unified, source = line.split("\t")
            gpu = Gpu(name, int(float(gib) * GIB), float(bandwidth), compute, unified == "yes", source)
            for one in (name, *aliases.split(",")):
                found.setdefault(_normalize(one), gpu)
    return found


def _normalize(name: str) -> str:
    # `NVIDIA GeForce RTX 4090`, as nvidia-smi prints it, is RTX-4090
    plain = re.sub(r"(?i)\b(nvidia|amd|tesla|geforce|radeon|instinct|graphics)\b", " ", name)
    return re.sub(r"[\s_-]+", "-", plain.strip()).strip("-").lower()


def find_gpu(name: str) -> Gpu:
    """The GPU that a user or nvidia-smi calls `name`. Raises StackgenError with similar names if there is none."""
    table, wanted = known_gpus(), _normalize(name)
    if wanted in table:
        return table[wanted]
    # `NVIDIA H100 80GB HBM3` and `NVIDIA A100-SXM4-80GB` begin with a name
    if begins := [key for key in table if wanted.startswith(key + "-")]:
        return table[max(begins, key=len)]
    # `4090` alone
    if len(ends := {table[key].name for key in table if key.endswith(f"-{wanted}")}) == 1:
        return table[_normalize(ends.pop())]
    if re.fullmatch(r"[\d.]+-?[gm]i?b?", wanted):
        raise StackgenError(f"--gpu: {name!r} is a size, but the option needs the name of a GPU",
                            f"use `--gpu-memory {name.replace(' ', '')}`")  # fmt: skip
    close = difflib.get_close_matches(wanted, table, 3, 0.5)
    names = ", ".join(dict.fromkeys(table[key].name for key in close)) or "see `stackgen fit --list-gpus`"
    raise StackgenError(f"--gpu: {name!r} is not in the table of GPUs",
                        f"similar: {names}. For other GPUs: `--gpu-memory 24GiB`")  # fmt: skip


def parse_memory(text: str) -> int:
    """Bytes of `24`, `24GiB`, `24GB` or `24576MiB`; a number alone is GiB. Raises StackgenError."""
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(gib|g|gb|mib|m|mb)?\s*", text, re.I | re.ASCII)
    units = {"gib": GIB, "g": GIB, "gb": 10**9, "mib": 2**20, "m": 2**20, "mb": 10**6}
    size = float(match[1]) * units[(match[2] or "gib").lower()] if match else 0
    if not 2**28 <= size <= 2**45:
        raise StackgenError(f"--gpu-memory: {text!r} is not the memory of a GPU", "for example 24GiB, or 24576MiB")
    return int(size)


def observed_gpu(name: str, total: int, compute: tuple[int, int] | None = None) -> Gpu:
    """The GPU that nvidia-smi lists with `total` bytes, of which CUDA gives out a little less."""
    usable = int(total * (1 - DRIVER_SHARE))
    try:
        known = find_gpu(name)
    except StackgenError:
        known = Gpu(name, 0)
    # variants of one name have different memory
    if known.memory and abs(known.memory - usable) < 0.05 * usable:
        return known
    number = ".".join(map(str, compute)) if compute else known.compute
    return Gpu(name, usable, known.bandwidth, number, known.unified, "derived from nvidia-smi")
