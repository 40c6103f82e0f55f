"""The arguments of `stackgen bench`."""

from __future__ import annotations

import argparse
import re

from stackgen.cli.parsers.base import Subcommands, parse_seconds
from stackgen.cli.parsers.completers import complete_with, models

__all__ = ["add_bench"]

# more would measure the load generator and not the stack
MAX_LEVELS, MAX_STREAMS, MAX_RATE = 20, 1000, 1000.0


def add_bench(subcommands: Subcommands) -> None:
    """Adds `stackgen bench`."""
    bench = subcommands.add(
        "bench", "measure throughput and latency of a running stack under load, with GuideLLM", stack=False
    )
    bench.add_argument(
        "places", nargs="*", metavar="STACK | compare A B",
        help="stack.yaml or its folder (default: the current folder). With `compare`: two runs, each a stack (its "
        "newest run), the folder of a run or its result.json",
    )  # fmt: skip
    bench.add_argument("--stack", default=".", help="another way to pass stack.yaml or its folder")
    complete_with(bench.add_argument("--model", help="name of the model, if the stack serves several"), models)
    load = bench.add_argument_group("load").add_mutually_exclusive_group()
    load.add_argument(
        "--concurrency", type=_parse_streams, metavar="LIST",
        help="numbers of requests in flight, separated by commas (default: 1,2,4,8,16)",
    )  # fmt: skip
    load.add_argument(
        "--rates", type=_parse_rates, metavar="LIST",
        help="requests per second, separated by commas. Requests arrive at random times (Poisson), even while "
        "earlier requests wait for their answers",
    )  # fmt: skip
    requests = bench.add_argument_group("requests")
    requests.add_argument(
        "--seconds", type=parse_seconds, default=30.0,
        help="seconds for each value of --concurrency or --rates (default: 30)",
    )  # fmt: skip
    requests.add_argument(
        "--requests", type=_parse_count, metavar="COUNT",
        help="maximum number of requests for each value of --concurrency or --rates",
    )  # fmt: skip
    requests.add_argument(
        "--prompt-tokens", type=_parse_count, default=256, metavar="COUNT",
        help="length of the prompts in tokens (default: 256)",
    )  # fmt: skip
    requests.add_argument(
        "--output-tokens", type=_parse_count, default=64, metavar="COUNT",
        help="length of the answers in tokens (default: 64)",
    )  # fmt: skip
    requests.add_argument(
        "--prompts", metavar="FILE",
        help="a JSON Lines file whose lines have the field `prompt`, instead of synthetic prompts; needs no tokenizer",
    )  # fmt: skip
    requests.add_argument(
        "--tokenizer", metavar="FOLDER|ID",
        help="tokenizer for synthetic prompts: a folder, or an id on the Hub (default: the model's)",
    )  # fmt: skip
    limits = bench.add_argument_group(
        "limits (SLA): bench reports the highest load within these limits. The exit code is 1 if no value of "
        "--concurrency or --rates stays within them"
    )
    limits.add_argument(
        "--max-ttft", type=_parse_duration, metavar="TIME", help="p95 of the time to first token, for example 0.5s"
    )
    limits.add_argument(
        "--max-itl", type=_parse_duration, metavar="TIME",
        help="inter-token latency: the p95 of the requests' mean values, for example 50ms",
    )  # fmt: skip
    limits.add_argument(
        "--max-latency", type=_parse_duration, metavar="TIME", help="p95 of the total time of a request"
    )
    bench.add_argument("--html", metavar="FILE", help="with `compare`: write the page to FILE")
    bench.add_argument(
        "--runtime", choices=("compose", "process"),
        help="compose: containers. process: local processes (default: the runtime that `up` used)",
    )  # fmt: skip


def _parse_streams(text: str) -> tuple[float, ...]:
    found = _parse_list(text)
    if any(one != int(one) or one > MAX_STREAMS for one in found):
        raise argparse.ArgumentTypeError(f"{text!r}: use whole numbers up to {MAX_STREAMS}, such as 1,2,4")
    return found


def _parse_rates(text: str) -> tuple[float, ...]:
    found = _parse_list(text)
    if any(one > MAX_RATE for one in found):
        raise argparse.ArgumentTypeError(f"{text!r}: use at most {MAX_RATE:g} requests per second")
    return found


def _parse_list(text: str) -> tuple[float, ...]:
    try:
        found = sorted({float(one) for one in text.replace(",", " ").split()})
    except ValueError:
        found = []
    # also false for nan
    if not 0 < len(found) <= MAX_LEVELS or not all(0 < one < float("inf") for one in found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of 1 to {MAX_LEVELS} numbers above 0, such as 1,2,4")
    return tuple(found)


def _parse_count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parse_duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s)?", text.strip(), re.ASCII)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 0.5s, 500ms or 2")
    return seconds
