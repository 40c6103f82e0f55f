"""Applies the rules to the evidence: the cause comes first, other findings follow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from signal import Signals

from stackgen.diagnose.evidence import Evidence, ServiceEvidence, detect_engine
from stackgen.diagnose.gpus import format_device, format_gpus, format_holders
from stackgen.diagnose.log_lines import (
    excerpt,
    find_key_lines,
    has_crashed,
    has_failed,
    has_served,
    is_below_error,
    recent_lines,
    strip_prefix,
)
from stackgen.diagnose.rule import UNKNOWN, Change, Edit, Finding, Hit, Rule
from stackgen.diagnose.rules import RULES
from stackgen.diagnose.secrets import SecretRedactor
from stackgen.flags import normalize_flag

__all__ = ["diagnose", "find_undecided_services"]

# characters of an evidence line that are shown
WIDTH = 400


def diagnose(evidence: Evidence) -> tuple[Finding, ...]:
    """All causes that were found, the most likely first. `SG-0000` means that no rule explains the failure.

    The result is empty if nothing is wrong.
    """
    redact = SecretRedactor(evidence.secrets)
    found: list[tuple[Finding, frozenset[str]]] = []
    for rule in RULES:
        seen: set[str] = set()
        for hit in chain(rule.find(evidence) if rule.find else (), _find_hits(rule, evidence)):
            # every attempt logs the same lines again, so one finding per rule and service is enough
            if hit.service not in seen:
                seen.add(hit.service)
                found.append((_make_finding(rule, hit, evidence, redact), frozenset(hit.lines)))
    kept: list[Finding] = []
    explained_lines: set[str] = set()
    for one, lines in found:
        # a later, more general rule adds nothing to lines that an earlier rule explains
        if not one.fallback and not (lines and lines <= explained_lines):
            kept.append(one)
            explained_lines |= lines
    explained = {one.service for one in kept}
    broken = {one.service for one in evidence.services if one.has_failed}
    fallbacks = (one for one, _ in found if one.fallback)
    # a cause of the whole stack ("") also explains what its services show
    rest = [one for one in (*fallbacks, *_find_unknown(evidence, redact)) if "" not in explained]
    for one in rest:
        # next to a known cause, only services that Docker reports as failed are worth a finding
        if one.service not in explained and (not kept or one.service in broken):
            kept.append(one)
            explained.add(one.service)
    return tuple(kept)


def find_undecided_services(evidence: Evidence) -> tuple[str, ...]:
    """The services whose evidence does not show whether they work or failed."""
    logs = [one for one in evidence.services if not one.state]
    # a gateway or a web page among the engines logs no line that means ready
    engines = [one for one in logs if detect_engine(one.log)]
    unready = [one for one in (engines or logs) if not has_served(one.log)]
    waiting = [one for one in evidence.services if one.state and not one.is_working]
    return tuple(one.service for one in (*(unready if engines or len(unready) == len(logs) else ()), *waiting))


def _find_hits(rule: Rule, evidence: Evidence) -> Iterator[Hit]:
    for service, lines in _read_inputs(rule, evidence):
        # one search over the whole text is much faster than one per line, and mostly finds nothing
        whole = "\n".join(lines)
        if not any(pattern.search(whole) for pattern in rule.patterns):
            continue
        if any(pattern.search(whole) for pattern in rule.unless):
            continue
        for line in lines:
            match = next((found for pattern in rule.patterns if (found := pattern.search(line))), None)
            if match:
                values = {name: value for name, value in match.groupdict().items() if value is not None}
                yield Hit(service, (line.strip(),), values, match[0])
                break


def _read_inputs(rule: Rule, evidence: Evidence) -> Iterator[tuple[str, Sequence[str]]]:
    """The texts that the rule reads, each with its service; the newest lines come first."""
    for service in evidence.services:
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
    change = hit.change or rule.change
    return Finding(
        id=rule.id,
        title=fill_template(rule.title, values),
        service=hit.service,
        cause=redact(fill_template(rule.cause, values)),
        evidence=_format_evidence(rule, hit, evidence, redact),
        fix=redact(fill_template(rule.fix, values)),
        edit=_make_edit(change, hit, values, evidence) if change else None,
        fallback=rule.fallback,
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


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """`template` with each `{name}` replaced by its value.

    `[[…]]` is left out if a value in it is unknown. An unknown value elsewhere becomes `?`.
    """

    def optional(match: re.Match[str]) -> str:
        return match[1] if all(name in values for name in re.findall(r"\{([a-z_]+)\}", match[1])) else ""

    template = re.sub(r"\[\[(.*?)\]\]", optional, template)
    return re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match[1], "?"), template)


def _make_edit(change: Change, hit: Hit, values: dict[str, str], evidence: Evidence) -> Edit | None:
    chosen = evidence.find_model(hit.service)
    index, model = chosen or (0, None)
    value = change.compute(model, values) if change.compute else fill_template(change.value, values)
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


def _find_unknown(evidence: Evidence, redact: SecretRedactor) -> Iterator[Finding]:
    """Failures that match no rule, with their key lines and no guess about the cause."""
    for service in evidence.services:
        if not service.is_working and (service.has_failed or _log_shows_failure(service)):
            lines = find_key_lines(service.log)
            yield _make_unknown(service.service, (*lines, *_format_state(service, bool(lines))), redact)
    if evidence.compose_output.strip() and not any(one.has_failed or one.log for one in evidence.services):
        lines = tuple(line for line in evidence.compose_output.splitlines() if line.strip())
        yield _make_unknown("", lines[-4:], redact)
    if evidence.checks and all(one.is_working for one in evidence.services):
        yield _make_unknown("", tuple(f"{check}: {message}" for check, message in evidence.checks), redact)


def _make_unknown(service: str, lines: tuple[str, ...], redact: SecretRedactor) -> Finding:
    return Finding(
        id=UNKNOWN,
        title="unknown failure",
        service=service,
        cause="no rule matches; these log lines most likely show the cause",
        evidence=tuple(excerpt(redact(line), "", WIDTH) for line in lines),
        fix="run `stackgen diagnose --bundle FILE` to write a report without secrets for a bug report",
        fallback=True,
    )


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
