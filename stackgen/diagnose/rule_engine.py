"""Applies the rules to the evidence: the cause comes first, other findings follow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from stackgen.diagnose.evidence import Evidence, ServiceEvidence, detect_engine
from stackgen.diagnose.gpus import format_device, format_gpus, format_holders
from stackgen.diagnose.log_lines import (
    find_failed_request,
    find_key_lines,
    find_last_request,
    has_certain_error,
    has_crashed,
    has_served,
    is_below_error,
    last_status,
    recent_lines,
    strip_prefix,
)
from stackgen.diagnose.log_text import excerpt
from stackgen.diagnose.multiline import join_messages
from stackgen.diagnose.rule import Change, Edit, Finding, Hit, Rule
from stackgen.diagnose.rules import RULES
from stackgen.diagnose.settings import find_touched_settings, read_frames
from stackgen.diagnose.templates import fill_template
from stackgen.diagnose.unknown import WIDTH, explain_lines, find_unknown
from stackgen.diagnose.verdict import Candidate, drop_consequences
from stackgen.flags import normalize_flag
from stackgen.stack.redactor import SecretRedactor

__all__ = ["diagnose", "find_logged_errors", "find_survived_requests", "find_undecided_services"]

# statuses of a request whose body the server can't read
BAD_REQUEST = (400, 422)
# vLLM logs at level ERROR that it answered a request with the client's mistake
ANSWERED = re.compile(r"\bcode=4\d\d\b")


def diagnose(evidence: Evidence) -> tuple[Finding, ...]:
    """All causes that were found, the most likely first. `SG-0000` means that no rule explains the failure.

    The result is empty if nothing is wrong.
    """
    evidence = _join_messages(evidence)
    redact = SecretRedactor(evidence.secrets)
    matched: list[Candidate] = []
    # in a pasted log, a server and its client often report one failure
    is_pasted = not any(one.state for one in evidence.services)
    for rule in RULES:
        seen: set[str] = set()
        values: list[Mapping[str, str]] = []
        for hit in chain(rule.find(evidence) if rule.find else (), _find_hits(rule, evidence)):
            # every attempt logs the same lines again, so one finding per rule and service is enough
            is_repeated = hit.service in seen or (is_pasted and hit.values and hit.values in values)
            if not is_repeated and _fits_driver(rule, hit, evidence):
                seen.add(hit.service)
                values.append(hit.values)
                matched.append(Candidate(rule, hit))
    causes, unexplained = drop_consequences(matched, evidence)
    found = [(_make_finding(one.rule, one.hit, evidence, redact), frozenset(one.hit.lines)) for one in causes]
    kept: list[Finding] = []
    explained_lines: set[str] = set()
    for one, lines in found:
        # a later, more general rule adds nothing to lines that an earlier rule explains
        if not one.fallback and not (lines and lines <= explained_lines):
            kept.append(one)
            explained_lines |= lines
    # pods that wait for the same reason have the same line, which is shown once
    explained = {one.service for one, _ in found if not one.fallback}
    broken = {one.service for one in evidence.services if one.has_failed}
    fallbacks = (one for one, _ in found if one.fallback)
    # a cause of the whole stack ("") also explains what its services show
    rest = [one for one in (*fallbacks, *find_unknown(evidence, redact, unexplained)) if "" not in explained]
    for one in rest:
        # next to a known cause, only services that Docker reports as failed are worth a finding
        if one.service not in explained and (not kept or one.service in broken):
            kept.append(one)
            explained.add(one.service)
    return tuple(kept)


def _join_messages(evidence: Evidence) -> Evidence:
    """`evidence` with each message in one line, because rules read line by line."""
    services = tuple(replace(one, log=join_messages(one.log), error=join_messages(one.error))
                     for one in evidence.services)  # fmt: skip
    return replace(evidence, services=services, compose_output=join_messages(evidence.compose_output))


def _fits_driver(rule: Rule, hit: Hit, evidence: Evidence) -> bool:
    return not rule.drivers or evidence.gpu_maker(hit.service) in rule.drivers


def find_undecided_services(evidence: Evidence) -> tuple[str, ...]:
    """The services whose evidence does not show whether they work or failed."""
    logs = [one for one in evidence.services if not one.state]
    # a gateway or a web page among the engines logs no line that means ready
    engines = [one for one in logs if detect_engine(one.log)]
    unready = [one for one in (engines or logs) if not has_served(one.log)]
    waiting = [one for one in evidence.services if one.state and not one.is_working]
    return tuple(one.service for one in (*(unready if engines or len(unready) == len(logs) else ()), *waiting))


def find_logged_errors(evidence: Evidence) -> tuple[str, ...]:
    """One error line of each pasted log that shows errors but no failure, with its service and without secrets."""
    redact = SecretRedactor(evidence.secrets)
    lines = ((one.service, _find_logged_error(one.log)) for one in evidence.services if not one.state)
    return tuple(f"{service}: {excerpt(redact(shown), '', WIDTH)}" for service, shown in lines if shown)


def _find_logged_error(log: str) -> str:
    """The line that stands for the errors of `log`: also one that only its level, or a traceback, marks as an error.

    Without such a line, the last request, if the server refused its body.
    """
    if has_certain_error(log):
        return next(reversed(find_key_lines(log, 1)), "")
    # the newest line comes first
    logged = [line.strip() for line in recent_lines(log, errors=True) if line.strip() and not ANSWERED.search(line)]
    cut = [line.strip() for line in recent_lines(log) if line.startswith("Traceback (most recent call last)")]
    found = [line for line in logged if not line.startswith(("Traceback", "File "))] or logged or cut
    # other refusals, such as 401 and 404, are common in logs of servers that others scan
    if not found and last_status(log) in BAD_REQUEST:
        found = [find_last_request(log)]
    return next(reversed(found), "")


def find_survived_requests(evidence: Evidence) -> tuple[str, ...]:
    """What each server that works could not answer (status 500 and above), with the error and what to do next."""
    redact = SecretRedactor(evidence.secrets)
    found = []
    for service in evidence.services:
        request = find_failed_request(service.log)
        if request and (service.is_working or not service.state):
            lines = find_key_lines(service.log, 2) if has_certain_error(service.log) else ()
            error = f": {excerpt(redact(lines[-1]), '', WIDTH)}" if lines else ""
            found.append(f"{service.service}: the server runs, but a request failed ({request}){error}\n"
                         f"  next: {redact(explain_lines(evidence, service.service, lines))}")  # fmt: skip
    return tuple(found)


def _find_hits(rule: Rule, evidence: Evidence) -> Iterator[Hit]:
    for service, lines in _read_inputs(rule, evidence):
        # one search over the whole text is much faster than one per line, and mostly finds nothing
        whole = "\n".join(lines)
        cases = [(pattern, one) for one in rule.variants if not one.applies or one.applies(evidence, service)
                 for pattern in one.patterns]  # fmt: skip
        tried = [*cases, *((pattern, None) for pattern in rule.patterns)]
        if not any(pattern.search(whole) for pattern, _ in tried):
            continue
        if any(pattern.search(whole) for pattern in rule.unless):
            continue
        for line in lines:
            matched = next(((found, one) for pattern, one in tried if (found := pattern.search(line))), None)
            if matched:
                match, variant = matched
                values = {name: value for name, value in match.groupdict().items() if value is not None}
                yield Hit(service, (line.strip(), *_last_error(lines, line)), values, match[0], variant=variant)
                break


def _last_error(lines: Sequence[str], hit: str) -> tuple[str, ...]:
    """What torch logs after `Last error:`, which is NCCL's reason for the error in `hit`; `lines` are newest first."""
    places = [index for index, line in enumerate(lines) if line.strip() == "Last error:"] if "NCCL error" in hit else []
    return (lines[places[0] - 1].strip(),) if places and places[0] else ()


def _read_inputs(rule: Rule, evidence: Evidence) -> Iterator[tuple[str, Sequence[str]]]:
    """The texts that the rule reads, each with its service; the newest lines come first."""
    for service in evidence.services:
        # a pasted log may not show its engine, so it is read by the rules of all engines
        if rule.engines and service.engine and service.engine not in rule.engines:
            continue
        # a finished download logs the attempts that failed before
        if "log" in rule.inputs and not (service.is_working and service.role == "download"):
            yield service.service, recent_lines(service.log, _reads_errors_only(service))
        if "docker" in rule.inputs and service.error:
            yield service.service, service.error.splitlines()
        if "health" in rule.inputs and service.health == "unhealthy":
            yield service.service, list(reversed(service.health_log.splitlines()))
    if "compose" in rule.inputs:
        lines = reversed(evidence.compose_output.splitlines())
        yield "", [strip_prefix(line) for line in lines if not is_below_error(line)]
    if "check" in rule.inputs:
        yield "", [f"{check}: {message}" for check, message in evidence.checks]


def _reads_errors_only(service: ServiceEvidence) -> bool:
    """Whether the service works or loads. Then only errors count, because a logged request may contain any text."""
    if has_crashed(service.log):
        return False
    return service.is_working or service.is_loading or (not service.state and has_served(service.log))


def _make_finding(rule: Rule, hit: Hit, evidence: Evidence, redact: SecretRedactor) -> Finding:
    values = _template_values(hit, evidence)
    own = hit.variant
    change = hit.change or (None if own and own.no_change else rule.change)
    model = (evidence.find_model(hit.service) or (0, None))[1]
    return Finding(
        id=rule.id,
        title=fill_template((own and own.title) or rule.title, values, model),
        service=hit.service,
        cause=redact(fill_template((own and own.cause) or rule.cause, values, model)),
        evidence=_format_evidence(rule, hit, evidence, redact),
        fix=redact(fill_template((own and own.fix) or rule.fix, values, model) + _name_settings(rule, hit, evidence)),
        edit=_make_edit(change, hit, values, evidence) if change else None,
        fallback=rule.fallback,
    )


def _name_settings(rule: Rule, hit: Hit, evidence: Evidence) -> str:
    service = next((one for one in evidence.services if one.service == hit.service), None)
    if not rule.names_settings or not service:
        return ""
    model = (evidence.find_model(hit.service) or (0, None))[1]
    text = "\n".join((*hit.lines, read_frames(service.log, hit.lines)))
    touched = find_touched_settings(text, service.log, service.engine, model)
    # without stack.yaml and the engine's arguments, these would be guesses
    return (
        f"; as a test, start once without the settings that these lines concern: {', '.join(touched[:3])}"
        if touched and model
        else ""
    )


def _format_evidence(rule: Rule, hit: Hit, evidence: Evidence, redact: SecretRedactor) -> tuple[str, ...]:
    """The lines of the hit, redacted, and the state of the service's GPUs if the rule shows it."""
    # without a highlight, a value that was read from the line marks the place as well
    highlights = [hit.highlight] if hit.highlight else sorted(hit.values.values(), key=len, reverse=True)
    lines = []
    for line in hit.lines:
        highlight = next((one for one in highlights if one in line), "")
        lines.append(excerpt(redact(line), redact(highlight), WIDTH))
    if rule.shows_gpus and evidence.gpus and (not hit.service or evidence.may_use_nvidia(hit.service)):
        devices = evidence.gpu_devices(hit.service)
        shown = [line for one in devices for line in format_device(one)] if devices else format_gpus(evidence.gpus)
        # format_gpus already includes the Xids
        lines += [redact(line) for line in (*shown, *((evidence.gpus.xids or ())[-2:] if devices else ()))]
    return tuple(dict.fromkeys(lines))


def _template_values(hit: Hit, evidence: Evidence) -> dict[str, str]:
    """The values for the templates, from the lines and from the stack."""
    values = {"service": hit.service or "the stack", "index": "0", "model": "the model", "repo": "the model"}
    if evidence.gpus and evidence.gpus.driver:
        values["driver"] = evidence.gpus.driver
    if holders := format_holders(evidence.gpu_devices(hit.service)):
        values["holders"] = holders
    chosen = evidence.find_model(hit.service)
    if chosen:
        values |= {"index": str(chosen[0]), "model": chosen[1].model, "repo": chosen[1].model}
    return values | dict(hit.values)


def _make_edit(change: Change, hit: Hit, values: dict[str, str], evidence: Evidence) -> Edit | None:
    chosen = evidence.find_model(hit.service)
    index, model = chosen or (0, None)
    value = change.compute(model, values) if change.compute else fill_template(change.value, values)
    # `?` is what fill_template writes for an unknown value
    if value is None or "?" in value:
        return None
    was = getattr(model, change.field, None)
    path: tuple[str | int, ...] = ("models", index, change.field)
    # without stack.yaml, the change is shown but can't be applied
    safe = change.safe and model is not None
    if change.remove and value:
        # an entry can be removed only if it is written in stack.yaml
        entries = _find_entries(value, was or (), change.with_value)
        return Edit(path, " ".join(entries), str(was), safe, True, entries) if entries else None
    # `true` in YAML is True in Python
    if str(was).lower() == value.lower() or (change.remove and was is None):
        return None
    return Edit(path, value, "" if was in (None, ()) else str(was), safe, change.remove)


def _find_entries(flag: str, arguments: Sequence[str], with_value: bool) -> tuple[str, ...]:
    """The arguments that make up `flag`, as they are written in `arguments`; () if they can't be determined."""
    for index, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        if name.startswith("-") and normalize_flag(name) == normalize_flag(flag):
            if equals or not with_value:
                return (argument,)
            following = tuple(arguments[index + 1 : index + 2])
            # another flag follows, so the value of this flag is missing and its arguments are unclear
            return (argument, *following) if following and not following[0].startswith("--") else ()
    return ()
