"""The types of rules and findings. Rules are data, so pages, tables and tests are generated from the same source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stackgen.diagnose.evidence import Evidence
from stackgen.spec import ModelSpec

__all__ = ["UNKNOWN", "Change", "Edit", "Finder", "Finding", "Hit", "Input", "Rule", "compile_patterns"]

# the id of a failure that no rule explains; no rule has this id
UNKNOWN = "SG-0000"
Input = Literal["log", "compose", "docker", "health", "check"]


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a rule applies.

    `service` is "" for the whole stack. `lines` are the evidence, `values` fill the rule's templates. `highlight` is
    the part of a line that must stay visible if the line is too long to show. `change` replaces the rule's change for
    this hit only.
    """

    service: str
    lines: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    highlight: str = ""
    change: Change | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change to a model in stack.yaml: `field` becomes `value`, a template over the rule's values.

    With `remove`, `value` is the flag to remove from the list `field`; `with_value` also removes the argument after
    it. With `remove` and no value, the whole field is removed. `compute` returns the value from the model in stack.yaml
    (None for a log alone) and the rule's values; it returns None for no change. `--fix` applies only `safe` changes:
    they don't change which models are served to which clients, and they grant no access.
    """

    field: str
    value: str = ""
    safe: bool = True
    remove: bool = False
    with_value: bool = False
    compute: Callable[[ModelSpec | None, Mapping[str, str]], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A change with its place: `path` in stack.yaml, the new value, and the old value in `was` ("" if there was none).

    With `remove`, `entries` are removed from the list at `path`, or `value` alone. With neither, the field itself is
    removed.
    """

    path: tuple[str | int, ...]
    value: str = ""
    was: str = ""
    safe: bool = True
    remove: bool = False
    entries: tuple[str, ...] = ()

    @property
    def removed_entries(self) -> tuple[str, ...]:
        """The entries to remove from a list."""
        return self.entries or ((self.value,) if self.value else ())


Finder = Callable[[Evidence], Iterator[Hit]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A known cause.

    `title`, `cause` and `fix` are templates over the named groups of `patterns`, or over the hit's values (see
    `rule_engine.fill_template`). Each pattern is tried on each line of `inputs`. `find` is for causes that no single
    line shows; the first line of its docstring is the condition on the rule's page. A rule does not apply if a pattern
    of `unless` matches anywhere in the same text. A `fallback` counts only if no other rule applies to the service.
    `shows_gpus` adds the state of the service's GPUs to the evidence.
    `source` is the version and the place that the text comes from.
    """

    id: str
    title: str
    cause: str
    fix: str
    source: str
    explain: str
    patterns: tuple[re.Pattern[str], ...] = ()
    find: Finder | None = None
    inputs: tuple[Input, ...] = ("log",)
    engines: tuple[str, ...] = ()
    change: Change | None = None
    fallback: bool = False
    shows_gpus: bool = False
    unless: tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that was found. `evidence` are the redacted lines that show it; `edit` is the change that fixes it."""

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


def compile_patterns(*texts: str) -> tuple[re.Pattern[str], ...]:
    """Compiles regular expressions in which `^` and `$` match at line ends."""
    # re.M because the rule engine searches the whole text before it searches line by line
    # no pattern may take quadratic time: logs contain lines of many thousand characters
    return tuple(re.compile(text, re.M) for text in texts)
