"""`stackgen check`: the report of all endpoints."""

from __future__ import annotations

from argparse import Namespace

from stackgen.commands.output import print_report

__all__ = ["check"]


def check(words: Namespace) -> int:
    """`stackgen check`: the report of all endpoints."""
    from stackgen.check.options import Options
    from stackgen.endpoints import from_words
    from stackgen.probe import run_check

    return print_report(words, run_check(from_words(words), Options(timeout=words.timeout), words.wait))
