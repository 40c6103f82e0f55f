"""Standard streams that can't encode every character, such as a terminal in ISO 8859-1: no output fails there."""

from __future__ import annotations

import codecs
import io
import os
import sys

__all__ = ["use_safe_encoding"]

# what the commands themselves print; anything else, such as a model's answer, becomes `?`
ASCII = {"…": "...", "─": "-", "–": "-", "├": "|", "└": "`", "×": "x", "→": "->", "✓": "+", "✔": "+", "✗": "x",
         "✕": "x", "✘": "x", "●": "*"}  # fmt: skip


def use_safe_encoding() -> None:
    """Replaces characters that standard output or error can't encode. A file or pipe gets UTF-8.

    The variable PYTHONIOENCODING, if it is set, decides which encoding a file or pipe gets.
    """
    codecs.register_error("stackgen", _replace)
    for stream in (sys.stdout, sys.stderr):
        # a test or another program may have put another object in its place
        if not isinstance(stream, io.TextIOWrapper):
            continue
        # rendered files, JSON and HTML are UTF-8, and so are the files that a shell redirects them to
        if not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="utf-8", errors="stackgen")
        else:
            stream.reconfigure(errors="stackgen")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(ASCII.get(one, "?") for one in text), error.end
