"""`--fix`: shows the change to stack.yaml that fixes a cause, asks, and writes it."""

from __future__ import annotations

from argparse import Namespace
from difflib import unified_diff
from pathlib import Path

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.locking import lock_folder
from stackgen.cli.commands.output import note
from stackgen.cli.scrub import scrub_diff
from stackgen.diagnose import Finding
from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.stack.edit import write_stack_file
from stackgen.stack.load import parse_stack, read_text

__all__ = ["fix"]


def fix(args: Namespace, findings: tuple[Finding, ...], path: Path | None) -> None:
    """Shows the change for the first finding, asks for confirmation, and applies it. Never applies an unsafe change.

    Raises StackBusyError if another command is changing the stack, StackChangedError if stack.yaml is edited meanwhile.
    """
    # the first finding is the cause, and other findings may be its consequences
    edit = findings[0].edit if findings else None
    if edit is None:
        note("stackgen knows no change to stack.yaml that fixes this problem" if findings else "nothing to fix")
        return
    if path is None:
        # the log may be of another machine or of an older stack.yaml
        note("with --logs and --container, --fix changes nothing: write the change above into stack.yaml yourself")
        return
    if not edit.safe:
        note(
            "--fix does not apply this change, because the change affects more than the start of the stack. Edit "
            "stack.yaml by hand"
        )
        return
    with lock_folder(args, path.parent):
        _show_and_apply(args, edit, path)


def _show_and_apply(args: Namespace, edit: Edit, path: Path) -> None:
    before = read_text(path)
    after = apply_edit(before, edit)
    # raises if the change would make the file invalid
    parse_stack(after, str(path))
    lines = unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm="")
    for line in scrub_diff(lines, [before, after]):
        # stderr, because stdout is for data
        note(line)
    refusal = "the change was not applied. To apply the change without asking, add --yes"
    if not confirm("apply this change?", args.yes, refusal):
        note("stack.yaml is unchanged")
        return
    write_stack_file(path, before, after)
    note(f"changed {path}; run `stackgen up` to try the change")
