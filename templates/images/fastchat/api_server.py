"""ASGI middleware in front of FastChat's API server: the key, adapted requests and answers, and paths it doesn't have.

The chain is Guard, FastChat's own middleware (CORS, so that browsers can read errors), Adapter, FastChat's handlers.
The rules are in api_requests.py and api_answers.py.
"""

import asyncio
import hmac
import json
from urllib.parse import quote

import api_answers
import api_requests

# FastChat's own path for chats takes the same fields
CHATS = (api_requests.CHAT, "/api/v1/chat/completions")
ADAPTED = (*CHATS, api_requests.TEXT, api_requests.EMBED)
# the gateway lets at most 255 MiB through
MAX_BODY = 256 * 2**20
MAX_ERROR = 2**20
HEALTH_TIMEOUT = 5
MODELS = "/v1/models"


class Guard:
    """Requires the key on every path but /health: FastChat itself checks the key on some of its paths only."""

    def __init__(self, app, keys):
        self.app = app
        self.keys = [f"Bearer {key}".encode() for key in keys]

    async def __call__(self, scope, receive, send):
        # browsers send CORS preflights (OPTIONS) without a key
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and not self._allowed(scope):
            body = api_answers.error_body("send the key as `Authorization: Bearer …`", 401, code="invalid_api_key")
            # FastChat's own place for this error
            body["detail"] = {"error": body["error"]}
            await _respond(send, 401, body, [(b"www-authenticate", b"Bearer")])
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope):
        if scope["path"] == "/health" and scope["method"] in ("GET", "HEAD"):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        # constant time, so that response times reveal nothing about the key
        return any(hmac.compare_digest(given, key) for key in self.keys)


class Adapter:
    """Adapts requests and answers.

    `list_models` is a coroutine function: the names that the controller lists. It should list those in `expected`.
    """

    def __init__(self, app, list_models, expected=(), max_body=MAX_BODY):
        self.app, self.list_models, self.expected, self.max_body = app, list_models, expected, max_body

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, method = scope["path"], scope["method"]
        if path == "/health" and method in ("GET", "HEAD"):
            return await self._health(send)
        if path.startswith(f"{MODELS}/") and method == "GET":
            return await self._model(scope, path[len(MODELS) + 1 :], receive, send)
        if method == "POST" and path in ADAPTED:
            return await self._post(scope, receive, send)
        await self._run(scope, receive, Answer(scope, send))

    async def _post(self, scope, receive, send):
        path = scope["path"]
        try:
            body = await _read(scope, receive, self.max_body)
            # the client has gone
            if body is None:
                return
            data, changed = api_requests.adapt_body(path, body)
        except api_requests.Refused as refused:
            answer = api_answers.error_body(str(refused), refused.status, code=refused.code, param=refused.param)
            await _respond(send, refused.status, answer)
            return
        usage = api_answers.Usage()
        kind = "text_completion" if path == api_requests.TEXT else "chat.completion.chunk"
        sent = usage if api_requests.asks_for_usage(data) else None
        stream = api_answers.Stream(kind, sent) if data.get("stream") else None
        if changed is not None:
            headers = [one for one in scope["headers"] if one[0] not in (b"content-length", b"transfer-encoding")]
            scope = scope | {"headers": [*headers, (b"content-length", str(len(changed)).encode())]}
        token = api_answers.CURRENT.set(usage)
        try:
            given = body if changed is None else changed
            answer = Answer(scope, send, stream, missing=data.get("model") in self.expected and data["model"])
            await self._run(scope, _replay(given, receive), answer)
        finally:
            api_answers.CURRENT.reset(token)

    async def _run(self, scope, receive, answer):
        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            await answer.fail(error)
            # uvicorn logs it
            raise
        await answer.finish()

    async def _health(self, send):
        try:
            ready = bool(await asyncio.wait_for(self.list_models(), HEALTH_TIMEOUT))
        except Exception:
            ready = False
        body = {"status": "ok"} if ready else api_answers.error_body("no model is served", 503)
        await _respond(send, 200 if ready else 503, body)

    async def _model(self, scope, name, receive, send):
        """Answers for one model with its entry in FastChat's list."""
        caught, failure = Caught(), None
        try:
            await self._run(scope | {"path": MODELS, "raw_path": MODELS.encode()}, receive, Answer(scope, caught))
        except Exception as error:
            failure = error
        status, body = caught.status, json.loads(caught.body)
        if status == 200:
            body = next((one for one in body["data"] if one["id"] == name), None)
        if body is None:
            status, message = 404, f"the model {name!r} does not exist"
            body = api_answers.error_body(message, status, code="model_not_found", param="model")
        await _respond(send, status, body)
        if failure:
            raise failure


class Answer:
    """Passes FastChat's answer on: streams event by event, errors as JSON, all else as it is.

    `missing`: the requested model, if it should exist; an error that it doesn't means that it has no worker.
    """

    def __init__(self, scope, send, stream=None, missing=""):
        self.scope, self.send, self.stream, self.missing = scope, send, stream, missing
        # an error is held back until it is complete and can be converted
        self.start, self.error, self.started = None, b"", False

    async def __call__(self, message):
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if message["status"] >= 400:
                self.start = message
                return
            if not kind.startswith(b"text/event-stream"):
                self.stream = None
            self.started = True
        elif self.start:
            self.error = (self.error + message.get("body", b""))[:MAX_ERROR]
            return
        elif self.stream and message["type"] == "http.response.body":
            body = self.stream.feed(message.get("body", b""))
            if not message.get("more_body"):
                body += self.stream.close()
            # part of an event is no reason to send an empty message
            if not body and message.get("more_body"):
                return
            message = message | {"body": body}
        await self.send(message)

    async def fail(self, error):
        """Answers a request that ended with an exception, if it still can."""
        if self.started:
            if self.stream:
                # not the last message: the server cuts the connection, so nobody takes the stream for complete
                body = api_answers.error_event(error)
                await self.send({"type": "http.response.body", "body": body, "more_body": True})
            return
        status, message = api_answers.explain(error)
        await _respond(self.send, status, api_answers.error_body(message, status))

    async def finish(self):
        """Sends the error that FastChat has answered, if any."""
        if self.start is None:
            return
        status, path = self.start["status"], quote(self.scope["path"])[:200]
        status, body = api_answers.convert_error(status, self.error, self.scope["method"], path, self.missing)
        kept = [one for one in self.start["headers"] if one[0] not in (b"content-length", b"content-type")]
        await _respond(self.send, status, body, kept)


class Caught:
    """Keeps an answer instead of sending it."""

    def __init__(self):
        self.status, self.body = 500, b""

    async def __call__(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")


async def _read(scope, receive, limit):
    """The body of a request; None if the client has gone. Raises Refused for a body above `limit` bytes."""
    too_large = api_requests.Refused(f"the body is larger than {limit} bytes", code="body_too_large", status=413)
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise too_large
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise too_large
        if not message.get("more_body"):
            return b"".join(pieces)


def _replay(body, receive):
    """A `receive` that gives `body` first, and then what the original one gives: the client's disconnect."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def again():
        return pending.pop() if pending else await receive()

    return again


async def _respond(send, status, data, headers=()):
    body = api_answers.dump(data)
    length = (b"content-length", str(len(body)).encode())
    headers = [*headers, (b"content-type", b"application/json"), length]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
