"""The GPUs that `stackgen plan` may choose: those of this machine, of other machines, or those that a file lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stackgen.cli.commands.output import note
from stackgen.cli.commands.table import size_text
from stackgen.errors import MachineError, Mistake, SpecError, StackgenError
from stackgen.fit import Gpu, find_gpu
from stackgen.fit.gpus import DRIVER_SHARE, observed_gpu
from stackgen.placement import Device, join_islands, parse_machine, parse_topology
from stackgen.placement.machine import WHOLE
from stackgen.runtimes.observation.gpu_holders import GpuRow, Holder, find_holders
from stackgen.runtimes.observation.gpu_tools import Runner, read_nvidia_facts, run_tool
from stackgen.runtimes.observation.remote import ssh_runner
from stackgen.spec import StackSpec
from stackgen.stack.load import locate, read_text
from stackgen.stack.yaml_text import read_mapping

__all__ = ["describe_machine", "mark_held", "read_file", "read_hosts", "read_this_machine"]

# a GPU without processes has some MiB in use, for the driver
IDLE, RESERVED = 512 * 2**20, 2**30
UNLISTED = "programs that nvidia-smi does not list, with {}"
# more names than this say nothing more
MOST_NAMED = 3
HINT = ("run `stackgen plan` on the machine with the GPUs, or describe its GPUs in a file: `--machine FILE` (see the "
        "how-to about choosing GPUs)")  # fmt: skip


def read_file(path: Path, hosts: Collection[str] = ()) -> tuple[Device, ...]:
    """The GPUs in the file of `--machine`; `hosts` are the machines of the stack. Raises SpecError."""
    text = read_text(path)
    try:
        return _read(text, path, hosts)
    except SpecError as error:
        raise locate(error, text, str(path)) from None


def _read(text: str, path: Path, hosts: Collection[str]) -> tuple[Device, ...]:
    found = parse_machine(read_mapping(text, str(path)), str(path))
    named = {one.host for one in found}
    if bool(hosts) != bool(named - {""}):
        what = ("lists GPUs without `hosts`, but the stack has several machines: " + ", ".join(hosts) if hosts else
                "has `hosts`, but the stack runs on one machine")  # fmt: skip
        hint = "write `hosts: {NAME: {gpus: [...]}}`" if hosts else "write `gpus: [...]`"
        raise SpecError(str(path), [Mistake("gpus" if hosts else "hosts", what, hint=hint)])
    if unknown := sorted(named - set(hosts)) if hosts else []:
        raise SpecError(str(path), [Mistake(f"hosts.{unknown[0]}", "is not a machine in the stack's `hosts`",
                                            hint=f"known: {', '.join(hosts)}")])  # fmt: skip
    return found


def read_this_machine() -> tuple[Device, ...]:
    """The whole GPUs that nvidia-smi lists. Raises MachineError without any."""
    found = _to_devices(_read_whole(run_tool, ""), run_tool)
    if not found:
        raise MachineError("nvidia-smi lists no undivided GPU on this machine", HINT)
    return found


def read_hosts(spec: StackSpec) -> tuple[Device, ...]:
    """The GPUs of all machines of `spec`, over SSH; the first one is this machine if it has no address.

    Raises MachineError if a machine can't be asked, or none has GPUs.
    """
    devices: list[Device] = []
    for name, host in spec.hosts.items():
        if name == spec.front and not host.address:
            own = _to_devices(_read_whole(run_tool, name), run_tool)
            devices += [replace(one, host=name) for one in mark_held(own, spec.name)]
            continue
        run = ssh_runner(name, host.address or "")
        known = _read_whole(run, name)
        found = _to_devices(known, run)
        devices += [replace(one, host=name, held=_find_held(facts)) for one, facts in zip(found, known, strict=True)]
    if not devices:
        raise MachineError(f"nvidia-smi lists no undivided GPU on any of {', '.join(spec.hosts)}",
                           "describe the GPUs in a file: `--machine FILE`")  # fmt: skip
    return tuple(devices)


def describe_machine(devices: Sequence[Device]) -> str:
    """The text of a file for `--machine` with these GPUs."""
    rows = [{"uuid": one.uuid, "name": one.gpu.name, "index": one.index,
             # rounded up to what nvidia-smi shows: the driver keeps a part
             **({} if _is_known(one.gpu) else {"memory": f"{round(one.gpu.memory / (1 - DRIVER_SHARE) / 2**20)}MiB"}),
             **({"island": one.island} if one.island != WHOLE else {}), **({"held": one.held} if one.held else {})}
            for one in devices]  # fmt: skip
    return yaml.safe_dump({"gpus": rows}, sort_keys=False, allow_unicode=True, width=1000)


def _is_known(gpu: Gpu) -> bool:
    try:
        return find_gpu(gpu.name) == gpu
    except StackgenError:
        return False


def _read_whole(run: Runner, host: str) -> list[Any]:
    """The facts of the GPUs that MIG does not divide."""
    gpus: Any = read_nvidia_facts(run).get("gpus") or ()
    known = [one for one in gpus if one.memory_total and one.uuid]
    if parts := [str(one.index) for one in known if one.mig]:
        of = f" of {host}" if host else ""
        note(f"left out, because they are divided by MIG: GPU {', '.join(parts)}{of}")
    return [one for one in known if not one.mig]


def _to_devices(known: Sequence[Any], run: Runner) -> tuple[Device, ...]:
    answer = run(["nvidia-smi", "topo", "-m"]) if known else (0, "")
    if not answer or answer[0]:
        note("warning: `nvidia-smi topo -m` fails, so stackgen assumes that all GPUs are connected over PCIe")
    pairs = parse_topology(answer[1]) if answer and not answer[0] else []
    islands = join_islands([one.index for one in known], pairs)
    return tuple(Device(one.index, one.uuid, observed_gpu(one.name, one.memory_total, one.compute), islands[one.index])
                 for one in known)  # fmt: skip


def _find_held(facts: Any) -> str:
    """Who uses a GPU of another machine, whose containers are unknown here."""
    held = [_describe(Holder("process", one.name, "", one.pid, one.memory)) for one in facts.processes]
    # what is not free includes what the driver reserves
    used = facts.memory_total - facts.memory_free - RESERVED if facts.memory_free is not None else 0
    return _join(held) or (UNLISTED.format(size_text(used)) if used > IDLE else "")


def mark_held(devices: Sequence[Device], name: str) -> tuple[Device, ...]:
    """`devices` of this machine with who holds each, other than the stack `name`."""
    report = find_holders()
    if report.docker_error:
        note(f"warning: it is unknown which containers use the GPUs: {report.docker_error}")
    rows = {row.device.uuid: row for row in report.gpus if row.device}
    return tuple(_mark(one, rows[one.uuid], name) if one.uuid in rows else one for one in devices)


def _mark(device: Device, row: GpuRow, name: str) -> Device:
    is_own = any(one.stack == name and one.kind in ("container", "stack") for one in row.holders)
    # a process whose container is unknown belongs to this stack if the stack holds the GPU
    others = [one for one in row.holders if one.stack != name and not (is_own and not one.stack)]
    held = [_describe(one) for one in others if one.kind != "planned"]
    used = row.device.memory_used if row.device else None
    if not held and not is_own and used is not None and used > IDLE:
        held = [UNLISTED.format(size_text(used))]
    wanted = dict.fromkeys(f"the stack {one.stack}, which is down" for one in others if one.kind == "planned")
    return replace(device, held=_join(held), wanted=_join(list(wanted)))


def _describe(one: Holder) -> str:
    if one.kind == "process":
        memory = f", {size_text(one.memory)}" if one.memory else ""
        return f"the process {one.name} (pid {one.pid}{memory})"
    of = f" of the stack {one.stack}" if one.stack else ""
    return f"the container {one.name}{of}" if one.kind == "container" else f"{one.name}{of}"


def _join(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more
