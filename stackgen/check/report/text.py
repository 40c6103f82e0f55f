"""A report as plain text: failing first, each with its hint; of many endpoints only what needs work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from stackgen.check.report import EndpointReport, Report, Result, Status

__all__ = ["as_exchanges", "as_text", "change_lines", "one_line"]

# what needs work stands first
ORDER: tuple[Status, ...] = ("fail", "warn", "pass", "skip")
# words beside the signs: colour and form alone tell not everybody
SIGNS: dict[Status, str] = {"fail": "✗", "warn": "!", "pass": "✓", "skip": "-"}
# SGR: red, yellow, green, faint
COLOURS: dict[Status, str] = {"fail": "31", "warn": "33", "pass": "32", "skip": "2"}
# decimals, and whole numbers of what comes in other numbers each time
MEASURED = re.compile(
    r"(?<![\w.-])\d+\.\d+(?![\w.])|(?<![\w.-])\d+(?= (?:ms|s|chunks?|reads?|events?|deltas|tokens?|characters)\b)"
)
# healthy endpoints get a table each, a line each, or only a count
FEW, SOME = 3, 30
# failing ones get a table each, or a line each
MANY = 20


def as_text(report: Report, *, color: bool = False, verbose: bool = False) -> str:
    """The report as lines of text, without a line end. `verbose` prints the evidence of passed checks as well, and
    every endpoint whole; without it many failing ones get a line each, and `--json` has all.

    Colour (SGR sequences) only where `color` is set: the caller knows whether a terminal reads it.
    """
    if not report.endpoints:
        return "nothing to check: the stack has no endpoint"
    count = len(report.endpoints)
    bad = [endpoint for endpoint in report.endpoints if not endpoint.ok]
    good = [endpoint for endpoint in report.endpoints if endpoint.ok]
    if len(bad) > MANY and not verbose:
        blocks = ["\n".join(one_line(endpoint, color, hint=True) for endpoint in bad)]
    else:
        blocks = ["\n".join(_endpoint(endpoint, color, verbose)) for endpoint in bad]
    if verbose or count <= FEW:
        blocks += ["\n".join(_endpoint(endpoint, color, verbose)) for endpoint in good]
    elif len(good) <= SOME:
        blocks.append("\n".join(one_line(endpoint, color) for endpoint in good))
    blocks = [block for block in blocks if block]
    counts = Counter(result.status for endpoint in report.endpoints for result in endpoint.results)
    total = ", ".join(f"{counts[status]} {status}" for status in ORDER if counts[status])
    some = f"{len(good)} of {count} endpoints" if count > 1 else "1 endpoint"
    verdict = f"healthy: {some}" if report.ok else f"NOT healthy: {len(bad)} of {count} endpoint{'s' * (count > 1)}"
    ending = f"{_paint('pass' if report.ok else 'fail', verdict, color)}; checks: {total}; {report.seconds:.1f} s"
    return "\n\n".join([*blocks, ending])


def one_line(endpoint: EndpointReport, color: bool = False, *, hint: bool = False) -> str:
    """An endpoint in a line: verdict, name, URL, and its figures or the first failure, with its `hint` where wanted."""
    status: Status = "pass" if endpoint.ok else "fail"
    failed = next((one for one in endpoint.results if one.status == "fail"), None)
    told = f"{_name(failed)}: {failed.message}" if failed else _speed(endpoint.results)
    if failed is None and not endpoint.ok:
        told = "nothing was checked: all checks were skipped"
    more = f"  → {failed.hint}" if failed and failed.hint and hint else ""
    place = f"{endpoint.name}  {endpoint.base_url}"
    return f"{_paint(status, f'{SIGNS[status]} {status}', color)}  {place}  {told}{more}".rstrip()


def change_lines(before: EndpointReport | None, now: EndpointReport, *, color: bool = False) -> list[str]:
    """What changed since an earlier look at the same endpoint: a line for each check; none where all is as it was."""
    if before is None:
        return [one_line(now, color)]
    old = {(one.name, one.model): one for one in before.results}
    lines = []
    for result in now.results:
        was = old.pop((result.name, result.model), None)
        # a figure changes every time; the words of a pass hold figures
        same = was is not None and was.status == result.status
        if same and was is not None and (result.status == "pass" or _bare(was.message) == _bare(result.message)):
            continue
        since = f"{was.status} → " if was else ""
        status = _paint(result.status, f"{since}{result.status}", color)
        lines.append(f"{now.name}  {_name(result)}: {status}  {result.message}")
        if result.hint and result.status == "fail":
            lines.append(f"    → {result.hint}")
    return lines


def _bare(message: str) -> str:
    """A message without what is measured anew each time; statuses, counts of services and addresses stay."""
    return MEASURED.sub("…", message)


def as_exchanges(report: Report) -> Iterator[str]:
    """Every request and response of a report as lines, as `--debug` prints them; keys are out already."""
    for endpoint in report.endpoints:
        for result in endpoint.results:
            for one in result.exchanges:
                yield (
                    f"[{endpoint.name}] {result.name}: {one.method} {one.url} -> {one.status or 'no response'}"
                    f" after {one.seconds:.3f} s"
                )
                yield from (f"    {sign} {text}" for sign, text in ((">", one.request), ("<", one.response)) if text)


def _endpoint(endpoint: EndpointReport, color: bool, verbose: bool) -> Iterator[str]:
    verdict: Status = "pass" if endpoint.ok else "fail"
    title = f"{_paint(verdict, verdict.upper(), color)}  {endpoint.name}  {endpoint.base_url}  ({endpoint.dialect})"
    yield f"{title}  {endpoint.seconds:.1f} s"
    width = max((len(_name(result)) for result in endpoint.results), default=0)
    # what was not run because something before it broke is one line: the break is told above
    kept = [one for one in endpoint.results if not (one.status == "skip" and one.message.startswith("needs `"))]
    left = list(dict.fromkeys(one.name for one in endpoint.results if one not in kept))
    for result in sorted(kept, key=lambda one: ORDER.index(one.status)):
        yield from _result(result, width, color, verbose)
    if left:
        sign = _paint("skip", f"{SIGNS['skip']} skip", color)
        yield f"  {sign}  {', '.join(left)}: not run, for want of the above"
    if not any(one.status != "skip" for one in endpoint.results):
        yield "  nothing was checked, so nothing is proved"
    if endpoint.answer:
        yield f"  answer: {' '.join(endpoint.answer.split())}"


def _result(result: Result, width: int, color: bool, verbose: bool) -> Iterator[str]:
    took = "" if result.seconds is None else f"{result.seconds:.2f} s"
    status = _paint(result.status, f"{SIGNS[result.status]} {result.status}", color)
    yield f"  {status}  {_name(result):<{width}}  {took:>8}  {result.message}"
    bad = result.status in ("fail", "warn")
    if result.hint and bad:
        yield f"          → {result.hint}"
    # of a passed check the evidence is for the curious
    if result.evidence and (verbose or bad):
        yield f"          seen: {result.evidence}"
    yield from (f"          note: {text}" for text in result.notes)


def _name(result: Result) -> str:
    return f"{result.name} [{result.model}]" if result.model else result.name


def _speed(results: Iterable[Result]) -> str:
    """`TTFT 0.031 s, 45.2 tokens/s` of the first stream, else how long the first completion took."""
    found = list(results)
    for result in found:
        if "ttft_seconds" in result.figures:
            speed = result.figures.get("tokens_per_second")
            rate = f", {speed:.1f} tokens/s" if speed else ""
            return f"TTFT {result.figures['ttft_seconds']:.3f} s{rate}"
    chat = next((one for one in found if one.name == "chat" and one.seconds is not None), None)
    return f"answers in {chat.seconds:.2f} s" if chat else ""


def _paint(status: Status, text: str, color: bool) -> str:
    return f"\x1b[{COLOURS[status]}m{text}\x1b[0m" if color else text
