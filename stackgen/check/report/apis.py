"""What works with an endpoint: the APIs and request forms that clients use, and the state of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = ["APIS", "API_STATUS", "STATES", "STATE_MEANINGS", "Api", "ApiState", "ApiSupport", "group_support"]

ApiState = Literal["works", "refused", "ignored", "not served", "fails", "not checked"]
STATES: tuple[ApiState, ...] = get_args(ApiState)
STATE_MEANINGS: dict[ApiState, str] = {
    "works": "the check got a correct answer",
    "refused": "the server answers a valid request with an error; the report contains the error text",
    "ignored": "the server answers as if the feature had not been requested",
    "not served": "the server has no such path: it answers 404, 405 or 501",
    "fails": "a server error, no answer, or a wrong answer",
    "not checked": "the state is unknown; the report contains the reason",
}
# how reports mark a state: a refusal is no fault of the server, but no pass either
API_STATUS: dict[ApiState, Literal["pass", "warn", "skip"]] = {
    "works": "pass",
    "refused": "skip",
    "ignored": "warn",
    "not served": "skip",
    "fails": "warn",
    "not checked": "skip",
}


@dataclass(frozen=True, slots=True)
class Api:
    """An API, or a form of requests, that clients need. `works` is what the check sees before it reports `works`."""

    name: str
    title: str
    works: str


# in the order of the table
APIS: tuple[Api, ...] = (
    Api("chat", "chat", "`POST /v1/chat/completions` returns text"),
    Api("responses", "responses", "`POST /v1/responses` returns text, within `max_output_tokens`"),
    Api("messages", "messages", "`POST /v1/messages` (Anthropic) returns text, within `max_tokens`"),
    Api("completions", "completions", "`POST /v1/completions` continues a text"),
    Api("embeddings", "embeddings", "`POST /v1/embeddings` returns different vectors for different texts"),
    Api("tools", "tools", "a function call that the request requires arrives, with and without streaming"),
    Api("structured_output", "structured output", "the answer follows the JSON schema in `response_format`"),
    Api(
        "list_content",
        "list content",
        "a message whose content is a list of text parts gets the same answer as plain content, or has as many prompt "
        "tokens",
    ),
    Api(
        "max_completion_tokens",
        "max_completion_tokens",
        "with `max_completion_tokens: 5`, a long answer ends after at most 5 tokens with `finish_reason: length`",
    ),
    Api("stream_usage", "usage on streams", "with `stream_options.include_usage`, the stream has a chunk with usage"),
)


@dataclass(frozen=True, slots=True)
class ApiSupport:
    """The state of one API for one model. `detail` is the reason if the state is not `works`, else often empty."""

    model: str
    api: str
    state: ApiState
    detail: str = ""


def group_support(cells: Sequence[ApiSupport]) -> Iterable[tuple[Api, list[tuple[ApiSupport, tuple[str, ...]]]]]:
    """For each API, its different results, each with the models that share it, in the order of `APIS`."""
    for api in APIS:
        groups: dict[tuple[str, str], list[ApiSupport]] = {}
        for cell in cells:
            if cell.api == api.name:
                groups.setdefault((cell.state, cell.detail), []).append(cell)
        if groups:
            yield api, [(same[0], tuple(one.model for one in same)) for same in groups.values()]
