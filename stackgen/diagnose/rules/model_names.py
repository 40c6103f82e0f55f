"""Rules for unknown model names: they compare the name that clients request with the names that are served."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Finder, Hit, Rule, compile_patterns

__all__ = ["RULES"]

NOT_FOUND = (
    # vLLM's text, then FastChat's
    re.compile(r"The model [`'](?P<name>[^`']+)[`'] does not exist(?:\. Valid aliases: (?P<served>[^\"]+?)\.)?"),
    re.compile(r"Only (?P<served>.+?) allowed now, your model (?P<name>[^\"]+?)(?:\"|$)"),
)
SERVED = re.compile(r'POST /v1/(?:chat/)?completions HTTP/1\.[01]" 200')


def _find_requests(evidence: Evidence) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yields service, log line, requested name, and the names that this service serves."""
    names = tuple(name for end in (evidence.plan.endpoints if evidence.plan else ()) for name in end.models)
    texts = [("", f"{check}: {message}") for check, message in evidence.checks]
    # a working server is skipped: it logs every wrong name that any client tries
    texts += [
        (one.service, line)
        for one in evidence.services
        if not (one.is_working and one.state)
        for line in _lines_since_served(one.log)
    ]
    for service, line in texts:
        for pattern in NOT_FOUND:
            match = pattern.search(line)
            # `stackgen check` requests such a name on purpose
            if match and not match["name"].startswith("stackgen-"):
                # without a plan, only the message may contain the served names
                served = match.groupdict().get("served") or ""
                yield service, line.strip(), match["name"], names or tuple(re.findall(r"[\w./:@-]+", served))


def _lines_since_served(log: str) -> list[str]:
    """The lines since the last successful completion. A client that got a completion knows the name."""
    lines = [strip_prefix(line) for line in lines_since_ready(log)]
    served = [index for index, line in enumerate(lines) if SERVED.search(line)]
    return lines[served[-1] + 1 :] if served else lines


def _classify(name: str, served: tuple[str, ...]) -> str:
    """How `name` differs from the served names: case, path, organization, alias or other."""
    if any(name.lower() == one.lower() for one in served):
        return "case"
    if name.startswith(("/", "./", "~")) or name.endswith((".gguf", ".safetensors")):
        return "path"
    if any(one.rpartition("/")[2].lower() == name.lower() for one in served):
        return "organization"
    if any(name.rpartition("/")[2].lower() == one.lower() for one in served):
        return "alias"
    return "other"


def _finder_of(difference: str) -> Finder:
    """A finder of requests whose name differs in this way."""

    def find(evidence: Evidence) -> Iterator[Hit]:
        """A client requests a model name that the server does not serve."""
        for service, line, name, served in _find_requests(evidence):
            if _classify(name, served) == difference:
                yield Hit(service, (line,), {"name": name, "served": ", ".join(served) or "the names in /v1/models"})

    return find


SOURCE = "The messages are recorded answers of vLLM 0.32.0 and FastChat 0.2.36 to a wrong model name."
RULES: tuple[Rule, ...] = (
    Rule(
        "SG-N001",
        title="the requested model name differs from the served name only in upper and lower case",
        cause="clients request {name}, but the server serves {served}",
        fix="request {served}, or add `{name}` to served_names",
        source=SOURCE,
        explain="Model names are case-sensitive. `GET /v1/models` lists the served names.",
        find=_finder_of("case"),
    ),
    Rule(
        "SG-N002",
        title="clients request a path instead of the model name",
        cause="clients request {name}, but the server serves {served}",
        fix="request {served}",
        source=SOURCE,
        explain="served_names sets the name of a model, regardless of the folder that the model was loaded from. "
        "Without served_names, the name is exactly the value of `model:` in stack.yaml.",
        find=_finder_of("path"),
    ),
    Rule(
        "SG-N003",
        title="the organization is missing from the requested model name",
        cause="clients request {name}, but the server serves {served}",
        fix="request {served}, or add `{name}` to served_names",
        source=SOURCE,
        explain="Without served_names, the name of a model is its whole id: organization/name.",
        find=_finder_of("organization"),
    ),
    Rule(
        "SG-N004",
        title="the model is served under an alias",
        cause="clients request {name}, but the model is served as {served}",
        fix="request {served}, or add `{name}` to served_names",
        source=SOURCE,
        explain="served_names replaces the model's id. If clients should also use the id, add the id to served_names.",
        find=_finder_of("alias"),
    ),
    Rule(
        "SG-N005",
        title="the requested model is not served",
        cause="clients request {name}, but the server serves {served}",
        fix="request one of the served names, or add a name to served_names",
        source=SOURCE,
        explain="`GET /v1/models` lists the served names. One vLLM server serves one model (and its LoRA adapters). "
        "FastChat's API server lists the models of the workers that are currently registered.",
        find=_finder_of("other"),
    ),
    Rule(
        "SG-N006",
        title="FastChat has no worker for the requested model",
        cause="FastChat's API server knows no worker that serves {name}. Either the clients' name is not the worker's "
        "name, or the worker is no longer registered",
        fix="compare the name with `GET /v1/models`; if the list has another name, request that one, or add `{name}` "
        "to served_names (outside stackgen: `--model-names`); if the model is missing in the list, read the log of its "
        "worker",
        source="The message comes from FastChat 0.2.36 (serve/openai_api_server.py, get_worker_address), and is quoted "
        "in lm-sys/FastChat issue 1685 (2023-06). The failure was not reproduced.",
        explain="OpenAI's clients and older examples request gpt-3.5-turbo by default. A worker serves exactly the "
        "names that it was started with.",
        patterns=compile_patterns(r"ValueError: No available worker for (?P<name>\S+)"),
        inputs=("log", "check"),
        refusal=True,
    ),
)
