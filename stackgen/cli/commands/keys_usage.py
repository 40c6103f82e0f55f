"""`stackgen keys usage`: requests and tokens of each key, as the running gateway has counted them."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import note, print_data
from stackgen.errors import StackgenError
from stackgen.runtimes.compose.key_usage import read_usage
from stackgen.stack.folder import Stack
from stackgen.stack.key_counts import KeyUsage, add_counts
from stackgen.stack.keys import KeyInfo, list_keys

__all__ = ["usage"]

TITLES = ("key", "requests", "rejected", "failed", "prompt tokens", "answer tokens", "today", "per day", "valid until")


def usage(args: Namespace, stack: Stack) -> int:
    """Prints the report. Raises StackgenError if the gateway does not run."""
    pods, found = _read(args, stack)
    if not pods:
        raise StackgenError("the gateway is not running, so nothing is counted", f"run `stackgen up {args.stack}`")
    infos = list_keys(stack.folder, stack.spec.gateway)
    counted = any(one.tokens_today is not None for one in found.values())
    rows = [_row(info, found.get(info.name, KeyUsage())) for info in infos]
    print_data(args, {"counts_tokens": counted, "keys": [_to_json(info, found) for info in infos]}, _table(rows))
    if not counted:
        note("tokens are not counted: set count_tokens to true under gateway, or tokens_per_day for a key")
    note("requests: since the last reload of the gateway. Tokens: since its start. A day begins at midnight UTC")
    if pods > 1:
        note(f"these are the sums of {pods} pods of the gateway, and each of them applies the limits to its own counts")
    return 0


def _read(args: Namespace, stack: Stack) -> tuple[int, dict[str, KeyUsage]]:
    """Returns how many gateways run, and the sums of their counts."""
    if not stack.site.is_cluster:
        counts = read_usage(stack.plan)
        return (0, {}) if counts is None else (1, counts)
    # most stacks run on one machine
    from stackgen.cli.commands.cluster_access import connect_to
    from stackgen.runtimes.kubernetes.keys import read_counts

    pods = read_counts(connect_to(args, stack), stack.plan)
    return len(pods), add_counts(pods)


def _row(info: KeyInfo, counts: KeyUsage) -> tuple[str, ...]:
    numbers = (counts.requests, counts.errors, counts.failures, counts.prompt_tokens, counts.completion_tokens,
               counts.tokens_today, info.limits and info.limits.tokens_per_day)  # fmt: skip
    last = info.limits.expires if info.limits else None
    end = f"{last} (expired)" if info.is_expired else str(last or "-")
    return info.name, *("-" if number is None else f"{number:,}" for number in numbers), end


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(TITLES, *rows, strict=True)]
    # names and days on the left, numbers on the right
    return [
        "  ".join(
            cell.ljust(width) if column in (0, len(TITLES) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (TITLES, *rows)
    ]


def _to_json(info: KeyInfo, found: dict[str, KeyUsage]) -> dict[str, object]:
    rules = info.to_json()
    kept = {name: rules[name] for name in ("name", "declared", "tokens_per_day", "expires")}
    return kept | found.get(info.name, KeyUsage()).to_json()
