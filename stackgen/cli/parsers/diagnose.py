"""Words of diagnose and explain."""

from __future__ import annotations

from stackgen.cli.parsers.base import Adder

__all__ = ["add_diagnose"]


def add_diagnose(add: Adder) -> None:
    """diagnose, explain."""
    diagnose = add("diagnose", "tell why a stack failed: one cause, its evidence, one fix")
    source = diagnose.add_mutually_exclusive_group()
    source.add_argument("--logs", metavar="FILE", help="read a log from a file instead (-: standard input)")
    source.add_argument("--container", metavar="NAME", help="read one container instead, of whatever origin")
    source.add_argument("--runtime", choices=("compose", "process"),
                        help="read containers, or the local processes of `up --runtime process` (default: whichever "
                             "was started last)")  # fmt: skip
    diagnose.add_argument("--bundle", metavar="FILE", help="write a report (.tar.gz) without secrets, for a bug report")
    diagnose.add_argument("--fix", action="store_true", help="show the safe change to stack.yaml, ask, and make it")
    diagnose.add_argument("--yes", action="store_true", help="with --fix: don't ask")
    explain = add("explain", "explain the id of a diagnosis, such as SG-V012", stack=False)
    explain.add_argument("id", nargs="?", help="the id; without one: list all")
