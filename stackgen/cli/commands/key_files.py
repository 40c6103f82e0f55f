"""Files around `stackgen keys new`: a list of names or a table, and one file with key and base URL for each person."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular

__all__ = ["key_path", "read_names", "read_source", "require_new_files", "write_key_files"]


def read_source(path: str) -> str:
    """Returns the text of a file with names or keys. `-` is standard input. Raises StackgenError."""
    try:
        return sys.stdin.read() if path == "-" else read_regular(Path(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8"
        raise StackgenError(f"{path} can't be read: {reason}", "write one name on each line") from None


def read_names(path: str, text: str) -> list[str]:
    """Returns the names in the text of the file `path`, one a line, without comments (`#`).

    Raises StackgenError if there is no name.
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    # a name that is listed twice gets one key
    names = list(dict.fromkeys(line for line in lines if line))
    if not names:
        raise StackgenError(f"{path} contains no name", "write one name on each line")
    return names


def key_path(folder: str, name: str) -> Path:
    """Returns the path of the file for one person. The name ends in .key, which the stack's .gitignore lists."""
    return Path(folder) / f"{name}.key"


def require_new_files(folder: str, names: list[str]) -> None:
    """Raises StackgenError if `folder` can't contain new files, or one of the files exists.

    An existing file may be the only copy of another key.
    """
    # a new folder is created in the nearest folder that exists
    target = Path(folder)
    place = next(one for one in (target, *target.absolute().parents) if os.path.lexists(one))
    if not place.is_dir():
        raise StackgenError(f"{place} is not a folder", "choose another folder for --write-to")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StackgenError(f"you can't write files in {place}", "choose another folder for --write-to")
    if found := [name for name in names if key_path(folder, name).exists()]:
        raise StackgenError(f"{key_path(folder, found[0])} exists", "choose another folder for --write-to")


def write_key_files(folder: str, keys: Mapping[str, str], base_url: str) -> None:
    """Writes one file for each key, readable for you alone, with the variables that OpenAI's SDKs read.

    A new folder gets a .gitignore, so that git does not add the keys. After an error, no file is left.

    Source of the names: openai-python 2, `src/openai/_client.py` (OPENAI_API_KEY, OPENAI_BASE_URL).
    """
    written: list[Path] = []
    try:
        target = Path(folder)
        if not target.exists():
            target.mkdir(parents=True, mode=0o700)
            (target / ".gitignore").write_text("*\n")
        for name, key in keys.items():
            path = key_path(folder, name)
            # exclusive: never over a file that appeared meanwhile
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            written.append(path)
            with os.fdopen(handle, "w") as file:
                file.write(f"OPENAI_API_KEY={key}\nOPENAI_BASE_URL={base_url}\n")
    except BaseException:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
