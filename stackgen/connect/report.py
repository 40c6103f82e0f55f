"""What `stackgen connect` prints: text to copy, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stackgen.connect.problems import Problem
from stackgen.connect.recipe import API_PATHS, Recipe
from stackgen.connect.settings import Connection, Settings, export_line

__all__ = ["list_rows", "problem_lines", "settings_json", "settings_lines"]


def list_rows(recipes: Sequence[Recipe]) -> list[tuple[str, str, str, str]]:
    """One row a client: name, version, APIs, and what it is."""
    return [(one.name, one.version, ", ".join(one.needs), one.about) for one in recipes]


def settings_lines(recipe: Recipe, settings: Settings, connection: Connection, served_by: str) -> list[str]:
    """The settings as lines of shell, with comments; files are printed between comments."""
    model = f"model {connection.model}, " if connection.model else ""
    verb = "measured" if recipe.evidence == "run" else "taken from its documentation"
    lines = [f"# {recipe.title} {recipe.version} ({verb} {recipe.measured}): {model}served by {served_by}",
             f"# base URL {recipe.base_url}: {_url(recipe, connection)}", "", settings.key_line]  # fmt: skip
    lines += [export_line(name, value) for name, value in settings.environment]
    for path, text in settings.files:
        lines += ["", f"# file {path}", text.rstrip("\n")]
    if settings.command:
        lines += ["", "# use it", settings.command]
    return lines


def problem_lines(recipe: Recipe, problems: Sequence[Problem]) -> list[str]:
    """One line a problem, with the field to set, then the notes of the recipe."""
    lines = []
    for problem in problems:
        where = f" (in stack.yaml: {problem.field})" if problem.field else ""
        lines.append(f"{problem.level}: {problem.text}{where}")
    return [*lines, *(f"note: {text}" for text in recipe.notes)]


def settings_json(
    recipe: Recipe, settings: Settings, connection: Connection, problems: Sequence[Problem]
) -> dict[str, Any]:
    """The settings as plain data; see docs/how-to/connect-a-client.md."""
    return {
        "client": recipe.name,
        "title": recipe.title,
        "version": recipe.version,
        "measured": recipe.measured.isoformat(),
        "evidence": recipe.evidence,
        "apis": [API_PATHS[api] for api in recipe.needs],
        "model": connection.model or None,
        "base_url": _url(recipe, connection),
        "key": {"name": connection.key_name, "command": settings.key_line},
        "environment": dict(settings.environment),
        "files": [{"path": path, "text": text} for path, text in settings.files],
        "command": settings.command or None,
        "run": settings.run or None,
        "works": not any(problem.level == "does not work" for problem in problems),
        "problems": [
            {"level": problem.level, "text": problem.text, "field": problem.field or None} for problem in problems
        ],
        "notes": list(recipe.notes),
    }


def _url(recipe: Recipe, connection: Connection) -> str:
    return connection.base_url if recipe.base_url == "with /v1" else connection.root_url
