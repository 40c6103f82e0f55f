"""A report as one HTML page that needs nothing else: no network, no script, so it can hang on a ticket.

What servers sent is printed by Jinja with autoescape on, and the page's own policy forbids scripts besides.
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

from stackgen.check.report import EndpointReport, Report, Result, Status
from stackgen.check.report.plots import Bars, Series, bars, duration, series
from stackgen.resources import templates_dir

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["SYMBOLS", "as_html", "environment", "policy", "style", "utc"]

# words carry the meaning, these help the eye; none of them is an emoji, which some systems paint in colours of theirs
SYMBOLS: dict[Status, str] = {"fail": "✕", "warn": "!", "pass": "✓", "skip": "–"}
# a page where hundreds fail opens with the first of them, and the others tell their failure while folded
MOST_OPEN = 12
# with more endpoints, requests of passed checks would make a page that no ticket takes
MOST_WITH_REQUESTS = 40
# indenting a longer body makes it no easier to read
LONGEST_INDENTED = 20_000


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured numbers of one model, in words; empty where there is none."""

    model: str
    ttft: str
    p50: str
    p99: str
    rate: str


@dataclass(frozen=True, slots=True)
class View:
    """An endpoint as the template prints it; `troubles` are failures in the order they were found, then warnings."""

    id: str
    report: EndpointReport
    open: bool
    counts: tuple[tuple[Status, int], ...]
    troubles: tuple[Result, ...]
    speeds: tuple[Speed, ...]
    ttft: Bars | None
    series: tuple[Series, ...]
    notes: tuple[tuple[str, str], ...]
    asked: tuple[Result, ...]
    requests: int
    left_out: bool

    @property
    def failures(self) -> int:
        """How many checks failed."""
        return sum(trouble.status == "fail" for trouble in self.troubles)


def as_html(report: Report, *, home: str | None = None) -> str:
    """The report as a page: failing endpoints first and open, the others folded.

    `home` is the address of a page to link back to, for reports that are served; a file has none.
    """
    # the failing ones first, then those with warnings; sorting is stable, so each group keeps the stack's order
    ordered = sorted(report.endpoints, key=lambda one: (one.ok, not _warned(one)))
    few, alone = len(ordered) <= MOST_WITH_REQUESTS, len(ordered) == 1
    views = [
        _view(index, one, is_open=alone or (not one.ok and index < MOST_OPEN), few=few)
        for index, one in enumerate(ordered)
    ]
    page = environment().get_template("report/report.html.j2")
    return page.render(
        report=report,
        failing=[view for view in views if not view.report.ok],
        healthy=[view for view in views if view.report.ok],
        many=not few,
        counts=_counts([result for one in report.endpoints for result in one.results]),
        style=style(),
        policy=policy(),
        nonce=None,
        home=home,
    )


def policy() -> str:
    """The Content-Security-Policy of a report: the style that it holds, told by its hash, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'; script-src 'none'"
    )


@cache
def style() -> Markup:
    """The CSS that all pages share, as it stands between `<style>` and `</style>`."""
    from markupsafe import Markup

    return Markup((templates_dir() / "report" / "style.css").read_text("utf-8"))  # noqa: S704 - a file of ours


@cache
def environment() -> Environment:
    """Jinja for pages: everything that is printed is escaped, and a missing name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"duration": duration, "pretty": _pretty, "utc": utc}
    made.globals |= {"SYMBOLS": SYMBOLS}
    return made


def utc(moment: str | float) -> str:
    """A time, in ISO 8601 or seconds since 1970, as `2026-11-23 14:05:09 UTC`; other words stay as they are."""
    try:
        if isinstance(moment, str):
            told = datetime.fromisoformat(moment)
        else:
            told = datetime.fromtimestamp(moment, timezone.utc)
    except ValueError:
        return str(moment)
    return told.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _warned(endpoint: EndpointReport) -> bool:
    return any(result.status == "warn" for result in endpoint.results)


def _counts(results: Sequence[Result]) -> tuple[tuple[Status, int], ...]:
    counted = Counter(result.status for result in results)
    return tuple((status, counted[status]) for status in SYMBOLS if counted[status])


def _view(index: int, endpoint: EndpointReport, *, is_open: bool, few: bool) -> View:
    results = endpoint.results
    troubles = [result for status in ("fail", "warn") for result in results if result.status == status]
    asked = tuple(result for result in results if result.exchanges and (few or result.status in ("fail", "warn")))
    streams = [result for result in results if "ttft_seconds" in result.figures]
    return View(
        id=f"endpoint-{index + 1}",
        report=endpoint,
        open=is_open,
        counts=_counts(results),
        troubles=tuple(troubles),
        speeds=tuple(_speed(result) for result in streams),
        ttft=_ttft(streams),
        series=tuple(_series(results)),
        notes=_notes(results),
        asked=asked,
        requests=sum(len(result.exchanges) for result in asked),
        left_out=not few,
    )


def _ttft(streams: Sequence[Result]) -> Bars | None:
    values = [(result.model or "(model)", float(result.figures["ttft_seconds"])) for result in streams]
    return bars("Time to first token", values) if values else None


def _series(results: Sequence[Result]) -> list[Series]:
    found = []
    for result in results:
        of = f", {result.model}" if result.model else ""
        figures = result.figures
        if gaps := result.samples.get("inter_token_seconds"):
            levels = [
                (name, figures[key])
                for name, key in (("p50", "inter_token_p50_seconds"), ("p99", "inter_token_p99_seconds"))
                if key in figures
            ]
            found.append(series(f"Time between tokens{of}", gaps, levels, "gap after token"))
        if waits := result.samples.get("latency_seconds"):
            levels = [
                (name, figures[key]) for name, key in (("p50", "p50_seconds"), ("p99", "p99_seconds")) if key in figures
            ]
            found.append(series(f"Latency under load{of}", waits, levels, "request"))
    return found


def _speed(result: Result) -> Speed:
    def told(key: str) -> str:
        return duration(result.figures[key]) if key in result.figures else ""

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
        told("ttft_seconds"),
        told("inter_token_p50_seconds"),
        told("inter_token_p99_seconds"),
        rate,
    )


def _notes(results: Sequence[Result]) -> tuple[tuple[str, str], ...]:
    """Each note once, with the checks that made it: a deviation of the engine is one of all its models."""
    places: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            seen = places.setdefault(note, [])
            if result.name not in seen:
                seen.append(result.name)
    return tuple((note, ", ".join(names)) for note, names in places.items())


def _pretty(text: str) -> str:
    """JSON indented, everything else (also what an excerpt cut off) as it is."""
    if len(text) > LONGEST_INDENTED or not text.startswith(("{", "[")):
        return text
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(data, indent=2, ensure_ascii=False)
