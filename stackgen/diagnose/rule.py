"""What a rule is and what it finds: data, so that pages, tables and tests are made from the same rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stackgen.diagnose.evidence import Evidence
from stackgen.spec import ModelSpec

__all__ = ["UNKNOWN", "Change", "Edit", "Finder", "Finding", "Hit", "Rule", "patterns"]

UNKNOWN = "SG-0000"
Place = Literal["log", "compose", "docker", "health", "check"]


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a rule applies: the service ("" for the whole stack), the lines that say so, and what they hold.

    `mark` is the part of the first line that tells it, which is shown of a line that is too long; `change` is this
    hit's own, where the rule's would not do.
    """

    service: str
    lines: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    mark: str = ""
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change to a model in stack.yaml: `field` becomes `value` (a template over the rule's values).

    With `remove`, `value` is the flag that leaves the list `field`, `with_value` with the word behind it; without a
    value, the whole field leaves. `adapt` makes the value from the model as stack.yaml has it (None for a log alone)
    and from the rule's values; None is no change. `safe` ones are applied by `--fix`: they can't change what is
    served to whom, nor open anything.
    """

    field: str
    value: str = ""
    safe: bool = True
    remove: bool = False
    with_value: bool = False
    adapt: Callable[[ModelSpec | None, Mapping[str, str]], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A change with its place: `path` in stack.yaml, the new value, and the old one ("" where there was none).

    With `remove`, `entries` leave the list at `path`, or `value` alone; without either the field itself leaves.
    """

    path: tuple[str | int, ...]
    value: str = ""
    was: str = ""
    safe: bool = True
    remove: bool = False
    entries: tuple[str, ...] = ()

    @property
    def leaving(self) -> tuple[str, ...]:
        """The entries that leave a list."""
        return self.entries or ((self.value,) if self.value else ())


Finder = Callable[[Evidence], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A known cause. `cause` and `fix` are templates over the named groups of `patterns`, or over the hit's values.

    Each line of `places` is tried against each pattern; `find` is for what no line tells. `unless` are patterns of
    which none may match anywhere in the same text. A `fallback` counts only where no other rule applies to the
    service. `cards`: the state of the service's cards is shown beside the evidence. `source` is the version and place
    the text comes from.
    """

    id: str
    title: str
    cause: str
    fix: str
    source: str
    explain: str
    patterns: tuple[re.Pattern[str], ...] = ()
    find: Finder | None = None
    places: tuple[Place, ...] = ("log",)
    engines: tuple[str, ...] = ()
    change: Change | None = None
    fallback: bool = False
    cards: bool = False
    unless: tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause that was found. `evidence` are the lines that tell it, redacted; `edit` the change that mends it."""

    id: str
    title: str
    service: str
    cause: str
    evidence: tuple[str, ...]
    fix: str
    edit: Edit | None = None
    fallback: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        edit = self.edit
        change = edit and {"path": list(edit.path), "value": edit.value, "was": edit.was, "safe": edit.safe,
                           "remove": edit.remove}  # fmt: skip
        return {"id": self.id, "title": self.title, "service": self.service, "cause": self.cause,
                "evidence": list(self.evidence), "fix": self.fix, "change": change}  # fmt: skip


def patterns(*texts: str) -> tuple[re.Pattern[str], ...]:
    """`texts` as compiled regular expressions; `^` and `$` are the ends of lines."""
    return tuple(re.compile(text, re.M) for text in texts)
