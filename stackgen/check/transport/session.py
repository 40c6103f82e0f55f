"""Requests to one target: explicit timeouts, no retries, no redirects, bounded bodies.

Each request opens its own connection. So a check sees the same as a new client, and a keep-alive connection that the
server has closed can't look like a fault. `docs/decisions/http-client.md` explains why httpx2.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stackgen.check.report import Exchange
from stackgen.check.target import Target
from stackgen.check.transport.deadline import Deadline
from stackgen.check.transport.faults import Fault, classify
from stackgen.check.transport.http_client import client_timeout, http_client
from stackgen.check.transport.redact import Redactor
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = [
    "Reply",
    "Session",
    "content_type",
    "error_message",
    "read_reply",
    "reject_constant",
]

# the model list of a cloud is under 1 MiB; a completion of the check is a few KB
MAX_BODY = 4 * 1024 * 1024
# seconds between the end of a check's time and the end of the connections that still send something
END_GRACE = 0.05
LIMIT_MESSAGE = "the response was not complete when the time limit of the check ended"
# characters of a request and of a response that a report shows
MAX_EXCERPT = 1500
# means "the target's key", while None means "no key"; no header can contain a NUL
TARGET_KEY = "\0own key"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP response; `body` is cut after 4 MiB. `served_by` is the server that stackgen's gateway names."""

    status: int
    content_type: str
    body: bytes
    location: str = ""
    retry_after: str = ""
    served_by: str = ""

    def json(self) -> Any:
        """The parsed body; None if it is not JSON. No API sends a bare `null`, so None is unambiguous."""
        try:
            return json.loads(self.body, parse_constant=reject_constant)
        except (ValueError, RecursionError):
            return None

    @property
    def summary(self) -> str:
        """`HTTP 500 (text/html)`: status and content type, for messages."""
        kind = f" ({self.content_type})" if self.content_type else ""
        return f"HTTP {self.status}{kind}" + (" of more than 4 MiB" if len(self.body) >= MAX_BODY else "")


class Session:
    """A client for one target. `timeout` (s) bounds connecting (at most 10 s), each silence, and a whole body.

    A request with `max_seconds` is dropped after that time, even if its response has started. At `ends_at` (on the
    monotonic clock), every request is dropped.

    `exchanges` are all requests so far, without the key, in the order they ended. Several threads may send requests.
    """

    def __init__(self, target: Target, timeout: float, ends_at: float = math.inf) -> None:
        self.target = target
        self.ends_at = ends_at
        self._timeout = timeout
        self.redact = Redactor((target.api_key or "", *target.secrets))
        self.exchanges: list[Exchange] = []
        self._started = time.monotonic()
        self._client = http_client(target, timeout)

    @property
    def timeout(self) -> float:
        """How long a request may wait now (s): until `ends_at` at most."""
        # rounded, because messages contain it; above zero, because zero would mean no waiting at all
        left = max(0.01, round(self.ends_at - time.monotonic(), 2)) if self.ends_at < math.inf else math.inf
        return min(self._timeout, left)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(
        self, url: str, authorization: str | None = TARGET_KEY, max_seconds: float | None = None, *, method: str = "GET"
    ) -> Reply:
        """Sends GET (or HEAD). `authorization` replaces the target's key; None sends no Authorization header.

        Raises Fault.
        """
        return self._request(method, url, authorization, None, {}, max_seconds)

    def post(
        self,
        url: str,
        data: Any,
        authorization: str | None = TARGET_KEY,
        headers: Mapping[str, str] | None = None,
        max_seconds: float | None = None,
    ) -> Reply:
        """Sends a POST with `data` as JSON, or with `data` unchanged if it is bytes; see `get`."""
        return self._request("POST", url, authorization, data, headers or {}, max_seconds)

    @contextmanager
    def stream(
        self, url: str, data: Any, headers: Mapping[str, str] | None = None
    ) -> Iterator[tuple[httpx2.Response, list[str], Callable[[float], None]]]:
        """POST whose response the caller reads inside the block; errors while reading are raised as Fault.

        Yields the response, a list for the texts that reports show as the response, and a function that extends the
        deadline. The request ends one timeout after the headers, or after the seconds last passed to that function.
        Bytes alone (comments, half events) don't extend the deadline.
        """
        sent = {**self._headers(TARGET_KEY), "Content-Type": "application/json", **(headers or {})}
        started, status, shown = time.monotonic(), None, list[str]()
        try:
            # twice the timeout: once for the headers, once for the first token
            with (
                self._translate_errors(2 * self.timeout, "no token arrived for {:g} s") as (extensions, deadline),
                self._client.stream(
                    "POST",
                    url,
                    content=_encode_json(data),
                    headers=sent,
                    extensions=extensions,
                    timeout=client_timeout(self.timeout),
                ) as response,  # fmt: skip
            ):
                status = response.status_code
                deadline.extend(self.timeout)
                yield response, shown, deadline.extend
        finally:
            self._record_exchange("POST", url, status, started, data, *shown)

    def _request(
        self,
        method: str,
        url: str,
        authorization: str | None,
        data: Any,
        extra_headers: Mapping[str, str],
        max_seconds: float | None,
    ) -> Reply:
        headers = {**self._headers(authorization), **extra_headers}
        content = data if isinstance(data, bytes) else None if data is None else _encode_json(data)
        if content is not None:
            headers["Content-Type"] = "application/json"
        started, reply = time.monotonic(), None
        try:
            # twice the timeout: once for the headers, once for the body
            seconds = 2 * self.timeout if max_seconds is None else max(max_seconds, 0.001)
            with (
                self._translate_errors(seconds) as (extensions, _),
                self._client.stream(
                    method,
                    url,
                    content=content,
                    headers=headers,
                    extensions=extensions,
                    timeout=client_timeout(self.timeout),
                ) as response,  # fmt: skip
            ):
                reply = read_reply(response, self.timeout)
            return reply
        finally:
            status, body = (reply.status, reply.body) if reply else (None, b"")
            self._record_exchange(method, url, status, started, data, body)

    def _record_exchange(
        self, method: str, url: str, status: int | None, started: float, sent: Any, *received: str | bytes
    ) -> None:
        text = "" if sent is None else sent if isinstance(sent, bytes) else json.dumps(sent, ensure_ascii=False)
        now, excerpt = time.monotonic(), self.redact.excerpt
        # a stream passes two parts, its first and last events, which share the space
        shown = " ".join(excerpt(part, MAX_EXCERPT // len(received)) for part in received)
        self.exchanges.append(
            Exchange(
                method=method,
                url=self.redact(url),
                status=status,
                seconds=round(now - started, 4),
                started=round(started - self._started, 4),
                request=excerpt(text, MAX_EXCERPT),
                response=shown,
            )
        )

    def _headers(self, authorization: str | None) -> dict[str, str]:
        if authorization == TARGET_KEY:
            authorization = f"Bearer {self.target.api_key}" if self.target.api_key else None
        # no header at all without a key: an empty header would count as a wrong key
        return {} if authorization is None else {"Authorization": authorization}

    @contextmanager
    def _translate_errors(
        self, seconds: float, message: str = "the response was not complete after {:g} s"
    ) -> Iterator[tuple[dict[str, Any], Deadline]]:
        """Ends a request after `seconds` and raises Fault for all errors; yields the request's extensions."""
        fault: Fault | None = None
        # a silent server is reported as silent: the client's own timeout passes first
        timeout, deadline = self.timeout, Deadline(seconds, self.ends_at + END_GRACE)
        try:
            with deadline:
                yield {"trace": deadline.trace_socket}, deadline
        except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError, TimeoutError) as error:
            fault = classify(error, self.target, timeout)
        if deadline.expired:
            message = LIMIT_MESSAGE if deadline.is_final else message
            fault = Fault("timeout", message.format(deadline.seconds), hint="raise --timeout")
        # outside the except block: the client's exception contains the request, and with it the key
        if fault:
            raise fault


def _encode_json(data: Any) -> bytes:
    # ASCII: a model name may contain half a character, which UTF-8 can't encode
    return json.dumps(data).encode()


def read_reply(response: httpx2.Response, timeout: float) -> Reply:
    """The rest of a response, up to 4 MiB. Raises Fault for a body that takes longer than `timeout` seconds."""
    started, parts, size = time.monotonic(), [], 0
    for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            break
        # the client's own timeout bounds each silence only
        if time.monotonic() - started > timeout:
            raise Fault("timeout", f"the body was not complete after {timeout:g} s", hint="raise --timeout")
    body = b"".join(parts)[:MAX_BODY]
    headers = response.headers
    return Reply(response.status_code, content_type(response), body, headers.get("location", ""),
                 headers.get("retry-after", "")[:40], headers.get("x-stackgen-served-by", "")[:200])  # fmt: skip


def reject_constant(word: str) -> None:
    """A `parse_constant` hook that rejects NaN and Infinity: Python accepts them, clients in other languages don't."""
    raise ValueError(f"{word} is not JSON")


def content_type(response: httpx2.Response) -> str:
    """Returns the media type without parameters, in its original case: the redactor would miss a lower-cased key."""
    kind: str = response.headers.get("content-type", "").partition(";")[0].strip()
    return kind if len(kind) <= 100 else "an overlong content type"


def error_message(reply: Reply) -> str:
    """Returns the message of an error body in any of the recorded forms; empty if there is no message.

    vLLM: `{"error": {"message"}}`, without a key `{"error": "Unauthorized"}`; FastChat: `{"object": "error",
    "message", "code"}`, without a key `{"detail": {"error": …}}`; FastAPI: `{"detail": "Not Found"}`.
    """
    body = reply.json()
    # FastChat nests two levels deep
    for _ in range(3):
        if not isinstance(body, dict):
            break
        body = body.get("error") or body.get("message") or body.get("detail") or ""
    return body if isinstance(body, str) else ""
