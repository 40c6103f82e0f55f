"""YAML files that Compose doesn't read, so `$` isn't doubled."""

from __future__ import annotations

from typing import Any

from stackgen.plan import EnvRef
from stackgen.targets import compose

__all__ = ["format_scalar"]


def format_scalar(value: Any) -> str:
    """Formats `value` as a YAML scalar. Raises TypeError for other values, and for EnvRefs, which need Compose."""
    if isinstance(value, EnvRef):
        raise TypeError(f"only Compose can read this value from .env: {value!r}")
    printed = compose.format_scalar(value)
    if isinstance(value, compose.RawYaml):
        return printed
    # the scalars for Compose differ only in the doubled `$`, and text with `$` is always quoted
    return compose.quote(value) if isinstance(value, str) and "$" in value else printed
