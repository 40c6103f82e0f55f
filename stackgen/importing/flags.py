"""Reads the arguments of an engine into flags with their values, as the engine's own parser does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from stackgen.flags import load_flags
from stackgen.flags.arguments import parse_arguments
from stackgen.importing.ledger import Draft, Ledger, Word
from stackgen.stack.redactor import SECRET_FORMATS
from stackgen.stack.secrets import HARMLESS_VALUE, is_secret_name

__all__ = ["Flag", "add_argument", "is_secret", "read_flags", "take"]

FLAG = re.compile(r"--?[A-Za-z]")


@dataclass(slots=True)
class Flag:
    """A flag: its word, its values, and `names`, all names that the engine's version knows for it (empty: none)."""

    word: Word
    written: str
    values: list[Word] = field(default_factory=list)
    inline: str | None = None
    names: tuple[str, ...] = ()
    has_value: bool = False

    @property
    def texts(self) -> list[str]:
        """The values."""
        return [self.inline] if self.inline is not None else [word.text for word in self.values]

    @property
    def text(self) -> str:
        """The first value; "" without one."""
        return next(iter(self.texts), "")

    @property
    def unknown(self) -> tuple[str, ...]:
        """Variables in the values that the source does not set."""
        return tuple(name for word in (self.word, *self.values) for name in word.unknown)

    def carry(self, name: str, draft: Draft, reason: str = "") -> None:
        """The flag and its values are in the field `name`."""
        for word in (self.word, *self.values):
            word.item.carry(name, draft, reason)

    def build_in(self, reason: str) -> None:
        """No field is needed."""
        for word in (self.word, *self.values):
            word.item.build_in(reason)

    def drop(self, reason: str) -> None:
        """The flag is not in the stack."""
        for word in (self.word, *self.values):
            word.item.drop(reason)


def read_flags(engine: str, words: list[Word], several: Iterable[str] = ()) -> tuple[list[Flag], list[Word]]:
    """The flags in `words`, and the other words. `several` are flags that take more than one value."""
    known = load_flags(engine)
    found: list[Flag] = []
    positional: list[Word] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not FLAG.match(word.text):
            positional.append(word)
            continue
        written, equals, value = word.text.partition("=")
        argument = next(parse_arguments(engine, [written, "x"], known)) if known else None
        entry: dict[str, Any] = (argument.entry if argument else None) or {}
        flag = Flag(word, written, inline=value if equals else None, names=tuple(entry.get("names", ())),
                    has_value=bool(entry.get("value")))  # fmt: skip
        many = any(name in several for name in (*flag.names, _normal(written)))
        # a flag that this version does not know takes a value if one follows
        takes = flag.has_value or not entry or many
        while not equals and takes and at < len(words) and not FLAG.match(words[at].text):
            flag.values.append(words[at])
            at += 1
            if not many:
                break
        # old vLLM versions accepted `--enable-chunked-prefill False`
        if not equals and not takes and at < len(words) and words[at].text.lower() in ("true", "false"):
            flag.values.append(words[at])
            at += 1
        found.append(flag)
    return found, positional


def _normal(flag: str) -> str:
    return "--" + flag.lstrip("-").replace("_", "-") if flag.startswith("--") else flag


def take(flag: Flag, draft: Draft, name: str, convert: Callable[[str], Any] = str) -> None:
    """Puts the value of `flag` into the field `name`, or drops the flag with the reason."""
    if flag.unknown:
        flag.drop(f"the source does not set {', '.join(flag.unknown)}: set `{name}` in stack.yaml")
        return
    if not flag.text:
        flag.drop(f"the value is empty: set `{name}` in stack.yaml if you need it")
        return
    try:
        value = convert(flag.text)
    except ValueError:
        flag.drop(f"{flag.text!r} is not a valid value: set `{name}` in stack.yaml")
        return
    if before := draft.setters.get(name):
        before.build_in(f"{flag.written} is given more than once, and the last value counts")
    draft.setters[name] = flag
    draft.fields[name] = value
    flag.carry(name, draft)


def is_secret(name: str, value: str) -> bool:
    """Whether `value` is a secret in clear text, by the name of its flag or variable, or by its own form."""
    if not value or HARMLESS_VALUE.match(value) or value.startswith("${"):
        return False
    named = is_secret_name(name.lstrip("-")) and not value.isdecimal() and not name.endswith("-file")
    return named or any(pattern.search(value) for pattern, _ in SECRET_FORMATS)


def add_argument(flag: Flag, draft: Draft, ledger: Ledger, written: str = "", reason: str = "") -> None:
    """Puts `flag` into `extra_args`, written as the engine's help writes it."""
    if flag.unknown:
        flag.drop(f"the source does not set {', '.join(flag.unknown)}: add the flag to `extra_args`")
        return
    if any(is_secret(flag.written, text) for text in flag.texts):
        for word in (flag.word, *flag.values):
            word.item.hide(
                word.text.partition("=")[2] if word is flag.word else word.text,
                "",
                "the process list would show this secret: put it into .env, and read it with `extra_env`",
            )
            word.item.outcome = "dropped"
        return
    name = written or _canonical(flag)
    values = flag.texts
    # without a short form or an underscore, doctor and diagnose find the flag by its name
    if values and len(values) == 1 and (flag.inline is not None or values[0].startswith("-")):
        arguments = [f"{name}={values[0]}"]
    else:
        arguments = [name, *values]
    draft.fields.setdefault("extra_args", []).extend(_compact(one) for one in arguments)
    changed = reason or (f"written as {name}" if name != flag.written else "")
    flag.carry("extra_args", draft, changed)


def _canonical(flag: Flag) -> str:
    plain = _normal(flag.written)
    # `--no-x` and nested names such as --compilation-config.mode stay as they are written
    if plain in flag.names or "." in plain or not flag.names:
        return plain if flag.names or flag.written.startswith("--") else flag.written
    return next((one for one in flag.names if one.startswith("--") and not one.startswith("--no-")), flag.written)


def _compact(text: str) -> str:
    """JSON over several lines as one line: stack.yaml shows each argument in one line."""
    if "\n" not in text:
        return text
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return text
