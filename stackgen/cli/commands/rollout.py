"""What `scale` and `update` share: report the rollout, ask about downtime, run it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.ownership import check_ownership
from stackgen.cli.progress import show_progress
from stackgen.runtimes.compose.volumes import create_shared_volumes
from stackgen.runtimes.rollout.rolling import Rollout, run_rollout
from stackgen.stack.folder import Stack

__all__ = ["confirm_and_run", "confirm_downtime"]


def confirm_and_run(args: Namespace, stack: Stack, rollout: Rollout) -> int:
    """Runs `rollout` and returns the exit code: 2 if there is downtime and neither the user nor --yes agrees."""
    check_ownership(stack.plan.name, stack.folder)
    # warnings are printed before the question, because they may change the answer
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    for line in rollout.summary():
        note(line)
    if not confirm_downtime(args, rollout.downtime):
        return 2
    create_shared_volumes(stack.plan)
    with show_progress(args.progress, stack.plan) as progress:
        result = run_rollout(stack, rollout, progress, args.timeout)
    done = asdict(result)
    lines = [f"{kind}: {', '.join(names)}" for kind, names in done.items() if isinstance(names, list) and names]
    # these keys are the interface of --json, where `gaps` holds the downtime
    data = {"done": True, "gaps": list(rollout.downtime), **done}
    print_data(args, data, lines or ["up to date: the running services match the rendered files"])
    return 0


def confirm_downtime(args: Namespace, downtime: Sequence[str]) -> bool:
    """Returns whether to continue: there is no downtime, or the user or --yes agrees. Prints a refusal."""
    refusal = "nothing was changed. To continue despite the downtime, add --yes"
    if not downtime or confirm("continue?", args.yes, refusal):
        return True
    # these keys are the interface of --json
    print_data(args, {"done": False, "gaps": list(downtime)}, [])
    return False
