"""The outcome of each word of the source: at the end, every item has exactly one outcome."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from stackgen.stack.redactor import SecretRedactor
from stackgen.stack.secrets import HARMLESS_VALUE, is_secret_name

__all__ = ["Draft", "Item", "Ledger", "Outcome", "Secret", "Word"]

Outcome = Literal["carried", "translated", "built-in", "secret", "dropped"]
UNKNOWN = "stackgen has no field for this setting"
MASK = "[secret]"
REFERENCE = re.compile(r"[\w.-]+=\$\{?\w+(?::?[-?+][^}]*)?\}?")


@dataclass(slots=True, eq=False)
class Draft:
    """A model of the stack in the making: `fields` of stack.yaml, and the service of the source that it comes from."""

    engine: str
    source: str
    fields: dict[str, Any] = field(default_factory=dict)
    # names of the source's other services that became replicas of this model
    also: list[str] = field(default_factory=list)
    # the flag that has set each field
    setters: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Item:
    """One word or value of the source. `place` is its line or path, `text` what the source says, without secrets.

    `outcome` is "" until a reader decides. `field` is the field of stack.yaml that has the value, below `draft` if
    there is one. `reason` says why the text changed, or why it is not in the stack.
    """

    place: str
    text: str
    outcome: Outcome | Literal[""] = ""
    field: str = ""
    reason: str = ""
    draft: Draft | None = None
    # the item whose outcome this one shares: the name of an option has that of its value
    follows: Item | None = None
    # why the field has another text, if the reader that puts it there does not know
    note: str = ""
    # a secret that the source has here, also one that is not carried over
    hidden: str = ""

    def carry(self, name: str, draft: Draft | None = None, reason: str = "") -> None:
        """The value is in the field `name`; with a `reason`, in another form than in the source."""
        self.reason = reason or self.note
        self.outcome, self.field, self.draft = ("translated" if self.reason else "carried"), name, draft

    def build_in(self, reason: str) -> None:
        """No field is needed: a stack does the same, or the word only had a meaning in the source."""
        self.outcome, self.field, self.reason = "built-in", "", reason

    def drop(self, reason: str) -> None:
        """The value is not in the stack."""
        self.outcome, self.field, self.reason = "dropped", "", reason

    def hide(self, value: str, name: str, reason: str) -> None:
        """The value is a secret, which goes into a file of its own. It disappears from this item."""
        self.outcome, self.field, self.draft, self.reason = "secret", name, None, reason
        self.text = self.text.replace(value, MASK) if value else self.text
        self.hidden = value


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a command: its `text` after quotes and known variables, and its `item`.

    `unknown` are variables in `text` whose value the source does not contain.
    """

    text: str
    item: Item
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret of the source, and the variable of `.env` that gets it. `file`: the variable names this file."""

    name: str
    value: str = field(repr=False)
    file: str = ""


@dataclass(slots=True)
class Ledger:
    """All items of a source, the secrets that were found, and settings that deserve a look."""

    items: list[Item] = field(default_factory=list)
    secrets: list[Secret] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    redactor: SecretRedactor = field(default_factory=SecretRedactor, repr=False)

    def add(self, place: str, text: str) -> Item:
        """Registers one word of the source."""
        item = Item(place, text)
        self.items.append(item)
        return item

    def word(self, place: str, text: str, value: str | None = None, unknown: tuple[str, ...] = ()) -> Word:
        """Registers one word and returns it with its value."""
        return Word(text if value is None else value, self.add(place, text), unknown)

    def warn(self, place: str, text: str) -> None:
        """Points out a dangerous setting, once."""
        if (place, text) not in self.warnings:
            self.warnings.append((place, text))

    def keep_secret(self, secret: Secret) -> bool:
        """Records a secret. Returns False if another value has the same name."""
        known = next((one for one in self.secrets if one.name == secret.name), None)
        if known is None:
            self.secrets.append(secret)
        return known is None or known.value == secret.value

    def mask(self, text: str) -> str:
        """`text` without the secrets that were found, and without what looks like one."""
        values = {secret.value for secret in self.secrets} | {item.hidden for item in self.items}
        # a shorter value is also a part of other words
        for value in sorted((one for one in values if len(one) > 5), key=len, reverse=True):
            text = text.replace(value, MASK)
        # a reference to a variable is no secret, and says where the value comes from
        return text if REFERENCE.fullmatch(text) else self.redactor(text)

    def close(self) -> None:
        """Gives every item without an outcome the outcome `dropped`."""
        for item in self.items:
            if not item.outcome:
                item.drop(UNKNOWN)
        for item in self.items:
            if (other := item.follows) is not None:
                item.outcome, item.field, item.reason, item.draft = (
                    other.outcome,
                    other.field,
                    other.reason,
                    other.draft,
                )
            item.text = self._show(item)

    def _show(self, item: Item) -> str:
        # the name of a variable in a mapping is in its place
        name = item.place.rpartition(".")[2].rpartition(": ")[2]
        # of other services too: nobody moves their secrets
        text = item.text
        harmless = not text or HARMLESS_VALUE.match(text) or text.isdecimal() or text.startswith("${")
        return MASK if is_secret_name(name) and not harmless else self.mask(text)

    def groups(self, *outcomes: Outcome) -> Iterator[tuple[str, str, str, str]]:
        """(place, text, field, reason) of neighbouring items with the same outcome, place and reason, joined."""
        group: list[Item] = []
        for item in [*self.items, None]:
            if group and (item is None or _key(item) != _key(group[0])):
                if group[0].outcome in outcomes:
                    yield group[0].place, " ".join(one.text for one in group), group[0].field, group[0].reason
                group = []
            if item is not None:
                group.append(item)


def _key(item: Item) -> tuple[object, ...]:
    # a path ends in an index or a name: the values of one list belong together
    place = item.place.rpartition("[")[0] or item.place
    return place, item.outcome, item.reason, item.field, id(item.draft)
