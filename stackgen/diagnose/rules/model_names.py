"""Model not found: what clients ask for, against what is served."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import clean, since_ready
from stackgen.diagnose.rule import Finder, Hit, Rule

__all__ = ["RULES"]

ASKED = (
    re.compile(r"The model [`'](?P<name>[^`']+)[`'] does not exist(?:\. Valid aliases: (?P<served>[^\"]+?)\.)?"),
    re.compile(r"Only (?P<served>.+?) allowed now, your model (?P<name>[^\"]+?)(?:\"|$)"),
)
SERVED = re.compile(r'POST /v1/(?:chat/)?completions HTTP/1\.[01]" 200')


def _asked(evidence: Evidence) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Service, line, name that was asked for, and the names that are served there."""
    names = tuple(name for end in (evidence.plan.endpoints if evidence.plan else ()) for name in end.models)
    texts = [("", f"{check}: {message}") for check, message in evidence.checks]
    # a working server logs every wrong name that any client tries
    texts += [
        (one.service, line) for one in evidence.services if not (one.works and one.state) for line in _unserved(one.log)
    ]
    for service, line in texts:
        for pattern in ASKED:
            match = pattern.search(line)
            # the check asks for a model of this name on purpose
            if match and not match["name"].startswith("stackgen-"):
                served = match.groupdict().get("served") or ""
                yield service, line.strip(), match["name"], names or tuple(re.findall(r"[\w./:@-]+", served))


def _unserved(log: str) -> list[str]:
    """The lines since the last completion that was served: whoever got one knows the name."""
    lines = [clean(line) for line in since_ready(log)]
    served = [index for index, line in enumerate(lines) if SERVED.search(line)]
    return lines[served[-1] + 1 :] if served else lines


def _kind(name: str, served: tuple[str, ...]) -> str:
    if any(name.lower() == one.lower() for one in served):
        return "case"
    if name.startswith(("/", "./", "~")) or name.endswith((".gguf", ".safetensors")):
        return "path"
    if any(one.rpartition("/")[2].lower() == name.lower() for one in served):
        return "organization"
    if any(name.rpartition("/")[2].lower() == one.lower() for one in served):
        return "alias"
    return "other"


def _of(kind: str) -> Finder:
    def find(evidence: Evidence) -> Iterator[Hit]:
        for service, line, name, served in _asked(evidence):
            if _kind(name, served) == kind:
                yield Hit(service, (line,), {"name": name, "served": ", ".join(served) or "(see /v1/models)"})

    return find


SOURCE = "vLLM 0.32.0 and FastChat 0.2.36, answers to a wrong name recorded"
RULES: tuple[Rule, ...] = (
    Rule(
        "SG-N001",
        "the model's name differs in case",
        "clients ask for {name}, and served is {served}",
        "ask for {served}, or add the name to served_names",
        SOURCE,
        "Names are compared letter by letter. `GET /v1/models` lists them.",
        find=_of("case"),
    ),
    Rule(
        "SG-N002",
        "a path was given instead of the model's name",
        "clients ask for {name}, and served is {served}",
        "ask for {served}",
        SOURCE,
        "The name of a model is what served_names says, whatever folder it was loaded from. Without served_names it "
        "is the `model:` of stack.yaml as it stands there.",
        find=_of("path"),
    ),
    Rule(
        "SG-N003",
        "the organization is missing in the model's name",
        "clients ask for {name}, and served is {served}",
        "ask for {served}, or add `{name}` to served_names",
        SOURCE,
        "Without served_names the whole id is the name: organization/name.",
        find=_of("organization"),
    ),
    Rule(
        "SG-N004",
        "the model is served under an alias",
        "clients ask for {name}, and it is served as {served}",
        "ask for {served}, or add `{name}` to served_names",
        SOURCE,
        "served_names replaces the id: it must be among them if clients shall use it.",
        find=_of("alias"),
    ),
    Rule(
        "SG-N005",
        "no such model is served",
        "clients ask for {name}, and served is {served}",
        "ask for one of these, or add a name to served_names",
        SOURCE,
        "`GET /v1/models` lists the names. One vLLM serves one model (and its LoRA adapters); FastChat's API server "
        "lists the models of the workers that are registered at this moment.",
        find=_of("other"),
    ),
)
