"""Words of `stackgen check`."""

from __future__ import annotations

from stackgen.parsers.base import Adder, endpoint_words

__all__ = ["add_check"]


def add_check(add: Adder) -> None:
    """`check`: which endpoints, how deep, how to tell."""
    check = add("check", "prove that endpoints answer: reachable, guarded, right model, right structure")
    endpoint_words(check)
    check.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait that long for readiness")
