"""Adds entries to `gateway.keys` in the text of stack.yaml. Comments and quoting of other lines do not change."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

import yaml

from stackgen.errors import StackgenError
from stackgen.spec.keys import KeySpec
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

__all__ = ["add_entries", "format_entry"]


def format_entry(key: KeySpec) -> str:
    """`key` as one line of YAML, with the fields that it sets: `{name: ada, tokens_per_day: 200000}`."""
    fields = ((name, getattr(key, name)) for name in type(key).model_fields if name in key.model_fields_set)
    return f"{{{', '.join(f'{name}: {_format(value)}' for name, value in fields)}}}"


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_format, value))}]"
    if isinstance(value, date):
        return value.isoformat()
    # a name such as `on` or `007` needs quotes
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def add_entries(text: str, keys: Sequence[KeySpec]) -> str:
    """Returns `text` with an entry for each of `keys` at the end of `gateway.keys`.

    Raises StackgenError if the place can't be edited safely. The result is parsed again, and must differ only in these
    entries.
    """
    lines = [format_entry(key) for key in keys]
    text = text if text.endswith("\n") else f"{text}\n"
    try:
        # the Python loader, because its marks are character offsets whatever libyaml counts in
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        has_alias = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader))
        changed = None if has_alias else _add(text, root, lines)
        if changed is not None and read_value(changed) == _expected(read_value(text), lines):
            return changed
    except YAML_ERRORS:
        pass
    raise StackgenError(
        "stack.yaml can't be edited safely at gateway.keys",
        "add these lines under gateway.keys by hand, and run the command again:\n" + "\n".join(
            f"    - {line}" for line in lines),
    )  # fmt: skip


def _expected(data: Any, lines: Sequence[str]) -> Any:
    gateway = data.get("gateway")
    gateway = dict(gateway) if isinstance(gateway, dict) else {}
    gateway["keys"] = [*(gateway.get("keys") or []), *map(read_value, lines)]
    return {**data, "gateway": gateway}


def _add(text: str, root: Any, lines: Sequence[str]) -> str | None:
    gateway = _value(root, "gateway")
    if gateway is None:
        # a stack with several replicas has a gateway without the field
        return None if root.flow_style else f"{text.rstrip()}\ngateway:\n  keys:\n{_block(lines, 4)}"
    if isinstance(gateway, yaml.ScalarNode):
        # `gateway: true`, and the comment behind it
        start, at = gateway.start_mark.index, _line_end(text, gateway.end_mark.index)
        comment = text[gateway.end_mark.index : at].rstrip()
        return f"{text[:start].rstrip()}{comment}\n  keys:\n{_block(lines, 4)}{text[at:]}"
    keys = _value(gateway, "keys")
    if isinstance(keys, yaml.SequenceNode) and keys.flow_style:
        return _insert_flow(text, keys.end_mark.index - 1, lines, bool(keys.value))
    if isinstance(keys, yaml.SequenceNode):
        at = _line_end(text, keys.value[-1].end_mark.index)
        return f"{text[:at]}{_block(lines, keys.start_mark.column)}{text[at:]}"
    if keys is not None or not gateway.value:
        return None
    if gateway.flow_style:
        at = gateway.value[-1][1].end_mark.index
        return f"{text[:at]}, keys: [{', '.join(lines)}]{text[at:]}"
    column, at = gateway.value[0][0].start_mark.column, _line_start(text, gateway.start_mark.index)
    return f"{text[:at]}{' ' * column}keys:\n{_block(lines, column + 2)}{text[at:]}"


def _value(node: Any, name: str) -> Any:
    return next((value for key, value in node.value if key.value == name), None)


def _block(lines: Sequence[str], column: int) -> str:
    return "".join(f"{' ' * column}- {line}\n" for line in lines)


def _insert_flow(text: str, bracket: int, lines: Sequence[str], has_items: bool) -> str | None:
    before = text[:bracket].rstrip()
    separator = ", " if has_items and not before.endswith(",") else " " if has_items else ""
    # a comment may be the last thing before the bracket
    if "#" in before[before.rfind("\n") + 1 :]:
        return None
    return f"{before}{separator}{', '.join(lines)}{text[bracket:]}"


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _line_end(text: str, index: int) -> int:
    """The index after the last line of a value that ends at `index`."""
    start = _line_start(text, index)
    if text[start:index].strip():
        end = text.find("\n", index)
        return len(text) if end < 0 else end + 1
    # a block ends where the next token starts: step back over blank lines and comments
    while start > 0:
        before = _line_start(text, start - 1)
        line = text[before:start].strip()
        if line and not line.startswith("#"):
            return start
        start = before
    return 0
