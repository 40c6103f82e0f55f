"""`stackgen gpus`: the GPUs of this machine, and who holds them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.table import format_table, size_text
from stackgen.runtimes.observation.gpu_holders import GpuReport, GpuRow, Holder, find_holders

__all__ = ["gpus"]


def gpus(args: Namespace) -> int:
    """Runs `stackgen gpus`. Returns 3 if a tool of a driver is installed and fails, otherwise 0."""
    report = find_holders()
    rows = [line for row in report.gpus for line in _to_lines(row, report)]
    lines = format_table(("GPU", "NAME", "USED", "MEMORY", "HELD BY"), rows)
    lines += [f"on an unknown GPU: {_describe(one)}" for one in report.unplaced]
    broken = {name: state for name, state in report.tools.items() if state not in ("ok", "missing")}
    data = {
        "gpus": [_to_json(one) for one in report.gpus], "unplaced": [_holder_json(one) for one in report.unplaced],
        "tools": report.tools, "docker_error": report.docker_error,
    }  # fmt: skip
    print_data(args, data, lines or ["no GPU was found on this machine"])
    for line in () if args.json else _notes(report):
        note(line)
    return 3 if broken else 0


def _notes(report: GpuReport) -> list[str]:
    found = []
    vendors = {row.vendor for row in report.gpus}
    for name, state in report.tools.items():
        # a machine has GPUs of one vendor: the other tool is worth a line only if nothing else is known
        if vendors and ("nvidia" if name == "nvidia-smi" else "amd") not in vendors and state == "missing":
            continue
        other = "amd-smi and rocm-smi are" if name == "amd-smi" else f"{name} is"
        if state == "missing":
            found.append(f"{other} not on the PATH, or can't be run, so memory and processes of these GPUs are unknown")
        elif state != "ok":
            found.append(f"{name} fails: {state}")
    if report.docker_error:
        found.append(f"{report.docker_error}, so the reservations of containers are unknown")
    return found


def _to_lines(row: GpuRow, report: GpuReport) -> list[tuple[str, ...]]:
    """One line for each holder; the GPU itself is only in the first line."""
    device = row.device
    used, total = (device.memory_used, device.memory_total) if device else (None, None)
    tools = ("nvidia-smi",) if row.vendor == "nvidia" else ("amd-smi", "rocm-smi")
    # a tool lists the GPUs, and only a plan or a reservation names this one
    is_listed = any(report.tools.get(name) == "ok" for name in tools)
    unlisted = "not on this machine" if is_listed else row.vendor
    name = (device.name if device else unlisted) + (" (MIG)" if device and device.mig else "")
    head = (row.id, name, size_text(used), size_text(total))
    # without the tool or without Docker, nobody can say that a GPU is free
    is_known = device is not None and not report.docker_error
    holders = [_describe(one) for one in row.holders] or ["nobody" if is_known else "unknown"]
    return [(*head, holders[0]), *(("", "", "", "", one) for one in holders[1:])]


def _describe(holder: Holder) -> str:
    of = f" of the stack {holder.stack}" if holder.stack else ""
    if holder.kind == "process":
        size = f", {size_text(holder.memory)}" if holder.memory is not None else ""
        return f"process {holder.name} (pid {holder.pid}{size}){of}"
    if holder.kind == "planned":
        return f"planned: {holder.stack}/{holder.name}, not running"
    return f"reserved: {'container' if holder.kind == 'container' else 'service'} {holder.name}{of}"


def _to_json(row: GpuRow) -> dict[str, Any]:
    device = row.device
    return {
        "vendor": row.vendor, "id": row.id, "uuid": device.uuid if device else None,
        "name": device.name if device else None, "memory_total": device.memory_total if device else None,
        "memory_used": device.memory_used if device else None, "mig": device.mig if device else None,
        "holders": [_holder_json(one) for one in row.holders],
    }  # fmt: skip


def _holder_json(holder: Holder) -> dict[str, Any]:
    return {"kind": holder.kind, "name": holder.name, "stack": holder.stack or None, "pid": holder.pid,
            "memory": holder.memory}  # fmt: skip
