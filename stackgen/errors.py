"""The tree of errors.

    StackgenError            exit 2
    ├── SpecError            exit 2   stack.yaml or the flags are wrong; holds every mistake found
    ├── DriftError           exit 2   a rendered file was edited by hand and would be overwritten
    ├── MachineError         exit 3   Docker, Compose or a program is missing or does not answer
    └── StartError           exit 1   the stack was started and does not answer

Exit codes of every command: 0 yes, 1 the answer is no (drift, unhealthy), 2 your input is wrong,
3 your machine is not ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DriftError", "MachineError", "Mistake", "SpecError", "StackgenError", "StartError"]


class StackgenError(Exception):
    """Base of all errors that a user sees: what is wrong, and a hint that says what to do."""

    exit_code = 2
    # what a program said before it failed, for a diagnosis
    output = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in a stack file: `path` as in `models[1].gpus`, what it should be, where it stands."""

    path: str
    message: str
    hint: str = ""
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        place = f"{self.path}: " if self.path else ""
        return f"{where}{place}{self.message}" + (f" ({self.hint})" if self.hint else "")


class SpecError(StackgenError):
    """The input is wrong. `mistakes` holds all that were found, not only the first."""

    def __init__(self, source: str, mistakes: Sequence[Mistake]) -> None:
        self.source = source
        self.mistakes = tuple(mistakes)
        count = "1 mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        lines = "".join(f"\n  {mistake}" for mistake in self.mistakes)
        super().__init__(f"{source}: {count}{lines}", "`stackgen schema` prints every field with its description")


class DriftError(StackgenError):
    """A file that a person edited by hand would be overwritten."""


class MachineError(StackgenError):
    """Something that stackgen needs on this machine is missing or does not answer."""

    exit_code = 3


class StartError(StackgenError):
    """The stack was started, and it does not answer; the message says why."""

    exit_code = 1
