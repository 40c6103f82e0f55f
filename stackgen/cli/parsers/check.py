"""Words of `stackgen check`."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Adder, endpoint_words

__all__ = ["add_check", "profile_words"]


def add_check(add: Adder) -> None:
    """`check`: which endpoints, how deep, how to tell."""
    check = add("check", "prove that endpoints answer: reachable, guarded, right model, right structure, fast enough")
    endpoint_words(check)
    profile_words(check)
    limits = check.add_argument_group("limits that turn figures into failures")
    limits.add_argument("--max-ttft", type=float, metavar="SECONDS", help="time to the first token of a stream")
    limits.add_argument("--min-tokens-per-second", type=float, metavar="N", help="speed of a stream")
    when = check.add_argument_group("when")
    when.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait that long for readiness")
    when.add_argument("--watch", type=float, nargs="?", const=10.0, metavar="SECONDS",
                      help="check again each SECONDS (default: 10) until Ctrl-C, and print changes only")  # fmt: skip
    when.add_argument("--rounds", type=int, metavar="N", help="with --watch: stop after so many")
    output = check.add_argument_group("output")
    output.add_argument("-v", "--verbose", action="store_true", help="print the evidence of passed checks as well")
    output.add_argument("--junit", metavar="FILE", help="also write JUnit XML, for CI; - is stdout")
    output.add_argument("--html", metavar="FILE", help="also write a self-contained page; - is stdout")
    output.add_argument("--schema", action="store_true", help="print the JSON Schema of --json, and check nothing")


def profile_words(command: argparse.ArgumentParser) -> None:
    """How deep a check looks: a profile, or single checks."""
    depth = command.add_argument_group("how deep")
    profile = depth.add_mutually_exclusive_group()
    profile.add_argument("--quick", dest="profile", action="store_const", const="quick", default="default",
                         help="alive, key, models, one token: for a probe every few seconds")  # fmt: skip
    profile.add_argument("--deep", dest="profile", action="store_const", const="deep",
                         help="everything: features, wrong requests, many at once")  # fmt: skip
    depth.add_argument("--select", type=_names, default=(), metavar="NAMES",
                       help="only these checks and what they need, e.g. chat,stream")  # fmt: skip
    depth.add_argument("--skip", type=_names, default=(), metavar="NAMES", help="not these checks")
    depth.add_argument("--list", action="store_true", help="print all checks and their profiles, and check nothing")
    depth.add_argument("--load", type=int, default=4, metavar="N", help="requests at once in `load` (default: 4)")
    depth.add_argument("--workers", type=int, default=32, metavar="N", help="endpoints at once (default: 32)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(",", " ").split() if name)
