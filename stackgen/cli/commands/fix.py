"""`--fix`: shows the change to stack.yaml that fixes a cause, asks, and writes it."""

from __future__ import annotations

from argparse import Namespace
from difflib import unified_diff
from pathlib import Path

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.output import note
from stackgen.diagnose import Finding
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.render.write import write_atomically
from stackgen.stack.load import parse_stack, read_text

__all__ = ["fix"]


def fix(args: Namespace, findings: tuple[Finding, ...], path: Path | None) -> None:
    """Shows the change for the first finding, asks for confirmation, and applies it. Never applies an unsafe change."""
    edit = findings[0].edit if findings else None
    if edit is None or path is None:
        note("nothing to fix" if not findings else "stackgen knows no change to stack.yaml that fixes this cause")
        return
    if not edit.safe:
        note("this change affects more than the start, so --fix does not apply it; edit stack.yaml by hand")
        return
    before = read_text(path)
    after = apply_edit(before, edit)
    # raises if the change would make the file invalid
    parse_stack(after, str(path))
    for line in unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm=""):
        note(line)
    if not confirm("apply this change?", args.yes, "not applied: --yes applies the change without asking"):
        note("stack.yaml is unchanged")
        return
    write_atomically(path, after, path.stat().st_mode & 0o777)
    note(f"changed {path}; run `stackgen up` to try the change")
