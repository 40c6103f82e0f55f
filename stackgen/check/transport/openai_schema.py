"""The documented structure of the OpenAI API's bodies: documented fields required and typed, unknown ones allowed.

Sources: https://platform.openai.com/docs/api-reference/chat/object, …/chat/streaming and …/models/object. Servers
add fields (vLLM 0.32 has a dozen, as recorded), so extra ones are no mistake; a wrong type is one.
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
    "parse",
    "sum_problem",
]

# `ge` and `min_length`: a null or empty value in a required place is as bad as none
# `lt`: numbers that no float holds are no counts, and JSON has integers of any size
Count = Annotated[int, Field(ge=0, lt=2**53)]
Name = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """Strict: "1" is no number and 1.0 no integer, as a typed client would fail on them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class Usage(Body):
    """Numbers of tokens; the total must be the sum."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class Message(Body):
    """The answer. `content` may be null: a reasoning model that ran into the limit has none yet."""

    role: Literal["assistant"]
    content: str | None


class Choice(Body):
    """One answer of a completion."""

    index: Count
    message: Message
    # which reasons are documented depends on the dialect, so `chat` looks at the value
    finish_reason: Name


class Completion(Body):
    """Body of POST /v1/chat/completions."""

    id: Name
    object: Literal["chat.completion"]
    # seconds since 1970
    created: Annotated[int, Field(gt=0)]
    model: Name
    # the first wrong entry of a list will do: a body can hold a million
    choices: Annotated[list[Choice], Field(min_length=1), FailFast()]
    # optional in the reference, and what costs are counted by
    usage: Usage | None = None


class Delta(Body):
    """What a chunk adds."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(Body):
    """One answer's part of a chunk; the last one has the finish reason."""

    index: Count
    delta: Delta
    finish_reason: str | None = None


class BareChunk(Body):
    """What must be in a chunk for a client to make anything of it."""

    id: str = ""
    model: str = ""
    choices: Annotated[list[ChunkChoice], FailFast()]
    usage: Usage | None = None


class Chunk(BareChunk):
    """Data of one event of a streamed completion; `choices` is empty in the one that carries `usage`."""

    # without a default the fields are required
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


T = TypeVar("T", bound=Body)


def parse(model: type[T], data: Any) -> tuple[T | None, tuple[str, ...]]:
    """`data` as `model`, and what is wrong with it: `choices[0].message.role: input should be 'assistant'`.

    The offending values are left out: they are the server's words, which evidence shows redacted.
    """
    try:
        return model.model_validate(data), ()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        return None, tuple(f"{_path(one['loc'])}: {one['msg'][:1].lower()}{one['msg'][1:]}" for one in found)


def sum_problem(usage: Usage) -> str:
    """What is wrong with the total; empty when it is the sum."""
    if usage.prompt_tokens + usage.completion_tokens == usage.total_tokens:
        return ""
    return f"usage: {usage.prompt_tokens} + {usage.completion_tokens} is not {usage.total_tokens}"


def card_names(card: dict[str, Any]) -> tuple[str, ...]:
    """The names in one entry of a list of models, whatever else stands there: its id, then its aliases.

    llama.cpp lists one name of a model as its id, and the others as `aliases`.
    """
    first, more = card.get("id"), card.get("aliases")
    found = (first, *more) if isinstance(more, list) else (first,)
    return tuple([name for name in found if isinstance(name, str)])


def _path(location: tuple[int | str, ...]) -> str:
    # pydantic gives ("choices", 0, "message"); people write choices[0].message
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "body"
