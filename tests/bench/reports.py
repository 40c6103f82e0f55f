"""Reports of GuideLLM 0.8.1 as its classes `GenerativeBenchmarksReport` and `GenerativeBenchmark` write them.

Only the fields that stackgen reads, with values that a real report can't have on demand: failures and exact numbers.
"""

from __future__ import annotations

from typing import Any

__all__ = ["failed_level", "level", "report"]


def level(
    load: float, ttft: float, itl: float, *, errors: tuple[str, ...] = (), kind: str = "streams"
) -> dict[str, Any]:
    """A level with ten successful requests; times are milliseconds."""
    return _level({kind: load}, 10, errors, ttft, itl, 4.0 * load)


def failed_level(load: float, *errors: str) -> dict[str, Any]:
    """A level without a successful request: GuideLLM writes distributions of zeros."""
    return _level({"streams": load}, 0, errors, 0.0, 0.0, 0.0)


def report(*levels: dict[str, Any]) -> dict[str, Any]:
    """A complete report."""
    return {"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "benchmarks": list(levels)}


def _level(
    strategy: dict[str, Any], succeeded: int, errors: tuple[str, ...], ttft: float, itl: float, rate: float
) -> dict[str, Any]:
    def values(mean: float) -> dict[str, Any]:
        return {"successful": {"mean": mean, "count": succeeded, "percentiles": {
            "p50": mean, "p95": mean * 2, "p99": mean * 3}}}  # fmt: skip

    return {
        "config": {"strategy": strategy},
        "metrics": {
            "request_totals": {"successful": succeeded, "errored": len(errors), "incomplete": 1},
            "requests_per_second": values(rate / 16), "output_tokens_per_second": values(rate),
            "time_to_first_token_ms": values(ttft), "inter_token_latency_ms": values(itl),
            "request_latency": values((ttft + 16 * itl) / 1000),
        },
        "requests": {"successful": [], "errored": [{"info": {"error": one}} for one in errors]},
    }  # fmt: skip
