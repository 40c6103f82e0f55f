"""FastChat's answers in the form that OpenAI's clients read: chunks of streams, their usage, and errors.

Errors keep FastChat's own fields at the top level, next to OpenAI's object `error`.
"""

import json
import time
from contextvars import ContextVar

import api_requests

# fastchat/constants.py
INVALID_MODEL, NO_WORKER, WORKER_TIMEOUT = 40301, 50005, 50006
NO_WORKER_TEXT = "No available worker for "
DONE = b"data: [DONE]"
# the Usage of the request that is being answered, for `record_usage`
CURRENT = ContextVar("usage", default=None)


class Usage:
    """Tokens of a request. With `n` above 1, its answers have the same prompt, which counts once."""

    def __init__(self):
        self.prompt, self.answers = 0, []
        # parameters of a prompt that has been counted: FastChat passes the same object for each of its answers
        self.counted = []

    def is_repeated(self, payload):
        """Whether another answer has counted this prompt."""
        if any(one is payload for one in self.counted):
            return True
        self.counted.append(payload)
        return False

    def as_dict(self):
        completion = sum(self.answers)
        total = self.prompt + completion
        return {"prompt_tokens": self.prompt, "completion_tokens": completion, "total_tokens": total}


def record_usage(module):
    """Makes FastChat's API server keep the usage of streams, which it drops, and count a prompt only once."""
    original, original_whole = module.generate_completion_stream, module.generate_completion

    async def generate(payload, worker_addr):
        usage, number = CURRENT.get(), None
        async for content in original(payload, worker_addr):
            found = content.get("usage")
            if usage is not None and found:
                if number is None:
                    number = len(usage.answers)
                    usage.answers.append(0)
                usage.prompt, usage.answers[number] = found["prompt_tokens"], found["completion_tokens"]
            yield content

    async def generate_whole(payload, worker_addr):
        usage = CURRENT.get()
        is_repeated = usage is not None and usage.is_repeated(payload)
        content = await original_whole(payload, worker_addr)
        # FastChat adds up the usage of all answers
        if is_repeated and content.get("usage"):
            completion = content["usage"]["completion_tokens"]
            content = content | {
                "usage": {"prompt_tokens": 0, "completion_tokens": completion, "total_tokens": completion}
            }
        return content

    module.generate_completion_stream, module.generate_completion = generate, generate_whole


def count_last_token(chunk):
    """Corrects a worker's last chunk: at the token limit, FastChat counts one token too few."""
    if b'"finish_reason": "length"' not in chunk:
        return chunk
    data = json.loads(chunk.rstrip(b"\0"))
    # an answer may contain the same text
    if data.get("finish_reason") == "length" and data.get("usage"):
        data["usage"]["completion_tokens"] += 1
        data["usage"]["total_tokens"] += 1
    return json.dumps(data).encode() + b"\0"


class Stream:
    """Completes the events of a stream: each gets `object` and `created`, and the last one may be the usage."""

    def __init__(self, kind, usage=None):
        self.head, self.usage = {"id": None, "object": kind, "created": int(time.time())}, usage
        self.rest, self.model = b"", None

    def feed(self, data):
        """The bytes to send for the bytes that FastChat has sent: all events that are complete."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        return b"".join(self._complete(one) + b"\n\n" for one in events)

    def close(self):
        """What is left, which is no complete event."""
        rest, self.rest = self.rest, b""
        return rest

    def _complete(self, event):
        if event == DONE and self.usage is not None and self.usage.answers:
            last = self.head | {"model": self.model, "choices": [], "usage": self.usage.as_dict()}
            return _event(last) + b"\n\n" + event
        if not event.startswith(b"data: {"):
            return event
        try:
            chunk = json.loads(event[len(b"data: ") :])
        except ValueError:
            return event
        if chunk.get("error_code"):
            status = status_of(chunk["error_code"], 400)
            return _event(error_body(str(chunk.get("text")), status, code=chunk["error_code"]))
        self.head["id"], self.model = chunk.get("id"), chunk.get("model")
        return _event(self.head | chunk | {"created": self.head["created"]})


def error_event(error):
    """The event that ends a stream whose answer has failed."""
    status, message = explain(error)
    return _event(error_body(message, status)) + b"\n\n"


def _event(data):
    return b"data: " + dump(data)


def dump(data):
    # half of a surrogate pair is valid only as an escape
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "backslashreplace")


def error_body(message, status, *, code=None, param=None):
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return {"error": error, "object": "error", "message": message, "code": code}


def status_of(code, given):
    """The HTTP status for one of FastChat's error codes (fastchat/constants.py); it answers 400 to all of them."""
    kind = code // 100 if isinstance(code, int) else 0
    return 503 if code in (NO_WORKER, WORKER_TIMEOUT) else kind if kind in (429, 500) else given


def convert_error(status, body, method, path, missing=""):
    """(status, JSON) for an error response of FastChat. `missing`: the requested model, if it should have a worker."""
    try:
        data = json.loads(body)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        text = body.decode("utf-8", "replace").strip()[:500]
        return status, error_body(text or f"HTTP status {status}", status)
    if "error" in data:
        return status, data
    if "message" in data:
        # the rest of a validation error is a place in FastChat's source
        message = str(data["message"]).partition("\n\n  File ")[0]
        if missing and data.get("code") == INVALID_MODEL:
            return 503, data | error_body(no_worker(missing), 503, code=NO_WORKER)
        status = status_of(data.get("code"), status)
        return status, data | error_body(message, status, code=data.get("code"))
    detail = data.get("detail")
    if isinstance(detail, dict) and "error" in detail:
        return status, data | detail
    served = ", ".join((api_requests.CHAT, api_requests.TEXT, api_requests.EMBED))
    message = f"FastChat does not have {method} {path}: it serves {served}" if status in (404, 405) else str(detail)
    return status, data | error_body(message, status, code="not_found" if status == 404 else None)


def no_worker(model):
    return f"no worker serves {model} now: it is starting or has stopped; see the stack's logs"


def explain(error):
    """(status, message) for an exception in FastChat's API server, which answers all of them with a 500 in plain text.

    The message has no texts of exceptions but one, because they may show paths and addresses.
    """
    while getattr(error, "exceptions", None):
        error = error.exceptions[0]
    if isinstance(error, ValueError) and str(error).startswith(NO_WORKER_TEXT):
        return 503, no_worker(str(error).removeprefix(NO_WORKER_TEXT))
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("aiohttp", "httpx", "httpcore"):
        return 503, f"a worker or the controller does not answer ({type(error).__name__}): see the stack's logs"
    return 500, f"FastChat's API server failed ({type(error).__name__}): see its log"
