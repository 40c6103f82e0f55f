"""The status page and `/api/status`. Both use the same dictionary, so their data can't differ."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from stackgen import __version__
from stackgen.check.report import STATES, EndpointReport, Report, Result, group_support
from stackgen.check.report.page import jinja_environment, load_css
from stackgen.check.report.plots import format_duration
from stackgen.exporter.state import HISTORY, EndpointState, Round, summarize_round

__all__ = ["SCHEMA", "build_status", "render_page", "report_status"]

# incremented when a field is renamed, removed or changes its meaning, but not for new fields
SCHEMA = 1
# seconds between polls: short enough to watch a restart, and cheap because most responses are an empty 304
POLL_SECONDS = 3.0
# seconds between reloads without JavaScript; longer, because a reload loses the reader's scroll position
RELOAD_SECONDS = 20


def build_status(
    endpoints: tuple[EndpointState, ...], *, interval: float, profile: str, stall_reason: str
) -> dict[str, Any]:
    """The body of `/api/status`; docs/reference/exporter-metrics.md describes the fields. Times are in seconds."""
    rows = [_row(one) for one in endpoints]
    count = {state: sum(row["state"] == state for row in rows) for state in ("up", "down", "pending")}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "in_time": not stall_reason,
        "trouble": stall_reason,
        "interval_seconds": interval,
        "profile": profile,
        # one endpoint that is down makes the state `down`, even if others were not checked yet
        "state": "down" if count["down"] else "pending" if count["pending"] or not rows else "up",
        "verdict": _verdict(count, len(rows)),
        **count,
        "endpoints": rows,
    }


def report_status(report: Report, *, interval: float, profile: str) -> dict[str, Any]:
    """Returns the body of `/api/status` as if this report was the only round; no server is needed."""
    now = time.time()
    endpoints = tuple(
        EndpointState(one.name, one.base_url, report=one, checked=now, runs=1, history=(summarize_round(one),))
        for one in report.endpoints
    )
    return build_status(endpoints, interval=interval, profile=profile, stall_reason="")


def render_page(data: dict[str, Any], *, version: str, nonce: str) -> str:
    """The status page for `data`, a result of `build_status`.

    `version` is the ETag of `data`; `nonce` allows the page's own script and style in its Content-Security-Policy.
    """
    # sorted only when the page is opened: updates don't move rows while somebody reads
    order = {"down": 0, "pending": 1, "up": 2}
    rows = sorted(data["endpoints"], key=lambda row: (order[row["state"]], not row["warnings"]))
    template = jinja_environment().get_template("report/status.html.j2")
    return template.render(
        data=data,
        rows=rows,
        version=version,
        nonce=nonce,
        poll=POLL_SECONDS,
        reload=RELOAD_SECONDS,
        rounds_shown=HISTORY,
        style=load_css(),
        # sent as a header, because frame-ancestors has no effect in a <meta> tag
        policy=None,
        many=False,
    )


def _row(one: EndpointState) -> dict[str, Any]:
    report = one.report
    results = report.results if report else ()
    return {
        "name": one.name,
        # a name may contain slashes and question marks
        "href": f"endpoint/{quote(one.name, safe='')}",
        "base_url": one.base_url,
        "dialect": report.dialect if report else "",
        "state": "pending" if report is None else "up" if report.ok else "down",
        "warnings": sum(result.status == "warn" for result in results),
        "checked": _iso(one.checked),
        "seconds": report.seconds if report else None,
        "runs": one.runs,
        "problem": _first_problem(report),
        # of the slowest model, as in the history, so that the value agrees with the latest bar of the chart
        "ttft_seconds": one.history[-1].ttft if one.history else None,
        "tokens_per_second": _slowest_rate(results),
        "apis": [asdict(cell) for cell in report.apis] if report else [],
        "apis_text": _describe_apis(report),
        "history": {
            "up": [int(round_.up) for round_ in one.history],
            "ttft_seconds": [round_.ttft for round_ in one.history],
            "about": _describe_history(one.history),
        },
    }


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


def _first_problem(report: EndpointReport | None) -> dict[str, str] | None:
    """The first failure, else the first warning."""
    # a warning must not hide the reason why an endpoint is down
    for wanted in ("fail", "warn"):
        for result in report.results if report else ():
            if result.status == wanted:
                return {"status": wanted, "check": result.name, "model": result.model, "message": result.message,
                        "hint": result.hint}  # fmt: skip
    return None


def _describe_apis(report: EndpointReport | None) -> str:
    """The APIs by state: `Works: chat. Refused: tools (m1)`. If the state differs by model, it names the models."""
    states: dict[str, list[str]] = {}
    for api, results in group_support(report.apis if report else ()):
        by_state: dict[str, list[str]] = {}
        for cell, models in results:
            by_state.setdefault(cell.state, []).extend(models)
        for state, names in by_state.items():
            some = f" ({', '.join(names)})" if len(by_state) > 1 else ""
            states.setdefault(state, []).append(f"{api.title}{some}")
    order = [state for state in STATES if state in states]
    return ". ".join(f"{state.capitalize()}: {', '.join(states[state])}" for state in order)


def _slowest_rate(results: tuple[Result, ...]) -> float | None:
    # only `stream`: the figure of `load` with the same name is the rate of all its requests together
    streams = [result.figures for result in results if result.name == "stream"]
    return min((one["tokens_per_second"] for one in streams if "tokens_per_second" in one), default=None)


def _describe_history(history: tuple[Round, ...]) -> str:
    """The history as text, for screen readers: the label of its chart."""
    if not history:
        return "no rounds yet"
    down = sum(not round_.up for round_ in history)
    text = f"endpoint down in {down or 'none'} of the last {len(history)} round{'s' if len(history) != 1 else ''}"
    times = [round_.ttft for round_ in history if round_.ttft is not None]
    return text + (f"; TTFT {format_duration(min(times))} to {format_duration(max(times))}" if times else "")


def _verdict(count: dict[str, int], total: int) -> str:
    if not total:
        return "No endpoints configured"
    if count["down"]:
        return f"{count['down']} of {total} endpoint{'s' if total != 1 else ''} {_be(count['down'])} down"
    if count["pending"]:
        return (
            f"{count['pending']} of {total} endpoint{'s' if total != 1 else ''} {_be(count['pending'])} not checked yet"
        )
    return f"All {total} endpoints are up" if total != 1 else "The endpoint is up"


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
