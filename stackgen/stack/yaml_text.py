"""Reads YAML text safely: rejects duplicate keys and alias bombs, and finds the place of each field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from stackgen.errors import Mistake, SpecError
from stackgen.stack.mistakes import shorten
from stackgen.stack.yaml_errors import describe_yaml_error

__all__ = ["YAML_ERRORS", "Loader", "Place", "compose_node", "find_places", "read_mapping", "read_value"]

MERGE = "tag:yaml.org,2002:merge"
# PyYAML's constructors can raise any exception: `!!bool x` is a KeyError, `? [a]` a TypeError
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
# line and column, counted from 1
Place = tuple[int, int]
MAX_DEPTH = 30
MAX_NODES = 300_000


# libyaml if PyYAML was built with it, for a fast start (docs/decisions/startup-cost.md)
class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's loader, but `<<: [*a, *b]` takes the values of `a` first, as YAML and Compose do."""

    # in PyYAML 6.0.4, the order depends on the length of a name (findings/pyyaml-merge-order.sh)
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        merged = [value for key, value in node.value if key.tag == MERGE]
        sources = [
            one for value in merged for one in (value.value if isinstance(value, yaml.SequenceNode) else [value])
        ]
        if all(isinstance(one, yaml.MappingNode) for one in sources):
            own = [pair for pair in node.value if pair[0].tag != MERGE]
            names = {_name(key) for key, _ in own}
            inherited: dict[Any, Any] = {}
            for one in sources:
                self.flatten_mapping(one)
                for pair in one.value:
                    inherited.setdefault(_name(pair[0]), pair)
            node.value = [pair for name, pair in inherited.items() if name not in names] + own
        # reads a key `=`, and refuses to merge anything else
        super().flatten_mapping(node)


def read_mapping(text: str, source: str) -> dict[str, Any]:
    """Returns the YAML mapping in `text`. Raises SpecError for invalid YAML, a duplicate key or another type."""
    node = None
    try:
        node = compose_node(text)
        duplicates = list(_find_duplicate_keys(node)) if node else []
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise SpecError(source, [describe_yaml_error(error, text)]) from None
    except YAML_ERRORS as error:
        dates = list(_find_impossible_dates(node, "")) if node else []
        raise SpecError(source, dates or [Mistake("", f"invalid YAML: {error}")]) from None
    # PyYAML accepts duplicate keys, so a second `gpus:` would silently replace the first
    if duplicates:
        hint = "remove one of the two keys, because YAML keeps only the last value"
        raise SpecError(
            source, [Mistake("", f"the key {shorten(k)} is set twice", hint, *place) for k, place in duplicates]
        )
    if not isinstance(data, dict):
        raise SpecError(source, [Mistake("", "must be a mapping with `name:` and `models:`, or with `endpoints:`")])
    return data


def read_value(text: str) -> Any:
    """Returns the YAML value in `text`. Raises one of YAML_ERRORS."""
    compose_node(text)
    return yaml.load(text, Loader=Loader)


def find_places(text: str) -> dict[str, Place]:
    """Returns the place of each path, such as `models[0].gpus`: where its name is written. Empty for invalid YAML.

    A path that comes from an anchor (`*name`, `<<: *name`) has the place in the anchor's own text.
    """
    places: dict[str, Place] = {}

    def walk(node: Any, path: str) -> None:
        places.setdefault(path, _place(node))
        if isinstance(node, yaml.MappingNode):
            # merged mappings first: their fields are fields of this one, unless it sets them itself
            for key, value in sorted(node.value, key=lambda pair: pair[0].value != "<<"):
                if key.value == "<<":
                    # of several merged mappings, the first one that has a field sets it
                    for one in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                        walk(one, path)
                    continue
                inner = f"{path}.{key.value}".lstrip(".")
                # the key's place, not the value's: a nested mapping starts a line below its key
                places[inner] = _place(key)
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, f"{path}[{index}]")

    try:
        node = compose_node(text)
    except YAML_ERRORS:
        return places
    if node:
        walk(node, "")
    return places


def _name(key: yaml.Node) -> Any:
    """What tells `key` from other keys. A key that is a list or mapping, whose value can't be hashed, is its own."""
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


def _place(node: Any) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def compose_node(text: str) -> Any:
    """Returns the root node of `text`. Raises ValueError if nesting or aliases (loops, bombs) create too many nodes."""
    root = yaml.compose(text, Loader=Loader)
    # checked before loading: aliases share one object, so a walk over loaded data with a loop would not end
    queue, count = [(root, 0)] if root else [], 0
    while queue:
        node, depth = queue.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise ValueError("the file is nested too deeply, has too many values, or its aliases expand without limit")
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                queue += [(inner, depth + 1) for inner in (item if isinstance(item, tuple) else (item,))]
    return root


def _find_duplicate_keys(node: Any) -> Iterator[tuple[str, Place]]:
    """Yields (key, place) for each key that its mapping has already."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            # a key may be a list or mapping (`? [a]`), and the value of such a node can't be hashed
            name = key.value if isinstance(key.value, str) else id(key)
            if name in seen:
                yield str(key.value), _place(key)
            seen.add(name)
            yield from _find_duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _find_duplicate_keys(item)


def _find_impossible_dates(node: Any, path: str) -> Iterator[Mistake]:
    """Yields a mistake for each value that YAML reads as a date, but that is no day of the calendar (2027-02-30)."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:timestamp":
            try:
                yaml.SafeLoader("").construct_object(node)
            except YAML_ERRORS:
                hint = "correct the date. If the value is text, put it in quotes"
                message = "invalid YAML: the value is read as a date, but the calendar has no such day"
                yield Mistake(path, message, hint, *_place(node))
        return
    for index, item in enumerate(node.value):
        if isinstance(item, tuple):
            inner = path if item[0].value == "<<" else f"{path}.{item[0].value}".lstrip(".")
            yield from _find_impossible_dates(item[1], inner)
        else:
            yield from _find_impossible_dates(item, f"{path}[{index}]")
