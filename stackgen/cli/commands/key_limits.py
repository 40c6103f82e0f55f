"""Limits of keys that stack.yaml has, and the files of the gateway do not have yet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from stackgen.errors import StackgenError
from stackgen.stack.folder import Stack
from stackgen.stack.keys import MAX_NAMES

__all__ = ["find_pending", "require_rendered", "warn_pending"]

# the maps that stackgen.resolve.addons.gateway_keys writes
MAPS = {"rates.map", "concurrency.map", "expiries.map", "budgets.map", "restricted.map", "grants.map"}


def find_pending(stack: Stack, names: Iterable[str]) -> list[str]:
    """Those of `names` whose limits in the gateway's files are not those in stack.yaml.

    Empty if the stack has never been rendered, because its first start renders the files.
    """
    names, pending = dict.fromkeys(names), set[str]()
    files = [file for file in stack.files() if PurePosixPath(file.path).parent.name == "gateway"]
    if not any((stack.output / file.path).exists() for file in files):
        return []
    # a limit that was removed may have been the only one of its map
    texts = {file.path: file.text for file in files if PurePosixPath(file.path).name in MAPS}
    folders = {PurePosixPath(file.path).parent for file in files}
    for path in {*texts, *(str(folder / name) for folder in folders for name in MAPS)}:
        try:
            on_disk = (stack.output / path).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            on_disk = ""
        before, after = _entries(on_disk), _entries(texts.get(path, ""))
        pending |= {name for name in names if before.get(name) != after.get(name)}
    return [name for name in names if name in pending]


def _entries(text: str) -> dict[str, set[str]]:
    """The lines of a map by the name of their key: `NAME VALUE`, or `NAME:MODEL VALUE`."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if not line.startswith("#") and line.strip():
            found.setdefault(line.split(" ")[0].partition(":")[0], set()).add(line)
    return found


def require_rendered(stack: Stack, names: Iterable[str]) -> None:
    """Raises StackgenError if a new key for one of `names` would work without its limits."""
    if pending := find_pending(stack, names):
        raise StackgenError(
            f"stack.yaml sets limits for {_some(pending)}, but the gateway's files do not contain these limits yet, so "
            "a new key would work without limits. No key was created",
            f"run {_command(stack)}, and then run this command again",
        )


def warn_pending(stack: Stack, names: Iterable[str]) -> str:
    """A warning of limits that are not in effect, or ""."""
    if pending := find_pending(stack, names):
        return f"warning: the limits of {_some(pending)} are not in effect yet. Run {_command(stack)}"
    return ""


def _command(stack: Stack) -> str:
    if stack.site.is_cluster:
        return f"`stackgen up {stack.folder}`"
    return f"`stackgen update {stack.folder}` (if the stack does not run: `stackgen render {stack.folder}`)"


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (" and others" if len(names) > MAX_NAMES else "")
