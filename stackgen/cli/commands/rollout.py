"""What `scale` and `update` share: report the plan, ask about downtime, carry it out."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from stackgen.cli.commands.confirm import confirmed
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.progress import shown
from stackgen.runtimes.rollout.rolling import Work, carry_out
from stackgen.stack.folder import Stack

__all__ = ["carried_out"]


def carried_out(args: Namespace, stack: Stack, work: Work) -> int:
    """Carries out `work` on the running stack; the exit code. Downtime needs the user's consent, or --yes."""
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    for line in work.told():
        note(line)
    if work.gaps and not confirmed("go on?", args.yes, "nothing was changed; --yes goes on in spite of the gap"):
        print_data(args, {"done": False, "gaps": list(work.gaps)}, [])
        return 2
    with shown(args.progress, stack.plan) as progress:
        done = carry_out(stack, work, progress, args.timeout)
    told = [f"{kind}: {', '.join(names)}" for kind, names in asdict(done).items() if isinstance(names, list) and names]
    print_data(args, {"done": True, "gaps": list(work.gaps), **asdict(done)}, told or ["all runs as it is rendered"])
    return 0
