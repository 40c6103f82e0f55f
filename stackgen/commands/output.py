"""Printing of all commands: data goes to stdout, all else to stderr."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from stackgen.check.report import Report

__all__ = ["leave", "note", "print_data", "print_report"]


def print_data(words: Namespace, data: Any, lines: list[str]) -> None:
    """`data` as JSON where `--json` was given, else `lines`."""
    if words.json:
        print(json.dumps(data, indent=2))
    elif lines:
        print("\n".join(lines))


def print_report(words: Namespace, report: Report, verbose: bool = False) -> int:
    """A report as text or JSON; the exit code that it means."""
    from stackgen.check.text import as_text

    if words.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print(as_text(report, color=sys.stdout.isatty(), verbose=verbose))
    return report.exit_code


def leave(code: int) -> NoReturn:
    """Ends the program at once: Python would wait for threads that a silent server holds, up to their time-out."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def note(line: str) -> None:
    """A line for the person at the terminal."""
    print(line, file=sys.stderr)
