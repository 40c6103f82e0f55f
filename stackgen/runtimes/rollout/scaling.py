"""`stackgen scale`: the number of a model's replicas, changed in stack.yaml with its comments, and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches, unified_diff
from pathlib import Path

from stackgen.diagnose.rule import Edit
from stackgen.diagnose.stack_edit import apply
from stackgen.engines.base import served_names
from stackgen.errors import StackgenError
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.compose.gateway import has_gateway, running_gateway
from stackgen.spec import StackSpec
from stackgen.stack.folder import Stack, open_stack, stack_file
from stackgen.stack.load import parse_stack, read_text
from stackgen.targets.compose import ComposeSite

__all__ = ["Scaled", "counts", "scaled"]

Scaled = tuple[Stack, str, list[str]]


def counts(words: Sequence[str]) -> tuple[dict[str, int], str]:
    """`MODEL=N` words, and the stack, which is the one word without a number. Raises StackgenError."""
    found: dict[str, int] = {}
    where = []
    for word in words:
        model, equals, number = word.rpartition("=")
        if equals and number.isdecimal():
            found[model] = int(number)
        elif equals and not Path(word).exists():
            raise StackgenError(f"{word!r} is not MODEL=N", "N is a number of replicas, 1 or more")
        else:
            where.append(word)
    if not found or len(where) > 1:
        raise StackgenError("which model, and how many replicas?", "stackgen scale MODEL=N [STACK]")
    return found, where[0] if where else "."


def scaled(where: str, wanted: Mapping[str, int]) -> Scaled:
    """The stack with the replicas `wanted` by model, stack.yaml's new text, and its diff. Writes nothing.

    Raises StackgenError for an unknown model and for a stack without a gateway, SpecError where it can't be.
    """
    now = open_stack(where)
    if not has_gateway(now.plan) or running_gateway(now.plan.name) is None:
        raise StackgenError(
            "no gateway stands before the models, and without one replicas are no one endpoint",
            "set `gateway: true` and run `stackgen up`: the models start anew then, with a gap; after that, scale",
        )
    path = stack_file(where) or Path(where) / "stack.yaml"
    before = text = read_text(path)
    for name, number in wanted.items():
        index = _index(now.spec, name)
        if number != now.spec.models[index].replicas:
            text = apply(text, Edit(("models", index, "replicas"), str(number)))
    spec = parse_stack(text, str(path))
    stack = Stack(spec, resolve(spec, ComposeSite(path.parent, now.folder), str(path)), now.folder, path.name)
    if not has_gateway(stack.plan):
        raise StackgenError(
            "with one replica the stack would lose its gateway, which nobody asked for in so many words",
            "set `gateway: true`, which changes nothing now and keeps it",
        )
    lines = unified_diff(before.splitlines(), text.splitlines(), str(path), str(path), lineterm="")
    return stack, "" if text == before else text, list(lines)


def _index(spec: StackSpec, name: str) -> int:
    """The model that goes by `name`: one it is served under, its id, or its service."""
    known: dict[str, set[int]] = {}
    for index, model in enumerate(spec.models):
        leading = served_names(model)[0]
        short = leading.rpartition("/")[2]
        for one in {*served_names(model), model.model, short}:
            known.setdefault(one, set()).add(index)
    if name not in known:
        close = get_close_matches(name, known, 1)
        names = ", ".join(served_names(model)[0] for model in spec.models)
        hint = f"did you mean {close[0]}?" if close else f"the stack has: {names}"
        raise StackgenError(f"the stack has no model {name!r}", hint)
    if len(known[name]) > 1:
        raise StackgenError(f"several models go by {name!r}", "use a name that one of them is served under")
    return known[name].pop()
