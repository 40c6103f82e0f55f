"""NVIDIA's cards as `nvidia-smi` tells of them, and the ways by which containers get at cards."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from stackgen.doctor.facts import Gpu, GpuProcess

__all__ = ["CDI_DIRS", "QUERY", "cdi_kinds", "has_toolkit", "read_cuda", "read_gpus", "read_processes"]

QUERY = (
    "index", "uuid", "name", "memory.total", "memory.free", "compute_cap", "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total", "persistence_mode", "driver_version",
)  # fmt: skip
CDI_DIRS = (Path("/etc/cdi"), Path("/var/run/cdi"))
MIB = 2**20


def _rows(text: str) -> list[list[str]]:
    """The rows of a CSV without a header; broken lines are left out."""
    try:
        return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text.replace("\0", ""))) if row]
    except csv.Error:
        return []


def read_gpus(text: str, processes: dict[str, tuple[GpuProcess, ...]] | None = None) -> tuple[tuple[Gpu, ...], str]:
    """Cards and the driver's version from `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`.

    A cell that is no number (`[N/A]`, `[Not Supported]`, `ERR!`) is unknown; a row without index and UUID is no card.
    """
    found, driver = [], ""
    for row in _rows(text):
        cells = [*row, *[""] * len(QUERY)]
        if len(row) < 3 or not re.fullmatch(r"\d{1,4}", cells[0], re.ASCII) or not cells[1].startswith("GPU-"):
            continue
        compute = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", cells[5], re.ASCII)
        errors = _number(cells[7])
        found.append(
            Gpu(
                index=int(cells[0]),
                uuid=cells[1],
                name=cells[2],
                memory_total=_bytes(cells[3]),
                memory_free=_bytes(cells[4]),
                compute=(int(compute[1]), int(compute[2])) if compute else None,
                mig=_switch(cells[6]),
                ecc_errors=errors,
                persistence=_switch(cells[8]),
                processes=(processes or {}).get(cells[1], ()),
            )
        )
        driver = driver or (cells[9] if cells[9][:1].isdigit() else "")
    return tuple(found), driver


def read_processes(text: str) -> dict[str, tuple[GpuProcess, ...]]:
    """Processes by card from `--query-compute-apps=gpu_uuid,pid,process_name,used_memory`."""
    found: dict[str, tuple[GpuProcess, ...]] = {}
    for row in _rows(text):
        if len(row) >= 3 and re.fullmatch(r"\d{1,10}", row[1], re.ASCII):
            # a name may hold commas
            memory = _bytes(row[-1]) if len(row) > 3 else None
            name = ", ".join(row[2:-1] if len(row) > 3 else row[2:])
            found[row[0]] = (*found.get(row[0], ()), GpuProcess(int(row[1]), name, memory))
    return found


def read_cuda(text: str) -> str | None:
    """The newest CUDA that the driver serves, from the head of plain `nvidia-smi`."""
    match = re.search(r"CUDA Version:\s*(\d{1,3}\.\d{1,3})", text, re.ASCII)
    return match[1] if match else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _bytes(text: str) -> int | None:
    count = _number(text.removesuffix(" MiB"))
    return None if count is None else count * MIB


def _switch(text: str) -> bool | None:
    return {"Enabled": True, "Disabled": False}.get(text)


def nvidia(run: Callable[[Sequence[str]], tuple[int, str] | None]) -> dict[str, object]:
    """What nvidia-smi knows, as fields of Host; `run` gives exit code and output, None for a tool that isn't there."""
    asked = run(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"])
    if asked is None:
        return {"gpu_tool": False, "gpu_error": "there is no nvidia-smi on the PATH, or it doesn't answer"}
    code, text = asked
    if code:
        # 6 is its own code for "no devices were found"
        none = code == 6 or "No devices were found" in text
        error = (text.strip().splitlines() or [f"exit code {code}"])[0]
        return {"gpu_tool": True, "gpu_error": error, "gpus": () if none else None}
    apps = run(
        ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits"]
    )
    head = run(["nvidia-smi"])
    gpus, driver = read_gpus(text, read_processes(apps[1]) if apps and not apps[0] else None)
    return {"gpu_tool": True, "gpus": gpus, "driver": driver or None, "cuda": read_cuda(head[1]) if head else None}


def has_toolkit() -> bool:
    """Whether one of the programs is here by which the engine hands out NVIDIA's cards."""
    return any(shutil.which(name) for name in ("nvidia-container-runtime-hook", "nvidia-ctk", "nvidia-container-cli"))


def cdi_kinds(folders: Sequence[Path] = CDI_DIRS) -> tuple[str, ...] | None:
    """The kinds of devices (`nvidia.com/gpu`) that CDI files name; None where a file can't be read."""
    found = set()
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError:
            return None
        for name in names:
            if not name.endswith((".yaml", ".json", ".yml")):
                continue
            try:
                kind = re.search(r"(?m)^\s*[\"']?kind[\"']?\s*:\s*(.+?),?\s*$", (folder / name).read_text("utf-8"))
                found.add(str(yaml.safe_load(kind[1])) if kind else "")
            except (OSError, ValueError, yaml.YAMLError):
                return None
    return tuple(sorted(found - {""}))
