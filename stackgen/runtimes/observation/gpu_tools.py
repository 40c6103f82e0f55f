"""NVIDIA GPUs as `nvidia-smi` reports them, and how containers can get access to GPUs.

`read_nvidia_facts` returns facts for doctor, `read_gpu_state` evidence for diagnose; both use the same queries and
parsers.
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

from stackgen.diagnose.gpus import GpuDevice, GpuDeviceProcess, GpuState
from stackgen.doctor.facts import Gpu, GpuProcess

__all__ = [
    "CDI_DIRS", "QUERY", "TOOL_TIMEOUT", "Runner", "has_nvidia_toolkit", "parse_cuda_version", "parse_gpus",
    "parse_processes", "parse_xids", "read_cdi_kinds", "read_gpu_state", "read_nvidia_facts", "run_tool",
]  # fmt: skip

Runner = Callable[[Sequence[str]], tuple[int, str] | None]
# seconds
TOOL_TIMEOUT = 2.5

# the columns of nvidia-smi --query-gpu, in the order in which parse_gpus reads them
QUERY = (
    "index", "uuid", "name", "memory.total", "memory.free", "compute_cap", "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total", "persistence_mode", "driver_version", "memory.used",
)  # fmt: skip
CDI_DIRS = (Path("/etc/cdi"), Path("/var/run/cdi"))
MIB = 2**20


def _parse_csv(text: str) -> list[list[str]]:
    """The rows of a CSV text without a header; [] if the text is not CSV."""
    try:
        # Python 3.10 raises on a null byte
        return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text.replace("\0", ""))) if row]
    except csv.Error:
        return []


def parse_gpus(text: str, processes: dict[str, tuple[GpuProcess, ...]] | None = None) -> tuple[tuple[Gpu, ...], str]:
    """GPUs and the driver's version from `nvidia-smi --query-gpu=… --format=csv,noheader,nounits`.

    A cell that is not a number (`[N/A]`, `[Not Supported]`, `ERR!`) is unknown. Rows without index and UUID are
    skipped.
    """
    found, driver = [], ""
    for row in _parse_csv(text):
        # a row may be shorter after an error or with an older driver
        cells = [*row, *[""] * len(QUERY)]
        # re.ASCII: \d and int() also accept digits of other scripts
        if len(row) < 3 or not re.fullmatch(r"\d{1,4}", cells[0], re.ASCII) or not cells[1].startswith("GPU-"):
            continue
        compute = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", cells[5], re.ASCII)
        found.append(
            Gpu(
                index=int(cells[0]),
                uuid=cells[1],
                name=cells[2],
                memory_total=_parse_mib(cells[3]),
                memory_free=_parse_mib(cells[4]),
                compute=(int(compute[1]), int(compute[2])) if compute else None,
                mig=_parse_switch(cells[6]),
                ecc_errors=_parse_number(cells[7]),
                persistence=_parse_switch(cells[8]),
                processes=(processes or {}).get(cells[1], ()),
            )
        )
        driver = driver or (cells[9] if cells[9][:1].isdigit() else "")
    return tuple(found), driver


def parse_processes(text: str) -> dict[str, tuple[GpuProcess, ...]]:
    """Processes by GPU UUID from `--query-compute-apps=gpu_uuid,pid,process_name,used_memory`."""
    found: dict[str, tuple[GpuProcess, ...]] = {}
    for row in _parse_csv(text):
        if len(row) >= 3 and re.fullmatch(r"\d{1,10}", row[1], re.ASCII):
            # the name is not quoted and may contain commas
            memory = _parse_mib(row[-1]) if len(row) > 3 else None
            name = ", ".join(row[2:-1] if len(row) > 3 else row[2:])
            found[row[0]] = (*found.get(row[0], ()), GpuProcess(int(row[1]), name, memory))
    return found


def parse_cuda_version(text: str) -> str | None:
    """The newest CUDA version that the driver supports, from the header of plain `nvidia-smi`."""
    match = re.search(r"CUDA Version:\s*(\d{1,3}\.\d{1,3})", text, re.ASCII)
    return match[1] if match else None


def _parse_number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _parse_mib(text: str) -> int | None:
    """A number of MiB, converted to bytes."""
    count = _parse_number(text.removesuffix(" MiB"))
    return None if count is None else count * MIB


def _parse_switch(text: str) -> bool | None:
    return {"Enabled": True, "Disabled": False}.get(text)


def run_tool(command: Sequence[str]) -> tuple[int, str] | None:
    """Exit code and output of a program; None if it is missing or takes longer than `TOOL_TIMEOUT`."""
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, errors="replace", timeout=TOOL_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # a program may print its error to either stream
    return done.returncode, done.stdout or done.stderr


def read_nvidia_facts(run: Runner) -> dict[str, object]:
    """The facts from nvidia-smi, as fields of `Host`. `run` returns exit code and output, or None without the tool."""
    return _parse_answer(run, _query_gpus(run))


def read_gpu_state(run: Runner = run_tool) -> GpuState:
    """The GPUs as evidence, with the driver's errors from the kernel log if this user may read it."""
    answer = _query_gpus(run)
    facts = _parse_answer(run, answer)
    if answer is None:
        return GpuState(unknown=_text(facts["gpu_error"]))
    # memory.used, the last column, is not in `Gpu`, because doctor needs only the free memory
    used = {row[1]: _parse_mib(row[len(QUERY) - 1]) for row in _parse_csv(answer[1]) if len(row) >= len(QUERY)}
    gpus: tuple[Gpu, ...] | None = facts.get("gpus")  # type: ignore[assignment]
    return GpuState(
        devices=None if gpus is None else tuple(_to_device(one, used.get(one.uuid)) for one in gpus),
        driver=_text(facts.get("driver")) or None,
        cuda=_text(facts.get("cuda")) or None,
        error=_text(facts.get("gpu_error")) if gpus is None else "",
        xids=parse_xids(run(["dmesg"])),
    )


def parse_xids(answer: tuple[int, str] | None) -> tuple[str, ...] | None:
    """The driver's last 20 errors (Xid) in the output of `dmesg`; None if this user may not read the kernel log."""
    if answer is None or answer[0]:
        return None
    lines = (line.strip() for line in answer[1].splitlines() if re.search(r"NVRM: (?:Xid |.*fallen off the bus)", line))
    # a failing GPU may log the same error again and again
    return tuple(lines)[-20:]


def _query_gpus(run: Runner) -> tuple[int, str] | None:
    """The answer to `QUERY`. If the driver is too old for a field, the query asks for `name` instead."""
    fields = list(QUERY)
    for _ in fields:
        answer = run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"])
        # compute_cap exists since about driver 510; a name in its column is parsed as unknown
        invalid = (
            re.search(r'Field "([\w.]+)" is not a valid field to query', answer[1]) if answer and answer[0] else None
        )
        if invalid is None or invalid[1] not in fields[3:]:
            return answer
        fields[fields.index(invalid[1])] = "name"
    return answer


def _parse_answer(run: Runner, answer: tuple[int, str] | None) -> dict[str, object]:
    if answer is None:
        return {"gpu_tool": False, "gpu_error": "nvidia-smi was not found on the PATH, or does not answer"}
    code, text = answer
    if code:
        # 6 is nvidia-smi's exit code for "no devices were found"
        has_none = code == 6 or "No devices were found" in text
        error = (text.strip().splitlines() or [f"exit code {code}"])[0]
        return {"gpu_tool": True, "gpu_error": error, "gpus": () if has_none else None}
    # --query-gpu can't list processes
    apps = run(
        ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid,process_name,used_memory", "--format=csv,noheader,nounits"]
    )
    head = run(["nvidia-smi"])
    gpus, driver = parse_gpus(text, parse_processes(apps[1]) if apps and not apps[0] else None)
    return {
        "gpu_tool": True,
        "gpus": gpus,
        "driver": driver or None,
        "cuda": parse_cuda_version(head[1]) if head else None,
    }


def _to_device(gpu: Gpu, used: int | None) -> GpuDevice:
    compute = ".".join(map(str, gpu.compute)) if gpu.compute else None
    processes = tuple(GpuDeviceProcess(one.pid, one.name, one.memory) for one in gpu.processes)
    return GpuDevice(gpu.index, gpu.uuid, gpu.name, gpu.memory_total, used, gpu.memory_free, compute, gpu.mig,
                gpu.ecc_errors, processes)  # fmt: skip


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def has_nvidia_toolkit() -> bool:
    """Whether a program of the NVIDIA Container Toolkit was found: Docker Engine needs it for GPUs in containers."""
    return any(shutil.which(name) for name in ("nvidia-container-runtime-hook", "nvidia-ctk", "nvidia-container-cli"))


def read_cdi_kinds(folders: Sequence[Path] = CDI_DIRS) -> tuple[str, ...] | None:
    """The kinds of devices (`nvidia.com/gpu`) that CDI files define; None if a file can't be read."""
    found = set()
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except FileNotFoundError:
            continue
        except OSError:
            return None
        for name in names:
            # other files in these folders define no devices
            if not name.endswith((".yaml", ".json", ".yml")):
                continue
            try:
                kind = re.search(r"(?m)^\s*[\"']?kind[\"']?\s*:\s*(.+?),?\s*$", (folder / name).read_text("utf-8"))
                found.add(str(yaml.safe_load(kind[1])) if kind else "")
            except (OSError, ValueError, yaml.YAMLError):
                return None
    return tuple(sorted(found - {""}))
