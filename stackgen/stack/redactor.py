"""Redacts secrets in all output that leaves this machine: the stack's keys, and all text that looks like a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from stackgen.check.transport.redact import MIN_DISTINCT_CHARS, Redactor
from stackgen.stack.secrets import HARMLESS_VALUE, is_secret_name

__all__ = ["SecretRedactor"]

HIDDEN = "[secret]"
# terminal colors and titles; left in, they would separate a name from its value
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?)")

# even a short value of these names is a secret
STRONG_NAME = re.compile(r"(?:password|passwd|passphrase|secret|pwd|[_.-]pass)\Z", re.IGNORECASE)
NAME_ENDING = (
    r"(?:pass(?:word|wd|phrase)?s?|pwd|secrets?|tokens?|keys?|credentials?|auth(?:orization|entication)?|salt|cookies?)"
)
QUOTE = r"(?:\\*['\"])?"
# both kinds of quotes with what they may contain, then the quotes of JSON inside JSON; BARE has no quotes
QUOTED = r"b?\"(?:\\.|[^\"\\\n])*\"?|b?'(?:''|\\.|[^'\\\n])*'?|(?P<esc>\\+[\"'])(?:(?!\\+[\"'])[^\n])*(?:(?P=esc))?"
BARE = r"[^\s'\",;&}\])\[{\\](?:[^\s'\",;&}\])]|['\",;}\])](?=\w)|&(?!\w+=))*"
VALUE = re.compile(rf"{QUOTED}|\$\$?\{{\w+[^}}\n]*\}}|{BARE}")
# (text up to the value, the value) for each way to write a name and its value. The value is searched only after a
# secret's name: otherwise a long line of harmless names takes quadratic time
NAME_VALUE_FORMS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    # a YAML block scalar or list, indented below its name
    (re.compile(rf"(?im)^(?P<indent>[ ]*)(?:-[ ]+)?['\"]?(?P<name>[\w.-]{{0,80}}?{NAME_ENDING})['\"]?:[ ]*(?=\n|[|>])"),
     re.compile(r"[|>][^\n]{0,20}\n(?:(?:INDENT[ ]+[^\n]*|[ \t]*)(?:\n|\Z))+|\n(?:INDENT[ ]*-[ ][^\n]*(?:\n|\Z))+")),
    # NAME: [value, value]
    (re.compile(rf"(?i){NAME_ENDING}{QUOTE}[ \t]*[=:][ \t]*(?=\[)"), re.compile(r"\[[^\]\n]*\]?")),
    # NAME: value as a whole line of YAML, where the value may contain spaces
    (re.compile(rf"(?im)^[ \t]*(?:-[ \t]+)?['\"]?(?P<name>[\w.-]{{0,80}}?{NAME_ENDING})['\"]?:[ \t]+"
                r"(?![|>][-+\d]{0,3}[ \t]*$)"),
     re.compile(r"[^\s'\"\[{][^\n]*")),
    # NAME=value, "NAME": "value", \"NAME\": \"value\"
    (re.compile(rf"(?i){NAME_ENDING}{QUOTE}[ \t]*(?:=>|[=:])[ \t]*"), VALUE),
    # ('x-api-key', b'value')
    (re.compile(rf"(?i)[(\[]\s*b?['\"](?P<name>[\w.-]{{0,80}}?{NAME_ENDING})['\"],\s*"), re.compile(QUOTED)),
    # --name value, "--name", "value", and a YAML list with one argument per line
    (re.compile(rf"(?i){NAME_ENDING}{QUOTE}(?:[ \t]+|[ \t]*,\s*|[ \t]*\n[ \t]*-[ \t]+)(?!\\*['\"]?-)"), VALUE),
)  # fmt: skip
FLAG_FORM = len(NAME_VALUE_FORMS) - 1

# values that are recognized as secrets by their own format
SECRET_FORMATS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
                r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)", re.S), HIDDEN),
    (re.compile(r"\bAGE-SECRET-KEY-1[0-9A-Z]{20,}", re.I), HIDDEN),
    # Hugging Face, OpenAI and others with its format, NVIDIA, Together, Groq, xAI, Perplexity, GitLab, Slack, Docker
    (re.compile(r"\b(?:hf|hf_oauth|api_org|npm|fw|r8|glc)_[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\b(?:(?:tgp_v1|gsk|wandb_v1|dckr_(?:pat|oat)|glsa|sntrys|lsv2_[a-z]{2}|dop_v1)_|hvs\.|"
                r"(?:sk|csk|nvapi|xai|pplx|xox[a-z]|xapp|gl(?:pat|ptt|dt|rt|ft|cbt|agent|imt|soat))-)[\w-]{8,}"),
     HIDDEN),
    (re.compile(r"\bpypi-[\w-]{40,}|\b(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}"), HIDDEN),
    (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|A(?:KI|SI)A[0-9A-Z]{16}|AIza[\w-]{20,}|"
                r"ya29\.[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|\d{8,10}:AA[\w-]{30,})"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)\b(hooks\.slack\.com/|discord(?:app)?\.com/api/webhooks/)[^\s'\"]+"), rf"\1{HIDDEN}"),
    # credentials in a URL, even with `/` or `@` in the password; host:8000/path@… has none
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)(?:[^\s/@'\":]{0,200}:(?!\d{1,5}/)[^\s'\"<>]{1,300}|[^\s/@'\"]{1,300})@"),
     rf"\1{HIDDEN}@"),
    # presigned URLs of an object store
    (re.compile(r"(?i)([?&](?:X-(?:Amz|Goog)-[\w-]+|Signature|sig|Policy|Key-Pair-Id|(?:[\w-]{0,40}[_-])?(?:token|key))=)"
                r"[^&\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)((?:\s|^)(?:-u|--user)[ =]['\"]?)(?!\d+:\d+\b)[^\s:'\"]{1,80}:[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b((?:(?:set-)?cookie|authorization)['\"]?[ \t]*:[ \t]*)[^\s'\"][^\n'\"]+"), rf"\1{HIDDEN}"),
)  # fmt: skip
NAME_PART = re.compile(r"[\w.-]")


class SecretRedactor:
    """Replaces the given `secrets`, however they are escaped, and everything that looks like a secret, by a mask."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = tuple(dict.fromkeys(secrets))
        self._known = Redactor([form for one in known for form in _escaped_forms(one)])
        # folded over several lines: YAML folds at spaces, and a pasted text may be wrapped
        self._folded = [
            re.compile(r"(?:\s|\\n)+".join(map(re.escape, one.split())))
            for one in known
            if len(one.split()) > 1 and len(one) >= MIN_DISTINCT_CHARS
        ]

    def __call__(self, text: str) -> str:
        """`text` without secrets and without control characters; line ends stay."""
        text = self._known(ANSI.sub("", text))
        for folded in self._folded:
            text = folded.sub(HIDDEN, text)
        for pattern, mask in SECRET_FORMATS:
            text = pattern.sub(mask, text)
        for number, (head, value) in enumerate(NAME_VALUE_FORMS):
            text = _mask_values(text, head, value, number == FLAG_FORM)
        return text

    def redact_json(self, data: Any) -> Any:
        """`data` (as parsed from JSON) with every text redacted: escapes in printed JSON could hide a secret."""
        if isinstance(data, Mapping):
            return {self(str(name)): _mask(str(name), value) or self.redact_json(value) for name, value in data.items()}
        if isinstance(data, (list, tuple)):
            before = ("", *data)
            return [_mask(name, one, True) or self.redact_json(one) for name, one in zip(before, data, strict=False)]
        return self(data) if isinstance(data, str) else data


def _escaped_forms(secret: str) -> tuple[str, ...]:
    """`secret` as in JSON inside JSON, single-quoted YAML and Compose. Redactor handles JSON, URLs, HTML and reprs."""
    doubled = json.dumps(json.dumps(secret)[1:-1])[1:-1]
    return tuple(dict.fromkeys((secret, doubled, secret.replace("'", "''"), secret.replace("$", "$$"))))


def _mask(name: object, value: object, is_argument: bool = False) -> str:
    """The mask for the value of a secret's name; "" for all others. `is_argument`: `name` is the argument before it."""
    if not isinstance(name, str) or not isinstance(value, str) or not value or not is_secret_name(name):
        return ""
    if is_argument and (not name.startswith("-") or "=" in name or value.startswith("-")):
        return ""
    return "" if HARMLESS_VALUE.match(value) else HIDDEN


def _mask_values(text: str, head: re.Pattern[str], value: re.Pattern[str], is_flag: bool) -> str:
    """`text` with the mask in place of each value that follows a secret's name."""
    parts, done, at = [], 0, 0
    while found := head.search(text, at):
        at = found.end()
        name = _whole_name(found)
        if not is_secret_name(name) or (is_flag and not name.startswith("--")):
            continue
        indent = found.groupdict().get("indent")
        match = (value if indent is None else re.compile(value.pattern.replace("INDENT", indent))).match(text, at)
        if match is None or _is_prose(name, found[0], match):
            continue
        parts += [text[done:at], _mask_quoted(name, match[0])]
        done = at = match.end()
    return "".join([*parts, text[done:]])


def _is_prose(name: str, head: str, match: re.Match[str]) -> bool:
    """Whether a sentence follows the name: `API_KEYS: plain text is refused`, `argument --api-key: expected one …`."""
    if not head.endswith(": ") or STRONG_NAME.search(name):
        return False
    start = match.string[match.start() : match.end() + 2]
    return bool(re.fullmatch(r"[a-z]+ [a-z]", start)) or (name.startswith("--") and start[0] not in "\\'\"")


def _whole_name(found: re.Match[str]) -> str:
    """The whole name whose end `found` matches.

    Searched backwards: a pattern that starts with the characters of any name takes quadratic time on a long line.
    """
    if "name" in found.groupdict():
        return found["name"]
    start, text = found.start(), found.string
    while start > max(0, found.start() - 80) and NAME_PART.match(text[start - 1]):
        start -= 1
    end = found.start() + len(re.match(r"\w+", found[0])[0])  # type: ignore[index]
    return text[start:end]


def _mask_quoted(name: str, value: str) -> str:
    """`value` with the mask inside its quotes, or unchanged if it is not a secret."""
    quotes = re.match(r"b?\\*['\"]", value)
    start = quotes[0] if quotes else ""
    close = start.lstrip("b")
    end = close if close and value.endswith(close) and len(value) >= len(start) + len(close) else ""
    inner = value[len(start) : len(value) - len(end)]
    # a count such as `token: 1234` is not a secret, but a password may be that short
    is_number = re.fullmatch(r"-?\d{1,7}", inner) or (not start and len(inner) < 4)
    if not inner or HARMLESS_VALUE.match(inner) or (is_number and not STRONG_NAME.search(name)):
        return value
    if value[0] in "[|>\n":
        return f"[{HIDDEN}]" if value[0] == "[" else HIDDEN + "\n"
    return f"{start}{HIDDEN}{end}"
