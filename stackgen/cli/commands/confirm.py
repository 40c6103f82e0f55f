"""Questions that need a person: asked on a terminal, and never answered for them elsewhere."""

from __future__ import annotations

import sys

from stackgen.cli.commands.output import note

__all__ = ["confirmed"]


def confirmed(question: str, yes: bool, otherwise: str) -> bool:
    """Whether the user agrees, by `yes` (the option --yes) or at the terminal; without one, `otherwise` is noted."""
    if yes:
        return True
    if not sys.stdin.isatty():
        note(otherwise)
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
