"""Changes the text of stack.yaml in place: comments, order and quoting of all other lines stay as they are."""

from __future__ import annotations

from typing import Any

import yaml

from stackgen.diagnose.rule import Edit
from stackgen.errors import StackgenError
from stackgen.stack.load import read_value

__all__ = ["apply"]


def apply(text: str, edit: Edit) -> str:
    """`text` with `edit` made. Raises StackgenError where the place can't be edited safely.

    The result is read again, and must differ from what stood there in exactly that value.
    """
    model = _at(text, edit.path[:-1])
    name = str(edit.path[-1])
    entry = next(((key, value) for key, value in model.value if key.value == name), None)
    if edit.remove and edit.leaving:
        changed = _without(text, edit.path, edit.leaving) if entry else None
    elif edit.remove:
        changed = _dropped(text, model, name)
    elif entry:
        changed = _replaced(text, entry[1], edit.value)
    else:
        changed = _added(text, model, name, edit.value)
    if changed is None or not _as_wanted(text, changed, edit):
        where = f"{edit.path[0]}[{edit.path[1]}].{name}"
        raise StackgenError(f"stack.yaml can't be changed safely at {where}", "change it by hand")
    return changed


def _at(text: str, path: tuple[str | int, ...]) -> yaml.MappingNode:
    # the Python loader counts in characters, whatever libyaml counts in
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        if isinstance(part, int) and isinstance(node, yaml.SequenceNode) and part < len(node.value):
            node = node.value[part]
        elif isinstance(part, str) and isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        else:
            node = None
    if not isinstance(node, yaml.MappingNode):
        raise StackgenError("stack.yaml has not the form that the change expects", "change it by hand")
    return node


def _replaced(text: str, node: yaml.Node, value: str) -> str | None:
    # a block scalar's end is the next line's start, and an anchor may be used elsewhere
    if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
        return None
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]


def _added(text: str, model: yaml.MappingNode, name: str, value: str) -> str | None:
    if not model.value:
        return None
    key, first = model.value[0]
    if model.flow_style:
        end = model.value[-1][1].end_mark.index
        return f"{text[:end]}, {name}: {value}{text[end:]}"
    # after the whole first entry (`- model: …`), comment and all, with the indentation of its key
    if not isinstance(first, yaml.ScalarNode) or first.style in ("|", ">"):
        return None
    end = text.find("\n", first.end_mark.index)
    line = f"{' ' * key.start_mark.column}{name}: {value}"
    return f"{text}\n{line}\n" if end < 0 else f"{text[: end + 1]}{line}\n{text[end + 1 :]}"


def _without(text: str, path: tuple[str | int, ...], entries: tuple[str, ...]) -> str | None:
    """The list at `path` without `entries`, which stand there one after the other."""
    index = None
    for _ in entries:
        node = next((value for key, value in _at(text, path[:-1]).value if key.value == path[-1]), None)
        if not isinstance(node, yaml.SequenceNode):
            return None
        if index is None:
            index = _place([one.value for one in node.value], entries)
        if index is None:
            return None
        text = _cut(text, node, index)
    return text


def _place(words: list[Any], entries: tuple[str, ...]) -> int | None:
    size = len(entries)
    return next((i for i in range(len(words)) if tuple(map(str, words[i : i + size])) == entries), None)


def _cut(text: str, node: yaml.SequenceNode, index: int) -> str:
    """The list `node` without its entry `index`."""
    if len(node.value) == 1:
        end = node.end_mark.index if node.flow_style else node.value[0].end_mark.index
        return f"{text[: node.start_mark.index].rstrip()} []{text[end:]}"
    one = node.value[index]
    if node.flow_style:
        start, end = one.start_mark.index, one.end_mark.index
        if index + 1 < len(node.value):
            end = node.value[index + 1].start_mark.index
        else:
            start = node.value[index - 1].end_mark.index
        return text[:start] + text[end:]
    start = text.rfind("\n", 0, one.start_mark.index) + 1
    end = text.find("\n", one.end_mark.index)
    return text[:start] + (text[end + 1 :] if end >= 0 else "")


def _dropped(text: str, model: yaml.MappingNode, name: str) -> str | None:
    """The mapping `model` without its entry `name`; None where that is not a plain value on a line of its own."""
    index = next((i for i, (key, _) in enumerate(model.value) if key.value == name), None)
    # the first one may stand behind the dash of a list
    if not index:
        return None
    key, value = model.value[index]
    if not isinstance(value, yaml.ScalarNode) or value.style in ("|", ">"):
        return None
    if model.flow_style:
        return text[: model.value[index - 1][1].end_mark.index] + text[value.end_mark.index :]
    end = text.find("\n", value.end_mark.index)
    return text[: text.rfind("\n", 0, key.start_mark.index) + 1] + (text[end + 1 :] if end >= 0 else "")


def _as_wanted(before: str, after: str, edit: Edit) -> bool:
    """Whether `after` is `before` with this change, and nothing else."""
    try:
        # what stands behind an alias would change at every place that uses it
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(before)):
            return False
        data, result = yaml.safe_load(before), yaml.safe_load(after)
        owner = data
        for part in edit.path[:-1]:
            owner = owner[part]
        name = edit.path[-1]
        if edit.remove and edit.leaving:
            start = _place(owner[name], edit.leaving)
            if start is None:
                return False
            del owner[name][start : start + len(edit.leaving)]
        elif edit.remove:
            del owner[name]
        else:
            owner[name] = read_value(edit.value)
    except (yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError):
        return False
    return bool(data == result)
