"""Runs the table of checks: many targets concurrently, the checks of each target in order."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone

from stackgen.check.checks.services import describe_state
from stackgen.check.checks.table import READY, list_models, select_checks
from stackgen.check.checks.verdict import Check, Context, Verdict, fail, skip
from stackgen.check.dialects import BUILTIN, OPENAI, dialect_from_models
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.target import Target
from stackgen.check.time_limit import NOT_CHECKED, run_within
from stackgen.check.topology import Unobservable
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import Session
from stackgen.plan import Dialect

__all__ = ["Progress", "check_target", "run"]

Progress = Callable[[str, str, str], None]
# characters of a message, hint or evidence in a report
MAX_TEXT = 1000
# seconds between attempts while a server is not ready: short at first, because small models load fast
FIRST_PAUSE, PAUSE_GROWTH, MAX_PAUSE = 0.25, 1.6, 5.0
# checks that need an observer; they are left out if only the URL is known
OBSERVER_CHECKS = frozenset({"containers", "topology"})
# these checks don't use the API, so they need no dialect and no request that detects the dialect
CHECKS_WITHOUT_DIALECT = frozenset({"resolve", "connect", "tls", "http", *OBSERVER_CHECKS})
# a fault in one of these checks is the fault of the server, not of its configuration or key
SERVER_FAULT_CHECKS = frozenset({"connect", "http", "chat"})
# waiting does not bring a service out of these states
FINAL_STATES = frozenset({"exited", "dead"})


def run(
    targets: Sequence[Target],
    options: Options,
    wait: float,
    on_progress: Progress | None,
    on_endpoint: Callable[[EndpointReport], None] | None,
    dialects: Mapping[str, Dialect],
) -> Report:
    """The report on all targets, in the order of `targets`; see `stackgen.check.check`."""
    started, started_at = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    checks = select_checks(options)
    # callers print progress, and lines from several threads must not mix
    lock = threading.Lock()

    def report_progress(name: str, check: str, message: str) -> None:
        if on_progress:
            with lock:
                on_progress(name, check, message)

    def check_one(target: Target) -> EndpointReport:
        selected = checks
        # a target with its own speed limit also needs `stream`, which measures the speed
        if (target.max_ttft or target.min_tokens_per_second) and "stream" not in options.skip:
            limits = replace(options, max_ttft=target.max_ttft, min_tokens_per_second=target.min_tokens_per_second)
            selected = select_checks(limits)
        report = check_target(target, selected, options, wait, report_progress, known)
        if on_endpoint:
            with lock:
                on_endpoint(report)
        return report

    known = {**BUILTIN, **dialects}
    endpoints: tuple[EndpointReport, ...] = ()
    if targets:
        # threads, not asyncio: checks stay plain functions, and a silent server blocks only one thread
        pool = ThreadPoolExecutor(min(len(targets), options.workers), "stackgen-check")
        try:
            endpoints = tuple(future.result() for future in [pool.submit(check_one, target) for target in targets])
        finally:
            # after Ctrl-C, running checks end at their timeout and queued checks never start; nobody waits for them
            pool.shutdown(wait=False, cancel_futures=True)
    return Report(endpoints, started, options.profile, round(time.monotonic() - started_at, 4))


def check_target(
    target: Target,
    checks: Sequence[Check],
    options: Options,
    wait: float,
    progress: Progress,
    dialects: Mapping[str, Dialect],
) -> EndpointReport:
    """Runs `checks` on one target, after waiting up to `wait` seconds until it is ready."""
    if wait > 0:
        _wait_until_ready(target, options, wait, progress)
    started = time.monotonic()
    with Session(target, options.timeout, started + (options.time_limit or math.inf)) as session:
        context = Context(session, options, target.dialect or OPENAI)
        results: list[Result] = []
        has_tried_models = False
        for check in checks:
            if target.observer is None and check.name in OBSERVER_CHECKS and check.name not in options.select:
                continue
            # also if `http` is skipped: without its dialect, a good server would look broken
            if check.name not in CHECKS_WITHOUT_DIALECT and not has_tried_models:
                has_tried_models = True
                lower = [one for one in results if one.name in CHECKS_WITHOUT_DIALECT]
                if not context.front_is_down and all(one.status != "fail" for one in lower):
                    _list_models_and_dialect(context, dialects)
            for result in _run_check(check, context, results):
                # an HTTP 5xx means a dead engine behind a server that still answers
                if check.name == "chat" and result.status == "fail" and result.message.startswith("HTTP 5"):
                    context.completion_failure = context.completion_failure or result.message
                progress(target.name, check.name, f"{result.status}: {result.message}")
                results.append(result)
        answer = session.redact(context.answer) if context.answer is not None else None
        # names and details come from a server
        apis = [
            replace(one, model=session.redact(one.model), detail=session.redact(one.detail)[:MAX_TEXT])
            for one in context.apis
        ]
        return EndpointReport(target.name, target.base_url, context.dialect.name, tuple(results), answer,
                              seconds=round(time.monotonic() - started, 4), apis=tuple(apis))  # fmt: skip


def detect_dialect(context: Context, dialects: Mapping[str, Dialect]) -> Dialect:
    """Returns the dialect that the model list or `/version` shows; `openai` if neither shows a dialect."""
    name = dialect_from_models(context.listing.json()) if context.listing else None
    if name is None:
        # vLLM answers /version without a key, also if its model list needs one; llama.cpp and FastChat lack this path
        reply = context.session.get(f"{context.session.target.root}/version")
        body = reply.json()
        name = "vllm" if reply.status == 200 and isinstance(body, dict) and set(body) == {"version"} else None
    return dialects.get(name or OPENAI.name, OPENAI)


def _list_models_and_dialect(context: Context, dialects: Mapping[str, Dialect]) -> None:
    try:
        list_models(context)
        if context.session.target.dialect is None:
            context.dialect = detect_dialect(context, dialects)
    except Fault as fault:
        # `models` reports this fault, without waiting for another timeout
        context.listing_fault = context.listing_fault or fault


def _run_check(check: Check, context: Context, before: Sequence[Result]) -> Iterator[Result]:
    if reason := _skip_reason(check, context, before):
        yield _make_result(check, skip(reason), None, "", context)
        return
    if not check.per_model:
        yield _run_timed(check, context, "")
        return
    models, left = _models_to_check(context)
    if not models:
        yield _make_result(check, skip("there is no served model to check"), None, "", context)
    for model in models if check.exhaustive else models[:1]:
        if model in context.timed_out_models:
            yield _make_result(check, skip("needs `chat`, but `chat` timed out"), None, model, context)
            continue
        if context.options.is_light and model in context.unloaded:
            # a request would load the model and might evict the model in use
            message = f"not checked: the model is {context.unloaded[model]}, and this check loads no model"
            yield _make_result(check, skip(message), None, model, context)
            continue
        yield _run_timed(check, context, model)
    if left and check.exhaustive:
        message = f"models that were not checked: {len(left)}, because the limit is {context.options.max_models}"
        yield _make_result(check, skip(message), None, "", context)


def _skip_reason(check: Check, context: Context, before: Sequence[Result]) -> str:
    """Returns why a check can't run; empty if the check can run."""
    if context.front_is_down:
        return "needs `containers`"
    unmet = [
        result.name
        for result in before
        if result.name in check.needs
        and (result.status == "fail" or (result.status == "skip" and result.message.startswith("needs `")))
        and not result.message.startswith(NOT_CHECKED)
    ]
    if unmet:
        return f"needs `{unmet[0]}`"
    # `models` has already reported the refused key; each model would only repeat that
    if check.per_model and context.listing is not None and context.listing.status in (401, 403):
        return "the key is refused"
    if check.name in context.dialect.lacks:
        return f"{context.dialect.name} does not support {check.name}"
    return ""


def _models_to_check(context: Context) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the models to check, and the models beyond the limit.

    The models to check are the expected models that are served. If no model is expected, the first model that can chat
    is checked.
    """
    wanted, listed = context.session.target.models, context.listed
    # a model that is loaded already, so that the check evicts no other model
    free = sorted(context.chat_models or listed or (), key=lambda name: name in context.unloaded)
    names = wanted or tuple(free[:1])
    # `models` has already reported a name that is not listed
    if listed is not None:
        names = tuple(name for name in names if name in listed)
    limit = context.options.max_models
    return names[:limit], names[limit:]


def _run_timed(check: Check, context: Context, model: str) -> Result:
    started = time.monotonic()
    try:
        verdict = run_within(check, context, model)
    except Fault as fault:
        verdict = fail(fault.message, hint=fault.hint)
        if check.name in SERVER_FAULT_CHECKS:
            context.completion_failure = context.completion_failure or fault.message
        if check.name == "chat" and fault.kind == "timeout":
            context.timed_out_models.add(model)
            verdict = fail(fault.message, hint=context.dialect.silent_hint or fault.hint)
    except Unobservable as error:
        # the endpoint itself may still be healthy
        verdict = skip(str(error))
    except OSError as error:
        # an observer raises it, for example if the Docker engine has stopped
        message = f"can't inspect the services: {error.strerror or error}"
        verdict = fail(message, hint="check that the Docker engine is still running")
    except Exception as error:
        # a bug in one check must not hide the other checks; its text may contain server data, so only its type is shown
        verdict = fail(f"the check itself failed: {type(error).__name__}", hint="please report this bug")
    context.outcomes[check.name, model] = verdict
    seconds = None if verdict.status == "skip" else time.monotonic() - started
    return _make_result(check, verdict, seconds, model, context)


def _make_result(check: Check, verdict: Verdict, seconds: float | None, model: str, context: Context) -> Result:
    """Creates a result. No other function does this, so the redactor sees every text of a check."""
    redact, context.has_failed = context.session.redact, context.has_failed or verdict.status == "fail"
    exchanges = tuple(context.session.exchanges)
    context.session.exchanges.clear()
    # a deviation that appears in every request is reported only once
    notes = tuple(note[:MAX_TEXT] for note in map(redact, verdict.notes) if note not in context.reported_notes)
    context.reported_notes.update(notes)

    def clean(text: str) -> str:
        # names and messages come from a server, so the key is removed before the text is cut
        text = redact(text)
        return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"

    return Result(
        name=check.name,
        status=verdict.status,
        seconds=None if seconds is None else round(seconds, 4),
        message=clean(verdict.message),
        hint=clean((context.session.target.reword or str)(verdict.hint)),
        evidence=clean(verdict.evidence),
        model=clean(model),
        notes=notes,
        figures=dict(verdict.figures),
        samples=dict(verdict.samples),
        exchanges=exchanges,
    )


def _wait_until_ready(target: Target, options: Options, wait: float, progress: Progress) -> None:
    """Waits up to `wait` seconds until the target is alive and lists its models. Stops early if waiting can't help."""
    deadline, pause = time.monotonic() + wait, FIRST_PAUSE
    while (left := deadline - time.monotonic()) > 0:
        if exited := _exited_service(target):
            progress(target.name, "containers", f"not waiting: {exited}")
            return
        # a new session for each attempt, so that the timeout of the last attempt fits into `wait`
        with Session(target, min(options.timeout, max(left, 0.1))) as session:
            context = Context(session, options, target.dialect or OPENAI)
            results: list[Result] = []
            for check in READY:
                results.append(_run_timed(check, context, ""))
                if results[-1].status == "fail":
                    break
            # waiting does not fix a wrong key
            refused = context.listing is not None and context.listing.status in (401, 403)
        last = results[-1]
        if refused or last.status != "fail":
            return
        progress(target.name, last.name, f"waiting: {last.message}")
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * PAUSE_GROWTH, MAX_PAUSE)


def _exited_service(target: Target) -> str:
    """Returns a service that has stopped for good, with its exit code; empty while waiting makes sense."""
    try:
        services = target.observer.services() if target.observer else ()
    except OSError:
        return ""
    down = [describe_state(one) for one in services if one.state in FINAL_STATES]
    return down[0] if down else ""
