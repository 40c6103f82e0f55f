"""Clients' keys at the gateway: SHA-256 and name of each key in `gateway/keys.map`, where HAProxy looks them up.

A key is printed once and stored nowhere. The exception is the key in `.env` (`default`), which the stack's own commands
use. The map is state, as `.env` is: it is not rendered and not in the lock file. Each line is `SHA256 name`. With the
line `managed 1`, the gateway accepts only the keys in the map, and no longer the hash of .env's key.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular
from stackgen.render.write import write_atomically
from stackgen.spec import GatewaySpec
from stackgen.stack.envfile import API_KEY, decode_env, env_path, generate_key, read_api_key
from stackgen.stack.key_info import DEFAULT, KeyInfo

__all__ = [
    "DEFAULT", "MAP", "KeyInfo", "create_key", "create_keys", "digest", "forget_keys", "is_env_key_refused",
    "is_key_accepted", "list_keys", "load_keys", "read_map", "remove_key", "rotate_key",
]  # fmt: skip

MAP = "gateway/keys.map"
# read by haproxy.cfg
MANAGED_LINE = "managed 1"
HEADER = "# SHA-256 and name of each key, written by `stackgen keys`; with `managed 1` only these keys are valid"
# names that an error message lists
MAX_NAMES = 10
# the name becomes a label in metrics and a field in the gateway's log
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
ENTRY = re.compile(r"([0-9A-F]{64}) (\S+)")


def digest(key: str) -> str:
    """Returns the SHA-256 of a key in upper-case hex, as HAProxy's `sha2(256),hex` computes it.

    Source: HAProxy 3.2's configuration manual, 7.3.1 "Converters".
    """
    return hashlib.sha256(key.encode()).hexdigest().upper()


def load_keys(folder: Path) -> list[KeyInfo]:
    """Returns all names that have a key, in the order of the map. Without a map: `default`, with the key in .env."""
    try:
        env = digest(read_api_key(folder))
    # the map is valid without a key in .env
    except StackgenError:
        env = ""
    entries = _read_entries(folder)
    if entries is None:
        entries = [(env, DEFAULT)] if env else []
    hashes: dict[str, list[str]] = {}
    for one, name in entries:
        hashes.setdefault(name, []).append(one)
    return [KeyInfo(name, tuple(own), from_env=env in own) for name, own in hashes.items()]


def create_key(folder: Path, name: str) -> str:
    """Creates and returns the first key for `name`. Raises StackgenError if `name` has a key or is invalid."""
    return create_keys(folder, [name])[name]


def create_keys(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Creates the first key for each of `names`, and returns the keys by name.

    Raises StackgenError, and creates no key, if one of the names has a key or is invalid.
    """
    with _edit_entries(folder) as entries:
        owners = {owner for _, owner in entries}
        if taken := [name for name in names if name in owners]:
            raise StackgenError(
                f"{_first_names(taken)} already {'has a key' if len(taken) == 1 else 'have keys'}",
                f"`stackgen keys rotate {taken[0]}` adds another key, and the old key stays valid"
                if len(names) == 1
                else "no key was created. To create only the missing keys, add --missing",
            )
        if wrong := [name for name in names if not NAME.fullmatch(name)]:
            raise StackgenError(
                f"{wrong[0]!r} is not a valid name for a key",
                "use at most 32 lower-case letters, digits, - and _; start with a letter or digit",
            )
        keys = {name: generate_key() for name in names}
        entries += [(digest(key), name) for name, key in keys.items()]
    return keys


def rotate_key(folder: Path, name: str) -> str:
    """Adds and returns another key for `name`; the old keys stay valid. For `default`, .env gets the new key.

    Raises StackgenError for an unknown name, and for `default` if the environment overrides .env. Raises OSError if
    .env can't be read or written. After an error, nothing has changed.
    """
    # the environment overrides .env, so nothing would use the new key
    if name == DEFAULT and os.environ.get(API_KEY):
        raise StackgenError(f"{API_KEY} is set in the environment and overrides .env", f"run `unset {API_KEY}` first")
    key = generate_key()
    # read before the map is changed, so that an unreadable .env changes nothing
    env = _env_with_key(folder, key) if name == DEFAULT else ""
    with _edit_entries(folder) as entries:
        _require_name(entries, name)
        entries.append((digest(key), name))
    # .env is written after the map, because the key in .env must be valid at every moment
    if name == DEFAULT:
        try:
            write_atomically(env_path(folder), env, mode=0o600)
        # also on Ctrl-C, because nobody has seen the new key
        except BaseException:
            with _edit_entries(folder) as entries:
                entries.remove((digest(key), name))
            raise
    return key


def remove_key(folder: Path, name: str, older: bool = False) -> int:
    """Removes all keys for `name`, or with `older` all but the newest. Returns the number of removed keys.

    Raises StackgenError for an unknown name, and for `default` without `older`.
    """
    if name == DEFAULT and not older:
        raise StackgenError(
            "`default` can't be removed: it is the key in .env, which the stack's own commands use",
            "run `stackgen keys rotate default`, then `stackgen keys remove default --older`",
        )
    with _edit_entries(folder) as entries:
        _require_name(entries, name)
        removed = [entry for entry in entries if entry[1] == name]
        # new keys are appended, so the newest is last
        removed = removed[:-1] if older else removed
        gone = set(removed)
        entries[:] = [entry for entry in entries if entry not in gone]
    return len(removed)


def forget_keys(folder: Path, keys: Mapping[str, str]) -> None:
    """Takes back keys by name that have just been created, and that nobody has seen."""
    gone = {(digest(key), name) for name, key in keys.items()}
    with _edit_entries(folder) as entries:
        entries[:] = [entry for entry in entries if entry not in gone]


def list_keys(folder: Path, gateway: GatewaySpec | None) -> list[KeyInfo]:
    """Returns all names that have a key or are declared in stack.yaml, with their limits."""
    gateway = gateway or GatewaySpec()
    known = {one.name: one for one in load_keys(folder)}
    limits = {one.name: one for one in gateway.limited_keys}
    # `default` needs no entry in gateway.keys
    found = []
    for name in dict.fromkeys((*known, *limits)):
        one = known.get(name) or KeyInfo(name)
        if name == DEFAULT or name in limits:
            found.append(replace(one, declared=True, limits=limits.get(name)))
        else:
            found.append(replace(one, limits=gateway.key_defaults))
    return found


def is_env_key_refused(folder: Path) -> bool:
    """Whether the gateway accepts only the keys in the map, and the key in .env is not one of them.

    Raises StackgenError if the map can't be read.
    """
    _read_entries(folder)
    try:
        return not is_key_accepted(folder, read_api_key(folder))
    # a missing key is another error
    except StackgenError:
        return False


def is_key_accepted(folder: Path, key: str) -> bool:
    """Whether the gateway accepts `key`, as far as the map says: without a map, any key may be the one in use.

    Raises StackgenError if the map can't be read.
    """
    entries = _read_entries(folder)
    return entries is None or digest(key) in {one for one, _ in entries}


def read_map(folder: Path) -> dict[str, str]:
    """Returns the entries of the map as HAProxy reads them: the first word of each line, and the rest.

    Source: HAProxy 3.2's configuration manual, 7.3.1 "map".
    """
    lines = (line.strip() for line in _read_lines(folder))
    entries = (line.split(None, 1) for line in lines if line and not line.startswith("#"))
    return {entry[0]: entry[1] if len(entry) > 1 else "" for entry in entries}


def _require_name(entries: list[tuple[str, str]], name: str) -> None:
    names = list(dict.fromkeys(owner for _, owner in entries))
    if name not in names:
        close = get_close_matches(name, names, 1)
        raise StackgenError(
            f"{name} has no key",
            f"did you mean {close[0]}?"
            if close
            else f"only these names have a key: {_first_names(names)}. `stackgen keys new` creates a key",
        )


def _first_names(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more (`stackgen keys list`)" if more > 0 else "")


def _read_entries(folder: Path) -> list[tuple[str, str]] | None:
    """The entries (hash, name) of the map; None if there is no map, or the gateway does not use it yet."""
    lines = _read_lines(folder)
    if MANAGED_LINE not in lines:
        return None
    return [(match[1], match[2]) for match in map(ENTRY.fullmatch, lines) if match]


def _read_lines(folder: Path) -> list[str]:
    """The lines of the map, none if it does not exist. Raises StackgenError if it can't be read."""
    path = folder / MAP
    try:
        return read_regular(path).decode("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    raise StackgenError(
        f"{path} can't be read: {reason}",
        f"restore the file from a backup. If there is none, move it away and create each client's key again: without "
        f"{MAP}, only the key in .env is valid",
    )


@contextmanager
def _edit_entries(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """Yields the entries to edit, and writes the whole map if the block ends without an error."""
    path = folder / MAP
    path.parent.mkdir(parents=True, exist_ok=True)
    # the folder is locked, because write_atomically replaces the file
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        entries = _read_entries(folder)
        # from now on only the keys in the map are valid, so the map must contain the key in use
        if entries is None:
            entries = [(digest(read_api_key(folder)), DEFAULT)]
        before = list(entries)
        yield entries
        if entries != before:
            text = "\n".join([HEADER, MANAGED_LINE, *(f"{one} {name}" for one, name in entries)])
            # the gateway runs as another user and must read it; a hash does not reveal a key of 256 random bits
            write_atomically(path, text + "\n", mode=0o644)
    finally:
        os.close(handle)


def _env_with_key(folder: Path, key: str) -> str:
    """Returns the text of .env with `key` in place of the old key, or in a new line if .env contains no key."""
    path = folder / ".env"
    text = decode_env(read_regular(path), path) if path.exists() else ""
    pattern = rf"(?m)^([ \t]*(?:export[ \t]+)?{API_KEY}[ \t]*=).*$"
    # replaces all lines, because the last line counts if there are several
    changed, count = re.subn(pattern, lambda match: match[1] + key, text)
    if count:
        return changed
    return text + ("\n" if text and not text.endswith("\n") else "") + f"{API_KEY}={key}\n"
