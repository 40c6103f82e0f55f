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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stackgen.errors import StackgenError
from stackgen.render.write import write_atomically
from stackgen.spec.addons import KeySpec
from stackgen.stack.envfile import API_KEY, generate_key, read_api_key

__all__ = ["DEFAULT", "MAP", "KeyInfo", "create_key", "digest", "list_keys", "load_keys", "remove_key", "rotate_key"]

MAP = "gateway/keys.map"
DEFAULT = "default"
# read by haproxy.cfg
MANAGED_LINE = "managed 1"
HEADER = "# SHA-256 and name of each key, written by `stackgen keys`; with `managed 1` only these keys are valid"
# the name becomes a label in metrics and a field in the gateway's log
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
ENTRY = re.compile(r"([0-9A-F]{64}) (\S+)")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A name and the hashes of its keys, oldest first.

    `from_env`: the key in .env is one of them. `declared`: the name is in gateway.keys, or `default`.
    """

    name: str
    hashes: tuple[str, ...] = ()
    from_env: bool = False
    declared: bool = False
    limits: KeySpec | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data for `--json`."""
        limits = self.limits
        return {
            "name": self.name,
            # eight characters are enough to distinguish keys
            "keys": [one[:8] for one in self.hashes],
            "from_env": self.from_env,
            "declared": self.declared,
            "requests_per_minute": limits and limits.requests_per_minute,
            "concurrent_requests": limits and limits.concurrent_requests,
        }

    def to_line(self) -> str:
        """Returns one line of text: the number of keys, the start of each hash, limits, and anything unusual."""
        parts = [f"{len(self.hashes)} key{'' if len(self.hashes) == 1 else 's'}"]
        parts += [one[:8] for one in self.hashes]
        limits = (("requests_per_minute", "requests per minute"), ("concurrent_requests", "concurrent requests"))
        for limit, unit in limits:
            if value := self.limits and getattr(self.limits, limit):
                parts.append(f"{value} {unit}")
        if not self.hashes:
            parts.append(f"`stackgen keys new {self.name}` creates a key")
        elif not self.declared:
            parts.append("not in gateway.keys: no limits, no metrics")
        if self.name == DEFAULT and self.hashes and not self.from_env:
            parts.append("none of these keys is the key in .env: run `stackgen keys rotate default`")
        return f"{self.name:32}  " + "  ".join(parts)


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
    names = dict.fromkeys(name for _, name in entries)
    hashes = {name: tuple(one for one, owner in entries if owner == name) for name in names}
    return [KeyInfo(name, hashes[name], from_env=env in hashes[name]) for name in names]


def create_key(folder: Path, name: str) -> str:
    """Creates and returns the first key for `name`. Raises StackgenError if `name` has a key or is invalid."""
    with _edit_entries(folder) as entries:
        if any(owner == name for _, owner in entries):
            raise StackgenError(
                f"{name} already has a key",
                f"`stackgen keys rotate {name}` adds another key, and the old key stays valid",
            )
        if not NAME.fullmatch(name):
            raise StackgenError(
                f"{name!r} is not a valid name for a key",
                "use at most 32 lower-case letters, digits, - and _; start with a letter or digit",
            )
        key = generate_key()
        entries.append((digest(key), name))
    return key


def rotate_key(folder: Path, name: str) -> str:
    """Adds and returns another key for `name`; the old keys stay valid. For `default`, .env gets the new key.

    Raises StackgenError for an unknown name, and for `default` if the environment overrides .env. Raises OSError if
    .env can't be read or written. After an error, nothing has changed.
    """
    # the environment overrides .env, so nothing would use the new key
    if name == DEFAULT and os.environ.get(API_KEY):
        raise StackgenError(f"{API_KEY} is set in the environment and overrides .env", f"unset {API_KEY} first")
    key = generate_key()
    # read before the map is changed, so that an unreadable .env changes nothing
    env = _env_with_key(folder, key) if name == DEFAULT else ""
    with _edit_entries(folder) as entries:
        _require_name(entries, name)
        entries.append((digest(key), name))
    # .env is written after the map, because the key in .env must be valid at every moment
    if name == DEFAULT:
        try:
            write_atomically(folder / ".env", env, mode=0o600)
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
        entries[:] = [entry for entry in entries if entry not in removed]
    return len(removed)


def list_keys(folder: Path, declared: Sequence[KeySpec]) -> list[KeyInfo]:
    """Returns all names that have a key or are declared in stack.yaml, with their limits."""
    known = {one.name: one for one in load_keys(folder)}
    limits = {one.name: one for one in declared}
    # `default` needs no entry in gateway.keys
    return [
        replace(known.get(name, KeyInfo(name)), declared=name == DEFAULT or name in limits, limits=limits.get(name))
        for name in dict.fromkeys((*known, *limits))
    ]


def _require_name(entries: list[tuple[str, str]], name: str) -> None:
    names = list(dict.fromkeys(owner for _, owner in entries))
    if name not in names:
        close = get_close_matches(name, names, 1)
        raise StackgenError(
            f"{name} has no key",
            f"did you mean {close[0]}?"
            if close
            else f"names with a key: {', '.join(names)}; `stackgen keys new` creates a key",
        )


def _read_entries(folder: Path) -> list[tuple[str, str]] | None:
    """The entries (hash, name) of the map; None if there is no map, or the gateway does not use it yet."""
    try:
        lines = (folder / MAP).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    if MANAGED_LINE not in lines:
        return None
    return [(match[1], match[2]) for match in map(ENTRY.fullmatch, lines) if match]


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
    text = path.read_text("utf-8") if path.exists() else ""
    pattern = rf"(?m)^([ \t]*(?:export[ \t]+)?{API_KEY}[ \t]*=).*$"
    # replaces all lines, because the last line counts if there are several
    changed, count = re.subn(pattern, lambda match: match[1] + key, text)
    if count:
        return changed
    return text + ("\n" if text and not text.endswith("\n") else "") + f"{API_KEY}={key}\n"
