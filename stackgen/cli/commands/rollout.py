"""What `scale` and `update` share: report the rollout, ask about downtime, run it."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from stackgen.cli.commands.confirm import confirm
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.progress import show_progress
from stackgen.runtimes.rollout.rolling import Rollout, run_rollout
from stackgen.stack.folder import Stack

__all__ = ["confirm_and_run"]


def confirm_and_run(args: Namespace, stack: Stack, rollout: Rollout) -> int:
    """Runs `rollout` and returns the exit code: 2 if there is downtime and neither the user nor --yes agrees."""
    # warnings are printed before the question, because they may change the answer
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    for line in rollout.summary():
        note(line)
    refusal = "nothing was changed; --yes continues despite the downtime"
    if rollout.downtime and not confirm("continue?", args.yes, refusal):
        print_data(args, {"done": False, "gaps": list(rollout.downtime)}, [])
        return 2
    with show_progress(args.progress, stack.plan) as progress:
        result = run_rollout(stack, rollout, progress, args.timeout)
    done = asdict(result)
    lines = [f"{kind}: {', '.join(names)}" for kind, names in done.items() if isinstance(names, list) and names]
    # these keys are the interface of --json, where `gaps` holds the downtime
    data = {"done": True, "gaps": list(rollout.downtime), **done}
    print_data(args, data, lines or ["up to date: everything runs as rendered"])
    return 0
