"""The stack.yaml that `render` writes: from flags, or next to files rendered into another folder.

Its first line has the checksum of the lines below it, so `render` can replace the file unless a person has edited it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stackgen.resolve.extras import split_local_path
from stackgen.spec import is_local
from stackgen.stack.yaml_text import compose_node
from stackgen.targets.compose import format_scalar, quote

__all__ = ["is_copy", "is_unedited", "move_text", "name_host", "replace_paths", "sign"]

FIRST_LINE = "# Written by `stackgen render`, which replaces this file unless you have edited it. Checksum: "
# fields that are a path, or may be one: elsewhere, such a value is no path of this machine
PATHS = re.compile(r"storage\.path|ca_certificates|gateway\.tls\.(certificate|key)|endpoints\[\d+\]\.stack|"
                   r"models\[\d+\]\.(mounts\[\d+\]\.source|chat_template|models_dir)")  # fmt: skip
MAYBE_PATHS = re.compile(r"models\[\d+\]\.(model|speculative\.model|lora_adapters\[\d+\]\.path)")
ARGUMENTS = re.compile(r"models\[\d+\]\.extra_args\[\d+\]")


def sign(text: str) -> str:
    """Returns `text` with the first line that `is_unedited` looks for."""
    return f"{FIRST_LINE}{_digest(text)}\n{text}"


def is_copy(text: str) -> bool:
    """Whether `sign` returned `text`, or what it was before somebody edited it."""
    return text.startswith(FIRST_LINE)


def is_unedited(text: str) -> bool:
    """Whether `sign` returned `text`: nobody has edited it since."""
    first, _, rest = text.partition("\n")
    return first == f"{FIRST_LINE}{_digest(rest)}"


def move_text(text: str, folder: Path, target: Path) -> str:
    """Returns the stack file `text` of `folder` for the folder `target`: each local path leads to the same file."""

    def move(place: str, path: str) -> str | None:
        if os.path.isabs(os.path.expanduser(path)):
            return None
        path = os.path.abspath(folder / path)
        # only a relative path in an argument is mounted: an absolute one may be a path of the image
        if ARGUMENTS.fullmatch(place):
            path = os.path.relpath(path, target)
            path = path if path.startswith("../") else f"./{path}"
        return path

    return replace_paths(text, move)


def name_host(text: str, host: str) -> str:
    """Returns the stack file `text` for the folder of one of its `hosts`."""
    root = compose_node(text)
    at = root.start_mark.index
    if root.flow_style:
        return f"{text[: at + 1]}host: {format_scalar(host)}, {text[at + 1 :]}"
    return f"{text[:at]}# the machine of this folder\nhost: {format_scalar(host)}\n{text[at:]}"


def replace_paths(text: str, choose: Callable[[str, str], str | None]) -> str:
    """Returns the stack file `text` with other local paths.

    `choose` gets each place with a local path, such as `models[0].model`, and the path; None keeps the path.
    """
    # a node with an alias is found at several places, and is one text: a relative path is valid at each of them
    found = dict(sorted(_find_paths(compose_node(text), "", choose), reverse=True))
    for (start, end), path in sorted(found.items(), reverse=True):
        # an anchor or a tag is part of the node, and stays
        properties = re.match(r"(?:[&!]\S*\s+)*", text[start:end])
        # a block scalar includes the end of its last line
        rest = text[start + len(text[start:end].rstrip()) :]
        text = text[: start + len(properties[0] if properties else "")] + quote(path) + rest
    return text


def _find_paths(
    node: Any, place: str, choose: Callable[[str, str], str | None]
) -> Iterator[tuple[tuple[int, int], str]]:
    """Yields the start and the end of each local path in the text that `choose` changes, and the value to write."""
    if isinstance(node.value, str):
        flag, path = split_local_path(node.value) if ARGUMENTS.fullmatch(place) else ("", node.value)
        is_path = bool(ARGUMENTS.fullmatch(place) or PATHS.fullmatch(place))
        if MAYBE_PATHS.fullmatch(place):
            is_path = is_local(path)
        if is_path and path and (changed := choose(place, path)) is not None:
            yield (node.start_mark.index, node.end_mark.index), flag + changed
        return
    for key, value in enumerate(node.value):
        if isinstance(value, tuple):
            # `<<` merges the fields of another mapping into this one
            inner = place if value[0].value == "<<" else f"{place}.{value[0].value}".lstrip(".")
            yield from _find_paths(value[1], inner, choose)
        else:
            yield from _find_paths(value, f"{place}[{key}]", choose)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
