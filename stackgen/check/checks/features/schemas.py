"""Bodies of features beyond chat, as strict as in `stackgen.check.transport.openai_schema`.

Sources: https://platform.openai.com/docs/api-reference/completions/object, …/embeddings/object, …/chat/object
(`tool_calls`, `logprobs`). /tokenize is not in the OpenAI API: its body was recorded from vLLM 0.32 and llama.cpp.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stackgen.check.transport.openai_schema import Body, Count, Name, Usage

__all__ = [
    "CityAnswer", "Embeddings", "LogprobCompletion", "PlainChoice", "PlainCompletion", "TextChoice", "TextCompletion",
    "Tokens", "ToolCompletion",
]  # fmt: skip

# `1e999` is valid JSON, and Python reads it as infinity
Finite = Annotated[float, Field(allow_inf_nan=False)]


class TextChoice(Body):
    """One answer of a text completion."""

    index: Count
    text: str
    finish_reason: Name


class TextCompletion(Body):
    """Body of POST /v1/completions."""

    id: Name
    object: Literal["text_completion"]
    created: Annotated[int, Field(gt=0)]
    model: Name
    choices: Annotated[list[TextChoice], Field(min_length=1)]
    # optional in the reference
    usage: Usage | None = None


class Embedding(Body):
    """One vector."""

    object: Literal["embedding"]
    index: Count
    embedding: Annotated[list[Finite], Field(min_length=1)]


class EmbeddingUsage(Body):
    """Token counts of an embedding, which has no completion tokens."""

    prompt_tokens: Count
    total_tokens: Count


class Embeddings(Body):
    """Body of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: Name
    usage: EmbeddingUsage


class Tokens(Body):
    """Body of POST /tokenize; only vLLM sends the count and the context length."""

    tokens: Annotated[list[int], Field(min_length=1)]
    count: int | None = None
    max_model_len: int | None = None


class PlainMessage(Body):
    """The part of an answer that every feature needs."""

    content: str | None = None


class PlainChoice(Body):
    """One answer."""

    message: PlainMessage
    finish_reason: Name


class PlainCompletion(Body):
    """The part of a chat completion that features need; `chat` has already checked the rest."""

    choices: Annotated[list[PlainChoice], Field(min_length=1)]


class Function(Body):
    """The function to call. `arguments` is JSON in a string, not an object."""

    name: Name
    arguments: str


class ToolCall(Body):
    """One requested call."""

    id: Name
    type: Literal["function"]
    function: Function


class ToolMessage(Body):
    """An answer that calls tools. In such an answer, content may be null or missing."""

    role: Literal["assistant"]
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)]


class ToolChoice(Body):
    """One answer that calls tools."""

    message: ToolMessage
    finish_reason: Name


class ToolCompletion(Body):
    """A chat completion that calls tools."""

    choices: Annotated[list[ToolChoice], Field(min_length=1)]


class TopLogprob(Body):
    """A possible token; the natural logarithm of a probability is never above 0."""

    token: str
    logprob: Annotated[Finite, Field(le=0)]
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """The generated token, and the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class Logprobs(Body):
    """Log probabilities, one entry for each token."""

    content: Annotated[list[TokenLogprob], Field(min_length=1)]


class LogprobChoice(Body):
    """One answer with its log probabilities."""

    logprobs: Logprobs


class LogprobCompletion(Body):
    """A chat completion with log probabilities."""

    choices: Annotated[list[LogprobChoice], Field(min_length=1)]


class CityAnswer(Body, extra="forbid"):
    """Exactly what the JSON schema of the check allows."""

    capital: Literal["Berlin", "Paris", "Rome"]
    european: bool
