"""The parts of /v1/responses and /v1/messages bodies that every client needs, and the text in them.

Sources: https://platform.openai.com/docs/api-reference/responses/object and
https://docs.anthropic.com/en/api/messages. Recorded from vLLM 0.32.0 and llama.cpp 11434.
"""

from __future__ import annotations

from typing import Literal

from stackgen.check.transport.openai_schema import Body, Count, Name

__all__ = ["MessageBody", "ResponseBody"]


class Part(Body):
    """A part of a content list; only text parts have a text."""

    type: Name
    text: str | None = None


class TokenCounts(Body):
    """Token counts under the names that both APIs use."""

    input_tokens: Count
    output_tokens: Count


class OutputItem(Body):
    """A message, reasoning, or a call; only messages have content that a client shows."""

    type: Name
    content: list[Part] | None = None


class ResponseBody(Body):
    """Body of POST /v1/responses."""

    id: Name
    object: Literal["response"]
    status: Name
    output: list[OutputItem]
    usage: TokenCounts | None = None

    @property
    def text(self) -> str:
        """The text of all messages."""
        return "".join(
            part.text or ""
            for item in self.output
            for part in item.content or ()
            if item.type == "message" and part.type == "output_text"
        )


class MessageBody(Body):
    """Body of POST /v1/messages."""

    id: Name
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[Part]
    usage: TokenCounts | None = None

    @property
    def text(self) -> str:
        """The text of all text parts."""
        return "".join(part.text or "" for part in self.content if part.type == "text")
