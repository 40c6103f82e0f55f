"""Reads YAML text safely: rejects duplicate keys and alias bombs, and finds the line of each field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from stackgen.errors import Mistake, SpecError

__all__ = ["YAML_ERRORS", "find_lines", "read_mapping", "read_value"]

# libyaml if PyYAML was built with it, for a fast start (docs/decisions/startup-cost.md)
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# PyYAML's constructors can raise any exception: `!!bool x` is a KeyError, `? [a]` a TypeError
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
MAX_DEPTH = 30
MAX_NODES = 300_000


def read_mapping(text: str, source: str) -> dict[str, Any]:
    """Returns the YAML mapping in `text`. Raises SpecError for invalid YAML, a duplicate key or another type."""
    try:
        node = _compose(text)
        duplicates = list(_find_duplicate_keys(node)) if node else []
        data = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        # since libyaml 0.2.6 (PyYAML 6.0.4) the parser itself stops at deep nesting, before `_compose` can
        problem = problem.replace("exceeded maximum nesting depth", "nested too deeply")
        line = mark.line + 1 if mark else None
        raise SpecError(source, [Mistake("", f"invalid YAML: {problem}", line=line)]) from None
    except YAML_ERRORS as error:
        raise SpecError(source, [Mistake("", f"invalid YAML: {error}")]) from None
    # PyYAML accepts duplicate keys, so a second `gpus:` would silently replace the first
    if duplicates:
        hint = "remove one of the two, because YAML keeps only the last value"
        raise SpecError(source, [Mistake("", f"the key {k!r} is set twice", hint=hint, line=n) for k, n in duplicates])
    if not isinstance(data, dict):
        raise SpecError(source, [Mistake("", "must be a mapping with `name:` and `models:`, or with `endpoints:`")])
    return data


def read_value(text: str) -> Any:
    """Returns the YAML value in `text`. Raises one of YAML_ERRORS."""
    _compose(text)
    return yaml.load(text, Loader=Loader)


def find_lines(text: str) -> dict[str, int]:
    """Returns the line (counted from 1) of each path, such as `models[0].gpus`. Empty for invalid YAML."""
    lines: dict[str, int] = {}

    def walk(node: Any, path: str) -> None:
        lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = f"{path}.{key.value}".lstrip(".")
                # the key's line, not the value's: a nested mapping starts a line below its key
                lines[inner] = key.start_mark.line + 1
                walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, f"{path}[{index}]")

    try:
        node = _compose(text)
    except YAML_ERRORS:
        return lines
    if node:
        walk(node, "")
    return lines


def _compose(text: str) -> Any:
    """Returns the root node of `text`. Raises ValueError if nesting or aliases (loops, bombs) create too many nodes."""
    root = yaml.compose(text, Loader=Loader)
    # checked before loading: aliases share one object, so a walk over loaded data with a loop would not end
    queue, count = [(root, 0)] if root else [], 0
    while queue:
        node, depth = queue.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise ValueError("nested too deeply, or its aliases expand without limit")
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                queue += [(inner, depth + 1) for inner in (item if isinstance(item, tuple) else (item,))]
    return root


def _find_duplicate_keys(node: Any) -> Iterator[tuple[str, int]]:
    """Yields (key, line) for each key that its mapping has already."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            # a key may be a list or mapping (`? [a]`), and the value of such a node can't be hashed
            name = key.value if isinstance(key.value, str) else id(key)
            if name in seen:
                yield str(key.value), key.start_mark.line + 1
            seen.add(name)
            yield from _find_duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _find_duplicate_keys(item)
