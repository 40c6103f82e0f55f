"""Takes secrets out of whatever leaves this machine: the stack's own keys, and everything that looks like one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stackgen.check.transport.redact import Redactor

if TYPE_CHECKING:
    from stackgen.plan import Plan
    from stackgen.spec import StackSpec

__all__ = ["Scrubber", "given_secrets", "is_secret_name", "stack_secrets"]

HIDDEN = "[secret]"
# a shorter value, such as a port or `1`, would blank half of the text
SHORTEST = 6
# colours and titles of terminals; left in, they would stand between a name and its value
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?)")

# NAMES, whole: HF_TOKEN, dbPassword, x-api-key, MY_KEY
SECRET_NAME = re.compile(
    r"(?:.*(?:password|passwd|passphrase|secret|token|credential)s?|.*(?:api|access|account|private|secret|auth|shared|signing|master)[_-]?keys?|"
    r"(?:.*[_.-])?(?:pass|pwd|auth|authorization|authentication|salt|cookies?)|.*[_.-]key)\Z",
    re.IGNORECASE,
)
# the vocabulary of models and programs, which ends in the same words
HARMLESS_NAME = re.compile(
    r"(?:(?-i:PWD|OLDPWD)|secrets|.*(?:tokens|secret_names?)|(?:.*[_.-])?(?:pad|eos|bos|unk|sep|cls|mask|image|img|video|audio|"
    r"special|stop|start|end|first|last|next|new|per|max|min|num|each|think|boi|eoi|sot|eot|added|extra|prompt)[_-]token|"
    r"(?:.*[_.-])?(?:cache|primary|foreign|public|sort|group|query|dict|map|config|weight|layer|len|param|state|partition|"
    r"routing|lookup|object|q|k|v|qk|kv)[_-]key|(?:.*[_.-])?(?:forward|backward|first|second|single|one|two|this|by)[_-]pass)\Z",
    re.IGNORECASE,
)
# even a short value of these is one
STRONG_NAME = re.compile(r"(?:password|passwd|passphrase|secret|pwd|[_.-]pass)\Z", re.IGNORECASE)
WORDS = (
    r"(?:pass(?:word|wd|phrase)?s?|pwd|secrets?|tokens?|keys?|credentials?|auth(?:orization|entication)?|salt|cookies?)"
)
# a reference is no value, and tells where the value comes from
HARMLESS_VALUE = re.compile(
    r"(?:none|null|true|false|yes|no|on|off|~|\*+|\.\.\.|\[(?:secret|key)\].*|"
    r"\$\$?\{\w+(?::?\?[^}]*)?\}|<[\w|/ -]+>|"
    r"/(?:run|etc|home|root|tmp|var|opt|usr|data|mnt|srv|models)/[\w./@+-]+)\Z",
    re.IGNORECASE,
)
QUOTE = r"(?:\\*['\"])?"
# both kinds of quotes with what may stand inside, then quotes of JSON inside JSON, then a word without quotes
QUOTED = r"b?\"(?:\\.|[^\"\\\n])*\"?|b?'(?:''|\\.|[^'\\\n])*'?|(?P<esc>\\+[\"'])(?:(?!\\+[\"'])[^\n])*(?:(?P=esc))?"
BARE = r"[^\s'\",;&}\])\[{\\](?:[^\s'\",;&}\])]|['\",;}\])](?=\w)|&(?!\w+=))*"
VALUE = re.compile(rf"{QUOTED}|\$\$?\{{\w+[^}}\n]*\}}|{BARE}")
# the parts of a name and its value: how the text up to the value looks, and the value. Only a secret's name has its
# value looked for, so that a long line of harmless ones takes no quadratic time
FORMS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    # a text or a list of YAML in the deeper lines below its name
    (re.compile(rf"(?im)^(?P<indent>[ ]*)(?:-[ ]+)?['\"]?(?P<name>[\w.-]{{0,80}}?{WORDS})['\"]?:[ ]*(?=\n|[|>])"),
     re.compile(r"[|>][^\n]{0,20}\n(?:(?:INDENT[ ]+[^\n]*|[ \t]*)(?:\n|\Z))+|\n(?:INDENT[ ]*-[ ][^\n]*(?:\n|\Z))+")),
    # NAME: [value, value]
    (re.compile(rf"(?i){WORDS}{QUOTE}[ \t]*[=:][ \t]*(?=\[)"), re.compile(r"\[[^\]\n]*\]?")),
    # NAME: value as a whole line of YAML, where a value may hold blanks
    (re.compile(rf"(?im)^[ \t]*(?:-[ \t]+)?['\"]?(?P<name>[\w.-]{{0,80}}?{WORDS})['\"]?:[ \t]+"
                r"(?![|>][-+\d]{0,3}[ \t]*$)"),
     re.compile(r"[^\s'\"\[{][^\n]*")),
    # NAME=value, "NAME": "value", \"NAME\": \"value\"
    (re.compile(rf"(?i){WORDS}{QUOTE}[ \t]*(?:=>|[=:])[ \t]*"), VALUE),
    # ('x-api-key', b'value')
    (re.compile(rf"(?i)[(\[]\s*b?['\"](?P<name>[\w.-]{{0,80}}?{WORDS})['\"],\s*"), re.compile(QUOTED)),
    # --name value, "--name", "value", and a list of YAML with each word in a line of its own
    (re.compile(rf"(?i){WORDS}{QUOTE}(?:[ \t]+|[ \t]*,\s*|[ \t]*\n[ \t]*-[ \t]+)(?!\\*['\"]?-)"), VALUE),
)  # fmt: skip
FLAG = len(FORMS) - 1

# what is a secret by its own shape
SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
                r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)", re.S), HIDDEN),
    (re.compile(r"\bAGE-SECRET-KEY-1[0-9A-Z]{20,}", re.I), HIDDEN),
    # Hugging Face, OpenAI and who took over its form, NVIDIA, Together, Groq, xAI, Perplexity, GitLab, Slack, Docker
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
    # credentials in a URL, also with `/` or `@` in the password; host:8000/path@… is none
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)(?:[^\s/@'\":]{0,200}:(?!\d{1,5}/)[^\s'\"<>]{1,300}|[^\s/@'\"]{1,300})@"),
     rf"\1{HIDDEN}@"),
    # signed addresses of a store
    (re.compile(r"(?i)([?&](?:X-(?:Amz|Goog)-[\w-]+|Signature|sig|Policy|Key-Pair-Id|(?:[\w-]{0,40}[_-])?(?:token|key))=)"
                r"[^&\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)((?:\s|^)(?:-u|--user)[ =]['\"]?)(?!\d+:\d+\b)[^\s:'\"]{1,80}:[^\s'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b((?:(?:set-)?cookie|authorization)['\"]?[ \t]*:[ \t]*)[^\s'\"][^\n'\"]+"), rf"\1{HIDDEN}"),
)  # fmt: skip
NAME_PART = re.compile(r"[\w.-]")


def is_secret_name(name: str) -> bool:
    """Whether a variable, a flag or a header of this name holds a secret: HF_TOKEN, --api-key; not pad_token."""
    return bool(SECRET_NAME.match(name)) and not HARMLESS_NAME.match(name.lstrip("-"))


def given_secrets(environment: Iterable[tuple[str, object]], command: Sequence[str] = ()) -> tuple[str, ...]:
    """The values of `environment` and of flags in `command` whose names say that they are secrets."""
    found = [value for name, value in environment if isinstance(value, str) and is_secret_name(name)]
    for word, after in zip(command, (*command[1:], ""), strict=False):
        flag, equals, value = word.partition("=")
        if flag.startswith("-") and is_secret_name(flag):
            found.append(value if equals else "" if after.startswith("--") else after)
    return tuple(dict.fromkeys(value for value in found if value and not HARMLESS_VALUE.match(value)))


def stack_secrets(spec: StackSpec | None, plan: Plan | None = None) -> tuple[str, ...]:
    """The secrets that somebody wrote into stack.yaml, where none belongs, instead of into `.env`."""
    models = [given_secrets(one.extra_env.items(), one.extra_args) for one in (spec.models if spec else ())]
    services = [given_secrets(one.environment, one.command) for one in (plan.services if plan else ())]
    return tuple(dict.fromkeys(value for found in (*models, *services) for value in found))


class Scrubber:
    """Replaces the given `secrets` in all their spellings, and what looks like a secret, with a mark."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({s for s in secrets if len(s) >= SHORTEST}, key=len, reverse=True)
        self._known = tuple(Redactor(form) for one in known for form in _spellings(one))
        # folded over lines, as YAML may do with blanks and a pasted text with line ends
        self._folded = [re.compile(r"(?:\s|\\n)+".join(map(re.escape, s.split()))) for s in known if len(s.split()) > 1]
        self._plain = Redactor(None)

    def __call__(self, text: str) -> str:
        """`text` without secrets and without control characters; line ends stay."""
        text = self._plain(ANSI.sub("", text))
        for redact in self._known:
            text = redact(text)
        for folded in self._folded:
            text = folded.sub(HIDDEN, text)
        for pattern, mark in SHAPES:
            text = pattern.sub(mark, text)
        for number, (head, value) in enumerate(FORMS):
            text = _replaced(text, head, value, number == FLAG)
        return text

    def tree(self, data: Any) -> Any:
        """`data` (of JSON) with every text scrubbed: inside of printed JSON, quotes and line ends would hide one."""
        if isinstance(data, Mapping):
            return {self(str(name)): _mask(str(name), value) or self.tree(value) for name, value in data.items()}
        if isinstance(data, (list, tuple)):
            before = ("", *data)
            return [_mask(name, one, True) or self.tree(one) for name, one in zip(before, data, strict=False)]
        return self(data) if isinstance(data, str) else data


def _spellings(secret: str) -> tuple[str, ...]:
    """As JSON in JSON, YAML in single quotes, and Compose write it; Redactor knows JSON, URLs, HTML and reprs."""
    doubled = json.dumps(json.dumps(secret)[1:-1])[1:-1]
    return tuple(dict.fromkeys((secret, doubled, secret.replace("'", "''"), secret.replace("$", "$$"))))


def _mask(name: object, value: object, flag: bool = False) -> str:
    """The mark for the value of a secret's name (of a flag's, in a list of words); "" for all others."""
    if not isinstance(name, str) or not isinstance(value, str) or not value or not is_secret_name(name):
        return ""
    if flag and (not name.startswith("-") or "=" in name or value.startswith("-")):
        return ""
    return "" if HARMLESS_VALUE.match(value) else HIDDEN


def _replaced(text: str, head: re.Pattern[str], value: re.Pattern[str], flag: bool) -> str:
    """`text` with the mark in place of each value that follows a secret's name."""
    parts, done, at = [], 0, 0
    while found := head.search(text, at):
        at = found.end()
        name = _name(found)
        if not is_secret_name(name) or (flag and not name.startswith("--")):
            continue
        indent = found.groupdict().get("indent")
        held = (value if indent is None else re.compile(value.pattern.replace("INDENT", indent))).match(text, at)
        if held is None or _prose(name, found[0], held):
            continue
        parts += [text[done:at], _hidden(name, held[0])]
        done = at = held.end()
    return "".join([*parts, text[done:]])


def _prose(name: str, head: str, held: re.Match[str]) -> bool:
    """`API_KEYS: plain text crashes it`, or `argument --api-key: expected one argument`: words, and no value."""
    if not head.endswith(": ") or STRONG_NAME.search(name):
        return False
    said = held.string[held.start() : held.end() + 2]
    return bool(re.fullmatch(r"[a-z]+ [a-z]", said)) or (name.startswith("--") and said[0] not in "\\'\"")


def _name(found: re.Match[str]) -> str:
    """The whole name of which a form finds the end.

    Looked for backwards: a pattern that begins with any name's
    characters would take quadratic time on a long line.
    """
    if "name" in found.groupdict():
        return found["name"]
    start, text = found.start(), found.string
    while start > max(0, found.start() - 80) and NAME_PART.match(text[start - 1]):
        start -= 1
    end = found.start() + len(re.match(r"\w+", found[0])[0])  # type: ignore[index]
    return text[start:end]


def _hidden(name: str, value: str) -> str:
    """`value` with the mark inside its quotes, or as it is where it is no secret."""
    quotes = re.match(r"b?\\*['\"]", value)
    start = quotes[0] if quotes else ""
    close = start.lstrip("b")
    end = close if close and value.endswith(close) and len(value) >= len(start) + len(close) else ""
    inner = value[len(start) : len(value) - len(end)]
    number = re.fullmatch(r"-?\d{1,7}", inner) or (not start and len(inner) < 4)
    if not inner or HARMLESS_VALUE.match(inner) or (number and not STRONG_NAME.search(name)):
        return value
    if value[0] in "[|>\n":
        return f"[{HIDDEN}]" if value[0] == "[" else HIDDEN + "\n"
    return f"{start}{HIDDEN}{end}"
