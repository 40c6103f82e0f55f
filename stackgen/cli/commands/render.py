"""`stackgen render`: writes the files of a stack, or shows what would change."""

from __future__ import annotations

import sys
from argparse import Namespace

from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.rendering import find_changes, write_changes
from stackgen.render.write import diff
from stackgen.stack.folder import build_from_flags, find_stack_file, open_stack

__all__ = ["render"]


def render(args: Namespace) -> int:
    """Runs `stackgen render`. With --check, returns 1 if files are out of date."""
    # without --engine, the argument can't be a model, so a missing stack.yaml is the error to report
    if find_stack_file(args.stack) or not args.engine:
        stack = open_stack(args.stack, args.output)
    else:
        stack = build_from_flags(args.stack, vars(args), args.set, args.output)
    # the first file is compose.yaml
    if args.stdout:
        sys.stdout.write(stack.files()[0].text)
        return 0
    changes = find_changes(stack, validate=not args.no_validate)
    stale = [change for change in changes if change.kind != "same"]
    if (args.diff or args.check) and not args.json:
        print("\n".join(diff(changes)), end="\n" if stale else "")
    if not (args.diff or args.check):
        write_changes(stack, changes, args.force)
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    # --diff and --check have printed the diff already
    lines = [] if args.diff or args.check else [f"{change.kind:8}{stack.folder / change.path}" for change in stale]
    rows = [{"path": change.path, "kind": change.kind, "edited": change.edited} for change in changes]
    data = {"folder": str(stack.folder), "changes": rows,
            "warnings": list(stack.plan.warnings)}  # fmt: skip
    print_data(args, data, lines or ([] if stale else [f"{stack.folder}: up to date"]))
    return 1 if args.check and stale else 0
