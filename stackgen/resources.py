"""Where the templates lie: `templates/` in a checkout, inside the package in an installed wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["env_example", "templates_dir"]


@cache
def templates_dir() -> Path:
    """The folder of all templates and image contexts."""
    package = Path(__file__).resolve().parent
    shipped = package / "_templates"
    return shipped if shipped.is_dir() else package.parent / "templates"


def env_example() -> str:
    """The text of `.env.example`."""
    package = Path(__file__).resolve().parent
    shipped = package / "_templates" / "env.example"
    return (shipped if shipped.is_file() else package.parent / ".env.example").read_text("utf-8")
