"""Edits the text of stack.yaml in place. Comments, order and quoting of all other lines do not change."""

from __future__ import annotations

from typing import Any

import yaml

from stackgen.diagnose.rule import Edit
from stackgen.errors import StackgenError
from stackgen.stack.yaml_text import read_value

__all__ = ["apply_edit"]


def apply_edit(text: str, edit: Edit) -> str:
    """Returns `text` with `edit` applied. Raises StackgenError if the place can't be edited safely.

    The result is parsed again, and must differ from the old content only in the edited value.
    """
    model = _find_mapping(text, edit.path[:-1])
    name = str(edit.path[-1])
    entry = next(((key, value) for key, value in model.value if key.value == name), None)
    if edit.remove and edit.removed_entries:
        changed = _remove_entries(text, edit.path, edit.removed_entries) if entry else None
    elif edit.remove:
        changed = _remove_field(text, model, name)
    elif entry:
        changed = _replace_value(text, entry[1], edit.value)
    else:
        changed = _add_field(text, model, name, edit.value)
    if changed is None or not _is_expected(text, changed, edit):
        where = f"{edit.path[0]}[{edit.path[1]}].{name}"
        raise StackgenError(f"stack.yaml can't be edited safely at {where}", "edit stack.yaml by hand")
    return changed


def _find_mapping(text: str, path: tuple[str | int, ...]) -> yaml.MappingNode:
    # the Python loader, because its marks are character offsets whatever libyaml counts in
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        if isinstance(part, int) and isinstance(node, yaml.SequenceNode) and part < len(node.value):
            node = node.value[part]
        elif isinstance(part, str) and isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        else:
            node = None
    if not isinstance(node, yaml.MappingNode):
        raise StackgenError("stack.yaml does not have the structure that the change expects", "edit stack.yaml by hand")
    return node


def _replace_value(text: str, node: yaml.Node, value: str) -> str | None:
    # a block scalar ends where the next line starts, and an anchor may be used elsewhere
    if not isinstance(node, yaml.ScalarNode) or node.style in ("|", ">"):
        return None
    return text[: node.start_mark.index] + value + text[node.end_mark.index :]


def _add_field(text: str, model: yaml.MappingNode, name: str, value: str) -> str | None:
    if not model.value:
        return None
    key, first = model.value[0]
    if model.flow_style:
        end = model.value[-1][1].end_mark.index
        return f"{text[:end]}, {name}: {value}{text[end:]}"
    # after the first entry (`- model: …`) and its comment: its key has the indentation that all keys need
    if not isinstance(first, yaml.ScalarNode) or first.style in ("|", ">"):
        return None
    end = text.find("\n", first.end_mark.index)
    line = f"{' ' * key.start_mark.column}{name}: {value}"
    return f"{text}\n{line}\n" if end < 0 else f"{text[: end + 1]}{line}\n{text[end + 1 :]}"


def _remove_entries(text: str, path: tuple[str | int, ...], entries: tuple[str, ...]) -> str | None:
    """`text` without `entries`, which are next to each other in the list at `path`; None if they are not."""
    index = None
    # parsed again after each removal, because the offsets have changed
    for _ in entries:
        node = next((value for key, value in _find_mapping(text, path[:-1]).value if key.value == path[-1]), None)
        if not isinstance(node, yaml.SequenceNode):
            return None
        if index is None:
            index = _find_sequence([one.value for one in node.value], entries)
        if index is None:
            return None
        text = _remove_item(text, node, index)
    return text


def _find_sequence(items: list[Any], entries: tuple[str, ...]) -> int | None:
    """The index at which `entries` follow one another in `items`."""
    size = len(entries)
    return next((i for i in range(len(items)) if tuple(map(str, items[i : i + size])) == entries), None)


def _remove_item(text: str, node: yaml.SequenceNode, index: int) -> str:
    """`text` without item `index` of the list `node`."""
    if len(node.value) == 1:
        # a block list without items would read as null
        end = node.end_mark.index if node.flow_style else node.value[0].end_mark.index
        return f"{text[: node.start_mark.index].rstrip()} []{text[end:]}"
    one = node.value[index]
    if node.flow_style:
        start, end = one.start_mark.index, one.end_mark.index
        if index + 1 < len(node.value):
            end = node.value[index + 1].start_mark.index
        else:
            # with the last item, the comma before it is removed too
            start = node.value[index - 1].end_mark.index
        return text[:start] + text[end:]
    start = text.rfind("\n", 0, one.start_mark.index) + 1
    end = text.find("\n", one.end_mark.index)
    return text[:start] + (text[end + 1 :] if end >= 0 else "")


def _remove_field(text: str, model: yaml.MappingNode, name: str) -> str | None:
    """`text` without the field `name` of `model`; None if its value is not a plain value on its own line."""
    index = next((i for i, (key, _) in enumerate(model.value) if key.value == name), None)
    # the first field may be on the line of the list's dash
    if not index:
        return None
    key, value = model.value[index]
    if not isinstance(value, yaml.ScalarNode) or value.style in ("|", ">"):
        return None
    if model.flow_style:
        return text[: model.value[index - 1][1].end_mark.index] + text[value.end_mark.index :]
    end = text.find("\n", value.end_mark.index)
    return text[: text.rfind("\n", 0, key.start_mark.index) + 1] + (text[end + 1 :] if end >= 0 else "")


def _is_expected(before: str, after: str, edit: Edit) -> bool:
    """Whether `after` is `before` with this edit and nothing else."""
    try:
        # an edit behind an alias would change every place that uses it
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(before)):
            return False
        data, result = yaml.safe_load(before), yaml.safe_load(after)
        owner = data
        for part in edit.path[:-1]:
            owner = owner[part]
        name = edit.path[-1]
        if edit.remove and edit.removed_entries:
            start = _find_sequence(owner[name], edit.removed_entries)
            if start is None:
                return False
            del owner[name][start : start + len(edit.removed_entries)]
        elif edit.remove:
            del owner[name]
        else:
            # parsed as stack.yaml is, so that both sides have the same types
            owner[name] = read_value(edit.value)
    except (yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError):
        return False
    return bool(data == result)
