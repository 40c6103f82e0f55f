"""Words of `doctor`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Adder

__all__ = ["add_doctor"]


def add_doctor(add: Adder) -> None:
    """The command `doctor`."""
    doctor = add("doctor", "find what will keep a stack from starting, before it is started", stack=False)
    doctor.add_argument(
        "stack", nargs="?", help="stack.yaml, or its folder (default: here; without one only the machine is looked at)"
    )
    doctor.add_argument("--offline", action="store_true", help="don't ask the Hugging Face Hub")
    doctor.add_argument("-v", "--verbose", action="store_true", help="print what is good as well")
