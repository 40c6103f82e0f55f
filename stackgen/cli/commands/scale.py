"""`stackgen scale`: more or fewer replicas of a model. Exit code 1: a replica failed and was rolled back."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import note
from stackgen.cli.commands.rollout import carried_out
from stackgen.runtimes.rollout.rolling import look
from stackgen.runtimes.rollout.scaling import counts, scaled

__all__ = ["scale"]


def scale(args: Namespace) -> int:
    """`stackgen scale`: stack.yaml changed, replicas started, or drained and removed."""
    wanted, where = counts(args.words)
    stack, text, lines = scaled(where, wanted)
    work = look(stack, text)
    for line in lines:
        note(line)
    return carried_out(args, stack, work)
