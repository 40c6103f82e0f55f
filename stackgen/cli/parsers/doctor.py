"""The arguments of `stackgen doctor`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands, add_context_argument

__all__ = ["add_doctor"]


def add_doctor(subcommands: Subcommands) -> None:
    """Adds `stackgen doctor`."""
    doctor = subcommands.add("doctor", "find problems that prevent a stack from starting", stack=False)
    # no default ".": without a stack.yaml, only the machine is checked, which is not an error
    doctor.add_argument(
        "stack", nargs="?",
        help="stack.yaml or its folder (default: the current folder; if the current folder has no stack, only the "
        "machine is checked)",
    )  # fmt: skip
    doctor.add_argument("--offline", action="store_true", help="don't contact the Hugging Face Hub")
    add_context_argument(doctor)
    doctor.add_argument("-v", "--verbose", action="store_true", help="also print the checks that passed")
