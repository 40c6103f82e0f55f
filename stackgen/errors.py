"""The classes of errors with their exit codes.

Every one has a message, a hint and an exit code.

    StackgenError            exit 2
    ├── SpecError            exit 2   stack.yaml or the flags are wrong; contains all errors found
    ├── DriftError           exit 2   a rendered file that was edited by hand would be overwritten
    ├── MachineError         exit 3   Docker, Compose or another program is missing or does not respond
    └── StartError           exit 1   the stack was started but does not respond

Exit codes of every command: 0 success, 1 failure (drift, unhealthy), 2 wrong input, 3 this machine is not ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DriftError", "MachineError", "Mistake", "SpecError", "StackgenError", "StartError"]


class StackgenError(Exception):
    """Base of all errors that users see. `message` is what went wrong. `hint` is what the user can do."""

    exit_code = 2
    # output of a program before it failed, for `stackgen diagnose`
    output = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Mistake:
    """An error in a stack file: its `path` such as `models[1].gpus`, what is wrong, what to do, and where the path is.

    `line` and `column` count from 1. They are those of the field's name, or of a list's entry; None without a file.
    """

    path: str
    message: str
    hint: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = f"{self.path}: " if self.path else ""
        return f"{place}{self.message}" + (f" ({self.hint})" if self.hint else "")

    def describe(self, source: str) -> str:
        """The error with its place in the file `source`, as compilers print it and editors open it: `FILE:LINE:`."""
        return f"{source}:{self.line}: {self}" if self.line else str(self)


class SpecError(StackgenError):
    """The stack file or the flags are wrong. `mistakes` contains all errors that were found, not only the first."""

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        self.source = source
        self.mistakes = tuple(mistakes)
        count = "1 error" if len(self.mistakes) == 1 else f"{len(self.mistakes)} errors"
        lines = "".join(f"\n  {mistake.describe(source)}" for mistake in self.mistakes)
        super().__init__(f"{source}: {count}{lines}", "`stackgen schema` describes every field")


class DriftError(StackgenError):
    """A rendered file was edited by hand and would be overwritten."""


class MachineError(StackgenError):
    """Something that stackgen needs on this machine is missing or does not respond."""

    exit_code = 3


class StartError(StackgenError):
    """The stack was started but does not respond. The message gives the reason."""

    exit_code = 1
