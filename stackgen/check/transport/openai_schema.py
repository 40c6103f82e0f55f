"""The documented structure of OpenAI API bodies. Documented fields are required and typed; other fields are allowed.

Sources: https://platform.openai.com/docs/api-reference/chat/object, …/chat/streaming and …/models/object. Servers
add fields (vLLM 0.32 adds a dozen, as recorded), so an extra field is fine; a wrong type is not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

__all__ = [
    "BareChunk",
    "Chunk",
    "ChunkChoice",
    "Completion",
    "ModelCard",
    "ModelList",
    "Usage",
    "card_names",
    "load_state",
    "parse",
    "usage_problem",
]

# `lt`: JSON allows integers of any size, but a number beyond 2**53 is no plausible count
Count = Annotated[int, Field(ge=0, lt=2**53)]
# an empty value in a required field is as bad as a missing value
Name = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """Strict: "1" is not a number and 1.0 not an integer, because a typed client would fail on them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class Usage(Body):
    """Token counts; the total must be the sum."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Message(Body):
    """The answer. `content` may be null: a reasoning model that hit the token limit has none yet."""

    role: Literal["assistant"]
    content: str | None


class Choice(Body):
    """One answer of a completion."""

    index: Count
    message: Message
    # the documented values depend on the dialect, so the check `chat` tests the value
    finish_reason: Name


class Completion(Body):
    """Body of POST /v1/chat/completions."""

    id: Name
    object: Literal["chat.completion"]
    # seconds since 1970
    created: Annotated[int, Field(gt=0)]
    model: Name
    # fail fast: a body can contain a million wrong entries
    choices: Annotated[list[Choice], Field(min_length=1), FailFast()]
    # optional in the API reference
    usage: Usage | None = None


class Delta(Body):
    """The text or role that a chunk adds to the answer."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(Body):
    """The part of a chunk that belongs to one answer. The last chunk of an answer has the finish reason."""

    index: Count
    delta: Delta
    finish_reason: str | None = None


class BareChunk(Body):
    """The minimum that a client needs to use a chunk."""

    id: str = ""
    model: str = ""
    choices: Annotated[list[ChunkChoice], FailFast()]
    usage: Usage | None = None


class Chunk(BareChunk):
    """Data of one event of a streamed completion. `choices` is empty in the event that contains `usage`."""

    # redeclared without defaults, which makes them required
    id: Name
    object: Literal["chat.completion.chunk"]
    created: int
    model: Name


class ModelCard(Body):
    """One entry of the list of models."""

    id: Name
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Body):
    """Body of GET /v1/models."""

    object: Literal["list"]
    data: Annotated[list[ModelCard], FailFast()]


# a request to a sleeping model loads its weights again
UNLOADED = ("unloaded", "loading", "sleeping", "downloading", "downloaded")

T = TypeVar("T", bound=Body)


def parse(model: type[T], data: Any) -> tuple[T | None, tuple[str, ...]]:
    """Returns `data` as `model`, and its problems, such as `choices[0].message.role: input should be 'assistant'`.

    Problems don't contain the wrong values: these come from the server, and the redacted evidence shows them.
    """
    try:
        return model.model_validate(data), ()
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        return None, tuple(f"{_path(one['loc'])}: {one['msg'][:1].lower()}{one['msg'][1:]}" for one in errors)


def usage_problem(usage: Usage) -> str:
    """Returns what is wrong with the total; empty if the total is the sum."""
    if usage.prompt_tokens + usage.completion_tokens == usage.total_tokens:
        return ""
    return (
        f"usage: {usage.prompt_tokens} prompt tokens + {usage.completion_tokens} completion tokens is not the total"
        f" {usage.total_tokens}"
    )


def card_names(card: dict[str, Any]) -> tuple[str, ...]:
    """The names in one entry of a model list: its id, then its aliases. Entries of a wrong type are skipped.

    llama.cpp lists one name of a model as its id and the others as `aliases`.
    """
    model_id, aliases = card.get("id"), card.get("aliases")
    names = (model_id, *aliases) if isinstance(aliases, list) else (model_id,)
    return tuple([name for name in names if isinstance(name, str)])


def load_state(card: dict[str, Any]) -> str:
    """The state of a model that a request would load first; empty if it is loaded, or the server reports no state.

    llama.cpp's router (`server_model_status` in tools/server/server-models.h) lists `status: {"value": "unloaded"}`.
    """
    status = card.get("status")
    value = status.get("value") if isinstance(status, dict) else status
    return value if value in UNLOADED else ""


def _path(location: tuple[int | str, ...]) -> str:
    # pydantic reports ("choices", 0, "message"); people write choices[0].message
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "body"
