"""The `.env` of a stack with its keys: written with mode 0600, read by `stackgen check`, never printed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.resources import read_env_example

__all__ = ["API_KEY", "GENERATED_SECRETS", "complete_env", "create_env", "generate_key", "read_api_key", "read_env"]

API_KEY = "STACKGEN_API_KEY"
# generated if missing: only the stack itself, or its first user, needs to know these values
GENERATED_SECRETS = (API_KEY, "STACKGEN_ENGINE_KEY", "GRAFANA_PASSWORD", "WEBUI_SECRET_KEY")


def generate_key() -> str:
    """Returns a new random key of 256 bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def create_env(folder: Path) -> bool:
    """Writes `folder/.env` from `.env.example` with new keys. Returns False, and changes nothing, if .env exists."""
    path = folder / ".env"
    if path.exists():
        return False
    text = re.sub(
        rf"(?m)^({'|'.join(GENERATED_SECRETS)})=$", lambda match: f"{match[1]}={generate_key()}", read_env_example()
    )
    # the mode is set when the file is created, so nobody else can open the file even for a moment
    write_atomically(path, text, mode=0o600)
    return True


def complete_env(folder: Path, names: Iterable[str]) -> list[str]:
    """Generates the secrets among `names` that `folder/.env` lacks. Returns the names that were added."""
    path, known = folder / ".env", read_env(folder)
    # not the API key: clients use it, so a new key would lock them out
    missing = [name for name in GENERATED_SECRETS if name in set(names) and name != API_KEY and not known.get(name)]
    if missing:
        text = _read_utf8(path) if path.exists() else ""
        text = re.sub(rf"(?m)^({'|'.join(missing)})=[ \t]*\n", "", text)
        lines = "".join(f"{name}={generate_key()}\n" for name in missing)
        write_atomically(path, text + ("\n" if text and not text.endswith("\n") else "") + lines, mode=0o600)
    return missing


def read_env(folder: Path) -> dict[str, str]:
    """Returns the variables of `folder/.env`. The process's environment overrides them, as in Compose.

    Raises StackgenError if the file is not UTF-8.
    """
    values: dict[str, str] = {}
    path = folder / ".env"
    if path.is_file():
        # not splitlines(): a value may contain a form feed or a Unicode line separator
        for line in _read_utf8(path).split("\n"):
            match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*", line)
            if match:
                values[match[1]] = _unquote(match[2])
    # also look up an API key that .env does not contain: containers can get it from the environment alone
    return values | {name: value for name, value in os.environ.items() if name in values or name == API_KEY}


def read_api_key(folder: Path, name: str = API_KEY) -> str:
    """Returns the API key of the stack in `folder`. Raises StackgenError if it has none."""
    key = read_env(folder).get(name, "")
    if not key:
        raise StackgenError(f"{folder / '.env'} does not set {name}", "`stackgen init` writes a .env with a new key")
    return key


def _read_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        # Windows editors write a byte order mark, which Compose skips too
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    # outside of the except block, because UnicodeDecodeError contains the file's bytes, including the keys
    raise StackgenError(
        f"{path} line {line} is not UTF-8", "save the file as UTF-8, because Compose can't read it either"
    )


def _unquote(text: str) -> str:
    if quoted := re.fullmatch(r"(['\"])(.*?)\1(?:\s+#.*)?", text):
        return quoted[2]
    return re.sub(r"\s+#.*$", "", text)
