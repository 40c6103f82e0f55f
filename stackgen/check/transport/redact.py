"""Prepares text from a server for a report: removes keys and control characters, and limits the length."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote

__all__ = ["MIN_DISTINCT_CHARS", "Redactor", "basic_credentials"]

PLACEHOLDER = "[key]"
# a shorter key, such as `EMPTY` or `token`, is also a word or part of a word: it is masked in headers and fields only
MIN_DISTINCT_CHARS = 8
# C0 and C1 controls, which can control the terminal, and the marks that reverse text
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# JSON can contain half a character (`"\\ud800"`), which no output encoding accepts
SURROGATES = re.compile("[\ud800-\udfff]")
# what stands before the value of a header, a field or a flag: `Authorization: Bearer `, `"api_key": "`, `--token `
QUOTE = r"[\\'\"]{0,6}"
NAME = r"(?:key|token|secret|passw(?:or)?d|pass|pwd|credentials?|authorization|auth)"
HEAD = (
    rf"(?:{NAME}(?: (?:provided|given))?(?:{QUOTE}[ \t]{{0,8}}(?:[:=]|=>)|['\"]\]?,)[ \t]{{0,8}}b?{QUOTE}"
    rf"(?:(?:bearer|basic|token)[ \t]+)?|\b(?:bearer|basic)[ \t]+{QUOTE}"
    rf"|(?P<flag>{NAME}){QUOTE}[ \t]{{1,8}}{QUOTE})"
)
# searched only before a flag's value: as the start of HEAD, it would take long on a text of dashes
FLAG_START = re.compile(r"--[\w-]{0,40}\Z")
# the words that can be the head of a short key at the end of a text, and the last two of them
OPEN_HEAD = re.compile(r"(?:\S{1,80}[ \t]+){0,5}\S{0,80}\Z")
LAST_WORDS = re.compile(r"(?:\S{1,80}[ \t]+)?\S{0,80}\Z")


class Redactor:
    """Replaces each of `keys` with `[key]`, also the encoded key in JSON, URLs, HTML, Python reprs and Basic auth.

    A key of less than `MIN_DISTINCT_CHARS` characters is replaced only as the whole value of a header, a field or a
    flag whose name announces a secret. If it starts with `sk-`, it is replaced wherever it is a word of its own.
    """

    def __init__(self, keys: str | Iterable[str] | None) -> None:
        words = [keys] if isinstance(keys, str) else keys or ()
        # the check also sends the key as Basic auth, and a server may repeat that form
        forms = {form for key in words if key for one in (key, basic_credentials(key)) for form in _encodings(one)}
        self._encodings: tuple[str, ...] = tuple(sorted(forms, key=len, reverse=True))

    def __repr__(self) -> str:
        return f"Redactor({PLACEHOLDER if self._encodings else None})"

    def __call__(self, text: str) -> str:
        """`text` without the keys and without control characters; line breaks stay."""
        # controls go first: removing them later could join two halves of a key
        return self.mask(SURROGATES.sub("\ufffd", CONTROLS.sub("", text)))

    def mask(self, text: str) -> str:
        """`text` without the keys; everything else stays, also colors."""
        present = tuple(form for form in self._encodings if form in text)
        if not present:
            return text
        text = _replace(text, _merge(sorted(_find(text, present))))
        # only a key with a bracket: the end of a mask and the text after it can be such a key
        while spans := _merge(sorted(_find(text, [one for one in present if len(one) >= MIN_DISTINCT_CHARS]))):
            text = _replace(text, spans)
        return text

    def may_occur_in_json(self, dumped: str) -> bool:
        """Whether a key may be in a text of the JSON document `dumped`, as `json.dumps` writes it; False is certain."""
        # JSON escapes each character on its own, so an escaped key is a part of each escaped text that contains the key
        return any(json.dumps(form)[1:-1] in dumped for form in self._encodings)

    def excerpt(self, text: str | bytes, limit: int = 300) -> str:
        """Returns one line of at most `limit` characters. The key is replaced before the cut, so no half key stays."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        line = " ".join(self(text).split())
        # joining lines can complete a key that was split across two lines
        line = self(line)
        return line if len(line) <= limit else line[: limit - 1] + "…"

    def unfinished_length(self, text: str) -> int:
        """How many characters at the end of `text` may be the start of a key, or announce a short key."""
        # at most one character less than the key: a complete key is replaced already
        longest = max((len(form) for form in self._encodings), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        started = next((size for size in sizes if any(form.startswith(text[-size:]) for form in self._encodings)), 0)
        if self._has_short and (words := OPEN_HEAD.search(text[-600:])):
            return max(started, len(words[0]))
        return started

    def undecided_length(self, text: str) -> int:
        """How many characters at the end of `text` need the words after them: `bearer bearer` has one key, the last."""
        words = LAST_WORDS.search(text[-200:]) if self._has_short else None
        return len(words[0]) if words else 0

    @property
    def _has_short(self) -> bool:
        return any(len(form) < MIN_DISTINCT_CHARS for form in self._encodings)


def basic_credentials(key: str) -> str:
    """The credentials of Basic auth with an empty user and `key` as the password, encoded as in RFC 7617."""
    return b64encode(f":{key}".encode("utf-8", "surrogatepass")).decode()


def _encodings(word: str) -> tuple[str, ...]:
    return (word, json.dumps(word)[1:-1], quote(word), quote(word, safe=""), html.escape(word), repr(word)[1:-1])


def _find(text: str, forms: Iterable[str]) -> Iterator[tuple[int, int]]:
    """The (start, end) of each key in `text`; keys may overlap."""
    for form in forms:
        if len(form) < MIN_DISTINCT_CHARS:
            for match in _short_pattern(form).finditer(text):
                flag = match.start("flag") if "flag" in match.re.groupindex else -1
                if flag < 0 or FLAG_START.search(text, max(0, flag - 42), flag):
                    yield match.span("value")
            continue
        start = text.find(form)
        while start >= 0:
            yield start, start + len(form)
            start = text.find(form, start + 1)


@lru_cache(maxsize=256)
def _short_pattern(form: str) -> re.Pattern[str]:
    head = r"(?<![\w-])" if form.startswith("sk-") else HEAD
    # case of the name, not of the key
    return re.compile(rf"(?:(?i:{head}))(?P<value>{re.escape(form)})(?![\w-])")


def _merge(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins overlapping spans: replacing one of two overlapping keys would leave a part of the other."""
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _replace(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done:start], PLACEHOLDER]
        done = end
    return "".join([*parts, text[done:]])
