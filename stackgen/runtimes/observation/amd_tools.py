"""AMD GPUs as `amd-smi` reports them, else as `rocm-smi` does: memory, and the processes that use it.

Sources: amdsmi_cli/amdsmi_commands.py and amdsmi_logger.py of ROCm/amdsmi (0ceca28, ROCm 6.3): `metric`, `static` and
`process` print a list with one object for each GPU. Newer versions put this list under `gpu_data`. `process_info` is a
text without processes: `N/A`, or `No running processes detected`. rocm_smi.py of ROCm/rocm_smi_lib (ROCm 6.3):
`cardN` objects with texts, and `PIDn` under `system`, without the GPU of the process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from stackgen.diagnose.gpus import GpuDevice, GpuDeviceProcess, GpuState
from stackgen.runtimes.observation.gpu_tools import Runner

__all__ = ["parse_amd_smi", "parse_rocm_smi", "read_amd_state"]

UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
METRIC, ASIC, PROCESS = ("metric", "--mem-usage"), ("static", "--asic"), ("process",)
ROCM = ("--showmeminfo", "vram", "--showproductname", "--showuniqueid", "--showpids")


def read_amd_state(run: Runner) -> tuple[GpuState, tuple[GpuDeviceProcess, ...], str]:
    """The AMD GPUs, the processes whose GPU is unknown, and the name of the tool that answered ("" if none did)."""
    metric = run(["amd-smi", *METRIC, "--json"])
    if metric and metric[0] == 0:
        others = [run(["amd-smi", *words, "--json"]) for words in (ASIC, PROCESS)]
        asic, process = ((one[1] if one and one[0] == 0 else "") for one in others)
        return parse_amd_smi(metric[1], asic, process), (), "amd-smi"
    rocm = run(["rocm-smi", *ROCM, "--json"])
    if rocm and rocm[0] == 0:
        return *parse_rocm_smi(rocm[1]), "rocm-smi"
    for tool, answer in (("amd-smi", metric), ("rocm-smi", rocm)):
        if answer:
            first = (answer[1].strip().splitlines() or [f"exit code {answer[0]}"])[0]
            return GpuState(error=f"{tool}: {first}"), (), tool
    return GpuState(unknown="amd-smi and rocm-smi were not found on the PATH, or do not answer"), (), ""


def parse_amd_smi(metric: str, asic: str = "", process: str = "") -> GpuState:
    """The GPUs from the three outputs of amd-smi. A text that is not JSON is an error of the tool."""
    rows = _rows(metric)
    if rows is None:
        return GpuState(error=f"amd-smi printed no JSON: {metric.strip()[:100]!r}")
    names = {number: row.get("asic") or {} for number, row in _numbered(_rows(asic) or [])}
    processes = {number: tuple(_processes(row)) for number, row in _numbered(_rows(process) or [])}
    devices = []
    for number, row in _numbered(rows):
        usage, about = row.get("mem_usage"), names.get(number, {})
        usage = usage if isinstance(usage, dict) else {}
        total, used = _bytes(usage.get("total_vram")), _bytes(usage.get("used_vram"))
        devices.append(
            GpuDevice(
                index=number, uuid=_text(about.get("asic_serial")), name=_text(about.get("market_name")) or "AMD GPU",
                memory_total=total, memory_used=used,
                memory_free=None if total is None or used is None else total - used,
                processes=processes.get(number, ()),
            )
        )  # fmt: skip
    return GpuState(devices=tuple(devices))


def parse_rocm_smi(text: str) -> tuple[GpuState, tuple[GpuDeviceProcess, ...]]:
    """The GPUs and the processes from the output of rocm-smi, which does not say which GPU a process uses."""
    # rocm-smi prints warnings before the JSON
    start = text.find("{")
    try:
        data = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        return GpuState(error=f"rocm-smi printed no JSON: {text.strip()[:100]!r}"), ()
    devices = []
    for name, card in data.items():
        match = re.fullmatch(r"card(\d{1,3})", name, re.ASCII)
        if not match or not isinstance(card, dict):
            continue
        total, used = _number(card.get("VRAM Total Memory (B)")), _number(card.get("VRAM Total Used Memory (B)"))
        # the key has another case in other versions
        model = next((str(value) for key, value in card.items() if key.lower() == "card series"), "AMD GPU")
        free = None if total is None or used is None else total - used
        devices.append(
            GpuDevice(int(match[1]), _text(card.get("Unique ID")), model, total, used, free)
        )  # fmt: skip
    system = data.get("system")
    found = []
    for name, value in system.items() if isinstance(system, dict) else ():
        match = re.fullmatch(r"PID(\d{1,10})", name, re.ASCII)
        # the command, the number of GPUs, and bytes of memory
        parts = [one.strip() for one in str(value).split(",")]
        if match:
            found.append(GpuDeviceProcess(int(match[1]), parts[0], _number(parts[2]) if len(parts) > 2 else None))
    return GpuState(devices=tuple(sorted(devices, key=lambda one: one.index))), tuple(found)


def _rows(text: str) -> list[Any] | None:
    start = min((place for place in (text.find("["), text.find("{")) if place >= 0), default=-1)
    try:
        data = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None
    data = data.get("gpu_data", [data]) if isinstance(data, dict) else data
    return data if isinstance(data, list) else None


def _numbered(rows: list[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("gpu"), int):
            yield row["gpu"], row


def _processes(row: dict[str, Any]) -> Iterator[GpuDeviceProcess]:
    listed = row.get("process_list")
    for one in listed if isinstance(listed, list) else ():
        info = one.get("process_info") if isinstance(one, dict) else None
        pid = _number(info.get("pid")) if isinstance(info, dict) else None
        if isinstance(info, dict) and pid is not None:
            memory = info.get("memory_usage")
            vram = memory.get("vram_mem") if isinstance(memory, dict) else info.get("mem_usage")
            yield GpuDeviceProcess(pid, _text(info.get("name")) or "?", _bytes(vram))


def _bytes(value: Any) -> int | None:
    """`{"value": 16368, "unit": "MB"}` in bytes; None for `N/A`."""
    if not isinstance(value, dict):
        return None
    number, unit = _number(value.get("value")), UNITS.get(str(value.get("unit", "B")).upper())
    return None if number is None or unit is None else number * unit


def _number(value: Any) -> int | None:
    text = str(value)
    return int(text) if not isinstance(value, bool) and re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value != "N/A" else ""
