"""What `render` says about the other stacks of this machine: the same ports, GPUs or name."""

from __future__ import annotations

from stackgen.doctor.collect import collect_neighbour_inputs
from stackgen.doctor.table import find_conflicts
from stackgen.runtimes.observation.machine import collect_neighbour_facts
from stackgen.stack.folder import Stack

__all__ = ["describe_conflicts"]

# seconds; without an answer, nothing is said, because `render` needs no Docker engine
LIMIT = 1.0


def describe_conflicts(stack: Stack) -> tuple[str, ...]:
    """One warning for each port, GPU or name that a running container of another stack has. Empty without Docker."""
    found = find_conflicts(collect_neighbour_inputs(collect_neighbour_facts(stack, LIMIT), stack))
    return tuple(
        f"{one.place}{': ' if one.place else ''}on this machine, {one.message} ({one.evidence}): {one.fix} [{one.id}]"
        for one in found
    )
