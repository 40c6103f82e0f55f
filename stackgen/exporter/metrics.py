"""The latest reports as Prometheus metrics; docs/reference/exporter-metrics.md lists them.

Every scrape contains only the latest reports, so a removed model leaves no stale series.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from stackgen import __version__
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.exporter.state import EndpointState, State

__all__ = ["build_registry", "render_metrics"]

# a server that lists very long model names must not fill the memory of Prometheus
MAX_LABEL_LENGTH = 200
# metric, check, figure, extra labels, help; the check is part of the key, because two checks may share a figure's name
# gauges with a quantile label, not summaries: each value comes from one stream and can't be aggregated
FIGURES: tuple[tuple[str, str, str, dict[str, str], str], ...] = (
    ("stackgen_ttft_seconds", "stream", "ttft_seconds", {}, "Time to first token (TTFT) of the latest stream"),
    (
        "stackgen_inter_token_seconds",
        "stream",
        "inter_token_p50_seconds",
        {"quantile": "0.5"},
        "Inter-token latency of the latest stream",
    ),
    (
        "stackgen_inter_token_seconds",
        "stream",
        "inter_token_p99_seconds",
        {"quantile": "0.99"},
        "Inter-token latency of the latest stream",
    ),
    ("stackgen_tokens_per_second", "stream", "tokens_per_second", {}, "Tokens per second of the latest stream"),
    (
        "stackgen_chunks_per_second",
        "stream",
        "chunks_per_second",
        {},
        "Chunks per second of the latest stream, if the server counts no tokens",
    ),
    ("stackgen_load_latency_seconds", "load", "p50_seconds", {"quantile": "0.5"}, "Latency of concurrent requests"),
    ("stackgen_load_latency_seconds", "load", "p99_seconds", {"quantile": "0.99"}, "Latency of concurrent requests"),
    (
        "stackgen_load_tokens_per_second",
        "load",
        "tokens_per_second",
        {},
        "Tokens per second of all concurrent requests together",
    ),
)


class _LatestReports(Collector):
    def __init__(self, snapshot: Callable[[], Iterable[EndpointState]]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        # one snapshot for all metrics, so that all metrics of a scrape are from the same rounds
        endpoints = tuple(self._snapshot())
        reports = [one.report for one in endpoints if one.report is not None]
        yield InfoMetricFamily("stackgen_build", "Version of stackgen", {"version": __version__})
        yield from _endpoint_metrics(endpoints)
        yield from _check_metrics(reports)
        yield from _figure_metrics(reports)
        yield _api_metric(reports)


def build_registry(state: State) -> CollectorRegistry:
    """A registry that is filled from `state` at each scrape."""
    return _build_registry(state.snapshot)


def render_metrics(report: Report) -> str:
    """The metrics of one round in Prometheus' text format."""
    now = time.time()
    endpoints = [EndpointState(one.name, one.base_url, report=one, checked=now, runs=1) for one in report.endpoints]
    return generate_latest(_build_registry(lambda: endpoints)).decode()


def _build_registry(snapshot: Callable[[], Iterable[EndpointState]]) -> CollectorRegistry:
    # not the library's global registry, which also has metrics of the Python process
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_LatestReports(snapshot))
    return registry


def _endpoint_metrics(endpoints: Iterable[EndpointState]) -> Iterator[Metric]:
    about = "1: no check failed in the latest round of checks; 0: at least one check failed"
    up = GaugeMetricFamily("stackgen_endpoint_up", about,
                           labels=["endpoint", "base_url", "dialect"])  # fmt: skip
    last = GaugeMetricFamily("stackgen_last_check_timestamp_seconds",
                             "Unix time at the end of the latest round of checks", labels=["endpoint"])  # fmt: skip
    runs = CounterMetricFamily(
        "stackgen_check_runs", "Number of rounds of checks since the exporter started", labels=["endpoint"]
    )
    took = GaugeMetricFamily("stackgen_check_round_duration_seconds", "Duration of the latest round of checks",
                             labels=["endpoint"])  # fmt: skip
    for one in endpoints:
        runs.add_metric([one.name], one.runs)
        # before its first round an endpoint is neither up nor down
        if one.report is None or one.checked is None:
            continue
        up.add_metric([one.name, one.base_url, one.report.dialect], int(one.report.ok))
        last.add_metric([one.name], one.checked)
        took.add_metric([one.name], one.report.seconds)
    yield from (up, last, runs, took)


def _check_metrics(reports: Iterable[EndpointReport]) -> Iterator[Metric]:
    labels = ["endpoint", "check", "model"]
    # the warning is no label of the status: a changed label starts a new series, and an alert's `for:` restarts
    status = GaugeMetricFamily(
        "stackgen_check_status", "1: the check passed, with or without a warning; 0: the check failed", labels=labels
    )
    warning = GaugeMetricFamily(
        "stackgen_check_warning", "1: the check passed with a warning; 0: the check had no warning", labels=labels
    )
    took = GaugeMetricFamily("stackgen_check_duration_seconds", "Duration of the check", labels=labels)
    for report in reports:
        for (name, model), result in _worst_results(report).items():
            values = [report.name, name, model]
            status.add_metric(values, int(result.status != "fail"))
            warning.add_metric(values, int(result.status == "warn"))
            # a check that crashed has no duration
            if result.seconds is not None:
                took.add_metric(values, result.seconds)
    yield from (status, warning, took)


def _figure_metrics(reports: Iterable[EndpointReport]) -> Iterator[Metric]:
    families: dict[str, GaugeMetricFamily] = {}
    # one family per metric name, because the p50 and p99 of a figure are series of the same metric
    for name, _, _, extra, about in FIGURES:
        families.setdefault(name, GaugeMetricFamily(name, about, labels=["endpoint", "model", *extra]))
    days = GaugeMetricFamily("stackgen_certificate_days", "Days until the server's certificate expires",
                             labels=["endpoint"])  # fmt: skip
    for report in reports:
        seen: set[tuple[str, ...]] = set()
        for result in report.results:
            for name, check, figure, extra, _ in FIGURES:
                values = [report.name, _truncate_label(result.model), *extra.values()]
                # only the first result with these labels: Prometheus rejects a scrape with a duplicate series
                if result.name == check and figure in result.figures and (name, *values) not in seen:
                    seen.add((name, *values))
                    families[name].add_metric(values, result.figures[figure])
            # once per endpoint: the metric has no check label, and several checks may report it
            if "certificate_days" in result.figures and ("days",) not in seen:
                seen.add(("days",))
                days.add_metric([report.name], result.figures["certificate_days"])
    yield from (*families.values(), days)


def _api_metric(reports: Iterable[EndpointReport]) -> Metric:
    about = "1: the API works; 0: it is refused, ignored or not served, or its request fails. No time series: not "
    "checked"
    works = GaugeMetricFamily("stackgen_api_works", about, labels=["endpoint", "model", "api"])
    for report in reports:
        # two long names may share a label, and Prometheus rejects a scrape with a duplicate series
        cells = {(_truncate_label(one.model), one.api): one for one in report.apis if one.state != "not checked"}
        for (model, api), one in cells.items():
            works.add_metric([report.name, model, api], int(one.state == "works"))
    return works


def _worst_results(report: EndpointReport) -> dict[tuple[str, str], Result]:
    """Returns the results by check and model, without skipped checks. If labels are equal, the worse result wins."""
    rank = ("fail", "warn", "pass")
    worst: dict[tuple[str, str], Result] = {}
    for result in report.results:
        key = (result.name, _truncate_label(result.model))
        if result.status in rank:
            before = worst.get(key)
            if before is None or rank.index(result.status) < rank.index(before.status):
                worst[key] = result
    return worst


def _truncate_label(text: str) -> str:
    # only model names need this, because servers choose them
    return text if len(text) <= MAX_LABEL_LENGTH else text[: MAX_LABEL_LENGTH - 1] + "…"
