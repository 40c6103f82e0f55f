"""Repeats a chat request in the form that a model accepts: `max_completion_tokens`, temperature, a larger limit.

Reasoning models refuse a small token limit. OpenAI's also refuse `max_tokens` ("Unsupported parameter: 'max_tokens' is
not supported with this model. Use 'max_completion_tokens' instead") and a temperature other than the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stackgen.check.transport.answer import refuses_few_tokens
from stackgen.check.transport.session import Reply, error_message

__all__ = ["REASONING_TOKENS", "Shape", "learn"]

# enough for a short question; a thinking budget (at least 1024 tokens at Anthropic) needs the second step
REASONING_TOKENS, LIMIT_STEPS = 512, (512, 4096)
OTHER_FIELD = re.compile(r"max_tokens\W.{0,80}(?:unsupported|not supported).{0,80}max_completion_tokens", re.I | re.S)
NO_TEMPERATURE = re.compile(r"temperature\W.{0,80}(?:unsupported|not? support|only the default)", re.I | re.S)


@dataclass(frozen=True, slots=True)
class Shape:
    """How a model accepts requests. `min_tokens`: the smallest token limit that the check requests."""

    min_tokens: int = 0
    limit_field: str = "max_tokens"
    temperature: bool = True

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `body` in this form."""
        shaped = dict(body)
        if "max_tokens" in shaped:
            shaped[self.limit_field] = max(shaped.pop("max_tokens"), self.min_tokens)
        if not self.temperature:
            shaped.pop("temperature", None)
        return shaped

    def describe(self) -> str:
        """What the model needs, for a note; empty for the usual form."""
        parts = [
            f"answers of at least {self.min_tokens} tokens" if self.min_tokens else "",
            "" if self.limit_field == "max_tokens" else f"`{self.limit_field}` instead of `max_tokens`",
            "" if self.temperature else "requests without `temperature`",
        ]
        return ", ".join(part for part in parts if part)


def learn(shape: Shape, reply: Reply) -> Shape | None:
    """The form to try after a refusal; None if the refusal has another reason. Every step changes the form."""
    if reply.status not in (400, 422):
        return None
    error = error_message(reply)
    if refuses_few_tokens(reply.status, error):
        more = next((step for step in LIMIT_STEPS if step > shape.min_tokens), None)
        return replace(shape, min_tokens=more) if more else None
    if shape.limit_field == "max_tokens" and OTHER_FIELD.search(error):
        return replace(shape, limit_field="max_completion_tokens")
    if shape.temperature and NO_TEMPERATURE.search(error):
        return replace(shape, temperature=False)
    return None
