"""The latest reports as Prometheus metrics; docs/exporter.md lists them.

Nothing is counted up here: each scrape is made from the latest reports, so a model that is gone leaves no series.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from stackgen import __version__
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.exporter.state import Seen, State

__all__ = ["registry_of", "render_metrics"]

# a server that lists names without end must not fill the memory of Prometheus
LONGEST_LABEL = 200
# metric, check, its figure, labels beside endpoint and model, help; two checks may call different things by one name
FIGURES: tuple[tuple[str, str, str, dict[str, str], str], ...] = (
    ("stackgen_ttft_seconds", "stream", "ttft_seconds", {}, "Time to first token of the latest stream"),
    ("stackgen_inter_token_seconds", "stream", "inter_token_p50_seconds", {"quantile": "0.5"}, "Time between tokens"),
    ("stackgen_inter_token_seconds", "stream", "inter_token_p99_seconds", {"quantile": "0.99"}, "Time between tokens"),
    ("stackgen_tokens_per_second", "stream", "tokens_per_second", {}, "Tokens a second of the latest stream"),
    ("stackgen_chunks_per_second", "stream", "chunks_per_second", {}, "The same of servers that count no tokens"),
    ("stackgen_load_latency_seconds", "load", "p50_seconds", {"quantile": "0.5"}, "Latency of requests sent at once"),
    ("stackgen_load_latency_seconds", "load", "p99_seconds", {"quantile": "0.99"}, "Latency of requests sent at once"),
    ("stackgen_load_tokens_per_second", "load", "tokens_per_second", {}, "Tokens a second of them together"),
)


class _Latest(Collector):
    def __init__(self, snapshot: Callable[[], Iterable[Seen]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        seen = tuple(self._snapshot())
        checked = [(one, one.report) for one in seen if one.report is not None]
        yield InfoMetricFamily("stackgen_build", "Version of stackgen", {"version": __version__})
        yield from _endpoints(seen)
        yield from _checks([report for _, report in checked])
        yield from _figures([report for _, report in checked])


def registry_of(state: State) -> CollectorRegistry:
    """A registry of its own, filled from `state` at each scrape."""
    return _registry(state.snapshot)


def render_metrics(report: Report) -> str:
    """The metrics of one round, as Prometheus' text format."""
    now = time.time()
    seen = [Seen(one.name, one.base_url, one, now, 1) for one in report.endpoints]
    return generate_latest(_registry(lambda: seen)).decode()


def _registry(snapshot: Callable[[], Iterable[Seen]]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Latest(snapshot))
    return registry


def _endpoints(seen: Iterable[Seen]) -> Iterator[Metric]:
    up = GaugeMetricFamily("stackgen_endpoint_up", "Whether no check failed in the latest round (1) or one did (0)",
                           labels=["endpoint", "base_url", "dialect"])  # fmt: skip
    last = GaugeMetricFamily("stackgen_last_check_timestamp_seconds", "When the latest round ended",
                             labels=["endpoint"])  # fmt: skip
    runs = CounterMetricFamily("stackgen_check_runs", "Rounds since the exporter began", labels=["endpoint"])
    took = GaugeMetricFamily("stackgen_check_round_duration_seconds", "How long the latest round took",
                             labels=["endpoint"])  # fmt: skip
    for one in seen:
        runs.add_metric([one.name], one.runs)
        # an endpoint that nobody looked at yet is neither up nor down
        if one.report is None or one.checked is None:
            continue
        up.add_metric([one.name, one.base_url, one.report.dialect], int(one.report.ok))
        last.add_metric([one.name], one.checked)
        took.add_metric([one.name], one.report.seconds)
    yield from (up, last, runs, took)


def _checks(reports: Iterable[EndpointReport]) -> Iterator[Metric]:
    labels = ["endpoint", "check", "model"]
    status = GaugeMetricFamily("stackgen_check_status", "1: passed, also with a warning; 0: failed", labels=labels)
    warning = GaugeMetricFamily("stackgen_check_warning", "1: works, and somebody should know of it", labels=labels)
    took = GaugeMetricFamily("stackgen_check_duration_seconds", "How long the check took", labels=labels)
    for report in reports:
        for (name, model), result in _worst(report).items():
            values = [report.name, name, model]
            status.add_metric(values, int(result.status != "fail"))
            warning.add_metric(values, int(result.status == "warn"))
            if result.seconds is not None:
                took.add_metric(values, result.seconds)
    yield from (status, warning, took)


def _figures(reports: Iterable[EndpointReport]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    for name, _, _, more, about in FIGURES:
        families.setdefault(name, GaugeMetricFamily(name, about, labels=["endpoint", "model", *more]))
    days = GaugeMetricFamily("stackgen_certificate_days", "Days until the server's certificate ends",
                             labels=["endpoint"])  # fmt: skip
    for report in reports:
        told: set[tuple[str, ...]] = set()
        for result in report.results:
            for name, check, figure, more, _ in FIGURES:
                values = [report.name, _label(result.model), *more.values()]
                # two checks that tell the same number would make one series twice, which Prometheus refuses whole
                if result.name == check and figure in result.figures and (name, *values) not in told:
                    told.add((name, *values))
                    families[name].add_metric(values, result.figures[figure])
            if "certificate_days" in result.figures and ("days",) not in told:
                told.add(("days",))
                days.add_metric([report.name], result.figures["certificate_days"])
    yield from (*families.values(), days)


def _worst(report: EndpointReport) -> dict[tuple[str, str], Result]:
    """The results by check and model, skipped ones left out; of two with the same labels the worse one."""
    rank = ("fail", "warn", "pass")
    found: dict[tuple[str, str], Result] = {}
    for result in report.results:
        key = (result.name, _label(result.model))
        if result.status in rank:
            before = found.get(key)
            if before is None or rank.index(result.status) < rank.index(before.status):
                found[key] = result
    return found


def _label(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
