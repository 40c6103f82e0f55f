"""`stackgen render`: the files of a stack, or what would change."""

from __future__ import annotations

import sys
from argparse import Namespace

from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.rendering import changes_of, write
from stackgen.render.write import diff
from stackgen.stack.folder import from_flags, open_stack, stack_file

__all__ = ["render"]


def render(args: Namespace) -> int:
    """`stackgen render`: files, or what would change."""
    if stack_file(args.stack) or not args.engine:
        stack = open_stack(args.stack, args.output)
    else:
        stack = from_flags(args.stack, vars(args), args.set, args.output)
    if args.stdout:
        sys.stdout.write(stack.files()[0].text)
        return 0
    changes = changes_of(stack, validate=not args.no_validate)
    stale = [change for change in changes if change.kind != "same"]
    if (args.diff or args.check) and not args.json:
        print("\n".join(diff(changes)), end="\n" if stale else "")
    if not (args.diff or args.check):
        write(stack, changes, args.force)
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    plain = [] if args.diff or args.check else [f"{change.kind:8}{stack.folder / change.path}" for change in stale]
    told = [{"path": change.path, "kind": change.kind, "edited": change.edited} for change in changes]
    data = {"folder": str(stack.folder), "changes": told,
            "warnings": list(stack.plan.warnings)}  # fmt: skip
    print_data(args, data, plain or ([] if stale else [f"{stack.folder}: up to date"]))
    return 1 if args.check and stale else 0
