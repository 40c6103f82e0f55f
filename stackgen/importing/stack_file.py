"""The text of the imported stack.yaml, the errors that stackgen finds in it, and the files of its folder."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stackgen.errors import Mistake, SpecError, StackgenError
from stackgen.importing.ledger import Secret
from stackgen.importing.source import Imported
from stackgen.plan import Plan
from stackgen.render.read import STACK_FILES, read_regular
from stackgen.render.write import write_atomically
from stackgen.resolve.hosts import resolve
from stackgen.spec import StackSpec
from stackgen.stack.copies import move_text
from stackgen.stack.envfile import API_KEY, create_env, env_path, read_env
from stackgen.stack.gitignore import complete_gitignore
from stackgen.stack.load import locate, parse_stack
from stackgen.stack.schema import MODELINE, stack_schema
from stackgen.targets.compose import ComposeSite

__all__ = ["build_text", "find_problems", "plan_of", "write_folder"]

# as in a Compose file, `$${NAME}` is the text `${NAME}`
VARIABLE = re.compile(r"\$(?=\{[A-Za-z_]\w*(?::?[-?+][^}]*)?\})")


def build_text(found: Imported, source: str) -> str:
    """The text of stack.yaml, with a comment for everything of the source that is not in it."""
    lines = [MODELINE, f"# Imported by `stackgen import` from {_comment(source)}"]
    lost = list(found.ledger.groups("dropped"))
    if lost:
        lines.append("# Not carried over:")
        lines += [f"#   {_comment(place)}: {_comment(text)} ({_comment(reason)})" for place, text, _, reason in lost]
    data = _escape(found.assembled.data)
    return "\n".join(lines) + "\n" + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def _comment(text: str) -> str:
    line = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    return line if len(line) <= 200 else f"{line[:200]}…"


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        return VARIABLE.sub("$$", value)
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    return [_escape(one) for one in value] if isinstance(value, list) else value


def plan_of(text: str, folder: Path) -> tuple[StackSpec, Plan]:
    """The validated stack and its plan. Raises SpecError."""
    spec = parse_stack(text, STACK_FILES[0])
    return spec, resolve(spec, ComposeSite(folder, folder), STACK_FILES[0])


def find_problems(text: str, folder: Path) -> list[Mistake]:
    """The errors that `stackgen render` would report for the imported stack."""
    try:
        plan_of(text, folder)
    except SpecError as error:
        return list(locate(error, text, STACK_FILES[0]).mistakes)
    return []


def write_folder(found: Imported, text: str, target: Path, force: bool) -> tuple[list[Path], list[str]]:
    """Writes stack.yaml, its JSON Schema, `.env` with the secrets of the source, and `.gitignore` to `target`.

    Returns the paths that were written, and notes. Raises StackgenError, before anything is written, if `target` has a
    stack file and `force` is false. Values that `.env` has already stay.
    """
    existing = next((target / name for name in STACK_FILES if (target / name).exists()), None)
    if existing and not force:
        raise StackgenError(f"{existing} already exists", "choose another folder, or overwrite the file with --force")
    path = existing or target / STACK_FILES[0]
    moved = move_text(text, found.folder, target) if found.folder.resolve() != target.resolve() else text
    write_atomically(path, moved)
    schema = target / "stack.schema.json"
    write_atomically(schema, json.dumps(stack_schema(), indent=2) + "\n")
    written, notes = [path, schema], list[str]()
    fresh = create_env(target)
    values: dict[str, str] = {}
    for secret in found.ledger.secrets:
        if secret.file:
            file = target / secret.file
            write_atomically(file, secret.value + "\n", mode=0o600)
            written.append(file)
            secret = replace(secret, value=f"./{secret.file}", file="")
        _add(secret, values, target, fresh, notes)
    if values:
        _write_env(target, values)
    if fresh or values:
        written.append(target / ".env")
    try:
        spec: StackSpec | None = parse_stack(moved, str(path))
    except SpecError:
        spec = None
    if spec is not None and complete_gitignore(target, spec):
        written.append(target / ".gitignore")
    return written, notes


def _add(secret: Secret, values: dict[str, str], folder: Path, fresh: bool, notes: list[str]) -> None:
    # a new .env has a generated key, and nobody uses it yet
    known = "" if fresh and secret.name == API_KEY else read_env(folder).get(secret.name, "")
    if known and known != secret.value:
        notes.append(f"{folder / '.env'} already contains another {secret.name}, which was not changed")
    elif re.search(r"['\n\r]", secret.value):
        notes.append(f"{secret.name} contains a quote or a line break: write it into {folder / '.env'} yourself")
    else:
        values[secret.name] = secret.value


def _write_env(folder: Path, values: dict[str, str]) -> None:
    path = env_path(folder)
    text = read_regular(path).decode("utf-8") if os.path.exists(path) else ""
    for name, value in values.items():
        # Compose replaces variables in other values: only single quotes keep a dollar sign
        line = f"{name}={value}" if re.fullmatch(r"[\w./:@+=,~-]*", value) else f"{name}='{value}'"
        text, count = re.subn(rf"(?m)^#?[ \t]*{re.escape(name)}=.*$", lambda _, line=line: line, text, count=1)  # type: ignore[misc]
        if not count:
            text += ("" if not text or text.endswith("\n") else "\n") + line + "\n"
    write_atomically(path, text, mode=0o600)
