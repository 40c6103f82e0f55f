"""Takes secrets out of whatever leaves this machine: the stack's own keys, and everything that looks like one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stackgen.check.redact import Redactor

__all__ = ["Scrubber"]

HIDDEN = "[secret]"
NAMES = r"[\w.-]*(?:password|passwd|secret|token|api[_-]?keys?|access[_-]?key|credentials?|private[_-]?key|auth)\b"
RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), HIDDEN),
    (re.compile(r"\b(?:hf|hf_oauth|api_org)_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), HIDDEN),
    (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}|xox[a-z]-[\w-]{10,})"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    # credentials in a URL, and signed addresses of a store
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"(?i)([?&](?:X-Amz-[\w-]+|Signature|sig|Policy|Key-Pair-Id|token|key)=)[^&\s'\"]+"), rf"\1{HIDDEN}"),
    # NAME=value, NAME: value, "name": "value", --name value; the vocabulary of engines (`max_tokens`) has no such end
    (
        re.compile(
            rf"(?i)(?P<name>(?:--)?{NAMES})(?P<mid>['\"]?\s*(?:[=:]\s*|(?<=[a-z])\s+(?=--)|,\s*))"
            r"(?P<quote>['\"]?)(?!None\b|null\b|True\b|False\b|\[|\{|''|\"\")(?P<value>[^\s'\",;}\])]{4,})"
        ),
        rf"\g<name>\g<mid>\g<quote>{HIDDEN}",
    ),
    (re.compile(rf"(?i)({NAMES}['\"]?\s*[=:]\s*)\[(?!secret\])[^\]]+\]"), rf"\1[{HIDDEN}]"),
    (re.compile(rf"(?i)(--{NAMES})[ =]+(['\"]?)(?!-)[^\s'\"]+"), rf"\1 \2{HIDDEN}"),
)


class Scrubber:
    """Replaces the given `secrets` in all their spellings, and what looks like a secret, with a mark."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # a short value, such as a port or `1`, would blank half of the text
        self._known = tuple(Redactor(one) for one in sorted({s for s in secrets if len(s) >= 6}, key=len, reverse=True))
        self._plain = Redactor(None)

    def __call__(self, text: str) -> str:
        """`text` without secrets and without control characters; line ends stay."""
        text = self._plain(text)
        for redact in self._known:
            text = redact(text)
        for pattern, mark in RULES:
            text = pattern.sub(mark, text)
        return text
