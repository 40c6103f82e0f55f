"""Requests and tokens of each key: the gateway's metrics, and the sum of several gateways."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

__all__ = ["KeyUsage", "add_counts", "is_complete", "parse_counts"]

SAMPLE = re.compile(r'(?m)^stackgen_gateway_key_(\w+)\{key="([^"]+)"\} (\d+)$')
METRICS = {
    "requests_total": "requests", "errors_total": "errors", "failures_total": "failures",
    "prompt_tokens_total": "prompt_tokens", "completion_tokens_total": "completion_tokens",
    "tokens_today": "tokens_today",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """The counts of one key. None: not counted. `errors` were rejected (4xx), `failures` failed (5xx)."""

    requests: int | None = None
    errors: int | None = None
    failures: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens_today: int | None = None

    def to_json(self) -> dict[str, int | None]:
        """Returns plain data for `--json`."""
        return asdict(self)


def is_complete(response: str) -> bool:
    """Whether the HTTP response of a gateway has the metrics, from its first line on."""
    return response.startswith("HTTP/1.") and " 200 " in response.split("\n", 1)[0]


def parse_counts(text: str) -> dict[str, KeyUsage]:
    """Returns the counts of each key in the metrics of one gateway."""
    found: dict[str, dict[str, int]] = {}
    for metric, key, value in SAMPLE.findall(text):
        if metric in METRICS:
            found.setdefault(key, {})[METRICS[metric]] = int(value)
    return {key: KeyUsage(**counts) for key, counts in found.items()}


def add_counts(gateways: Iterable[Mapping[str, KeyUsage]]) -> dict[str, KeyUsage]:
    """Returns the sums of several gateways. A count is None if no gateway counts it."""
    found: dict[str, KeyUsage] = {}
    for counts in gateways:
        for key, usage in counts.items():
            found[key] = _add(found.get(key, KeyUsage()), usage)
    return found


def _add(first: KeyUsage, second: KeyUsage) -> KeyUsage:
    sums: dict[str, int | None] = {}
    for name in (one.name for one in fields(KeyUsage)):
        given = [value for value in (getattr(first, name), getattr(second, name)) if value is not None]
        sums[name] = sum(given) if given else None
    return KeyUsage(**sums)
