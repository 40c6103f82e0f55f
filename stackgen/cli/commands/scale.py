"""`stackgen scale`: change a model's number of replicas. Exit code 1: a replica failed and all was rolled back."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.output import note
from stackgen.cli.commands.rollout import confirm_and_run
from stackgen.cli.scrub import scrub_diff
from stackgen.runtimes.rollout.rolling import plan_rollout
from stackgen.runtimes.rollout.scaling import parse_replica_counts, scale_stack

__all__ = ["scale"]


def scale(args: Namespace) -> int:
    """Runs `stackgen scale`: edits stack.yaml, starts new replicas, drains and removes surplus ones."""
    counts, where = parse_replica_counts(args.replicas)
    with lock_stack(args, where):
        stack, stack_yaml, diff = scale_stack(where, counts)
        rollout = plan_rollout(stack, stack_yaml)
        # the diff is shown only if the rollout is possible
        for line in scrub_diff(diff, [stack_yaml]):
            note(line)
        return confirm_and_run(args, stack, rollout)
