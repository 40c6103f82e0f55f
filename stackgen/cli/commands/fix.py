"""The change to stack.yaml that fixes a cause: shown, confirmed, written."""

from __future__ import annotations

from argparse import Namespace
from difflib import unified_diff
from pathlib import Path

from stackgen.cli.commands.confirm import confirmed
from stackgen.cli.commands.output import note
from stackgen.diagnose import Finding
from stackgen.diagnose.stack_edit import apply
from stackgen.render.write import write_atomically
from stackgen.stack.load import parse_stack, read_text

__all__ = ["fix"]


def fix(args: Namespace, findings: tuple[Finding, ...], path: Path | None) -> None:
    """Shows the change that mends the cause, asks, and writes it; only safe ones, and only of the first finding."""
    edit = findings[0].edit if findings else None
    if edit is None or path is None:
        note("nothing to fix" if not findings else "no change to stack.yaml is known that mends it")
        return
    if not edit.safe:
        note("the change decides more than a start: make it by hand")
        return
    before = read_text(path)
    after = apply(before, edit)
    # a change that makes the file invalid is none
    parse_stack(after, str(path))
    for line in unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""):
        note(line)
    if not confirmed("make this change?", args.yes, "--yes makes the change without asking"):
        note("left as it was")
        return
    write_atomically(path, after, path.stat().st_mode & 0o777)
    note(f"changed {path}: `stackgen up` tries it")
