"""Clients' keys at the gateway: their SHA-256 and names in `gateway/keys.map`, which HAProxy looks them up in.

A key itself is shown once and stands in no file, but for the one of `.env` (`default`), which the stack's own commands
use. The map is state, as `.env` is: it is not rendered, and not in the lock. Its lines are `SHA256 name`; the line
`managed 1` tells the gateway that the map alone counts, and no longer the hash of .env's key.
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
from stackgen.stack.envfile import API_KEY, key_of, new_key

__all__ = ["DEFAULT", "MAP", "KeyInfo", "digest", "known_keys", "listed", "make_key", "remove_key", "rotate_key"]

MAP = "gateway/keys.map"
DEFAULT = "default"
MANAGED = "managed 1"
ABOUT = "# SHA-256 of a key, and its name; written by `stackgen keys`. `managed 1`: these alone count"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
LINE = re.compile(r"([0-9A-F]{64}) (\S+)")


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A name and the hashes of its keys, the oldest first. `from_env`: .env's key is one of them."""

    name: str
    hashes: tuple[str, ...] = ()
    from_env: bool = False
    declared: bool = False
    limits: KeySpec | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        limits = self.limits
        return {
            "name": self.name,
            "keys": [one[:8] for one in self.hashes],
            "from_env": self.from_env,
            "declared": self.declared,
            "requests_per_minute": limits and limits.requests_per_minute,
            "concurrent_requests": limits and limits.concurrent_requests,
        }

    def line(self) -> str:
        """A line for a person: how many keys, the beginning of each hash, limits, and what is odd."""
        told = [f"{len(self.hashes)} key{'' if len(self.hashes) == 1 else 's'}"]
        told += [one[:8] for one in self.hashes]
        for limit, unit in (("requests_per_minute", "requests a minute"), ("concurrent_requests", "requests at once")):
            if value := self.limits and getattr(self.limits, limit):
                told.append(f"{value} {unit}")
        if not self.hashes:
            told.append(f"`stackgen keys new {self.name}` makes it")
        elif not self.declared:
            told.append("not in gateway.keys: no limits, no metrics")
        if self.name == DEFAULT and self.hashes and not self.from_env:
            told.append("none of them is that of .env: `stackgen keys rotate default`")
        return f"{self.name:32}  " + "  ".join(told)


def digest(key: str) -> str:
    """A key as the gateway knows it: its SHA-256 in upper-case hex, as HAProxy's `sha2(256),hex` gives it.

    Source: HAProxy 3.2's configuration manual, 7.3.1 "Converters".
    """
    return hashlib.sha256(key.encode()).hexdigest().upper()


def known_keys(folder: Path) -> list[KeyInfo]:
    """All names that have a key, in the order of the map; before there is a map, `default` with that of .env."""
    try:
        env = digest(key_of(folder))
    except StackgenError:
        env = ""
    entries = _read(folder)
    if entries is None:
        entries = [(env, DEFAULT)] if env else []
    names = dict.fromkeys(name for _, name in entries)
    hashes = {name: tuple(one for one, owner in entries if owner == name) for name in names}
    return [KeyInfo(name, hashes[name], env in hashes[name]) for name in names]


def make_key(folder: Path, name: str) -> str:
    """A new key for a new `name`; raises StackgenError where it has one."""
    with _changing(folder) as entries:
        if any(owner == name for _, owner in entries):
            raise StackgenError(
                f"{name} has a key already", f"`stackgen keys rotate {name}` adds another, and the old one stays valid"
            )
        if not NAME.fullmatch(name):
            raise StackgenError(
                f"{name!r} is no name for a key", "lower-case letters, digits, - and _; at most 32; not - or _ first"
            )
        key = new_key()
        entries.append((digest(key), name))
    return key


def rotate_key(folder: Path, name: str) -> str:
    """A second key for `name`, the old ones stay valid. `default`'s takes its place in .env as well.

    Raises OSError where .env can't be read or written; then nothing has changed.
    """
    if name == DEFAULT and os.environ.get(API_KEY):
        raise StackgenError(f"{API_KEY} is set in the environment, which goes before .env", f"unset {API_KEY} first")
    key = new_key()
    env = _with_key(folder, key) if name == DEFAULT else ""
    with _changing(folder) as entries:
        _known(entries, name)
        entries.append((digest(key), name))
    # after the map: what stands in .env must be valid at every moment
    if name == DEFAULT:
        try:
            write_atomically(folder / ".env", env, mode=0o600)
        except BaseException:
            with _changing(folder) as entries:
                entries.remove((digest(key), name))
            raise
    return key


def remove_key(folder: Path, name: str, older: bool = False) -> int:
    """Takes all keys of `name` away, or with `older` all but its newest; how many. 0: it had but one."""
    if name == DEFAULT and not older:
        raise StackgenError(
            "default is the key of .env, which the stack's own commands use",
            "`stackgen keys rotate default` replaces it, then `stackgen keys remove default --older`",
        )
    with _changing(folder) as entries:
        _known(entries, name)
        gone = [entry for entry in entries if entry[1] == name]
        gone = gone[:-1] if older else gone
        entries[:] = [entry for entry in entries if entry not in gone]
    return len(gone)


def _known(entries: list[tuple[str, str]], name: str) -> None:
    names = list(dict.fromkeys(owner for _, owner in entries))
    if name not in names:
        close = get_close_matches(name, names, 1)
        raise StackgenError(
            f"{name} has no key",
            f"did you mean {close[0]}?" if close else f"known are: {', '.join(names)}; `stackgen keys new` makes one",
        )


def _read(folder: Path) -> list[tuple[str, str]] | None:
    """The map's entries; None where there is no map that counts."""
    try:
        lines = (folder / MAP).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    if MANAGED not in lines:
        return None
    return [(match[1], match[2]) for match in map(LINE.fullmatch, lines) if match]


@contextmanager
def _changing(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """The entries, written back whole when the block ends well; two commands at once take turns."""
    path = folder / MAP
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        entries = _read(folder)
        if entries is None:  # from now on the map alone counts, so the key in use must stand in it
            entries = [(digest(key_of(folder)), DEFAULT)]
        before = list(entries)
        yield entries
        if entries != before:
            text = "\n".join([ABOUT, MANAGED, *(f"{one} {name}" for one, name in entries)])
            # the gateway's user, who is nobody here, must read it; no key can be found from a hash of 256 random bits
            write_atomically(path, text + "\n", mode=0o644)
    finally:
        os.close(handle)


def _with_key(folder: Path, key: str) -> str:
    """The text of .env with another key; where it has none, or is gone, with a line more."""
    path = folder / ".env"
    text = path.read_text("utf-8") if path.exists() else ""
    pattern = rf"(?m)^([ \t]*(?:export[ \t]+)?{API_KEY}[ \t]*=).*$"
    # the last one counts where it stands twice
    changed, count = re.subn(pattern, lambda match: match[1] + key, text)
    if count:
        return changed
    return text + ("\n" if text and not text.endswith("\n") else "") + f"{API_KEY}={key}\n"


def listed(folder: Path, declared: Sequence[KeySpec]) -> list[KeyInfo]:
    """All names that have a key or are declared in stack.yaml, with their limits."""
    known = {one.name: one for one in known_keys(folder)}
    limits = {one.name: one for one in declared}
    return [
        replace(known.get(name, KeyInfo(name)), declared=name == DEFAULT or name in limits, limits=limits.get(name))
        for name in dict.fromkeys((*known, *limits))
    ]
