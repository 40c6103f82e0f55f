"""The version of stackgen that rendered a stack: the first line of `stackgen.lock`, which `sha256sum -c` ignores."""

from __future__ import annotations

import re

from stackgen import __version__

__all__ = ["VERSION_LINE", "describe_version"]

VERSION_LINE = f"# rendered by stackgen {__version__}\n"
# the last version whose lock files have no such line
FIRST_VERSION = "0.1.0"


def describe_version(lock: str) -> str:
    """Describes the version that rendered the files, from the text of their lock file, with what to do.

    Empty if this version rendered the files, or if there is no lock file.
    """
    if not lock.strip():
        return ""
    match = re.match(r"# rendered by stackgen (\d{1,6}(?:\.\d{1,6}){1,3})\n", lock)
    version = match[1] if match else FIRST_VERSION
    if version == __version__:
        return ""
    is_newer = _numbers(version) > _numbers(__version__)
    advice = (
        "use that version, or check the changes with `stackgen render --diff` first"
        if is_newer
        else "see docs/how-to/upgrade.md"
    )
    kind = "newer" if is_newer else "older"
    return f"the files were rendered by stackgen {version}, which is {kind} than this version ({__version__}): {advice}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
