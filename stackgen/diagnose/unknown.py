"""The findings for failures that no rule explains: they contain only what the log shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from signal import Signals

from stackgen.diagnose.components import find_component
from stackgen.diagnose.container_states import find_ended_container
from stackgen.diagnose.evidence import Evidence, ServiceEvidence, detect_engine
from stackgen.diagnose.features import describe_test
from stackgen.diagnose.log_lines import (
    find_endings,
    find_failed_request,
    find_key_lines,
    has_certain_error,
    has_crashed,
    has_failed,
    has_served,
    last_status,
    lines_after,
    lines_since_ready,
    recent_lines,
)
from stackgen.diagnose.log_text import excerpt
from stackgen.diagnose.next_steps import describe_next_steps
from stackgen.diagnose.rule import UNKNOWN, Finding
from stackgen.diagnose.settings import find_touched_settings, read_frames
from stackgen.diagnose.tracebacks import find_cut_traceback, find_traceback_at_end, has_request_frame
from stackgen.stack.redactor import SecretRedactor

__all__ = ["WIDTH", "explain_lines", "find_unknown"]

# characters of an evidence line that are shown
WIDTH = 400
NO_RULE = "no rule matches this failure"
FAILED_REQUEST = "the server is running, but its last request failed, and no rule matches"
NO_ERROR = "the server is running, but it could not answer its last request, and its log contains no error"
SILENT = (
    "the log does not contain the cause. Every error in the log is a consequence: another process ended first, and its "
    "error is not in these lines. Either lines are missing (this is an excerpt, or the process logs in another "
    "container), or that process ended without a message, for example because the kernel killed it when memory was full"
)
OF_A_REQUEST = "The traceback belongs to a request, so the server may still be running"
CUT = (
    "the log contains a traceback, but not the exception at its end. Every error line in the log is a consequence of "
    "this exception. The last frame of the traceback is shown"
)
CUT_AT_END = (
    "the log ends inside a traceback, so the exception that ends the traceback is not in it. The last frame is shown"
)
LOOK_BELOW = (
    "look for this frame in the whole log of the service (`docker logs`): the line after it is the exception; run "
    "`stackgen diagnose` again with this line"
)
LOOK_FURTHER = (
    "look for this frame in the whole log of the service (`docker logs`): the first line below it that is not indented "
    "is the exception; run `stackgen diagnose` again with this line"
)
# FastChat 0.2.36 requires Gradio 4.10 or newer; Gradio 5 changed much (lm-sys/FastChat issue 3669, 2025-01)
GRADIO = (
    "this frame is code of Gradio: FastChat's web page was written for Gradio 4, but its installation may contain a "
    "newer Gradio; run `pip show gradio`; if it prints version 5 or newer, install `gradio<5` as a test"
)
ENDED = (
    "no rule matches this failure. Docker reports that {name} ended with exit code {code}. This code shows that there "
    "was an error, but not which one"
)
READ_LOG = "read the log of this container (`docker logs{name}`); run `stackgen diagnose` again with this log"
LOOK_OUTSIDE = (
    "look for the first error in the whole log of this start (`docker logs` of every container of the model); if "
    "there is none, check the exit code and OOMKilled of the container (`docker inspect`); look for the OOM killer "
    "and Xid errors in the kernel log (`sudo dmesg | grep -iE 'killed process|xid'`); watch the free memory (`free "
    "-g`) during the next start"
)


def find_unknown(evidence: Evidence, redact: SecretRedactor, unexplained: frozenset[str]) -> Iterator[Finding]:
    """Failures that match no rule, with their key lines, next steps, and no guess about the cause."""
    make = partial(_make_unknown, evidence, redact)
    is_found = False
    for service in evidence.services:
        failed = not service.is_working and (service.has_failed or _log_shows_failure(service))
        status = last_status(service.log)
        quiet = not (failed or service.state or has_served(service.log) or has_certain_error(service.log))
        is_refused = not service.state and _is_failed_answer(status)
        if failed or service.service in unexplained:
            is_found = True
            yield _explain_failed_service(service, make)
        elif quiet and (frames := find_traceback_at_end(service.log.splitlines())):
            is_found = True
            yield make(service.service, frames, CUT_AT_END, "; ".join((LOOK_FURTHER, *_name_gradio(service, frames))))
        elif quiet and (ended := find_ended_container(service.log)):
            is_found = True
            values = {"name": ended.name or "the container", "code": str(ended.code)}
            fix = READ_LOG.format(name=f" {ended.name}" if ended.name else "")
            yield make(service.service, ended.lines, ENDED.format(**values), fix)
        # status 500 and above is the server's fault, with or without an error in the log
        elif is_refused and ((status or 0) >= 500 or _has_errors(service.log)):
            is_found = True
            lines = find_key_lines(service.log)
            silent = (status or 0) >= 500 and _is_refused_silently(service.log)
            yield make(service.service, lines, NO_ERROR if silent else _describe(FAILED_REQUEST, service.log))
    compose = evidence.compose_output
    has_logs = any(one.has_failed or one.log for one in evidence.services)
    # a pasted log without service names is both, and was read above
    is_own = not is_found and not any(one.service == "log" for one in evidence.services) and has_failed(compose)
    if compose.strip() and (not has_logs or is_own):
        lines = tuple(line for line in compose.splitlines() if line.strip())
        shown = find_key_lines(compose) if has_logs else lines[-4:]
        # Compose names the container, whose log shows more
        named = next((one for one in evidence.services if one.service and f"-{one.service}-" in shown[-1]), None)
        before = find_key_lines(named.log, 3) if named else ()
        yield make(named.service if named else "", (*before, *shown), _describe(NO_RULE, compose))
    if evidence.checks and all(one.is_working for one in evidence.services):
        lines = tuple(f"{check}: {message}" for check, message in evidence.checks)
        yield make("", lines, f"{NO_RULE}. All services are running, but these checks failed")


def _name_gradio(service: ServiceEvidence, frames: tuple[str, ...]) -> tuple[str, ...]:
    is_fastchat = service.engine == "fastchat" or "fastchat" in service.log.lower()
    return (GRADIO,) if is_fastchat and "/gradio/" in frames[0] else ()


def _is_failed_answer(status: int | None) -> bool:
    # a missing key, and a path or model that does not exist, are the client's own mistakes
    return (status or 0) >= 400 and status not in (401, 403, 404)


def _has_errors(log: str) -> bool:
    return any(line.strip() for line in recent_lines(log, errors=True))


def _make_unknown(
    evidence: Evidence, redact: SecretRedactor, service: str, lines: tuple[str, ...], cause: str, fix: str = ""
) -> Finding:
    if not fix:
        fix = explain_lines(evidence, service, lines)
    shown = tuple(excerpt(redact(line), "", WIDTH) for line in lines)
    return Finding(UNKNOWN, "unknown failure", service, cause, shown, fix, fallback=True)


def explain_lines(evidence: Evidence, service: str, lines: tuple[str, ...]) -> str:
    """The next steps for `lines` of the service's log that no rule explains."""
    own = next((one for one in evidence.services if one.service == service), None)
    log = own.log if own else evidence.compose_output
    engine = own.engine if own else ""
    model = (evidence.find_model(service) or (0, None))[1]
    text = "\n".join((*lines, read_frames(log, lines)))
    settings = find_touched_settings(text, log, engine, model)
    # a stack and the engine's line of its arguments show which features are in use
    features = describe_test(text, engine or detect_engine(log)) if model is None and not settings else ""
    return describe_next_steps(
        lines,
        evidence.gpu_maker(service),
        engine,
        settings,
        advice=lines_after(log, lines),
        certain=has_certain_error(log) or not own,
        served=has_served(log),
        component="" if engine or detect_engine(log) else find_component(log),
        features=features,
        refused=_is_refused_silently(log),
    )


def _is_refused_silently(log: str) -> bool:
    """Whether the server answered a request with status 500 or above, and logged no error."""
    return bool(find_failed_request(log)) and not has_certain_error(log) and not has_crashed(log)


def _describe(what: str, log: str) -> str:
    """`what`, and how far the shown lines are evidence: only errors are called likely causes."""
    if has_certain_error(log):
        return f"{what}. These log lines most likely show the cause"
    return f"{what}, and no line of the log is clearly an error. These lines are the most likely errors"


def _explain_failed_service(service: ServiceEvidence, make: Callable[..., Finding]) -> Finding:
    endings = find_endings(service.log)
    lines = endings or find_key_lines(service.log)
    shown = (*lines, *_format_state(service, bool(lines)))
    if endings and (frames := find_cut_traceback(lines_since_ready(service.log))):
        return make(service.service, (*frames, *shown), CUT, LOOK_BELOW)
    if endings:
        return make(service.service, shown, SILENT, LOOK_OUTSIDE)
    # the log of a request that failed may be all that somebody has copied
    of_request = not service.state and not has_crashed(service.log) and has_request_frame(service.log.splitlines())
    cause = _describe(NO_RULE, service.log)
    return make(service.service, shown, f"{cause}. {OF_A_REQUEST}" if of_request else cause)


def _log_shows_failure(service: ServiceEvidence) -> bool:
    if service.state:
        return service.state == "running" and has_crashed(service.log)
    # a server that is ready, or has served, may log the traceback of a bad request
    return has_crashed(service.log) if has_served(service.log) else has_failed(service.log)


def _format_state(service: ServiceEvidence, has_log: bool) -> tuple[str, ...]:
    if not service.state:
        return ()
    code = f", exit code {service.exit_code}{_signal_name(service.exit_code)}" if service.exit_code is not None else ""
    health = f", {service.health}" if service.health else ""
    return (f"{service.service} is {service.state}{code}{health}{'' if has_log else ', and its log shows no reason'}",)


def _signal_name(code: int) -> str:
    """The signal in an exit code. If a signal ends a process, shells report 128 plus the number of the signal."""
    try:
        return f" = 128 + {Signals(code - 128).name}" if code > 128 else ""
    except ValueError:
        return ""
