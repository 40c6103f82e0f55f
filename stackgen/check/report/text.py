"""A report as plain text: failing endpoints come first, with hints. Many healthy endpoints are only counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from stackgen.check.report import ApiSupport, EndpointReport, Report, Result, Status, group_support
from stackgen.check.report.apis import API_STATUS

__all__ = ["as_text", "change_lines", "exchange_lines", "summary_line"]

# what needs attention comes first
STATUS_ORDER: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
# signs are always printed with the status as a word: not everybody can distinguish colors and symbols
SIGNS: dict[Status, str] = {"fail": "✗", "warn": "!", "pass": "✓", "skip": "-"}
# SGR: red, yellow, green, faint
COLORS: dict[Status, str] = {"fail": "31", "warn": "33", "pass": "32", "skip": "2"}
# starts of messages of skipped checks
SHARED_REASONS = {
    "needs `": "not run, because an earlier check failed",
    "not checked: ": "not checked, because the time limit expired",
}
# numbers that vary from round to round: decimals, and whole numbers with one of these units
MEASUREMENT = re.compile(
    r"(?<![\w.-])\d+\.\d+(?![\w.])|(?<![\w.-])\d+(?= (?:ms|s|chunks?|reads?|events?|deltas|tokens?|characters)\b)"
)
# up to 3 endpoints: each healthy one gets a table; up to 30 healthy endpoints: each gets a line; more are only counted
MAX_HEALTHY_TABLES, MAX_HEALTHY_LINES = 3, 30
# up to this many failing endpoints get one table each; if more fail, each gets one line
MAX_FAILING_TABLES = 20


def as_text(report: Report, *, color: bool = False, verbose: bool = False) -> str:
    """The report as text, without a trailing newline.

    `verbose` prints a table for every endpoint, and also the evidence of passed checks. `color` adds SGR sequences, so
    set it only if the output is a terminal.
    """
    if not report.endpoints:
        return "nothing to check: the stack has no endpoints"
    count = len(report.endpoints)
    bad = [endpoint for endpoint in report.endpoints if not endpoint.ok]
    good = [endpoint for endpoint in report.endpoints if endpoint.ok]
    if len(bad) > MAX_FAILING_TABLES and not verbose:
        blocks = ["\n".join(summary_line(endpoint, color, hint=True) for endpoint in bad)]
    else:
        blocks = ["\n".join(_endpoint(endpoint, color, verbose)) for endpoint in bad]
    if verbose or count <= MAX_HEALTHY_TABLES:
        blocks += ["\n".join(_endpoint(endpoint, color, verbose)) for endpoint in good]
    elif len(good) <= MAX_HEALTHY_LINES:
        blocks.append("\n".join(summary_line(endpoint, color) for endpoint in good))
    blocks = [block for block in blocks if block]
    counts = Counter(result.status for endpoint in report.endpoints for result in endpoint.results)
    total = ", ".join(f"{counts[status]} {status}" for status in STATUS_ORDER if counts[status])
    some = f"{len(good)} of {count} endpoints" if count > 1 else "1 endpoint"
    verdict = f"healthy: {some}" if report.ok else f"NOT healthy: {len(bad)} of {count} endpoint{'s' * (count > 1)}"
    ending = f"{_paint('pass' if report.ok else 'fail', verdict, color)}; checks: {total}; {report.seconds:.1f} s"
    return "\n\n".join([*blocks, ending])


def summary_line(endpoint: EndpointReport, color: bool = False, *, hint: bool = False) -> str:
    """One line per endpoint: status, name, URL, and its speed or its first failure, with the hint if `hint` is set."""
    status: Status = "pass" if endpoint.ok else "fail"
    failed = next((one for one in endpoint.results if one.status == "fail"), None)
    summary = f"{_name(failed)}: {failed.message}" if failed else _speed(endpoint.results)
    if failed is None and not endpoint.ok:
        summary = "nothing was checked: all checks were skipped"
    suffix = f"  → {failed.hint}" if failed and failed.hint and hint else ""
    where = f"{endpoint.name}  {endpoint.base_url}"
    return f"{_paint(status, f'{SIGNS[status]} {status}', color)}  {where}  {summary}{suffix}".rstrip()


def change_lines(before: EndpointReport | None, now: EndpointReport, *, color: bool = False) -> list[str]:
    """Returns what changed since the last round of the same endpoint, one line per check; empty if nothing changed."""
    # the first round has no previous round to compare with
    if before is None:
        return [summary_line(now, color)]
    old = {(one.name, one.model): one for one in before.results}
    lines = []
    for result in now.results:
        last = old.pop((result.name, result.model), None)
        # the message of a passed check contains measurements, which change in every round
        if last is not None and last.status == result.status and (result.status == "pass" or _is_same(last, result)):
            continue
        change = f"{last.status} → {result.status}" if last else result.status
        status = _paint(result.status, change, color)
        lines.append(f"{now.name}  {_name(result)}: {status}  {result.message}")
        if result.hint and result.status == "fail":
            lines.append(f"    → {result.hint}")
    return lines


def _is_same(last: Result, result: Result) -> bool:
    return _without_measurements(last.message) == _without_measurements(result.message)


def _without_measurements(message: str) -> str:
    """`message` with its measurements replaced by `…`; status codes, counts of services and addresses stay."""
    return MEASUREMENT.sub("…", message)


def exchange_lines(report: Report) -> Iterator[str]:
    """Every request and response of a report, as `--debug` prints them; keys are already redacted."""
    for endpoint in report.endpoints:
        for result in endpoint.results:
            for one in result.exchanges:
                yield (
                    f"[{endpoint.name}] {result.name}: {one.method} {one.url} -> {one.status or 'no response'}"
                    f" after {one.seconds:.3f} s"
                )
                yield from (f"    {arrow} {text}" for arrow, text in ((">", one.request), ("<", one.response)) if text)


def _endpoint(endpoint: EndpointReport, color: bool, verbose: bool) -> Iterator[str]:
    verdict: Status = "pass" if endpoint.ok else "fail"
    title = f"{_paint(verdict, verdict.upper(), color)}  {endpoint.name}  {endpoint.base_url}  ({endpoint.dialect})"
    yield f"{title}  {endpoint.seconds:.1f} s"
    width = max((len(_name(result)) for result in endpoint.results), default=0)
    # checks that were skipped for one of these reasons share one line: the failure is printed above
    shared = {
        reason: [one for one in endpoint.results if one.status == "skip" and one.message.startswith(start)]
        for start, reason in SHARED_REASONS.items()
    }
    kept = [one for one in endpoint.results if not any(one in results for results in shared.values())]
    for result in sorted(kept, key=lambda one: STATUS_ORDER.index(one.status)):
        yield from _result(result, width, color, verbose)
    sign = _paint("skip", f"{SIGNS['skip']} skip", color)
    for reason, results in shared.items():
        if results:
            yield f"  {sign}  {', '.join(dict.fromkeys(one.name for one in results))}: {reason}"
    if not any(one.status != "skip" for one in endpoint.results):
        yield "  nothing was checked, so nothing is verified"
    if endpoint.answer:
        yield f"  answer: {' '.join(endpoint.answer.split())}"
    yield from _api_table(endpoint.apis, color)


def _api_table(cells: Sequence[ApiSupport], color: bool) -> Iterator[str]:
    """One line per API and result. The models are named only where they differ."""
    if not cells:
        return
    yield "  what works with this endpoint:"
    groups = list(group_support(cells))
    width = max(len(api.title) for api, _ in groups)
    for api, results in groups:
        for cell, models in results:
            status = API_STATUS[cell.state]
            state = _paint(status, f"{SIGNS[status]} {cell.state}".ljust(13), color)
            some = f"[{', '.join(models)}]  " if len(results) > 1 else ""
            yield f"    {api.title:<{width}}  {state}  {some}{cell.detail}".rstrip()


def _result(result: Result, width: int, color: bool, verbose: bool) -> Iterator[str]:
    took = "" if result.seconds is None else f"{result.seconds:.2f} s"
    status = _paint(result.status, f"{SIGNS[result.status]} {result.status}", color)
    yield f"  {status}  {_name(result):<{width}}  {took:>8}  {result.message}"
    bad = result.status in ("fail", "warn")
    if result.hint and bad:
        yield f"          → {result.hint}"
    # evidence of a passed check is rarely of interest
    if result.evidence and (verbose or bad):
        yield f"          evidence: {result.evidence}"
    yield from (f"          note: {text}" for text in result.notes)


def _name(result: Result) -> str:
    return f"{result.name} [{result.model}]" if result.model else result.name


def _speed(results: Iterable[Result]) -> str:
    """`TTFT 0.031 s, 45.2 tokens/s` of the first stream, else the duration of the first completion."""
    found = list(results)
    for result in found:
        if "ttft_seconds" in result.figures:
            speed = result.figures.get("tokens_per_second")
            rate = f", {speed:.1f} tokens/s" if speed else ""
            return f"TTFT {result.figures['ttft_seconds']:.3f} s{rate}"
    chat = next((one for one in found if one.name == "chat" and one.seconds is not None), None)
    return f"answered in {chat.seconds:.2f} s" if chat else ""


def _paint(status: Status, text: str, color: bool) -> str:
    return f"\x1b[{COLORS[status]}m{text}\x1b[0m" if color else text
