"""The types of rules and findings. Rules are data, so pages, tables and tests are generated from the same source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stackgen.diagnose.evidence import Evidence
from stackgen.spec import ModelSpec

__all__ = ["UNKNOWN", "Change", "Edit", "Finder", "Finding", "Hit", "Input", "Rule", "Variant",
           "compile_patterns"]  # fmt: skip

# the id of a failure that no rule explains; no rule has this id
UNKNOWN = "SG-0000"
Input = Literal["log", "compose", "docker", "health", "check"]


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a rule applies.

    `service` is "" for the whole stack. `lines` are the evidence, `values` fill the rule's templates. `highlight` is
    the part of a line that must stay visible if the line is too long to show. `change` replaces the rule's
    change, and `variant` its title, cause and fix, for this hit only.
    """

    service: str
    lines: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    highlight: str = ""
    change: Change | None = None
    variant: Variant | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """Patterns of a rule whose message has another cause or fix than the rule's other messages.

    `title`, `cause` and `fix` are templates like the rule's; "" keeps the rule's. `applies` asks the evidence about the
    service ("" for the whole stack), and `condition` is the same question in words, for the rule's page. A variant with
    a `consequence_of` uses it in place of the rule's. With `no_change`, the change of the rule does not apply.
    """

    patterns: tuple[re.Pattern[str], ...]
    cause: str = ""
    fix: str = ""
    title: str = ""
    applies: Callable[[Evidence, str], bool] | None = None
    condition: str = ""
    consequence_of: tuple[str, ...] | None = None
    no_change: bool = False


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
    `templates.fill_template`). Each pattern is tried on each line of `inputs`. `find` is for causes that no single
    line shows; the first line of its docstring is the condition on the rule's page. A rule does not apply if a pattern
    of `unless` matches anywhere in the same text. `variants` are tried before `patterns`: a cause and a fix belong to a
    message, so messages that differ in one of them are variants. A `fallback` counts only if no other rule applies
    to the service. `consequence_of` lists the rules whose causes also produce this rule's lines; with `*`, any earlier
    error of the same log does. A consequence is never reported next to its cause. `drivers` are the values of
    `Evidence.gpu_maker` to which the rule applies ("" for an unknown one, all if empty). A `refusal` is a request that
    a running server refused.
    `page_fix` is the fix on the rule's page, if a log decides what `fix` says.
    `shows_gpus` adds the state of the service's GPUs to the evidence. `names_settings` adds to the fix the settings of
    the stack that the lines and their traceback touch, for a message that does not name the feature.
    `source` says in sentences which version and file the text comes from, and whether the failure was reproduced.
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
    names_settings: bool = False
    unless: tuple[re.Pattern[str], ...] = ()
    consequence_of: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    refusal: bool = False
    variants: tuple[Variant, ...] = ()
    page_fix: str = ""

    @property
    def all_patterns(self) -> tuple[re.Pattern[str], ...]:
        """The patterns of all variants, and those of the rule itself, without duplicates."""
        return tuple(dict.fromkeys([*(one for each in self.variants for one in each.patterns), *self.patterns]))


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
