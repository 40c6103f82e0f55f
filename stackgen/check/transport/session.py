"""Requests to one target: explicit time-outs, no retries, no redirects, bounded bodies.

Each request opens its own connection: a check sees what a new client sees, and a kept connection that the
server closed in the meantime can't be taken for a fault. `docs/decisions/http-client.md` says why httpx2.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stackgen.check.report import Exchange
from stackgen.check.target import Target
from stackgen.check.transport.deadline import End
from stackgen.check.transport.faults import Fault, classify
from stackgen.check.transport.redact import Redactor

if TYPE_CHECKING:
    import httpx2

__all__ = ["Reply", "Session", "content_type", "error_message", "http_client", "no_number", "read", "tls_context"]

# a list of a cloud's models is under 1 MiB; a completion of the check is a few KB
MAX_BODY = 4 * 1024 * 1024
CONNECT_SECONDS = 10.0
# characters of a request and of a response that a report shows
SHOWN = 1500
# stands for "the target's key" where None means "no key"; no header can hold a NUL
OWN_KEY = "\0own key"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole HTTP response: `body` is at most 4 MiB."""

    status: int
    content_type: str
    body: bytes
    location: str = ""
    retry_after: str = ""

    def json(self) -> Any:
        """The parsed body; None where it is no JSON (a body `null` is none that any API sends)."""
        try:
            return json.loads(self.body, parse_constant=no_number)
        except (ValueError, RecursionError):
            return None

    @property
    def what(self) -> str:
        """`HTTP 500 (text/html)`: status and kind, for messages."""
        kind = f" ({self.content_type})" if self.content_type else ""
        return f"HTTP {self.status}{kind}" + (" of more than 4 MiB" if len(self.body) >= MAX_BODY else "")


class Session:
    """A client for one target. `timeout` (s) bounds connecting (at most 10), each silence, and a whole body.

    A request `within` so many seconds is ended when they are over, answered or not.

    `exchanges` are all requests so far, without the key, in the order they ended; several threads may send.
    """

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self.redact = Redactor(target.api_key)
        self.exchanges: list[Exchange] = []
        self._begun = time.monotonic()
        self._client = http_client(target, timeout)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, url: str, authorization: str | None = OWN_KEY, within: float | None = None) -> Reply:
        """GET; `authorization` replaces the header that carries the target's key, None sends none. Raises Fault."""
        return self._request("GET", url, authorization, None, {}, within)

    def post(
        self,
        url: str,
        data: Any,
        authorization: str | None = OWN_KEY,
        headers: Mapping[str, str] | None = None,
        within: float | None = None,
    ) -> Reply:
        """POST of JSON, or of `data` as it is where it is bytes; see `get`."""
        return self._request("POST", url, authorization, data, headers or {}, within)

    @contextmanager
    def stream(self, url: str, data: Any) -> Iterator[tuple[httpx2.Response, list[str], Callable[[float], None]]]:
        """POST whose response is read by the caller, inside the block; faults while reading are raised as Fault.

        What the caller puts into the list is shown as the response. It is ended one time-out after it began, or as many
        seconds as the caller last gave the function: bytes alone (comments, half events) don't keep a stream alive.
        """
        headers = {**self._headers(OWN_KEY), "Content-Type": "application/json"}
        started, status, shown = time.monotonic(), None, list[str]()
        try:
            # as long for the headers as for a token
            with (
                self._faults(2 * self.timeout, "no token came for {:g} s") as (more, end),
                self._client.stream("POST", url, content=_encoded(data), headers=headers, extensions=more) as response,
            ):
                status = response.status_code
                end.extend(self.timeout)
                yield response, shown, end.extend
        finally:
            self._record("POST", url, status, started, data, *shown)

    def _request(
        self, method: str, url: str, authorization: str | None, data: Any, more: Mapping[str, str], within: float | None
    ) -> Reply:
        headers = {**self._headers(authorization), **more}
        content = data if isinstance(data, bytes) else None if data is None else _encoded(data)
        if content is not None:
            headers["Content-Type"] = "application/json"
        started, reply = time.monotonic(), None
        try:
            # as long for the headers as for the body
            seconds = 2 * self.timeout if within is None else max(within, 0.001)
            with (
                self._faults(seconds) as (more_of, _),
                self._client.stream(method, url, content=content, headers=headers, extensions=more_of) as response,
            ):
                reply = read(response, self.timeout)
            return reply
        finally:
            self._record(method, url, reply.status if reply else None, started, data, reply.body if reply else b"")

    def _record(
        self, method: str, url: str, status: int | None, started: float, sent: Any, *received: str | bytes
    ) -> None:
        text = "" if sent is None else sent if isinstance(sent, bytes) else json.dumps(sent, ensure_ascii=False)
        now, excerpt = time.monotonic(), self.redact.excerpt
        # of a stream the beginning and the end are shown
        shown = " ".join(excerpt(part, SHOWN // len(received)) for part in received)
        self.exchanges.append(Exchange(method, self.redact(url), status, round(now - started, 4),
                                       round(started - self._begun, 4), excerpt(text, SHOWN), shown))  # fmt: skip

    def _headers(self, authorization: str | None) -> dict[str, str]:
        if authorization == OWN_KEY:
            authorization = f"Bearer {self.target.api_key}" if self.target.api_key else None
        return {} if authorization is None else {"Authorization": authorization}

    @contextmanager
    def _faults(
        self, seconds: float, told: str = "the answer was not complete after {:g} s"
    ) -> Iterator[tuple[dict[str, Any], End]]:
        """Ends a request after `seconds`, and raises Fault for what goes wrong; gives extensions for the request."""
        import httpx2

        fault: Fault | None = None
        end = End(seconds)
        try:
            with end:
                yield {"trace": end.trace}, end
        except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError, TimeoutError) as error:
            fault = classify(error, self.target, self.timeout)
        if end.passed:
            fault = Fault("timeout", told.format(end.seconds), "allow more by --timeout")
        # outside the except block: the client's exception holds the request, and with it the key
        if fault:
            raise fault


def http_client(target: Target, timeout: float) -> httpx2.Client:
    """A client that follows no redirect and goes through the environment's proxies for other machines only."""
    import httpx2

    return httpx2.Client(
        timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
        # HTTP_PROXY is set on many machines without NO_PROXY, and no proxy reaches this machine's loopback
        trust_env=not target.loopback,
        verify=tls_context(target.ca_file) if target.base_url.startswith("https:") else False,
        limits=httpx2.Limits(max_keepalive_connections=0),
        headers={"User-Agent": "stackgen-check"},
        follow_redirects=False,
    )


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """The certificates that are trusted: `ca_file` alone, else the system's, or those of SSL_CERT_FILE and _DIR."""
    if ca_file:
        return ssl.create_default_context(cafile=ca_file)
    return _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _tls_context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    import httpx2

    # reading a bundle takes 20 ms, and a thousand endpoints share it; the variables are the key, as it reads them
    context: ssl.SSLContext = httpx2.create_ssl_context()
    return context


def _encoded(data: Any) -> bytes:
    # ASCII: a model may be named by half a character, which UTF-8 can't hold
    return json.dumps(data).encode()


def read(response: httpx2.Response, timeout: float) -> Reply:
    """The rest of a response, up to 4 MiB and `timeout` seconds; raises Fault for a body that drips beyond that."""
    started, parts, size = time.monotonic(), [], 0
    for part in response.iter_bytes():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
            break
        # the client's own time-out bounds each silence only
        if time.monotonic() - started > timeout:
            raise Fault("timeout", f"the body was not complete after {timeout:g} s", "allow more by --timeout")
    body = b"".join(parts)[:MAX_BODY]
    headers = response.headers
    return Reply(response.status_code, content_type(response), body, headers.get("location", ""),
                 headers.get("retry-after", "")[:40])  # fmt: skip


def no_number(word: str) -> None:
    """Refuses NaN and Infinity, which Python reads and JSON does not have: clients in other languages fail on them."""
    raise ValueError(f"{word} is no JSON")


def content_type(response: httpx2.Response) -> str:
    """The media type without parameters. Case stays as sent: a key in it would pass the redactor in lower case."""
    kind: str = response.headers.get("content-type", "").partition(";")[0].strip()
    return kind if len(kind) <= 100 else "an overlong content type"


def error_message(reply: Reply) -> str:
    """What an error body says, in any of the recorded forms; empty where it says nothing.

    vLLM: `{"error": {"message"}}`, for a missing key `{"error": "Unauthorized"}`; FastChat: `{"object": "error",
    "message", "code"}`, for a missing key `{"detail": {"error": …}}`; FastAPI: `{"detail": "Not Found"}`.
    """
    body = reply.json()
    # FastChat nests two levels deep
    for _ in range(3):
        if not isinstance(body, dict):
            break
        body = body.get("error") or body.get("message") or body.get("detail") or ""
    return body if isinstance(body, str) else ""
