"""Prepares text from a server for a report: removes keys and control characters, and limits the length."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from urllib.parse import quote

__all__ = ["Redactor", "basic_credentials"]

PLACEHOLDER = "[key]"
# C0 and C1 controls, which can control the terminal, and the marks that reverse text
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# JSON can contain half a character (`"\\ud800"`), which no output encoding accepts
SURROGATES = re.compile("[\ud800-\udfff]")


class Redactor:
    """Replaces `key` with `[key]`, also the encoded key in JSON, URLs, HTML, Python reprs and Basic auth."""

    def __init__(self, key: str | None) -> None:
        self._encodings: tuple[str, ...] = ()
        if key:
            # the check also sends the key as Basic auth, and a server may repeat that form
            forms = {form for one in (key, basic_credentials(key)) for form in _encodings(one)}
            # longest first: a shorter form may be a part of a longer one
            self._encodings = tuple(sorted(forms, key=len, reverse=True))

    def __repr__(self) -> str:
        return f"Redactor({PLACEHOLDER if self._encodings else None})"

    def __call__(self, text: str) -> str:
        """`text` without the key and without control characters; line breaks stay."""
        # controls go first: removing them later could join two halves of a key
        text = SURROGATES.sub("\ufffd", CONTROLS.sub("", text))
        for form in self._encodings:
            text = text.replace(form, PLACEHOLDER)
        return text

    def excerpt(self, text: str | bytes, limit: int = 300) -> str:
        """Returns one line of at most `limit` characters. The key is replaced before the cut, so no half key stays."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        line = " ".join(self(text).split())
        # joining lines can complete a key that was split across two lines
        line = self(line)
        return line if len(line) <= limit else line[: limit - 1] + "…"


def basic_credentials(key: str) -> str:
    """The credentials of Basic auth with an empty user and `key` as the password, encoded as in RFC 7617."""
    return b64encode(f":{key}".encode("utf-8", "surrogatepass")).decode()


def _encodings(word: str) -> tuple[str, ...]:
    return (word, json.dumps(word)[1:-1], quote(word), quote(word, safe=""), html.escape(word), repr(word)[1:-1])
