"""The secrets of a stack: the values that no output may show. Nothing else decides what a secret is.

They come from `.env`, from the files of tokens and TLS keys that `.env` and stack.yaml name, and from the fields, flags
and variables in stack.yaml whose names announce a secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.render.read import read_regular, stack_file_in
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

if TYPE_CHECKING:
    from stackgen.plan import Plan
    from stackgen.spec import StackSpec

__all__ = [
    "HARMLESS_VALUE", "VARIABLE", "collect_secrets", "find_secrets", "find_stack_secrets", "find_yaml_secrets",
    "is_secret_name",
]  # fmt: skip

# whole names: HF_TOKEN, dbPassword, x-api-key, MY_KEY
SECRET_NAME = re.compile(
    r"(?:.*(?:password|passwd|passphrase|secret|token|credential)s?|.*(?:api|access|account|private|secret|auth|shared|signing|master)[_-]?keys?|"
    r"(?:.*[_.-])?(?:pass|pwd|auth|authorization|authentication|salt|cookies?)|.*[_.-]key)\Z",
    re.IGNORECASE,
)
# names of models and programs that end in the same words but are not secret
HARMLESS_NAME = re.compile(
    r"(?:(?-i:PWD|OLDPWD)|secrets|tls_secret|image_pull_secrets|.*(?:tokens|secret_names?)|(?:.*[_.-])?(?:pad|eos|bos|unk|sep|cls|mask|image|img|video|audio|"
    r"special|stop|start|end|first|last|next|new|per|max|min|num|each|think|boi|eoi|sot|eot|added|extra|prompt)[_-]token|"
    r"(?:.*[_.-])?(?:cache|primary|foreign|public|sort|group|query|dict|map|config|weight|layer|len|param|state|partition|"
    r"routing|lookup|object|q|k|v|qk|kv)[_-]key|(?:.*[_.-])?(?:forward|backward|first|second|single|one|two|this|by)[_-]pass)\Z",
    re.IGNORECASE,
)
# a reference to a secret is not secret, and shows where the value comes from
HARMLESS_VALUE = re.compile(
    r"(?:none|null|true|false|yes|no|on|off|~|\*+|\.\.\.|\[(?:secret|key)\].*|"
    r"\$\$?\{\w+(?::?\?[^}]*)?\}|<[\w|/ -]+>|"
    r"/(?:run|etc|home|root|tmp|var|opt|usr|data|mnt|srv|models)/[\w./@+-]+)\Z",
    re.IGNORECASE,
)
# variables of `.env` that say where something is or how a program works; messages need their values
ENV_SETTING = re.compile(
    r"(?:COMPOSE_\w+|DOCKER_\w+|(?:\w+_)?(?:FILE|PATH|DIR|HOME|ENDPOINT|HOST|PORT|LEVEL|IMAGE|TAG|VERSION|DEVICES|"
    r"PLATFORM|NAME|MODEL|PROJECT|REGION|TZ|LANG))\Z"
)
# a quoted value may continue on the next lines, as PEM keys do
VARIABLE = re.compile(
    r"(?m)^[ \t]*(?:export[ \t]+)?(?P<name>[\w.-]+)[ \t]*=[ \t]*(?P<value>\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\n]*)"
)
# a field in text that is not valid YAML
FIELD = re.compile(r"(?m)^[ \t]*(?:-[ \t]+)?['\"]?(?P<name>[\w.-]+)['\"]?:[ \t]+(?P<value>[^\n]+)")
# a shorter value of a variable without a secret's name is a word or a number
MIN_UNNAMED_CHARS = 8
# bytes; a token or a private key is far smaller
MAX_SECRET_FILE = 64 * 1024


def is_secret_name(name: str) -> bool:
    """Whether a variable, flag or header of this name contains a secret: HF_TOKEN, --api-key; not pad_token."""
    return bool(SECRET_NAME.match(name)) and not HARMLESS_NAME.match(name.lstrip("-"))


def collect_secrets(folder: Path) -> tuple[str, ...]:
    """The secrets of the stack in `folder`, as far as its files can be read. Never raises."""
    stack_text = _read(stack_file_in(folder))
    found = [*_find_env_secrets(folder, only_named=not stack_text), *find_yaml_secrets(stack_text)]
    for key in _find_key_files(stack_text, folder):
        found += _lines(_read(key))
    return tuple(dict.fromkeys(found))


def find_yaml_secrets(text: str) -> tuple[str, ...]:
    """The secrets in a stack.yaml or compose.yaml, by the names of fields, variables and flags; also in broken YAML."""
    try:
        return tuple(_walk(read_value(text)))
    except YAML_ERRORS:
        fields = [(match["name"], match["value"].strip().strip("'\"")) for match in FIELD.finditer(text)]
        return find_secrets(fields)


def find_secrets(environment: Iterable[tuple[str, object]], command: Sequence[str] = ()) -> tuple[str, ...]:
    """The values in `environment`, and of flags in `command`, whose names mark them as secrets."""
    found = [value for name, value in environment if isinstance(value, str) and is_secret_name(name)]
    for argument, after in zip(command, (*command[1:], ""), strict=False):
        flag, equals, value = argument.partition("=")
        if is_secret_name(flag) and (equals or flag.startswith("-")):
            found.append(value if equals else "" if after.startswith("--") else after)
    return tuple(line for value in dict.fromkeys(found) if not HARMLESS_VALUE.match(value) for line in _lines(value))


def find_stack_secrets(spec: StackSpec | None, plan: Plan | None = None) -> tuple[str, ...]:
    """The secrets in stack.yaml that should be in `.env`."""
    models = [find_secrets(one.extra_env.items(), one.extra_args) for one in (spec.models if spec else ())]
    services = [find_secrets(one.environment, one.command) for one in (plan.services if plan else ())]
    return tuple(dict.fromkeys(value for found in (*models, *services) for value in found))


def _find_env_secrets(folder: Path, only_named: bool) -> Iterator[str]:
    """The values in `.env`, also if the process's environment replaces them, and the tokens in files it names.

    `only_named`: the folder has no stack, so only names that announce a secret count.
    """
    for match in VARIABLE.finditer(_read(folder / ".env")):
        name, written = match["name"], match["value"].strip()
        # a value without quotes ends at a comment
        bare = written.strip("'\"") if written[:1] in ("'", '"') else re.sub(r"\s+#.*$", "", written)
        for value in dict.fromkeys((bare, os.environ.get(name, ""))):
            if name.endswith("_FILE"):
                yield from _lines(_read(folder / os.path.expanduser(value)).strip())
            elif not value or HARMLESS_VALUE.match(value):
                continue
            elif is_secret_name(name) or not (only_named or len(value) < MIN_UNNAMED_CHARS or ENV_SETTING.match(name)):
                yield from _lines(value)


def _walk(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield from find_secrets([(str(name), str(one)) for name, one in node.items() if isinstance(one, str | int)])
        for name, one in node.items():
            if isinstance(one, list) and is_secret_name(str(name)):
                yield from find_secrets([(str(name), inner) for inner in one])
            yield from _walk(one)
    elif isinstance(node, list):
        # arguments, or variables as NAME=value
        yield from find_secrets((), [one if isinstance(one, str) else "" for one in node])
        for one in node:
            yield from _walk(one)


def _find_key_files(text: str, folder: Path) -> Iterator[Path]:
    try:
        gateway = read_value(text)["gateway"]
        yield folder / os.path.expanduser(gateway["tls"]["key"])
    # the stack has no certificate of its own, or the file is not valid
    except YAML_ERRORS:
        pass
    yield from (folder / "gateway").glob("*.key")
    yield from (folder / "gateway" / "tls").glob("*.key")


def _lines(value: str) -> Iterator[str]:
    """A value and, if it has several lines, each of them: an output may indent them or show only some."""
    if value:
        yield value
    if "\n" in value or "\\n" in value:
        rows = (one.strip() for one in re.split(r"\n|\\n", value))
        # the first and last line of a PEM file are in every PEM file
        yield from (one for one in rows if len(one) >= MIN_UNNAMED_CHARS and not one.startswith("-----"))


def _read(path: Path) -> str:
    try:
        return read_regular(path, MAX_SECRET_FILE if path.suffix not in (".yaml", ".yml") else 2**20).decode(
            "utf-8", "replace"
        )
    except (OSError, ValueError):
        return ""
