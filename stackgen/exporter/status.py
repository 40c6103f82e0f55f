"""The status page and its JSON: one dictionary makes both, so that they can't tell different things."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from stackgen import __version__
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.report.page import environment, style
from stackgen.check.report.plots import duration
from stackgen.exporter.state import HISTORY, Round, Seen, round_of

__all__ = ["SCHEMA", "page", "state_of", "status"]

# goes up when a field is renamed, removed or changes its meaning; new fields leave it
SCHEMA = 1
# how often the page asks for news (s): soon enough to watch a restart, and most answers are an empty 304
POLL = 3.0
# without scripts the whole page is loaded again, which takes the reader's place with it
RELOAD = 20


def status(seen: tuple[Seen, ...], *, interval: float, profile: str, trouble: str) -> dict[str, Any]:
    """What `/api/status` sends; docs/exporter.md describes the fields. Times are in seconds."""
    rows = [_row(one) for one in seen]
    count = {state: sum(row["state"] == state for row in rows) for state in ("up", "down", "pending")}
    return {
        "schema": SCHEMA,
        "version": __version__,
        "in_time": not trouble,
        "trouble": trouble,
        "interval_seconds": interval,
        "profile": profile,
        "state": "down" if count["down"] else "pending" if count["pending"] or not rows else "up",
        "verdict": _verdict(count, len(rows)),
        **count,
        "endpoints": rows,
    }


def state_of(report: Report, *, interval: float, profile: str) -> dict[str, Any]:
    """What `/api/status` would send after one round, without a server."""
    now = time.time()
    seen = tuple(Seen(one.name, one.base_url, one, now, 1, (round_of(one),)) for one in report.endpoints)
    return status(seen, interval=interval, profile=profile, trouble="")


def page(data: dict[str, Any], *, version: str, nonce: str) -> str:
    """The status page as it stands now; `version` is the ETag of `data`, `nonce` lets its own script and style run."""
    # what is down comes first when the page is opened; later its rows stay where the reader knows them
    order = {"down": 0, "pending": 1, "up": 2}
    rows = sorted(data["endpoints"], key=lambda row: (order[row["state"]], not row["warnings"]))
    template = environment().get_template("report/status.html.j2")
    return template.render(
        data=data,
        rows=rows,
        version=version,
        nonce=nonce,
        poll=POLL,
        reload=RELOAD,
        slots=HISTORY,
        style=style(),
        policy=None,
        many=False,
    )


def _row(one: Seen) -> dict[str, Any]:
    report = one.report
    results = report.results if report else ()
    return {
        "name": one.name,
        "href": f"endpoint/{quote(one.name, safe='')}",
        "base_url": one.base_url,
        "dialect": report.dialect if report else "",
        "state": "pending" if report is None else "up" if report.ok else "down",
        "warnings": sum(result.status == "warn" for result in results),
        "checked": _iso(one.checked),
        "seconds": report.seconds if report else None,
        "runs": one.runs,
        "problem": _problem(report),
        "ttft_seconds": one.history[-1].ttft if one.history else None,
        "tokens_per_second": _slowest(results),
        "history": {
            "up": [int(round_.up) for round_ in one.history],
            "ttft_seconds": [round_.ttft for round_ in one.history],
            "about": _about(one.history),
        },
    }


def _iso(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


def _problem(report: EndpointReport | None) -> dict[str, str] | None:
    """The first failure, else the first warning."""
    for wanted in ("fail", "warn"):
        for result in report.results if report else ():
            if result.status == wanted:
                return {"status": wanted, "check": result.name, "model": result.model, "message": result.message,
                        "hint": result.hint}  # fmt: skip
    return None


def _slowest(results: tuple[Result, ...]) -> float | None:
    # `load` tells the speed of all its requests together by the same name
    streams = [result.figures for result in results if result.name == "stream"]
    return min((one["tokens_per_second"] for one in streams if "tokens_per_second" in one), default=None)


def _about(history: tuple[Round, ...]) -> str:
    """The history in words, for those who don't see the picture."""
    if not history:
        return "no round yet"
    down = sum(not round_.up for round_ in history)
    told = f"last {len(history)} round{'s' if len(history) != 1 else ''}: {down or 'none'} down"
    times = [round_.ttft for round_ in history if round_.ttft is not None]
    return told + (f"; first token {duration(min(times))} to {duration(max(times))}" if times else "")


def _verdict(count: dict[str, int], total: int) -> str:
    if not total:
        return "No endpoint is configured"
    if count["down"]:
        return f"{count['down']} of {total} endpoint{'s' if total != 1 else ''} down"
    if count["pending"]:
        return f"{count['pending']} of {total} endpoint{'s' if total != 1 else ''} not checked yet"
    return f"All {total} endpoints are up" if total != 1 else "The endpoint is up"
