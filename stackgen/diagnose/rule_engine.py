"""Applies the rules to the evidence: the cause first, what else was found below it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from signal import Signals

from stackgen.diagnose.evidence import Evidence, ServiceEvidence, guess_engine
from stackgen.diagnose.gpus import card_lines, held, summary
from stackgen.diagnose.log_lines import around, calm, clean, died, failed, has_served, recent, telling
from stackgen.diagnose.rule import UNKNOWN, Change, Edit, Finding, Hit, Rule
from stackgen.diagnose.rules import RULES
from stackgen.diagnose.secrets import Scrubber
from stackgen.flags import dashed

__all__ = ["diagnose", "unsure"]

WIDTH = 400


def diagnose(evidence: Evidence) -> tuple[Finding, ...]:
    """All causes that were found, THE cause first; one `SG-0000` where something failed for no known reason.

    Empty where nothing is wrong.
    """
    scrub = Scrubber(evidence.secrets)
    found: list[tuple[Finding, frozenset[str]]] = []
    for rule in RULES:
        seen: set[str] = set()
        for hit in chain(rule.find(evidence) if rule.find else (), _matches(rule, evidence)):
            # each try says the same again, and a second service with the same cause is one line more
            if hit.service not in seen:
                seen.add(hit.service)
                found.append((_finding(rule, hit, evidence, scrub), frozenset(hit.lines)))
    kept: list[Finding] = []
    read: set[str] = set()
    for one, lines in found:
        # what a later rule reads in the same line, the earlier, more special one has said
        if not one.fallback and not (lines and lines <= read):
            kept.append(one)
            read |= lines
    told = {one.service for one in kept}
    broken = {one.service for one in evidence.services if one.failed}
    # a cause of the whole stack explains what its services show; beside a known cause, only real failures count
    rest = [one for one in (*(one for one, _ in found if one.fallback), *_unknown(evidence, scrub)) if "" not in told]
    for one in rest:
        if one.service not in told and (not kept or one.service in broken):
            kept.append(one)
            told.add(one.service)
    return tuple(kept)


def unsure(evidence: Evidence) -> tuple[str, ...]:
    """The services of which nothing tells that they work, where nothing tells either that they failed."""
    logs = [one for one in evidence.services if not one.state]
    # a gateway or a page between engines has no line that says that it is ready
    known = [one for one in logs if guess_engine(one.log)]
    unready = [one for one in (known or logs) if not has_served(one.log)]
    waiting = [one for one in evidence.services if one.state and not one.works]
    return tuple(one.service for one in (*(unready if known or len(unready) == len(logs) else ()), *waiting))


def _matches(rule: Rule, evidence: Evidence) -> Iterator[Hit]:
    for service, lines in _texts(rule, evidence):
        # one search over the whole text is much faster than one for each line, and mostly finds nothing
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


def _texts(rule: Rule, evidence: Evidence) -> Iterator[tuple[str, Sequence[str]]]:
    """The texts that the rule reads, each with its service; the newest lines come first."""
    for service in evidence.services:
        if rule.engines and service.engine and service.engine not in rule.engines:
            continue
        if "log" in rule.places and not (service.works and service.role == "download"):
            yield service.service, recent(service.log, _serves(service))
        if "docker" in rule.places and service.error:
            yield service.service, service.error.splitlines()
        if "health" in rule.places and service.health == "unhealthy":
            yield service.service, list(reversed(service.health_log.splitlines()))
    if "compose" in rule.places:
        yield "", [clean(line) for line in reversed(evidence.compose_output.splitlines()) if not calm(line)]
    if "check" in rule.places:
        yield "", [f"{check}: {message}" for check, message in evidence.checks]


def _serves(service: ServiceEvidence) -> bool:
    """Whether it works or still loads: then only errors count, for a request's text may hold any words."""
    if died(service.log):
        return False
    return service.works or service.loads or (not service.state and has_served(service.log))


def _finding(rule: Rule, hit: Hit, evidence: Evidence, scrub: Scrubber) -> Finding:
    values = _values(hit, evidence)
    change = hit.change or rule.change
    edit = _edit(change, hit, values, evidence) if change else None
    return Finding(
        rule.id,
        fill(rule.title, values),
        hit.service,
        scrub(fill(rule.cause, values)),
        _shown(rule, hit, evidence, scrub),
        scrub(fill(rule.fix, values)),
        edit,
        rule.fallback,
    )


def _shown(rule: Rule, hit: Hit, evidence: Evidence, scrub: Scrubber) -> tuple[str, ...]:
    """The lines that tell it, without secrets, and the state of the service's cards where the rule is about those."""
    # a value that was read out of the line serves as well
    marks = [hit.mark] if hit.mark else sorted(hit.values.values(), key=len, reverse=True)
    lines = []
    for line in hit.lines:
        mark = next((one for one in marks if one in line), "")
        lines.append(around(scrub(line), scrub(mark), WIDTH))
    if rule.cards and evidence.gpus and (not hit.service or evidence.uses_gpus(hit.service)):
        cards = evidence.cards(hit.service)
        told = [line for one in cards for line in card_lines(one)] if cards else summary(evidence.gpus)
        lines += [scrub(line) for line in (*told, *((evidence.gpus.xids or ())[-2:] if cards else ()))]
    return tuple(dict.fromkeys(lines))


def _values(hit: Hit, evidence: Evidence) -> dict[str, str]:
    """What the templates may name: what the lines hold, and what the stack says about the service."""
    values = {"service": hit.service or "the stack", "index": "0", "model": "the model", "repo": "the model"}
    if evidence.gpus and evidence.gpus.driver:
        values["driver"] = evidence.gpus.driver
    if holders := held(evidence.cards(hit.service)):
        values["holders"] = holders
    chosen = evidence.model(hit.service)
    if chosen:
        values |= {"index": str(chosen[0]), "model": chosen[1].model, "repo": chosen[1].model}
    return values | dict(hit.values)


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with `{name}` replaced; `[[…]]` goes where a name in it is unknown, any other unknown is `?`."""

    def optional(match: re.Match[str]) -> str:
        return match[1] if all(name in values for name in re.findall(r"\{([a-z_]+)\}", match[1])) else ""

    template = re.sub(r"\[\[(.*?)\]\]", optional, template)
    return re.sub(r"\{([a-z_]+)\}", lambda match: values.get(match[1], "?"), template)


def _edit(change: Change, hit: Hit, values: dict[str, str], evidence: Evidence) -> Edit | None:
    chosen = evidence.model(hit.service)
    index, model = chosen or (0, None)
    value = change.adapt(model, values) if change.adapt else fill(change.value, values)
    if value is None or "?" in value:
        return None
    was = getattr(model, change.field, None)
    path: tuple[str | int, ...] = ("models", index, change.field)
    safe = change.safe and model is not None
    if change.remove and value:
        # a removal needs the entry to stand there; without a spec there is nothing to change, only to show
        entries = _entries(value, was or (), change.with_value)
        return Edit(path, " ".join(entries), str(was), safe, True, entries) if entries else None
    if str(was).lower() == value.lower() or (change.remove and was is None):
        return None
    return Edit(path, value, "" if was in (None, ()) else str(was), safe, change.remove)


def _entries(flag: str, words: Sequence[str], with_value: bool) -> tuple[str, ...]:
    """The words that make up `flag`, as it stands there; none where they can't be told."""
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name.startswith("-") and dashed(name) == dashed(flag):
            if equals or not with_value:
                return (word,)
            following = tuple(words[index + 1 : index + 2])
            return (word, *following) if following and not following[0].startswith("--") else ()
    return ()


def _unknown(evidence: Evidence, scrub: Scrubber) -> Iterator[Finding]:
    """What failed and fits no rule: its most telling lines, and no guess."""
    for service in evidence.services:
        if not service.works and (service.failed or _log_failed(service)):
            lines = telling(service.log)
            yield _nothing_known(service.service, (*lines, *_states(service, bool(lines))), scrub)
    if evidence.compose_output.strip() and not any(one.failed or one.log for one in evidence.services):
        lines = tuple(line for line in evidence.compose_output.splitlines() if line.strip())
        yield _nothing_known("", lines[-4:], scrub)
    if evidence.checks and all(one.works for one in evidence.services):
        yield _nothing_known("", tuple(f"{check}: {message}" for check, message in evidence.checks), scrub)


def _nothing_known(service: str, lines: tuple[str, ...], scrub: Scrubber) -> Finding:
    shown = tuple(around(scrub(line), "", WIDTH) for line in lines)
    return Finding(
        UNKNOWN,
        "unknown failure",
        service,
        "no rule fits; these lines tell most",
        shown,
        "`stackgen diagnose --bundle FILE` writes a report without secrets that can be attached to a bug report",
        fallback=True,
    )


def _log_failed(service: ServiceEvidence) -> bool:
    if service.state:
        return service.state == "running" and died(service.log)
    # a server that is ready, or has served, may log the traceback of a bad request
    return died(service.log) if has_served(service.log) else failed(service.log)


def _states(service: ServiceEvidence, has_log: bool) -> tuple[str, ...]:
    if not service.state:
        return ()
    code = f", exit code {service.exit_code}{_signal(service.exit_code)}" if service.exit_code is not None else ""
    health = f", {service.health}" if service.health else ""
    return (f"{service.service} is {service.state}{code}{health}{'' if has_log else ', and its log says nothing'}",)


def _signal(code: int) -> str:
    """What ended a program: a shell counts 128 up for a signal."""
    try:
        return f" = 128 + {Signals(code - 128).name}" if code > 128 else ""
    except ValueError:
        return ""
