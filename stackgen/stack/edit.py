"""Writes a changed stack.yaml, but never overwrites an edit that somebody else has made in the meantime."""

from __future__ import annotations

from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.spec import StackSpec
from stackgen.stack.load import parse_stack, read_text

__all__ = ["StackChangedError", "require_original", "require_unchanged", "write_stack_file"]


class StackChangedError(StackgenError):
    """stack.yaml was edited while a command was about to change it."""


def require_unchanged(path: Path, before: str) -> None:
    """Raises StackChangedError if the stack file at `path` no longer contains the text `before`."""
    if read_text(path) != before:
        raise StackChangedError(
            f"{path} was edited while this command was running, so nothing was changed",
            "run the command again, which then uses the new stack.yaml",
        )


def require_original(spec: StackSpec) -> None:
    """Raises StackgenError for the folder of one of several machines, whose stack.yaml is a copy."""
    if spec.host:
        raise StackgenError(
            f"this is the folder of {spec.host}, whose stack.yaml is a copy that no command changes",
            "change the original stack.yaml, run `stackgen render` there, and copy the folder to its machine again",
        )


def write_stack_file(path: Path, before: str, after: str) -> None:
    """Replaces the stack file's text `before` by `after`. Its mode and a symbolic link are kept.

    Raises StackChangedError, and writes nothing, if the file no longer contains `before`. Raises StackgenError for the
    folder of one of several machines.
    """
    # most stacks have one machine, and parsing takes time
    if "hosts" in before:
        require_original(parse_stack(before, str(path)))
    # an editor takes no lock, so the file is read again right before it is written
    require_unchanged(path, before)
    target = path.resolve()
    write_atomically(target, after, target.stat().st_mode & 0o777)
