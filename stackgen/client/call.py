"""One chat completion: the request body, and the answer from the server's response.

The SDK doesn't validate responses: a malformed body appears as None, or as a value of another type, in the code that
uses it. Only this module reads responses, so any failure in this module is the server's fault.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from stackgen.check.dialects import OPENAI
from stackgen.check.target import Target
from stackgen.check.transport.answer import Content
from stackgen.check.transport.redact import Redactor
from stackgen.errors import StackgenError, StartError

__all__ = ["LOGS_HINT", "Answer", "Call", "malformed_response", "request_fields"]

LOGS_HINT = "check the server's log: `docker compose logs`"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one prompt.

    - `text`: what the model wrote.
    - `model`: the model name in the server's response.
    - `seconds`: duration of the whole request.
    - `usage`: `prompt_tokens`, `completion_tokens` and `total_tokens`; None if the server sent none.
    - `provider`: name of the endpoint.
    - `ttft`: seconds until the first text of a stream; None if the answer was not streamed.
    - `note`: why the requested model name differs from the given name, and what the answer has instead of text.
    """

    text: str
    model: str
    seconds: float
    usage: dict[str, int] | None
    provider: str = ""
    ttft: float | None = None
    note: str = ""


def request_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` without those that are None. Raises StackgenError for fields that can't be sent."""
    if "stream" in fields:
        raise StackgenError("you can't pass the field `stream`", "to stream an answer, call the method `stream`")
    if "messages" in fields:
        raise StackgenError(
            "you can't pass the field `messages`: stackgen builds `messages` from the prompt and `system`",
            "to send your own messages, call `client.openai.chat.completions.create`",
        )
    for name, value in fields.items():
        # JSON can't represent NaN and infinity
        if isinstance(value, float) and not math.isfinite(value):
            raise StackgenError(f"{name.replace('_', '-')} must be a finite number, got {value}")
    # None is not sent as null: not every server reads null as absent
    return {name: value for name, value in fields.items() if value is not None}


def malformed_response() -> StartError:
    """The error for a response that is not a chat completion."""
    return StartError(
        "the server's response is not a valid chat completion", "`stackgen check` shows what is wrong with the response"
    )


class Call:
    """One request and the response read so far. The clock starts when the object is created."""

    def __init__(
        self, target: Target, *, model: str, note: str, prompt: str, system: str | None, options: dict[str, Any]
    ) -> None:
        # `--system ""` means no system message, not an empty one
        preamble = [{"role": "system", "content": system}] if system else []
        self.request = {"model": model, "messages": [*preamble, {"role": "user", "content": prompt}], **options}
        self.model = model
        self._target, self._note = target, note
        self._content = Content()
        self._usage: dict[str, int] | None = None
        self._response_model = ""
        self._finish_reason = ""
        self._chunks = 0
        self._started = time.monotonic()
        self._first_text: float | None = None

    @property
    def stream_request(self) -> dict[str, Any]:
        """The request body for a stream."""
        # a server that doesn't know `stream_options` may reject the whole request
        has_usage = (self._target.dialect or OPENAI).stream_usage
        return {**self.request, "stream": True, **({"stream_options": {"include_usage": True}} if has_usage else {})}

    def read_completion(self, raw: Any) -> Answer:
        """The answer in a raw response of the SDK.

        Raises StartError for a malformed response, and for an answer that has neither text nor another content.
        """
        problem: StackgenError
        try:
            return self._read_completion(raw.parse())
        except StackgenError as error:
            problem = error
        except Exception:
            problem = malformed_response()
        # outside the except block: the SDK's exceptions may contain the request with the key
        raise problem

    def add_chunk(self, chunk: Any) -> str:
        """Adds one chunk of a stream and returns its text, which may be empty.

        Raises StartError for an error that was sent under status 200, and any exception for a malformed chunk.
        """
        self._raise_embedded_error(chunk)
        self._chunks += 1
        # the chunk with the usage has no choices, and earlier chunks have no usage
        self._response_model = self._response_model or _text(chunk.model)
        self._usage = _usage(chunk.usage) or self._usage
        self._content.add_usage(chunk.usage)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self._finish_reason = self._finish_reason or _text(choice.finish_reason)
        text = self._content.add(choice.delta, delta=True)
        # TTFT counts from the first text: the first chunk often has only the role
        if text:
            self._first_text = self._first_text or time.monotonic()
        return text

    def finish_stream(self, content_type: str = "text/event-stream") -> Answer:
        """The answer of a stream whose chunks were all added; `content_type` is the response's.

        Raises StartError if no chunk came, and if the stream ended before the model had finished.
        """
        # for a body that is no event stream, the SDK returns a stream without events
        if not self._chunks:
            if content_type.startswith("text/event-stream"):
                message = "the server's response is empty"
            else:
                kind = f"is {content_type}" if content_type else "has no content type"
                message = f"the server's response {kind}, but stackgen expected an event stream"
            # redacted, because the content type is text from the server
            raise StartError(Redactor(self._target.api_key).excerpt(message), LOGS_HINT)
        if not self._finish_reason:
            raise StartError(
                "the stream was cut off: no chunk has a finish_reason, so the answer may be incomplete", LOGS_HINT
            )
        note = self._judge(is_null=False)
        return self._answer(self._content.text, model=self._response_model, usage=self._usage, note=note)

    def _read_completion(self, completion: Any) -> Answer:
        self._raise_embedded_error(completion)
        choice = completion.choices[0]
        text = self._content.add(choice.message)
        self._usage, self._finish_reason = _usage(completion.usage), _text(choice.finish_reason)
        self._content.add_usage(completion.usage)
        note = self._judge(is_null=choice.message.content is None)
        return self._answer(text, model=_text(completion.model), usage=self._usage, note=note)

    def _judge(self, is_null: bool) -> str:
        """A note on an answer without text; "" with text. Raises StartError for an answer that fails the check too."""
        limit = self.request.get("max_tokens") or self.request.get("max_completion_tokens")
        outcome = self._content.judge(self._finish_reason, (self._usage or {}).get("completion_tokens", 0), limit)
        if outcome.kind == "text":
            return ""
        if outcome.kind == "other":
            kinds = " and ".join(self._content.others)
            more = "; raise --max-tokens" if self._content.only_reasoning else ""
            return f"the answer has no text, only {kinds}{more}"
        if outcome.status == "fail":
            why = ", because the field `content` is null" if is_null else ""
            raise StartError(f"the server's answer has no text{why}", LOGS_HINT)
        return "the model returned an empty answer"

    def _raise_embedded_error(self, body: Any) -> None:
        """Raises StartError for an error body that was sent under status 200.

        vLLM sends `{"error": {…}}`, FastChat `{"text", "error_code"}`.
        """
        extra = getattr(body, "model_extra", None) or {}
        error = extra.get("error")
        if error or extra.get("error_code") or getattr(body, "object", None) == "error":
            inner = error.get("message") if isinstance(error, dict) else error
            reason = Redactor(self._target.api_key).excerpt(
                str(inner or extra.get("message") or extra.get("text") or error)
            )
            raise StartError(f"the server aborted the answer: {reason}", LOGS_HINT)

    def _answer(self, text: str, *, model: str, usage: dict[str, int] | None, note: str) -> Answer:
        ttft = None if self._first_text is None else round(self._first_text - self._started, 4)
        return Answer(
            text,
            model=model or self.model,
            seconds=round(time.monotonic() - self._started, 4),
            usage=usage,
            provider=self._target.name,
            ttft=ttft,
            note="; ".join(one for one in (self._note, note) if one),
        )


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    # the callers report any exception as a malformed response
    raise TypeError("not a string")


def _usage(usage: Any) -> dict[str, int] | None:
    if usage is None:
        return None
    # int() raises for null and for infinity
    return {name: int(getattr(usage, name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
