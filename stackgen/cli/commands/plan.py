"""`stackgen plan`: chooses GPUs for the models with `gpus: auto`, shows why, and records the choice."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.output import note, print_data, require_writable, write_text
from stackgen.cli.commands.plan_choice import choose, find_candidates, require_placeable, to_recorded
from stackgen.cli.commands.plan_machine import describe_machine, mark_held, read_file, read_hosts, read_this_machine
from stackgen.cli.commands.plan_text import offer_lines, offers_json, to_json, to_lines
from stackgen.errors import StackgenError
from stackgen.placement import Device, Plan
from stackgen.placement.picture import draw
from stackgen.render.write import write_atomically
from stackgen.spec import StackSpec
from stackgen.stack.folder import find_stack_file
from stackgen.stack.load import parse_stack, read_text
from stackgen.stack.placement_file import FILE, format_placement, read_placement

__all__ = ["plan"]


def plan(args: Namespace) -> int:
    """Runs `stackgen plan`. Returns 1 if there is no room for a replica; then, nothing is recorded."""
    if args.print_machine:
        print_data(args, {"machine": (text := describe_machine(read_this_machine()))}, [text.rstrip()])
        return 0
    if args.svg:
        require_writable(args.svg, "--svg")
    with nullcontext() if args.dry_run else lock_stack(args, args.stack):
        path = find_stack_file(args.stack)
        if path is None:
            raise StackgenError(f"{args.stack} has no stack.yaml", "pass the folder of a stack, or its stack file")
        text = read_text(path)
        spec = parse_stack(text, str(path))
        require_placeable(spec, text, path)
        devices = _read_devices(args, spec)
        recorded = {} if args.repack else read_placement(path.parent)
        candidates = find_candidates(spec, path.parent, args.offline, recorded)
        found, offers = choose(spec, candidates, devices, recorded)
        wanted = format_placement(to_recorded(spec, found))
        writes = found.is_complete and not args.dry_run
        if writes:
            write_atomically(path.parent / FILE, wanted)
        if args.svg:
            write_text(args.svg, draw(found))
    file = str(path.parent / FILE) if writes else None
    # the picture on stdout and nothing else
    if args.svg != "-":
        data = {"complete": found.is_complete, "file": file, **to_json(found), "offers": offers_json(offers)}
        print_data(args, data, [*to_lines(found), *offer_lines(offers)])
    _note_result(args, found, bool(offers), file)
    return 0 if found.is_complete else 1


def _read_devices(args: Namespace, spec: StackSpec) -> tuple[Device, ...]:
    if args.machine:
        devices = read_file(Path(args.machine), tuple(spec.hosts))
    elif spec.hosts:
        if not args.ssh:
            raise StackgenError(f"the stack runs on several machines: {', '.join(spec.hosts)}",
                                "`--ssh` reads their GPUs, and `--machine FILE` lists them")  # fmt: skip
        devices = read_hosts(spec)
    else:
        devices = read_this_machine() if args.ignore_busy else mark_held(read_this_machine(), spec.name)
    return tuple(replace(one, held="") for one in devices) if args.ignore_busy else devices


def _note_result(args: Namespace, found: Plan, has_offers: bool, file: str | None) -> None:
    if file:
        note(f"recorded in {file}. `stackgen render {args.stack}` uses it")
        hosts = {gpu.host for one in found.places for gpu in one.devices} - {""}
        if hosts and (unused := sorted({one.host for one in found.devices} - hosts)):
            note(
                f"no model is on {', '.join(unused)}. `render` needs a model on every machine in `hosts` except the "
                f"first one"
            )
    elif found.is_complete:
        note("nothing was recorded (--dry-run)")
    else:
        count = sum(not one.devices for one in found.places)
        note(f"no room for {count} of {len(found.places)} replicas, so nothing was recorded")
        if any(one.held for one in found.devices):
            note("`plan` chooses no GPU that is in use. If these GPUs will be free when the stack starts, add "
                 "`--ignore-busy`")  # fmt: skip
        if found.moving_helps:
            note("there is room for all replicas if other replicas move: `stackgen plan --repack`")
        elif not has_offers:
            note("`plan` tried single changed fields and shared GPUs, and none of them makes room for all replicas. "
                 "Use fewer replicas, smaller models, or more GPUs, or change several fields of a model. `stackgen fit "
                 "MODEL --gpu NAME` shows what one model needs")  # fmt: skip
