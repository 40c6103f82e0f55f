"""One question to the SDK and what comes back: the request, and the answer read from what a server sent.

The SDK doesn't validate: a body of another shape shows as None or as a value of another type where it is used. All of
it is read here, so that whatever breaks here is the server's doing and nobody else's.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from stackgen.check.dialects import OPENAI
from stackgen.check.target import Target
from stackgen.check.transport.redact import Redactor
from stackgen.errors import StackgenError, StartError

__all__ = ["LOGS_HINT", "Answer", "Call", "fields", "unreadable"]

LOGS_HINT = "look at the server's log: `docker compose logs`"
# what a server may send in place of text (vLLM: `reasoning`; older ones and others: `reasoning_content`)
BESIDE = {
    "reasoning": "reasoning",
    "reasoning_content": "reasoning",
    "tool_calls": "tool calls",
    "function_call": "a function call",
    "refusal": "a refusal",
    "audio": "audio",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` as the model wrote it; `seconds` for the whole request, `ttft` (s) until the first token where it was
    streamed; `usage` in tokens, None where none came.

    `model` is the name the server answers under, `provider` the endpoint's. `note` tells that another name was asked
    for than the given one, and why, and what came where no text did (reasoning, tool calls).
    """

    text: str
    model: str
    seconds: float
    usage: dict[str, int] | None
    provider: str = ""
    ttft: float | None = None
    note: str = ""


def fields(more: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that are set. Raises StackgenError for those that no server could be sent."""
    if "stream" in more:
        raise StackgenError("`stream` is no field of a question", "the method `stream` gives an answer in pieces")
    if "messages" in more:
        raise StackgenError("`messages` is made of the prompt and `system`",
                            "others are sent by the SDK: `client.openai.chat.completions.create`")  # fmt: skip
    for name, value in more.items():
        # JSON has no words for them
        if isinstance(value, float) and not math.isfinite(value):
            raise StackgenError(f"{name.replace('_', '-')} must be a number, and is {value}")
    # None means the server's default, and FastChat loses a slot for each null that it is sent
    return {name: value for name, value in more.items() if value is not None}


def unreadable() -> StartError:
    """The error of an answer that is none."""
    return StartError("the server's answer has not the documented structure", "`stackgen check` says where")


class Call:
    """One question on its way: the request, and what has come of the answer. Time starts with the object."""

    def __init__(
        self, target: Target, model: str, note: str, prompt: str, system: str | None, options: dict[str, Any]
    ) -> None:
        said = [{"role": "system", "content": system}] if system else []
        self.request = {"model": model, "messages": [*said, {"role": "user", "content": prompt}], **options}
        self.model = model
        self._target, self._note = target, note
        self._parts: list[str] = []
        self._usage: dict[str, int] | None = None
        self._answered_as = ""
        self._finish = ""
        self._chunks = 0
        self._beside: list[str] = []
        self._started = time.monotonic()
        self._first: float | None = None

    @property
    def streamed(self) -> dict[str, Any]:
        """The request of a stream."""
        # a server that does not know it may refuse the whole request
        known = (self._target.dialect or OPENAI).stream_usage
        return {**self.request, "stream": True, **({"stream_options": {"include_usage": True}} if known else {})}

    def whole(self, raw: Any) -> Answer:
        """The answer in a raw response of the SDK. Raises StartError for one that is none, or that holds nothing."""
        problem: StackgenError
        try:
            return self._whole(raw.parse())
        except StackgenError as error:
            problem = error
        except Exception:
            problem = unreadable()
        # outside the except block: the SDK's exceptions may hold the request, and with it the key
        raise problem

    def take(self, chunk: Any) -> str:
        """The text in a chunk of the SDK, empty where it has none.

        Raises StartError for an error under status 200, and anything for a chunk that is none.
        """
        self._raise_error_of(chunk)
        self._chunks += 1
        # the chunk with the usage has no choices, and chunks before it have no usage
        self._answered_as = self._answered_as or _text(chunk.model)
        self._usage = _usage(chunk.usage) or self._usage
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._finish = self._finish or _text(choice.finish_reason)
        self._beside += _beside(choice.delta)
        piece = _text(choice.delta.content)
        if piece:
            self._first = self._first or time.monotonic()
            self._parts.append(piece)
        return piece

    def told(self, kind: str = "text/event-stream") -> Answer:
        """The answer that a stream has told, now that it has ended; `kind` is the response's content type.

        Raises StartError where nothing came, and where the stream ended before the model did.
        """
        if not self._chunks:
            told = "is empty" if kind.startswith("text/event-stream") else f"is {kind or 'of no type'} and no stream"
            raise StartError(Redactor(self._target.api_key).excerpt(f"the server's answer {told}"), LOGS_HINT)
        if not self._finish:
            raise StartError("the stream was cut: it ends without a finish_reason, so the answer may lack its end",
                             LOGS_HINT)  # fmt: skip
        text = "".join(self._parts)
        return self._answer(text, self._answered_as, self._usage, "" if text else self._instead())

    def _whole(self, completion: Any) -> Answer:
        self._raise_error_of(completion)
        message = completion.choices[0].message
        text, self._beside = _text(message.content), _beside(message)
        if message.content is None and not self._beside:
            raise StartError("the server's answer holds no text: its content is null", LOGS_HINT)
        return self._answer(text, _text(completion.model), _usage(completion.usage), "" if text else self._instead())

    def _instead(self) -> str:
        kinds = " and ".join(dict.fromkeys(self._beside))
        more = ": allow more by --max-tokens" if kinds == "reasoning" else ""
        return f"the answer holds no text, but {kinds}{more}" if kinds else "the model answered with no text"

    def _raise_error_of(self, body: Any) -> None:
        """Of vLLM it is `{"error": {…}}`, of FastChat `{"text", "error_code"}`, both under status 200."""
        extra = getattr(body, "model_extra", None) or {}
        error = extra.get("error")
        if error or extra.get("error_code") or getattr(body, "object", None) == "error":
            inner = error.get("message") if isinstance(error, dict) else error
            said = Redactor(self._target.api_key).excerpt(
                str(inner or extra.get("message") or extra.get("text") or error)
            )
            raise StartError(f"the server broke off: {said}", LOGS_HINT)

    def _answer(self, text: str, model: str, usage: dict[str, int] | None, note: str) -> Answer:
        ttft = None if self._first is None else round(self._first - self._started, 4)
        seconds = round(time.monotonic() - self._started, 4)
        notes = "; ".join(one for one in (self._note, note) if one)
        return Answer(text, model or self.model, seconds, usage, self._target.name, ttft, notes)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError("no text")


def _usage(usage: Any) -> dict[str, int] | None:
    if usage is None:
        return None
    return {name: int(getattr(usage, name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def _beside(message: Any) -> list[str]:
    """What a message or delta holds beside its text, in words."""
    return [words for name, words in BESIDE.items() if getattr(message, name, None)]
