"""`.env`: the keys of a stack. Written once with mode 0600, read for the check, never printed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.resources import env_example

__all__ = ["API_KEY", "GENERATED", "complete_env", "create_env", "key_of", "new_key", "read_env"]

API_KEY = "STACKGEN_API_KEY"
# what is made up where it is missing: nobody but the stack itself, or its first user, needs to know it
GENERATED = (API_KEY, "STACKGEN_ENGINE_KEY", "GRAFANA_PASSWORD", "WEBUI_SECRET_KEY")


def new_key() -> str:
    """A key with 256 bits of randomness."""
    return f"sk-{secrets.token_urlsafe(32)}"


def create_env(folder: Path) -> bool:
    """Writes `folder/.env` from `.env.example` with a new key; False where one is there, which is left alone."""
    path = folder / ".env"
    if path.exists():
        return False
    text = re.sub(rf"(?m)^({'|'.join(GENERATED)})=$", lambda match: f"{match[1]}={new_key()}", env_example())
    write_atomically(path, text, mode=0o600)
    return True


def complete_env(folder: Path, names: Iterable[str]) -> list[str]:
    """Adds those of `names` that can be made up and are missing in `folder/.env`; returns which."""
    path, known = folder / ".env", read_env(folder)
    missing = [name for name in GENERATED if name in set(names) and name != API_KEY and not known.get(name)]
    if missing:
        text = _text(path) if path.exists() else ""
        text = re.sub(rf"(?m)^({'|'.join(missing)})=[ \t]*\n", "", text)
        lines = "".join(f"{name}={new_key()}\n" for name in missing)
        write_atomically(path, text + ("\n" if text and not text.endswith("\n") else "") + lines, mode=0o600)
    return missing


def read_env(folder: Path) -> dict[str, str]:
    """The variables of `folder/.env`, overridden by the process's own environment, as Compose does it.

    Raises StackgenError for a file that is no UTF-8.
    """
    values: dict[str, str] = {}
    path = folder / ".env"
    if path.is_file():
        # not splitlines(): a form feed or a line separator of Unicode may stand in a value
        for line in _text(path).split("\n"):
            match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*", line)
            if match:
                values[match[1]] = _unquoted(match[2])
    return values | {name: value for name, value in os.environ.items() if name in values or name == API_KEY}


def key_of(folder: Path, name: str = API_KEY) -> str:
    """The API key of the stack in `folder`. Raises StackgenError where there is none."""
    key = read_env(folder).get(name, "")
    if not key:
        raise StackgenError(f"{folder / '.env'} holds no {name}", "`stackgen init` writes a .env with a new key")
    return key


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        # Windows editors begin a file with a mark, which Compose takes off too
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    # outside the except block: the exception holds the file, and with it the keys
    raise StackgenError(f"{path} line {line} is not UTF-8", "save it as UTF-8: Compose can't read it either")


def _unquoted(text: str) -> str:
    if quoted := re.fullmatch(r"(['\"])(.*?)\1(?:\s+#.*)?", text):
        return quoted[2]
    return re.sub(r"\s+#.*$", "", text)
