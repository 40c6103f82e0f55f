"""`stackgen update`: one replica at a time. Exit code 1: a replica failed and was rolled back."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.rollout import carried_out
from stackgen.runtimes.rollout.rolling import look
from stackgen.stack.folder import open_stack

__all__ = ["update"]


def update(args: Namespace) -> int:
    """`stackgen update`: one replica at a time, and back to the old one where the new one fails."""
    stack = open_stack(args.stack)
    return carried_out(args, stack, look(stack))
