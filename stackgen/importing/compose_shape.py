"""Finds values of the wrong type in a service of a Compose file, such as a list where Compose needs a mapping."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.errors import Mistake

__all__ = ["find_shape_mistakes"]

# key, or path of keys, and what Compose accepts there (Compose specification)
MAPPING, LIST, EITHER = "a mapping", "a list", "a mapping or a list"
SHAPES = {
    "deploy": MAPPING, "deploy.resources": MAPPING, "deploy.resources.reservations": MAPPING,
    "deploy.resources.reservations.devices": LIST, "deploy.resources.limits": MAPPING, "ports": LIST, "volumes": LIST,
    "environment": EITHER, "networks": EITHER, "labels": EITHER, "logging": MAPPING, "logging.options": MAPPING,
}  # fmt: skip
TYPES: dict[str, tuple[type, ...]] = {MAPPING: (dict,), LIST: (list,), EITHER: (dict, list)}
# these are words: text, or a list of texts
COMMANDS = ("command", "entrypoint")


def find_shape_mistakes(service: dict[str, Any], path: str) -> Iterator[Mistake]:
    """Yields an error for each value of the wrong type. `path` is the service's own."""
    for place, shape in SHAPES.items():
        value = _look_up(service, place)
        if value is not None and not isinstance(value, TYPES[shape]):
            yield Mistake(
                f"{path}.{place}",
                f"must be {shape}",
                hint=("indent the lines below this key as in Compose's documentation"),
            )
    for name in COMMANDS:
        value = service.get(name)
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value)):
            yield Mistake(f"{path}.{name}", "must be text or a list of texts", hint="put a word with `: ` into quotes")
    for index, one in enumerate(service.get("volumes") or () if isinstance(service.get("volumes"), list) else ()):
        if isinstance(one, list) or one is None:
            yield Mistake(f"{path}.volumes[{index}]", "must be text or a mapping")


def _look_up(service: dict[str, Any], place: str) -> Any:
    value: Any = service
    for part in place.split("."):
        if not isinstance(value, dict):
            # reported for the part above
            return None
        value = value.get(part)
    return value
