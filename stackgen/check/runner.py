"""Runs the table of checks on targets: many at once, each one's checks in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone

from stackgen.check.checks.table import READY, choose, list_models
from stackgen.check.checks.verdict import Check, Context, Verdict, failed, skipped
from stackgen.check.dialects import BUILTIN, OPENAI, dialect_of_models
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.target import Target
from stackgen.check.topology import Unobservable
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import Session
from stackgen.plan import Dialect

__all__ = ["Progress", "check_target", "run"]

Progress = Callable[[str, str, str], None]
# characters of a message, a hint or an evidence
MAX_WORDS = 1000
# seconds between looks at a server that isn't ready: soon at first, as small models load fast
FIRST_PAUSE, PAUSE_GROWTH, LONGEST_PAUSE = 0.25, 1.6, 5.0
# checks of what a runtime shows: left out where only the URL is known
OBSERVED = frozenset({"containers", "topology"})
# these come before anything is known of the server, or look past it: the dialect needs not be found out for them
OUTER = frozenset({"resolve", "connect", "tls", "http", *OBSERVED})
# a fault of these is the server's own
BLAMING = frozenset({"connect", "http", "chat"})
# a service in one of these states does not become ready by waiting
ENDED = frozenset({"exited", "dead"})


def run(
    targets: Sequence[Target],
    options: Options,
    wait: float,
    on_progress: Progress | None,
    on_endpoint: Callable[[EndpointReport], None] | None,
    dialects: Mapping[str, Dialect],
) -> Report:
    """The report on all targets, in their order; see `stackgen.check.check`."""
    started, begun = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    checks = choose(options)
    # callers print progress; lines from several threads must not mix
    lock = threading.Lock()

    def report_progress(name: str, layer: str, message: str) -> None:
        if on_progress:
            with lock:
                on_progress(name, layer, message)

    def look(target: Target) -> EndpointReport:
        # a limit of its own brings `stream`, as one of all endpoints does
        its = checks
        if (target.max_ttft or target.min_tokens_per_second) and "stream" not in options.skip:
            its = choose(replace(options, max_ttft=target.max_ttft, min_tokens_per_second=target.min_tokens_per_second))
        report = check_target(target, its, options, wait, report_progress, known)
        if on_endpoint:
            with lock:
                on_endpoint(report)
        return report

    known = {**BUILTIN, **dialects}
    endpoints: tuple[EndpointReport, ...] = ()
    if targets:
        # threads, not asyncio: checks stay plain functions, and a silent server costs a thread that sleeps
        pool = ThreadPoolExecutor(min(len(targets), options.workers), "stackgen-check")
        try:
            endpoints = tuple(future.result() for future in [pool.submit(look, target) for target in targets])
        finally:
            # after Ctrl-C what runs ends at its time-out, what waits never starts, and nobody waits here for either
            pool.shutdown(wait=False, cancel_futures=True)
    return Report(endpoints, started, options.profile, round(time.monotonic() - begun, 4))


def check_target(
    target: Target,
    checks: Sequence[Check],
    options: Options,
    wait: float,
    progress: Progress,
    dialects: Mapping[str, Dialect],
) -> EndpointReport:
    """The checks on one target, after waiting up to `wait` seconds until it is ready."""
    if wait > 0:
        _wait(target, options, wait, progress)
    begun = time.monotonic()
    with Session(target, options.timeout) as session:
        context = Context(session, options, target.dialect or OPENAI)
        results: list[Result] = []
        discovered = False
        for check in checks:
            if target.observer is None and check.name in OBSERVED and check.name not in options.select:
                continue
            # also where `http` is skipped: without its dialect a good server would be taken for a broken one
            if check.name not in OUTER and not discovered:
                discovered = True
                if not context.blocked and all(one.status != "fail" for one in results if one.name in OUTER):
                    _discover(context, dialects)
            for result in _run_check(check, context, results):
                # a dead engine behind a server that still answers
                if check.name == "chat" and result.status == "fail" and result.message.startswith("HTTP 5"):
                    context.broken = context.broken or result.message
                progress(target.name, check.name, f"{result.status}: {result.message}")
                results.append(result)
        answer = session.redact(context.answer) if context.answer is not None else None
        return EndpointReport(target.name, target.base_url, context.dialect.name, tuple(results), answer,
                              round(time.monotonic() - begun, 4))  # fmt: skip


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
    except Fault as fault:
        # `models` reports it, without waiting for it once more
        context.fault = context.fault or fault


def _run_check(check: Check, context: Context, before: Sequence[Result]) -> Iterator[Result]:
    if reason := _not_now(check, context, before):
        yield _result(check, skipped(reason), None, "", context)
        return
    if not check.per_model:
        yield _timed(check, context, "")
        return
    tried, left = _models(context)
    if not tried:
        yield _result(check, skipped("there is no served model to ask"), None, "", context)
    for model in tried if check.exhaustive else tried[:1]:
        if model in context.silent:
            yield _result(check, skipped("needs `chat`, which got no answer in time"), None, model, context)
            continue
        result = _timed(check, context, model)
        yield result
    if left and check.exhaustive:
        told = f"{len(left)} more model(s) not asked: at most {context.options.max_models} are"
        yield _result(check, skipped(told), None, "", context)


def _not_now(check: Check, context: Context, before: Sequence[Result]) -> str:
    """Why a check can't be run; empty where it can."""
    if context.blocked:
        return "needs `containers`"
    broken = [
        result.name
        for result in before
        if result.name in check.needs
        and (result.status == "fail" or (result.status == "skip" and result.message.startswith("needs `")))
    ]
    if broken:
        return f"needs `{broken[0]}`"
    # each model would only repeat it
    if check.per_model and context.listing is not None and context.listing.status in (401, 403):
        return "the key is refused"
    if check.name in context.dialect.lacks:
        return f"{context.dialect.name} has none"
    return ""


def _models(context: Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The models to ask and those beyond the limit: expected ones that are served; without expected ones, the first
    that can chat.
    """
    wanted, listed = context.session.target.models, context.listed
    names = wanted or (context.chats or listed or ())[:1]
    # one that is not listed has failed `models` already
    if listed is not None:
        names = tuple(name for name in names if name in listed)
    most = context.options.max_models
    return names[:most], names[most:]


def _timed(check: Check, context: Context, model: str) -> Result:
    started = time.monotonic()
    try:
        verdict = check.run(context, model)
    except Fault as fault:
        verdict = failed(fault.message, fault.hint)
        if check.name in BLAMING:
            context.broken = context.broken or fault.message
        if check.name == "chat" and fault.kind == "timeout":
            context.silent.add(model)
            verdict = failed(fault.message, context.dialect.silent_hint or fault.hint)
    except Unobservable as error:
        # the endpoint may be well all the same
        verdict = skipped(str(error))
    except OSError as error:
        # from an observer: the Docker engine went away, say
        verdict = failed(f"can't be looked at: {error.strerror or error}", "does the Docker engine still run?")
    except Exception as error:
        # a mistake of ours must not hide what the other checks found; the message may hold what a server sent
        verdict = failed(f"the check itself failed: {type(error).__name__}", "please report it")
    took = None if verdict.status == "skip" else time.monotonic() - started
    return _result(check, verdict, took, model, context)


def _result(check: Check, verdict: Verdict, seconds: float | None, model: str, context: Context) -> Result:
    """The one place where results are made: whatever a check put into its words, no key leaves it."""
    redact, took = context.session.redact, None if seconds is None else round(seconds, 4)
    exchanges = tuple(context.session.exchanges)
    context.session.exchanges.clear()
    # a deviation that shows in every request is reported once
    notes = tuple(note[:MAX_WORDS] for note in map(redact, verdict.notes) if note not in context.told)
    context.told.update(notes)

    def words(text: str) -> str:
        # names and messages are a server's; the key is out before anything is cut
        text = redact(text)
        return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"

    return Result(check.name, verdict.status, took, words(verdict.message), words(verdict.hint),
                  words(verdict.evidence), words(model), notes, dict(verdict.figures),
                  dict(verdict.samples), exchanges)  # fmt: skip


def _wait(target: Target, options: Options, wait: float, progress: Progress) -> None:
    """Returns when the target is alive and lists its models, when `wait` (s) is over, or when waiting can't help."""
    deadline, pause = time.monotonic() + wait, FIRST_PAUSE
    while (left := deadline - time.monotonic()) > 0:
        if ended := _ended(target):
            progress(target.name, "containers", f"not waiting: {ended}")
            return
        # a new session each time: the last silence must not outlast the whole waiting time
        with Session(target, min(options.timeout, max(left, 0.1))) as session:
            context = Context(session, options, target.dialect or OPENAI)
            results: list[Result] = []
            for check in READY:
                results.append(_timed(check, context, ""))
                if results[-1].status == "fail":
                    break
            # a wrong key stays wrong, however long one waits
            refused = context.listing is not None and context.listing.status in (401, 403)
        last = results[-1]
        if refused or last.status != "fail":
            return
        progress(target.name, last.name, f"waiting: {last.message}")
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE)


def _ended(target: Target) -> str:
    """Which service of the target is down for good; empty while waiting makes sense."""
    try:
        services = target.observer.services() if target.observer else ()
    except OSError:
        return ""
    down = [f"{one.name} is {one.state} with code {one.exit_code}" for one in services if one.state in ENDED]
    return down[0] if down else ""
