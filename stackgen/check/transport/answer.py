"""What an answer contains, and the verdict on an answer without text.

`check`, `ask`, `ask --stream` and the exporter read answers with `Content`, so that they never disagree on an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Content", "Kind", "Outcome", "refuses_few_tokens"]

# what a message may contain instead of text (vLLM: `reasoning`; older releases and others: `reasoning_content`)
NON_TEXT_FIELDS = {
    "reasoning": "reasoning",
    "reasoning_content": "reasoning",
    "tool_calls": "tool calls",
    "function_call": "a function call",
    "refusal": "a refusal",
    "audio": "audio",
}
Kind = Literal["text", "other", "token", "control", "unshown", "nothing"]
# Errors of healthy reasoning models whose answer did not fit. OpenAI: "Could not finish the message because max_tokens
# or model output limit was reached" (BerriAI/litellm issue 26987), "Expected a value >= 16". Anthropic: "`max_tokens`
# must be greater than `thinking.budget_tokens`".
LIMIT = r"max_(?:completion_|output_|new_)?tokens"
FEW_TOKENS = re.compile(
    rf"could not finish the message because {LIMIT}|(?:higher|larger|increase|raise)\W+(?:the\s+)?\W?{LIMIT}"
    rf"|{LIMIT}\W+(?:\w+\s+){{0,2}}too (?:small|low)"
    rf"|{LIMIT}\W.{{0,40}}(?:below minimum|budget|(?:>=|at least) (?!1\b)\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on the content of an answer.

    - `text`: the answer has text. `other`: it has only other parts, such as reasoning.
    - `token`, `control`: the answer was limited to one token, which has no text. At the limit, this may be part of a
      character (`token`). If the model stopped, this is a control token (`control`).
    - `unshown`: the text is empty, because all tokens up to the limit have no text.
    - `nothing`: the answer has no content.
    """

    kind: Kind
    status: Literal["pass", "warn", "fail"]


@dataclass(slots=True)
class Content:
    """The content of a message, or of the deltas of a stream. `others` are the labels of parts that are not text."""

    parts: list[str] = field(default_factory=list)
    others: dict[str, None] = field(default_factory=dict)
    has_empty_text: bool = False

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self.parts)

    @property
    def only_reasoning(self) -> bool:
        """Whether reasoning is all that came."""
        return not self.parts and list(self.others) == ["reasoning"]

    def add(self, message: Any, *, delta: bool = False) -> str:
        """Adds a message or a delta, and returns its text. Raises TypeError if the text is no string."""
        content = getattr(message, "content", None)
        if content is not None and not isinstance(content, str):
            raise TypeError("content is not a string")
        # every stream starts with a role and an empty text, whatever follows
        starts = delta and bool(getattr(message, "role", None))
        self.has_empty_text |= content == "" and not starts
        self.others.update({label: None for name, label in NON_TEXT_FIELDS.items() if getattr(message, name, None)})
        if content:
            self.parts.append(content)
        return content or ""

    def add_usage(self, usage: Any) -> None:
        """Adds reasoning that the server counts but doesn't send, as OpenAI does."""
        details = getattr(usage, "completion_tokens_details", None)
        hidden = (
            details.get("reasoning_tokens") if isinstance(details, dict) else getattr(details, "reasoning_tokens", 0)
        )
        if hidden:
            self.others["reasoning"] = None

    def judge(self, finish_reason: str, counted: int, limit: int | None) -> Outcome:
        """The verdict. `counted`: completion tokens, 0 if unknown; `limit`: the requested limit, None without one."""
        at_limit = finish_reason == "length"
        if self.parts:
            return Outcome("text", "pass")
        if self.others:
            # a single token of a reasoning model is never text
            return Outcome("other", "pass" if limit == 1 and at_limit and self.only_reasoning else "warn")
        if limit == 1 and counted:
            return Outcome("token", "pass") if at_limit else Outcome("control", "warn")
        if self.has_empty_text and at_limit and limit != 1:
            return Outcome("unshown", "warn")
        return Outcome("nothing", "fail")


def refuses_few_tokens(status: int, error: str) -> bool:
    """Whether a healthy model refuses the request only because its token limit is too small."""
    return status in (400, 422) and bool(FEW_TOKENS.search(error))
