"""`stackgen update`: apply changes one replica at a time. Exit code 1: a replica failed and all was rolled back."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.rollout import confirm_and_run
from stackgen.runtimes.rollout.rolling import plan_rollout
from stackgen.stack.folder import open_stack

__all__ = ["update"]


def update(args: Namespace) -> int:
    """Runs `stackgen update`: recreates what changed, one replica at a time, and rolls back if one fails."""
    with lock_stack(args, args.stack):
        stack = open_stack(args.stack).for_one_machine()
        return confirm_and_run(args, stack, plan_rollout(stack))
