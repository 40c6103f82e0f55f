"""The arguments of `stackgen check`."""

from __future__ import annotations

import argparse

from stackgen.cli.parsers.base import Subcommands, add_context_argument, add_endpoint_arguments, split_names
from stackgen.cli.parsers.completers import checks, complete_with

__all__ = ["add_check"]


def add_check(subcommands: Subcommands) -> None:
    """Adds `stackgen check`."""
    check = subcommands.add(
        "check",
        "check that endpoints are reachable and protected, serve the right model, and give valid responses fast enough",
    )
    # --timeout limits the whole check, as `curl --max-time` limits a whole transfer
    add_endpoint_arguments(check, timeout="--request-timeout")
    add_context_argument(check)
    _add_profile_arguments(check)
    limits = check.add_argument_group("performance limits")
    # no defaults: which speed is too slow depends on the model and the GPU
    limits.add_argument(
        "--max-ttft", type=float, metavar="SECONDS", help="fail if the time to first token (TTFT) exceeds SECONDS"
    )
    limits.add_argument(
        "--min-tokens-per-second", type=float, metavar="N", help="fail if a stream has fewer than N tokens per second"
    )
    timing = check.add_argument_group("timing")
    timing.add_argument(
        "--timeout", type=float, metavar="SECONDS",
        help="time limit for all checks of an endpoint together (default: none). Checks that have not run by "
        "then are reported as not checked, and the endpoint counts as failed. SECONDS is also the default "
        "of --request-timeout",
    )  # fmt: skip
    timing.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="wait up to SECONDS for the endpoints to be ready"
    )
    timing.add_argument(
        "--watch", type=float, nargs="?", const=10.0, metavar="SECONDS",
        help="repeat the check every SECONDS (default: 10) until Ctrl-C, and print only changes",
    )  # fmt: skip
    timing.add_argument("--rounds", type=int, metavar="N", help="only with `--watch`: stop after N rounds")
    output = check.add_argument_group("output")
    output.add_argument("-v", "--verbose", action="store_true", help="also print the evidence of passed checks")
    output.add_argument("--junit", metavar="FILE", help="also write JUnit XML for CI to FILE (`-`: standard output)")
    output.add_argument(
        "--html", metavar="FILE", help="also write a self-contained HTML page to FILE (`-`: standard output)"
    )
    output.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of the output of `--json`, and run no checks"
    )


def _add_profile_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the options that select checks: a profile, or checks by name."""
    depth = command.add_argument_group("selection of checks")
    # one dest for both flags, so that the default profile needs no flag of its own
    profile = depth.add_mutually_exclusive_group()
    profile.add_argument(
        "--quick", dest="profile", action="store_const", const="quick", default="default",
        help="check only liveness, API key, models and one generated token (suitable as a probe every few seconds)",
    )  # fmt: skip
    profile.add_argument(
        "--deep", dest="profile", action="store_const", const="deep",
        help="run all checks, including features, invalid requests and concurrency",
    )  # fmt: skip
    # no choices: the names of the checks would have to be imported for `--help`
    complete_with(depth.add_argument(
        "--select", type=split_names, default=(), metavar="NAMES",
        help="run only these checks and the checks that they depend on, for example `chat,stream`",
    ), checks, several=True)  # fmt: skip
    skip = depth.add_argument("--skip", type=split_names, default=(), metavar="NAMES", help="skip these checks")
    complete_with(skip, checks, several=True)
    depth.add_argument("--list", action="store_true", help="list all checks and their profiles, and run no checks")
    depth.add_argument(
        "--load", type=int, default=4, metavar="N", help="concurrent requests in the `load` check (default: 4)"
    )
    depth.add_argument(
        "--max-tokens", type=int, default=32, metavar="N",
        help="token limit of each answer, except with `--quick` (default: 32; for models that reason or refuse this "
        "limit, 512 or more)",
    )  # fmt: skip
    depth.add_argument(
        "--workers", type=int, default=32, metavar="N", help="number of endpoints to check concurrently (default: 32)"
    )
