"""The arguments of `stackgen diagnose` and `stackgen explain`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands

__all__ = ["add_diagnose_commands"]


def add_diagnose_commands(subcommands: Subcommands) -> None:
    """Adds `stackgen diagnose` and `stackgen explain`."""
    diagnose = subcommands.add("diagnose", "find out why a stack failed: the cause, its evidence, and a fix")
    # one source at a time: a log in a file may come from another machine
    source = diagnose.add_mutually_exclusive_group()
    source.add_argument("--logs", metavar="FILE", help="read the log in FILE, not the stack (- is standard input)")
    source.add_argument("--container", metavar="NAME", help="read a single container of any origin, not the stack")
    source.add_argument(
        "--runtime", choices=("compose", "process"),
        help="read containers, or the local processes of `up --runtime process` (default: what was started last)",
    )  # fmt: skip
    diagnose.add_argument("--bundle", metavar="FILE", help="write a .tar.gz without secrets for a bug report")
    diagnose.add_argument(
        "--fix", action="store_true", help="show a safe change to stack.yaml, ask, and apply the change"
    )
    diagnose.add_argument("--yes", action="store_true", help="with --fix: apply the change without asking")
    explain = subcommands.add("explain", "explain the id of a diagnosis, such as SG-V012", stack=False)
    explain.add_argument("id", nargs="?", help="the id; without an id, list all ids")
