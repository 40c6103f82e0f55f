"""A report as plain text: failing first, each with its hint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from stackgen.check.report import EndpointReport, Report, Result, Status

__all__ = ["as_text"]

# what needs work stands first
ORDER: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
# SGR: red, yellow, green, faint
COLOURS: dict[Status, str] = {"fail": "31", "warn": "33", "pass": "32", "skip": "2"}


def as_text(report: Report, *, color: bool = False, verbose: bool = False) -> str:
    """The report as lines of text, without a line end. `verbose` prints the evidence of passed checks as well.

    Colour (SGR sequences) only where `color` is set: the caller knows whether a terminal reads it.
    """
    if not report.endpoints:
        return "nothing to check: the stack has no endpoint"
    blocks = [_endpoint(endpoint, color, verbose) for endpoint in sorted(report.endpoints, key=lambda one: one.ok)]
    counts = Counter(result.status for endpoint in report.endpoints for result in endpoint.results)
    total = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    ending = f"{'healthy' if report.ok else 'NOT healthy'}: {len(report.endpoints)} endpoint(s), checks: {total}"
    return "\n\n".join(["\n".join(block) for block in blocks] + [ending])


def _endpoint(endpoint: EndpointReport, color: bool, verbose: bool) -> Iterator[str]:
    verdict: Status = "pass" if endpoint.ok else "fail"
    yield f"{_paint(verdict, verdict.upper(), color)}  {endpoint.name}  {endpoint.base_url}  ({endpoint.dialect})"
    for result in sorted(endpoint.results, key=lambda one: ORDER.index(one.status)):
        yield from _result(result, color, verbose)
    if endpoint.answer:
        yield f"  answer: {' '.join(endpoint.answer.split())}"


def _result(result: Result, color: bool, verbose: bool) -> Iterator[str]:
    took = "" if result.seconds is None else f"{result.seconds:.2f} s"
    name = f"{result.name} [{result.model}]" if result.model else result.name
    yield f"  {_paint(result.status, result.status, color)}  {name:<8} {took:>8}  {result.message}"
    if result.hint and result.status in ("fail", "warn"):
        yield f"        hint: {result.hint}"
    # of a passed check the evidence is for the curious
    if result.evidence and (verbose or result.status in ("fail", "warn")):
        yield f"        seen: {result.evidence}"


def _paint(status: Status, text: str, color: bool) -> str:
    return f"\x1b[{COLOURS[status]}m{text}\x1b[0m" if color else text
