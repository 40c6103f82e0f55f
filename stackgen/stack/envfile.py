"""The `.env` of a stack with its keys: written with mode 0600, read by `stackgen check`, never printed."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular
from stackgen.render.write import remove_leftovers, write_atomically
from stackgen.resources import read_env_example

__all__ = [
    "API_KEY", "GENERATED_SECRETS", "HUB_TOKENS", "add_values", "complete_env", "create_env", "decode_env", "env_file",
    "env_path", "generate_key", "has_run", "read_api_key", "read_env", "warn_hub_token",
]  # fmt: skip

API_KEY = "STACKGEN_API_KEY"
# generated if missing: only the stack itself, or its first user, needs to know these values
GENERATED_SECRETS = (API_KEY, "STACKGEN_ENGINE_KEY", "GRAFANA_PASSWORD", "WEBUI_SECRET_KEY", "WEBUI_ADMIN_PASSWORD")
# in .env: the path of the file with the token of the Hugging Face Hub
TOKEN_FILE = "HF_TOKEN_FILE"  # noqa: S105
# the names under which people know this token
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
# what a start, or a key for a client, leaves in the folder
TRACES = (".stackgen.applied.json", "gateway/keys.map")


def generate_key() -> str:
    """Returns a new random key of 256 bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def create_env(folder: Path, without: Collection[str] = ()) -> bool:
    """Writes `folder/.env` from `.env.example` with new keys. Returns False, and changes nothing, if .env exists.

    The keys `without` stay empty.
    """
    if (folder / ".env").exists():
        return False
    names = "|".join(name for name in GENERATED_SECRETS if name not in without)
    text = read_env_example()
    if names:
        text = re.sub(rf"(?m)^({names})=$", lambda match: f"{match[1]}={generate_key()}", text)
    # the mode is set when the file is created, so nobody else can open the file even for a moment
    write_atomically(env_path(folder), text, mode=0o600)
    return True


def env_path(folder: Path) -> Path:
    """Returns the file to write for `folder/.env`: the target of a symbolic link, so that the link stays a link."""
    path = Path(os.path.realpath(folder / ".env"))
    # a killed command may have left keys next to the target, where no other command looks
    remove_leftovers(path.parent)
    return path


def has_run(folder: Path) -> bool:
    """Whether the stack in `folder` has been started, or a client has got a key: somebody may use its keys."""
    return any((folder / name).exists() for name in TRACES)


def complete_env(folder: Path, names: Iterable[str], without: Collection[str] = ()) -> list[str]:
    """Generates the secrets among `names` that `folder/.env` lacks. Returns the names that were added.

    The secrets `without` are not generated, and the API key only for a stack that has never run.
    """
    known, wanted = read_env(folder), set(names).difference(without)
    # clients of a stack that has run may still use its lost key, and a new key would lock them out
    if has_run(folder):
        wanted.discard(API_KEY)
    missing = [name for name in GENERATED_SECRETS if name in wanted and not known.get(name)]
    add_values(folder, {name: generate_key() for name in missing})
    return missing


def add_values(folder: Path, values: Mapping[str, str]) -> None:
    """Writes `values` into `folder/.env`, each in place of its empty line, if there is one.

    Raises StackgenError for a value that no line of the file can contain.
    """
    if not values:
        return
    text = re.sub(rf"(?m)^(?:{'|'.join(values)})=[ \t]*\n", "", _read_text(folder))
    lines = "".join(f"{name}={_quote(value)}\n" for name, value in values.items())
    text += "\n" if text and not text.endswith("\n") else ""
    write_atomically(env_path(folder), text + lines, mode=0o600)


def read_env(folder: Path) -> dict[str, str]:
    """Returns the variables of `folder/.env`. The process's environment overrides them, as in Compose.

    Raises StackgenError if the file can't be read or is not UTF-8.
    """
    values: dict[str, str] = {}
    # not splitlines(): a value may contain a form feed or a Unicode line separator
    for line in _read_text(folder).split("\n"):
        match = re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*", line)
        if match:
            values[match[1]] = _unquote(match[2])
    # also look up an API key that .env does not contain: containers can get it from the environment alone
    return values | {name: value for name, value in os.environ.items() if name in values or name == API_KEY}


def env_file(folder: Path, value: str) -> Path:
    """Returns the path of the file that a variable such as HF_TOKEN_FILE names, in the stack of `folder`.

    As in Compose, `~` is the user's home, and other paths are relative to the stack's folder (measured with v2.40).
    """
    return folder / os.path.expanduser(value)


def warn_hub_token(folder: Path) -> str:
    """Returns a warning if the download can't read the Hub token that `folder/.env` names; otherwise ""."""
    values = read_env(folder)
    if named := values.get(TOKEN_FILE):
        return _warn_token_file(folder, named)
    name = next((one for one in HUB_TOKENS if values.get(one)), None)
    if name is None:
        return ""
    return (
        f"{folder / '.env'} sets {name}, which the download does not read: put the token into a file (`hf auth login` "
        "writes ~/.cache/huggingface/token), and write HF_TOKEN_FILE=PATH instead"
    )


def _warn_token_file(folder: Path, named: str) -> str:
    path = env_file(folder, named)
    try:
        if path.is_file() or path.is_char_device():
            return ""
    # such a text is no path
    except (OSError, ValueError):
        pass
    # the warning must not contain a token
    wrong = "contains a token, but must contain the path of a file with it"
    wrong = wrong if named.startswith("hf_") else f"names {named}, which is no file"
    return (
        f"{folder / '.env'}: {TOKEN_FILE} {wrong}. `hf auth login` writes ~/.cache/huggingface/token. A relative path "
        "begins at the stack's folder"
    )


def read_api_key(folder: Path, name: str = API_KEY) -> str:
    """Returns the API key of the stack in `folder`. Raises StackgenError if it has none."""
    key = read_env(folder).get(name, "")
    if not key:
        hint = f"`stackgen render {folder}` writes a .env with a new key (for a new stack: `stackgen init`)"
        if (folder / ".env").exists():
            hint = f"restore the line {name}=… in the file. If nobody has a key yet, move the file away: {hint}"
        raise StackgenError(f"{folder / '.env'} does not set {name}", hint)
    return key


def decode_env(data: bytes, path: Path) -> str:
    """Returns the text of `data`, the bytes of the .env at `path`. Raises StackgenError if they are not UTF-8."""
    try:
        # Windows editors write a byte order mark, which Compose skips too
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
    # outside of the except block, because UnicodeDecodeError contains the file's bytes, including the keys
    raise StackgenError(
        f"{path} line {line} is not UTF-8", "save the file as UTF-8: neither stackgen nor Compose reads other encodings"
    )


def _read_text(folder: Path) -> str:
    path = folder / ".env"
    try:
        return decode_env(read_regular(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        reason = error.strerror
    raise StackgenError(
        f"{path} can't be read: {reason}",
        "stackgen and Compose read keys from a file with this name. Make it a file that you can read, or move it away",
    )


def _quote(value: str) -> str:
    if re.fullmatch(r"[\w./:@%+=,-]*", value, re.ASCII):
        return value
    # Compose takes everything between single quotes as it is
    if "'" in value or "\n" in value:
        raise StackgenError("a value contains a quote or a line break", "write the line into .env yourself")
    return f"'{value}'"


def _unquote(text: str) -> str:
    if quoted := re.fullmatch(r"(['\"])(.*?)\1(?:\s+#.*)?", text):
        return quoted[2]
    return re.sub(r"\s+#.*$", "", text)
