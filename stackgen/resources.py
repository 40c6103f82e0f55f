"""Finds the templates (`templates/` in a checkout, inside of the package in a wheel) and the cache folder."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ["cache_dir", "read_env_example", "templates_dir"]


@cache
def templates_dir() -> Path:
    """Returns the folder with all templates and image build contexts."""
    package = Path(__file__).resolve().parent
    shipped = package / "_templates"
    return shipped if shipped.is_dir() else package.parent / "templates"


def cache_dir(name: str) -> str | None:
    """Returns a private cache folder, created if necessary. None if it can't be created or is not private."""
    # XDG Base Directory Specification: caches are in $XDG_CACHE_HOME, by default ~/.cache
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(root, "stackgen", name)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:
        return None
    # compiled templates are code and are loaded from here, so nobody else may write to it
    info = os.stat(path)
    is_private = info.st_uid == os.getuid() and not info.st_mode & 0o022
    return path if is_private and os.access(path, os.W_OK) else None


def read_env_example() -> str:
    """Returns the text of `.env.example`."""
    # without the dot in a wheel
    package = Path(__file__).resolve().parent
    shipped = package / "_templates" / "env.example"
    return (shipped if shipped.is_file() else package.parent / ".env.example").read_text("utf-8")
