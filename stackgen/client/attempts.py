"""The first requests of other programs, sent to an endpoint as those programs send them: `stackgen connect --try`.

A stream is read until its first text and then closed, because the first text shows that the client gets an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stackgen.check.target import Target
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.session import Reply, Session, error_message, read_reply, reject_constant

__all__ = ["Attempt", "FirstRequest", "send_requests"]

# events of a stream without any text, for example of a model that reasons; a real one sends text far earlier
MAX_EVENTS = 2000
MAX_ERROR = 400


@dataclass(frozen=True, slots=True)
class FirstRequest:
    """A request as the client sends it. `path` is relative to the server's root.

    - `api`: how to read the response: `chat`, `responses`, `messages`, `completions`, `embeddings`, `models` or `any`.
    - `max_answer_tokens`: limit in the body that the usage of the answer must keep; 0: none.
    - `accept`: further statuses with which the client continues.
    """

    name: str
    method: str
    path: str
    api: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    with_key: bool = True
    max_answer_tokens: int = 0
    accept: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one request. `problem` is what is wrong, in the words of the endpoint where it gave some."""

    request: FirstRequest
    status: int | None
    seconds: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the client could continue."""
        return not self.problem


class _Unusable(Exception):
    """The response has a good status but can't be used."""


def send_requests(target: Target, requests: list[FirstRequest], timeout: float) -> Iterator[Attempt]:
    """Sends the requests one after the other. `timeout` (s) limits each silence of the endpoint.

    Texts of the endpoint in the results are redacted. A failed request does not end the attempts.
    """
    with Session(target, timeout) as session:
        for request in requests:
            started = time.monotonic()
            status: int | None = None
            try:
                status, problem = _send(session, request)
            except Fault as fault:
                problem = f"{fault.message}. {fault.hint}"
            yield Attempt(request, status, round(time.monotonic() - started, 3), session.redact(problem))


def _send(session: Session, request: FirstRequest) -> tuple[int, str]:
    url = session.target.root + request.path
    if request.method == "POST" and isinstance(request.body, dict) and request.body.get("stream"):
        with session.stream(url, request.body, request.headers) as (response, shown, extend):
            if response.status_code != 200:
                reply = read_reply(response, session.timeout)
                shown.append(reply.body[:MAX_ERROR].decode("utf-8", "replace"))
                return reply.status, _judge_status(reply, request)
            return 200, _read_stream(_read_lines(response.iter_text()), request, lambda: extend(session.timeout))
    if request.method != "POST":
        reply = session.get(url, method=request.method, **({} if request.with_key else {"authorization": None}))
    elif request.with_key:
        reply = session.post(url, request.body, headers=request.headers)
    else:
        reply = session.post(url, request.body, None, headers=request.headers)
    if reply.status != 200:
        return reply.status, _judge_status(reply, request)
    try:
        _read_answer(reply.json(), request)
    except _Unusable as error:
        return 200, str(error)
    return 200, ""


def _judge_status(reply: Reply, request: FirstRequest) -> str:
    if reply.status in request.accept:
        return ""
    message = error_message(reply)[:MAX_ERROR]
    return f"HTTP {reply.status}: {message}" if message else reply.summary


def _read_lines(parts: Iterator[str]) -> Iterator[str]:
    """Lines of an event stream; a carriage return stays.

    The iter_lines of httpx2 2.16.2 also splits inside a JSON string, at U+2028, U+2029 and U+0085. Engines don't escape
    these characters (`findings/hub-client-splits-lines.sh`).
    """
    rest = ""
    for part in parts:
        *lines, rest = (rest + part).split("\n")
        yield from lines
    yield rest


def _read_stream(lines: Iterator[str], request: FirstRequest, extend: Any) -> str:
    events = 0
    for line in lines:
        if not line.startswith("data:"):
            continue
        text = line[5:].strip()
        if text == "[DONE]":
            break
        events += 1
        try:
            event = json.loads(text, parse_constant=reject_constant)
        except (ValueError, RecursionError):
            return f"an event of the stream is not JSON: {text[:80]!r}"
        if problem := _event_error(event):
            return f"the stream ends with an error: {problem}"
        if _has_text(event, request.api):
            return ""
        if events > MAX_EVENTS:
            return f"{MAX_EVENTS} events contain no text"
        extend()
    # a model may end its answer at once, but a client can't tell that from a broken stream
    return "the stream ended without any text" if events else "the stream has no events"


def _event_error(event: Any) -> str:
    if not isinstance(event, dict):
        return "an event is not an object"
    error = event.get("error")
    # /v1/responses has "error": null in each event of a response
    if error:
        return str(error.get("message", error) if isinstance(error, dict) else error)[:MAX_ERROR]
    if event.get("type") == "response.failed":
        return json.dumps(event.get("response", {}).get("error"))[:MAX_ERROR]
    return ""


def _has_text(event: dict[str, Any], api: str) -> bool:
    kind = str(event.get("type", ""))
    if api == "responses":
        # the texts of reasoning and the arguments of tool calls are answers too
        return kind.startswith("response.") and kind.endswith(".delta") and bool(event.get("delta"))
    if api == "messages":
        return kind == "content_block_delta" and bool(event.get("delta"))
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    if api == "completions":
        return bool(choices[0].get("text"))
    delta = choices[0].get("delta")
    return isinstance(delta, dict) and any(delta.get(name) for name in TEXT_FIELDS)


# vLLM sends reasoning as `reasoning`, llama.cpp as `reasoning_content`
TEXT_FIELDS = ("content", "reasoning", "reasoning_content", "tool_calls")


def _read_answer(body: Any, request: FirstRequest) -> None:
    """Raises _Unusable if `body` is not an answer of the API."""
    if request.api == "any":
        return
    if request.api == "models":
        # Together's API answers with a bare array
        models = body.get("data") if isinstance(body, dict) else body
        if not isinstance(models, list) or not models:
            raise _Unusable("the response lists no models")
        return
    if not isinstance(body, dict):
        raise _Unusable("the response is not a JSON object")
    # FastChat reports some errors under status 200
    if body.get("object") == "error" or body.get("error"):
        raise _Unusable(f"an error under status 200: {str(body.get('message') or body.get('error'))[:MAX_ERROR]}")
    name = {"responses": "output", "messages": "content", "embeddings": "data"}.get(request.api, "choices")
    items = body.get(name)
    if not isinstance(items, list) or not items:
        raise _Unusable(f"the response has no {name}")
    _check_form(items[0], request)
    if request.api == "embeddings" and not (isinstance(items[0], dict) and items[0].get("embedding")):
        raise _Unusable("the response has no embedding")
    _check_limit(body, request)


def _check_form(choice: Any, request: FirstRequest) -> None:
    """Raises _Unusable if the request asks for a tool call or for JSON, and the answer is something else."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if request.api != "chat" or not isinstance(message, dict) or not isinstance(request.body, dict):
        return
    if request.body.get("tool_choice") == "required" and not message.get("tool_calls"):
        raise _Unusable("the answer has no tool call, although the request requires one")
    if "response_format" in request.body and choice.get("finish_reason") != "length":
        try:
            json.loads(str(message.get("content")), parse_constant=reject_constant)
        except (ValueError, RecursionError):
            raise _Unusable("the answer is not JSON, although the request has a schema") from None


def _check_limit(body: dict[str, Any], request: FirstRequest) -> None:
    usage = body.get("usage")
    counts = [usage.get(name) for name in ("completion_tokens", "output_tokens")] if isinstance(usage, dict) else []
    used = next((count for count in counts if isinstance(count, int)), 0)
    if request.max_answer_tokens and used > request.max_answer_tokens:
        raise _Unusable(f"the answer has {used} tokens, but the request allows {request.max_answer_tokens}")
