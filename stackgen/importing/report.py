"""What an import did, for people and as data: the outcome of each word, warnings, and errors of the new stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from stackgen.errors import Mistake
from stackgen.importing.ledger import Item, Outcome
from stackgen.importing.source import Imported
from stackgen.render.read import STACK_FILES

__all__ = ["describe", "field_path", "to_json"]

OUTCOMES = {
    "carried": "carried over", "translated": "translated", "built-in": "done by stackgen itself", "secret": "secrets",
    "dropped": "not carried over",
}  # fmt: skip


def field_path(found: Imported, item: Item) -> str:
    """The field of stack.yaml that has the item: `models[0].max_model_len`, `port`; "" if none has."""
    if item.draft is not None and item.draft in found.assembled.drafts and item.field:
        return f"models[{found.assembled.drafts.index(item.draft)}].{item.field}"
    return item.field


def to_json(found: Imported, text: str, problems: Sequence[Mistake]) -> dict[str, Any]:
    """The result of an import: `result` is `whole`, `notes` or `none`; `items` has each word of the source."""
    return {
        "kind": found.kind,
        "result": found.result,
        "stack": found.assembled.data,
        "text": text,
        "items": [
            {
                "place": one.place,
                "text": one.text,
                "outcome": one.outcome,
                "field": field_path(found, one),
                "reason": one.reason,
            }
            for one in found.ledger.items
        ],
        "warnings": [{"place": place, "text": warning} for place, warning in found.ledger.warnings],
        "unsupported": found.assembled.unsupported,
        "problems": [
            {"path": one.path, "message": one.message, "hint": one.hint, "line": one.line, "column": one.column}
            for one in problems
        ],
        "secrets": [one.name for one in found.ledger.secrets],
    }


def describe(found: Imported, problems: Sequence[Mistake], *, verbose: bool = False) -> Iterator[str]:
    """Yields the lines of the report. `verbose` also lists what stackgen does itself."""
    models = len(found.assembled.drafts)
    counts: Counter[str] = Counter(item.outcome for item in found.ledger.items)
    listed = ", ".join(f"{counts[one]} {name}" for one, name in OUTCOMES.items() if counts[one])
    yield f"read a {found.kind} with {models} model{'s' if models > 1 else ''}. Arguments and values: {listed}"
    outcomes: tuple[Outcome, ...] = ("translated", "secret", "dropped", *(("built-in",) if verbose else ()))
    for outcome in outcomes:
        groups = list(found.ledger.groups(outcome))
        if groups:
            yield f"{OUTCOMES[outcome]}:"
        for place, text, field, reason in groups:
            arrow = f" → {field}" if field else ""
            yield f"  {place}: {_clip(text)}{arrow}: {reason}"
    for text in found.assembled.unsupported:
        yield f"not part of the stack: {text}"
    if found.ledger.warnings:
        yield "look at:"
    for place, text in found.ledger.warnings:
        yield f"  {place}: {text}"
    if problems:
        yield "change before `stackgen render`:"
    for problem in problems:
        yield f"  {problem.describe(STACK_FILES[0])}"


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 120 else f"{line[:119]}…"
