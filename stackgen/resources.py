"""Where the templates lie: `templates/` in a checkout, inside the package in an installed wheel."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ["cache_dir", "env_example", "templates_dir"]


@cache
def templates_dir() -> Path:
    """The folder of all templates and image contexts."""
    package = Path(__file__).resolve().parent
    shipped = package / "_templates"
    return shipped if shipped.is_dir() else package.parent / "templates"


def cache_dir(name: str) -> str | None:
    """A private folder for what may be lost at any time; None where there can't be one."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = os.path.join(root, "stackgen", name)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:
        return None
    # code is loaded from it: a folder that somebody else may write is none of ours
    found = os.stat(path)
    own = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return path if own and os.access(path, os.W_OK) else None


def env_example() -> str:
    """The text of `.env.example`."""
    package = Path(__file__).resolve().parent
    shipped = package / "_templates" / "env.example"
    return (shipped if shipped.is_file() else package.parent / ".env.example").read_text("utf-8")
