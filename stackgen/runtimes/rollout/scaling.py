"""`stackgen scale`: change a model's number of replicas in stack.yaml, comments kept, and resolve the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches, unified_diff
from pathlib import Path

from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply_edit
from stackgen.engines.base import served_names
from stackgen.errors import StackgenError
from stackgen.resolve.hosts import resolve
from stackgen.runtimes.compose.gateway import has_gateway, running_gateway
from stackgen.runtimes.compose.project import require_own_project
from stackgen.spec import StackSpec
from stackgen.stack.edit import require_original
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.load import apply_placement, parse_stack
from stackgen.targets.compose import ComposeSite

__all__ = ["ScaledStack", "parse_replica_counts", "scale_stack"]

# the stack, the new text of stack.yaml ("" if unchanged) and its diff
ScaledStack = tuple[Stack, str, list[str]]


def parse_replica_counts(args: Sequence[str]) -> tuple[dict[str, int], str]:
    """Returns the replicas by model from `MODEL=N` arguments, and the stack: the one argument without a number.

    Raises StackgenError for an argument that is neither, and if no model or several stacks are given.
    """
    counts: dict[str, int] = {}
    stacks = []
    for arg in args:
        # split from the right, because a model's name may contain =
        model, equals, number = arg.rpartition("=")
        if equals and number.isdecimal():
            counts[model] = int(number)
        # the path of a stack may contain = as well
        elif equals and not Path(arg).exists():
            raise StackgenError(f"{arg!r} does not have the form MODEL=N", "N is the number of replicas, 1 or more")
        else:
            stacks.append(arg)
    if not counts or len(stacks) > 1:
        raise StackgenError("expected one or more MODEL=N, and at most one stack", "stackgen scale MODEL=N [STACK]")
    return counts, stacks[0] if stacks else "."


def scale_stack(where: str, counts: Mapping[str, int]) -> ScaledStack:
    """Returns the stack at `where` with the replicas `counts` by model, stack.yaml's new text, and its diff.

    Writes nothing. Raises StackgenError for an unknown model, for a stack without a running gateway and for one of
    another folder, SpecError if the new number of replicas is invalid.
    """
    current = open_stack(where).for_one_machine()
    require_original(current.spec)
    require_own_project(current.plan.name, current.folder)
    if not has_gateway(current.plan) or running_gateway(current.plan.name) is None:
        raise StackgenError(
            "the stack has no running gateway, and several replicas need a gateway as their endpoint",
            "set `gateway: true` and run `stackgen up`, which restarts the models once, with downtime. After that, run"
            " `stackgen scale` again",
        )
    path = find_stack_file(where) or Path(where) / "stack.yaml"
    before = text = current.text
    for name, count in counts.items():
        index = _find_model(current.spec, name)
        # an edit without effect would still add a line with the default
        if count != current.spec.models[index].replicas:
            text = apply_edit(text, Edit(("models", index, "replicas"), str(count)))
    spec = apply_placement(parse_stack(text, str(path)), path, text)
    plan = resolve(spec, ComposeSite(path.parent, current.folder), str(path))
    stack = Stack(spec, plan, current.folder, path.name, text=before)
    # the default of `gateway` depends on the number of replicas: with one replica, its keys and address would be lost
    if not has_gateway(stack.plan):
        raise StackgenError(
            "with one replica, the stack would lose its gateway, because stack.yaml does not set `gateway`",
            "set `gateway: true`, which keeps the gateway and changes nothing now",
        )
    lines = unified_diff(before.splitlines(), text.splitlines(), str(path), str(path), lineterm="")
    return stack, "" if text == before else text, list(lines)


def _find_model(spec: StackSpec, name: str) -> int:
    """The index of the model with this served name, model id or short name. Raises StackgenError unless exactly one."""
    known: dict[str, set[int]] = {}
    for index, model in enumerate(spec.models):
        leading = served_names(model)[0]
        # service names are made from the part after the slash, so users see that name too
        short = leading.rpartition("/")[2]
        for one in {*served_names(model), model.model, short}:
            known.setdefault(one, set()).add(index)
    if name not in known:
        close = get_close_matches(name, known, 1)
        names = ", ".join(served_names(model)[0] for model in spec.models)
        hint = f"did you mean {close[0]}?" if close else f"the stack has: {names}"
        raise StackgenError(f"the stack has no model {name!r}", hint)
    if len(known[name]) > 1:
        hint = "use a served name that only one of these models has"
        raise StackgenError(f"several models have the name {name!r}", hint)
    return known[name].pop()
