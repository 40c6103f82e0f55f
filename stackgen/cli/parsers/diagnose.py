"""The arguments of `stackgen diagnose` and `stackgen explain`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands, add_context_argument, add_lock_argument
from stackgen.cli.parsers.completers import complete_with, ids

__all__ = ["add_diagnose_commands"]


def add_diagnose_commands(subcommands: Subcommands) -> None:
    """Adds `stackgen diagnose` and `stackgen explain`."""
    diagnose = subcommands.add("diagnose", "find out why a stack failed: the cause, its evidence, and a fix")
    # one source at a time: a log in a file may come from another machine
    source = diagnose.add_mutually_exclusive_group()
    source.add_argument(
        "--logs",
        metavar="FILE",
        help="diagnose the log in FILE instead of the stack (`-`: standard input); if you also pass a stack, the fix "
        "names the fields of its stack.yaml",
    )
    source.add_argument(
        "--container", metavar="NAME",
        help="diagnose one container instead of the stack, even a container that stackgen did not start",
    )  # fmt: skip
    source.add_argument(
        "--runtime", choices=("compose", "process"),
        help="`compose`: diagnose the stack's containers. `process`: diagnose the local processes that `up --runtime "
        "process` started (default: the runtime that was started last)",
    )  # fmt: skip
    diagnose.add_argument("--bundle", metavar="FILE", help="write a .tar.gz file for a bug report; secrets are removed")
    diagnose.add_argument(
        "--fix", action="store_true",
        help="show a safe change to stack.yaml, ask for confirmation, and apply the change",
    )  # fmt: skip
    diagnose.add_argument("--yes", action="store_true", help="only with `--fix`: apply the change without asking")
    add_context_argument(diagnose)
    add_lock_argument(diagnose)
    explain = subcommands.add("explain", "explain the id of a diagnosis, such as SG-V012", stack=False)
    complete_with(explain.add_argument("id", nargs="?", help="the id to explain (default: list all ids)"), ids)
