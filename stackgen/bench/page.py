"""One or several runs as an HTML page, without scripts and network access, in the look of the check's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stackgen.bench.curves import CurveChart, curve_chart
from stackgen.bench.limits import Limits, Verdict, judge
from stackgen.bench.result import Run
from stackgen.check.report.page import content_security_policy, jinja_environment, load_css

__all__ = ["as_html"]

CHARTS = (("Time to first token", "ttft"), ("Inter-token latency", "itl"), ("Latency of a request", "latency"))


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the template prints it; `verdict` is None without limits."""

    run: Run
    verdict: Verdict | None
    failed: int


def as_html(runs: Sequence[Run], limits: Limits) -> str:
    """The page: a verdict for each run, the charts with all runs, and a table for each run."""
    of_field = {field: value for field, _, value in limits.rows()}
    charts: list[CurveChart] = [
        chart for title, field in CHARTS if (chart := curve_chart(title, field, runs, of_field.get(field)))
    ]
    views = [
        RunView(run, judge(run, limits) if limits else None, sum(level.failed for level in run.levels)) for run in runs
    ]
    return jinja_environment().get_template("report/bench.html.j2").render(
        views=views, charts=charts, style=load_css(), policy=content_security_policy(), nonce=None, many=False,
        several=len(runs) > 1,
    )  # fmt: skip
