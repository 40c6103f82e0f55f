"""A report as one self-contained HTML page, without scripts and network access, so you can attach it to a ticket.

Jinja escapes all text that servers sent, and the page's Content-Security-Policy also forbids scripts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from typing import TYPE_CHECKING, Any

from stackgen.check.report import APIS, Api, ApiSupport, EndpointReport, Report, Result, Status
from stackgen.check.report.apis import API_STATUS
from stackgen.check.report.plots import BarChart, LineChart, bar_chart, format_duration, line_chart
from stackgen.resources import templates_dir

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["SYMBOLS", "as_html", "content_security_policy", "format_utc", "jinja_environment", "load_css"]

# decoration next to the status text; no emoji, because some systems draw emoji in their own colors
SYMBOLS: dict[Status, str] = {"fail": "✕", "warn": "!", "pass": "✓", "skip": "–"}
# at most this many failing endpoints are expanded; the others show their failure in the summary line
MAX_OPEN = 12
# with more endpoints, the requests of passed checks would make the page too large for a ticket
MAX_ENDPOINTS_WITH_REQUESTS = 40
# indentation doesn't make longer bodies more readable
MAX_INDENTED_LENGTH = 20_000


@dataclass(frozen=True, slots=True)
class Speed:
    """The formatted measurements of one model; a missing measurement is empty."""

    model: str
    ttft: str
    p50: str
    p99: str
    rate: str


@dataclass(frozen=True, slots=True)
class ApiTable:
    """What works: the models as columns, and a row per API with a cell per model (None: no result)."""

    models: tuple[str, ...]
    rows: tuple[tuple[Api, tuple[ApiSupport | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class EndpointView:
    """An endpoint as the template prints it.

    - `problems`: the failures in the order they were found, then the warnings.
    - `notes`: each note with the names of the checks that made it.
    - `with_requests`: the results whose requests are shown; `requests` counts those requests.
    - `requests_omitted`: whether requests of passed checks are left out.
    """

    id: str
    report: EndpointReport
    open: bool
    counts: tuple[tuple[Status, int], ...]
    problems: tuple[Result, ...]
    speeds: tuple[Speed, ...]
    ttft: BarChart | None
    latencies: tuple[LineChart, ...]
    apis: ApiTable | None
    notes: tuple[tuple[str, str], ...]
    with_requests: tuple[Result, ...]
    requests: int
    requests_omitted: bool

    @property
    def failures(self) -> int:
        """The number of failed checks."""
        return sum(problem.status == "fail" for problem in self.problems)


def as_html(report: Report, *, home: str | None = None) -> str:
    """Returns the report as an HTML page: failing endpoints come first and are expanded, the others are collapsed.

    `home` is the URL of a page to link back to; only the exporter's reports have such a page.
    """
    # failing endpoints, then endpoints with warnings, then the rest; a stable sort keeps the stack's order in a group
    ordered = sorted(report.endpoints, key=lambda one: (one.ok, not _has_warning(one)))
    few, alone = len(ordered) <= MAX_ENDPOINTS_WITH_REQUESTS, len(ordered) == 1
    # a single healthy endpoint is expanded too: a page with one collapsed line would show nothing
    views = [
        _view(index, one, is_open=alone or (not one.ok and index < MAX_OPEN), few=few)
        for index, one in enumerate(ordered)
    ]
    page = jinja_environment().get_template("report/report.html.j2")
    return page.render(
        report=report,
        failing=[view for view in views if not view.report.ok],
        healthy=[view for view in views if view.report.ok],
        many=not few,
        counts=_counts([result for one in report.endpoints for result in one.results]),
        style=load_css(),
        policy=content_security_policy(),
        # a report has no script, and its style is allowed by hash
        nonce=None,
        home=home,
    )


def content_security_policy() -> str:
    """The Content-Security-Policy of a report: allows its own style, by hash, and nothing else."""
    # by hash, because 'unsafe-inline' would allow any style in server text; img-src is for the icon's data: URL
    digest = base64.b64encode(hashlib.sha256(load_css().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; script-src 'none'"
    )


@cache
def load_css() -> Markup:
    """The CSS of all pages, exactly as it appears between `<style>` and `</style>`: its hash is in the policy."""
    # imported late, together with jinja2
    from markupsafe import Markup

    return Markup((templates_dir() / "report" / "style.css").read_text("utf-8"))  # noqa: S704 - a file of ours


@cache
def jinja_environment() -> Environment:
    """The Jinja environment of all pages: values are escaped, and an undefined name is an error."""
    # imported late: commands that write no page don't need it
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {"duration": format_duration, "pretty": _indent_json, "utc": format_utc}
    environment.globals |= {"SYMBOLS": SYMBOLS, "API_STATUS": API_STATUS}
    return environment


def format_utc(moment: str | float) -> str:
    """A time (ISO 8601, or seconds since the epoch) as `2026-11-23 14:05:09 UTC`; other text is returned unchanged."""
    try:
        if isinstance(moment, str):
            parsed = datetime.fromisoformat(moment)
        else:
            parsed = datetime.fromtimestamp(moment, timezone.utc)
    # a page must not fail on a report whose start time is not a date
    except ValueError:
        return str(moment)
    return parsed.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _has_warning(endpoint: EndpointReport) -> bool:
    return any(result.status == "warn" for result in endpoint.results)


def _counts(results: Sequence[Result]) -> tuple[tuple[Status, int], ...]:
    # in the order of SYMBOLS: the worst status first
    counted = Counter(result.status for result in results)
    return tuple((status, counted[status]) for status in SYMBOLS if counted[status])


def _view(index: int, endpoint: EndpointReport, *, is_open: bool, few: bool) -> EndpointView:
    results = endpoint.results
    problems = [result for status in ("fail", "warn") for result in results if result.status == status]
    # requests of failed checks and of warnings are always kept as evidence
    with_requests = tuple(
        result for result in results if result.exchanges and (few or result.status in ("fail", "warn"))
    )
    streams = [result for result in results if "ttft_seconds" in result.figures]
    return EndpointView(
        id=f"endpoint-{index + 1}",
        report=endpoint,
        open=is_open,
        counts=_counts(results),
        problems=tuple(problems),
        speeds=tuple(_speed(result) for result in streams),
        ttft=_ttft_chart(streams),
        latencies=tuple(_latency_charts(results)),
        apis=_api_table(endpoint.apis),
        notes=_notes(results),
        with_requests=with_requests,
        requests=sum(len(result.exchanges) for result in with_requests),
        requests_omitted=not few,
    )


def _api_table(cells: Sequence[ApiSupport]) -> ApiTable | None:
    models = tuple(dict.fromkeys(cell.model for cell in cells))
    by_place = {(cell.api, cell.model): cell for cell in cells}
    rows = tuple((api, tuple(by_place.get((api.name, model)) for model in models)) for api in APIS)
    return ApiTable(models, tuple(row for row in rows if any(row[1]))) if cells else None


def _ttft_chart(streams: Sequence[Result]) -> BarChart | None:
    # a result without a model name still needs a label
    values = [(result.model or "(model)", float(result.figures["ttft_seconds"])) for result in streams]
    return bar_chart("Time to first token", values) if values else None


def _latency_charts(results: Sequence[Result]) -> list[LineChart]:
    charts = []
    for result in results:
        suffix = f", {result.model}" if result.model else ""
        figures = result.figures
        if latencies := result.samples.get("inter_token_seconds"):
            levels = [
                (name, figures[key])
                for name, key in (("p50", "inter_token_p50_seconds"), ("p99", "inter_token_p99_seconds"))
                if key in figures
            ]
            charts.append(line_chart(f"Inter-token latency{suffix}", latencies, levels, "token number"))
        if latencies := result.samples.get("latency_seconds"):
            levels = [
                (name, figures[key]) for name, key in (("p50", "p50_seconds"), ("p99", "p99_seconds")) if key in figures
            ]
            charts.append(line_chart(f"Latency under load{suffix}", latencies, levels, "request number"))
    return charts


def _speed(result: Result) -> Speed:
    def figure(key: str) -> str:
        return format_duration(result.figures[key]) if key in result.figures else ""

    # if the server counts no tokens, the rate is in chunks
    rate = next(
        (
            f"{result.figures[f'{unit}_per_second']:.1f} {unit}/s"
            for unit in ("tokens", "chunks")
            if f"{unit}_per_second" in result.figures
        ),
        "",
    )
    return Speed(
        result.model,
        ttft=figure("ttft_seconds"),
        p50=figure("inter_token_p50_seconds"),
        p99=figure("inter_token_p99_seconds"),
        rate=rate,
    )


def _notes(results: Sequence[Result]) -> tuple[tuple[str, str], ...]:
    """Returns each note once, with the names of its checks: an engine deviates in the same way for every model."""
    checks: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            names = checks.setdefault(note, [])
            if result.name not in names:
                names.append(result.name)
    return tuple((note, ", ".join(names)) for note, names in checks.items())


def _indent_json(text: str) -> str:
    """JSON with indentation; any other text, also JSON cut off by an excerpt, unchanged."""
    if len(text) > MAX_INDENTED_LENGTH or not text.startswith(("{", "[")):
        return text
    try:
        data: Any = json.loads(text)
    # RecursionError: a server may send deeply nested JSON
    except (ValueError, RecursionError):
        return text
    return json.dumps(data, indent=2, ensure_ascii=False)
