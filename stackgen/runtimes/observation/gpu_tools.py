"""NVIDIA's cards as `nvidia-smi` tells of them, and the ways by which containers get at cards.

`nvidia` gives facts to doctor and `gpu_state` evidence to diagnose, both by the same questions and readers.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from stackgen.diagnose.gpus import Card, CardProcess, GpuState
from stackgen.doctor.facts import Gpu, GpuProcess

__all__ = [
    "CDI_DIRS", "QUERY", "SECONDS", "ask_tool", "cdi_kinds", "gpu_state", "has_toolkit", "nvidia", "read_cuda",
    "read_gpus", "read_processes", "read_xids",
]  # fmt: skip

Runner = Callable[[Sequence[str]], tuple[int, str] | None]
SECONDS = 2.5

QUERY = (
    "index", "uuid", "name", "memory.total", "memory.free", "compute_cap", "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total", "persistence_mode", "driver_version", "memory.used",
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


def ask_tool(words: Sequence[str]) -> tuple[int, str] | None:
    """Exit code and output of a program; None where it is missing or too slow."""
    try:
        done = subprocess.run(list(words), capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, done.stdout or done.stderr


def nvidia(run: Runner) -> dict[str, object]:
    """What nvidia-smi knows, as fields of Host; `run` gives exit code and output, None for a tool that isn't there."""
    return _facts(run, _cards(run))


def gpu_state(run: Runner = ask_tool) -> GpuState:
    """The cards as evidence, with the kernel's log where this user may read it."""
    asked = _cards(run)
    facts = _facts(run, asked)
    if asked is None:
        return GpuState(unknown=_text(facts["gpu_error"]))
    used = {row[1]: _bytes(row[len(QUERY) - 1]) for row in _rows(asked[1]) if len(row) >= len(QUERY)}
    gpus: tuple[Gpu, ...] | None = facts.get("gpus")  # type: ignore[assignment]
    return GpuState(
        cards=None if gpus is None else tuple(_card(one, used.get(one.uuid)) for one in gpus),
        driver=_text(facts.get("driver")) or None,
        cuda=_text(facts.get("cuda")) or None,
        error=_text(facts.get("gpu_error")) if gpus is None else "",
        xids=read_xids(run(["dmesg"])),
    )


def read_xids(asked: tuple[int, str] | None) -> tuple[str, ...] | None:
    """The driver's errors (Xid) in what `dmesg` printed; None where it may not be read."""
    if asked is None or asked[0]:
        return None
    lines = (line.strip() for line in asked[1].splitlines() if re.search(r"NVRM: (?:Xid |.*fallen off the bus)", line))
    return tuple(lines)[-20:]


def _cards(run: Runner) -> tuple[int, str] | None:
    """The answer to `QUERY`. A driver that is too old for one of its fields gets another one in its place."""
    fields = list(QUERY)
    for _ in fields:
        asked = run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        # compute_cap came with driver 510 or so; a name in its cell reads as unknown
        refused = re.search(r'Field "([\w.]+)" is not a valid field to query', asked[1]) if asked and asked[0] else None
        if refused is None or refused[1] not in fields[3:]:
            return asked
        fields[fields.index(refused[1])] = "name"
    return asked


def _facts(run: Runner, asked: tuple[int, str] | None) -> dict[str, object]:
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


def _card(gpu: Gpu, used: int | None) -> Card:
    compute = ".".join(map(str, gpu.compute)) if gpu.compute else None
    processes = tuple(CardProcess(one.pid, one.name, one.memory) for one in gpu.processes)
    return Card(gpu.index, gpu.uuid, gpu.name, gpu.memory_total, used, gpu.memory_free, compute, gpu.mig,
                gpu.ecc_errors, processes)  # fmt: skip


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


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
