"""Runs the table of checks on targets: several at once, each one's checks in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from stackgen.check.checks import CHECKS, READY, list_models
from stackgen.check.dialects import BUILTIN, OPENAI, dialect_of_models
from stackgen.check.faults import Fault
from stackgen.check.redact import Redactor
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.session import Session
from stackgen.check.target import Target
from stackgen.check.verdict import Check, Context, Options, Verdict, skipped
from stackgen.plan import Dialect

__all__ = ["Progress", "check_target", "run"]

Progress = Callable[[str, str, str], None]
MAX_THREADS = 16
# seconds between looks at a server that isn't ready: soon at first, as small models load fast
FIRST_PAUSE, PAUSE_GROWTH, LONGEST_PAUSE = 0.25, 1.6, 5.0


def run(
    targets: Sequence[Target],
    options: Options,
    wait: float,
    on_progress: Progress | None,
    dialects: Mapping[str, Dialect],
) -> Report:
    """The report on all targets, in their order; see `stackgen.check.check`."""
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    # callers print progress; lines from several threads must not mix
    lock = threading.Lock()

    def report_progress(name: str, layer: str, message: str) -> None:
        if on_progress:
            with lock:
                on_progress(name, layer, message)

    if not targets:
        return Report((), started)
    known = {**BUILTIN, **dialects}
    # threads, not asyncio: `ask` and the checks stay plain functions, and a stack has few endpoints
    with ThreadPoolExecutor(min(len(targets), MAX_THREADS), "stackgen-check") as pool:
        futures = [pool.submit(check_target, target, options, wait, report_progress, known) for target in targets]
        return Report(tuple(future.result() for future in futures), started)


def check_target(
    target: Target, options: Options, wait: float, progress: Progress, dialects: Mapping[str, Dialect]
) -> EndpointReport:
    """All checks on one target, after waiting up to `wait` seconds until it is ready."""
    if wait > 0:
        _wait(target, options, wait, progress)
    with Session(target, options.timeout) as session:
        context = Context(session, options, target.dialect or OPENAI)
        results: list[Result] = []
        for check in CHECKS:
            for result in _run_check(check, context, results):
                progress(target.name, check.name, f"{result.status}: {result.message}")
                results.append(result)
            if check.name == "connect" and results[-1].status == "pass":
                _discover(context, dialects)
        answer = session.redact(context.answer) if context.answer is not None else None
        return EndpointReport(target.name, target.base_url, context.dialect.name, tuple(results), answer)


def detect(context: Context, dialects: Mapping[str, Dialect]) -> Dialect:
    """The dialect that the listed models or `/version` show; `openai` where nothing shows one."""
    name = dialect_of_models(context.listing.json()) if context.listing else None
    if name is None:
        # vLLM answers it also where the list wants a key that nobody gave; llama.cpp and FastChat have none
        reply = context.session.get(f"{context.session.target.root}/version")
        body = reply.json()
        name = "vllm" if reply.status == 200 and isinstance(body, dict) and set(body) == {"version"} else None
    return dialects.get(name or OPENAI.name, OPENAI)


def _discover(context: Context, dialects: Mapping[str, Dialect]) -> None:
    try:
        list_models(context)
        if context.session.target.dialect is None:
            context.dialect = detect(context, dialects)
    except Fault:
        # what is wrong here, the checks that follow find and report
        return


def _run_check(check: Check, context: Context, before: Sequence[Result]) -> Iterator[Result]:
    broken = [result for result in before if result.name in check.needs and result.status in ("fail", "skip")]
    if broken:
        yield _result(check, skipped(f"needs `{broken[0].name}`"), None, "", context.session.redact)
        return
    if not check.per_model:
        yield _timed(check, context, "")
        return
    if context.listing is not None and context.listing.status in (401, 403):
        # each model would only repeat it
        yield _result(check, skipped("the key is refused"), None, "", context.session.redact)
        return
    tried, left = _models(context)
    if not tried:
        yield _result(check, skipped("there is no served model to ask"), None, "", context.session.redact)
    for model in tried:
        yield _timed(check, context, model)
    if left:
        told = f"{len(left)} more model(s) not asked: at most {context.options.max_models} are"
        yield _result(check, skipped(told), None, "", context.session.redact)


def _models(context: Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The models to ask and those beyond the limit: expected ones that are served; without expected ones, the first."""
    wanted, listed = context.session.target.models, context.listed
    names = wanted or (listed or ())[:1]
    # one that is not listed has failed `models` already
    if listed is not None:
        names = tuple(name for name in names if name in listed)
    return names[: context.options.max_models], names[context.options.max_models :]


def _timed(check: Check, context: Context, model: str) -> Result:
    started = time.monotonic()
    try:
        verdict = check.run(context, model)
    except Fault as fault:
        verdict = Verdict("fail", fault.message, fault.hint)
    took = None if verdict.status == "skip" else time.monotonic() - started
    return _result(check, verdict, took, model, context.session.redact)


def _result(check: Check, verdict: Verdict, seconds: float | None, model: str, redact: Redactor) -> Result:
    """The one place where results are made: whatever a check put into its words, no key leaves it."""
    took = None if seconds is None else round(seconds, 4)
    return Result(check.name, verdict.status, took, redact(verdict.message), redact(verdict.hint),
                  redact(verdict.evidence), redact(model))  # fmt: skip


def _wait(target: Target, options: Options, wait: float, progress: Progress) -> None:
    """Returns when the target lists its models, when `wait` seconds are over, or when waiting can't help."""
    deadline, pause = time.monotonic() + wait, FIRST_PAUSE
    while (left := deadline - time.monotonic()) > 0:
        # a new session each time: the last silence must not outlast the whole waiting time
        with Session(target, min(options.timeout, max(left, 0.1))) as session:
            context = Context(session, options, target.dialect or OPENAI)
            results = [_timed(check, context, "") for check in READY[:1]]
            if results[0].status == "pass":
                results += [_timed(check, context, "") for check in READY[1:]]
            # a wrong key stays wrong, however long one waits
            refused = context.listing is not None and context.listing.status in (401, 403)
        last = results[-1]
        if refused or all(result.status in ("pass", "warn") for result in results):
            return
        progress(target.name, last.name, f"waiting: {last.message}")
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE)
