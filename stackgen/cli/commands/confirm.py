"""Asks the user for confirmation on a terminal. Elsewhere, only the option --yes confirms."""

from __future__ import annotations

import sys

from stackgen.cli.commands.output import note

__all__ = ["confirm"]


def confirm(question: str, yes: bool, without_terminal: str) -> bool:
    """Returns whether the user agrees, either with `yes` (the option --yes) or with an answer at the terminal.

    If there is no terminal, prints `without_terminal` and returns False.
    """
    if yes:
        return True
    # in a script, nobody answers, and readline() could wait forever
    if not sys.stdin.isatty():
        note(without_terminal)
        return False
    # not input(), which would write the question to stdout, next to the output of --json
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
