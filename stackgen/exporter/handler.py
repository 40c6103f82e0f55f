"""Responds to one HTTP request, as a WSGI application. Only GET and HEAD are allowed.

No response repeats what the client sent.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app

from stackgen.check.report import Report
from stackgen.check.report.page import as_html, content_security_policy, jinja_environment, load_css
from stackgen.exporter.rounds import Checker
from stackgen.exporter.state import State
from stackgen.exporter.status import build_status, render_page

__all__ = ["DEFAULT_HEADERS", "JSON", "Site", "make_app"]

HTML, JSON = "text/html; charset=utf-8", "application/json"
DEFAULT_HEADERS = {
    # reports contain models' answers and server addresses
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # for metrics, JSON and errors; the pages send their own policies
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# scrapers of one exporter ask for very few formats
MAX_CACHED_SCRAPES = 8


@dataclass(frozen=True, slots=True)
class Site:
    """The data of the HTTP server. `loopback_only` rejects requests whose Host header is not a loopback name."""

    state: State
    checker: Checker
    registry: CollectorRegistry
    interval: float
    profile: str
    loopback_only: bool

    def status_and_etag(self) -> tuple[dict[str, Any], str]:
        """The body of `/api/status` and its ETag."""
        # version first: a report that is recorded now makes the tag too old, which only causes a request, never too new
        version, stall_reason = self.state.version, self.checker.stall_reason()
        data = build_status(
            self.state.snapshot(), interval=self.interval, profile=self.profile, stall_reason=stall_reason
        )
        # stalled rounds change the body without a new report, so the tag needs a suffix
        return data, f'"{version}{"-late" if stall_reason else ""}"'


@dataclass(frozen=True, slots=True)
class Response:
    """A response without the headers that every response has."""

    status: int
    content_type: str
    body: str | bytes
    headers: tuple[tuple[str, str], ...] = ()


Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


def make_app(site: Site) -> App:
    """The WSGI application that serves `site`."""
    scrape = _cached_scrapes(site)

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        response = _respond(environ, site, scrape)
        body = response.body.encode() if isinstance(response.body, str) else response.body
        headers = {"Content-Type": response.content_type, **DEFAULT_HEADERS, **dict(response.headers)}
        # in a 304, Content-Length would be the length of the full response (RFC 9110, 8.6), which is unknown here
        if response.status != 304:
            headers["Content-Length"] = str(len(body))
        start_response(f"{response.status} {HTTPStatus(response.status).phrase}", list(headers.items()))
        return [] if environ["REQUEST_METHOD"] == "HEAD" or response.status == 304 else [body]

    return app


def _respond(environ: Environ, site: Site, scrape: Callable[[str, str, str], Response]) -> Response:
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _error(environ, 405, "only GET and HEAD are allowed", ("Allow", "GET, HEAD"))
    if site.loopback_only and not _is_loopback(environ.get("HTTP_HOST", "")):
        # DNS rebinding: scripts of a web page whose name resolves to 127.0.0.1 could read everything
        return _error(environ, 421, "the exporter does not accept this host name in a URL; use localhost or 127.0.0.1")
    # WSGI passes the bytes of the path as Latin-1
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    if path == "/":
        return _page(site)
    if path == "/metrics":
        # the version first: metrics that are newer than their version are only rendered once more
        return scrape(site.state.version, environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", ""))
    if path == "/api/status":
        return _status(site, environ.get("HTTP_IF_NONE_MATCH", ""))
    if path == "/-/healthy":
        stall_reason = site.checker.stall_reason()
        body = json.dumps({"healthy": not stall_reason, "trouble": stall_reason}) + "\n"
        return Response(503 if stall_reason else 200, JSON, body)
    if path.startswith("/endpoint/"):
        return _endpoint(environ, site, path.removeprefix("/endpoint/"))
    return _error(environ, 404, "the exporter does not serve this path; try /, /metrics, /api/status or /-/healthy")


def _page(site: Site) -> Response:
    data, tag = site.status_and_etag()
    # a new nonce for each response: a known one would let injected markup run scripts
    nonce = secrets.token_urlsafe(16)
    csp = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(200, HTML, render_page(data, version=tag, nonce=nonce), (("Content-Security-Policy", csp),))


def _status(site: Site, known_tag: str) -> Response:
    data, tag = site.status_and_etag()
    if known_tag == tag:
        return Response(304, JSON, "", (("ETag", tag),))
    return Response(200, JSON, json.dumps(data, allow_nan=False), (("ETag", tag),))


def _cached_scrapes(site: Site) -> Callable[[str, str, str], Response]:
    """A function of (version of the state, Accept, Accept-Encoding) that renders the metrics once for equal arguments.

    A burst of scrapes would otherwise render the same text hundreds of times.
    """
    # the library's WSGI application negotiates the format and the compression
    library_app = make_wsgi_app(site.registry)

    @lru_cache(maxsize=MAX_CACHED_SCRAPES)
    def scrape(_version: str, accept: str, accept_encoding: str) -> Response:
        started: list[Any] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": "",
            "HTTP_ACCEPT": accept,
            "HTTP_ACCEPT_ENCODING": accept_encoding,
        }
        body = b"".join(library_app(environ, lambda *args: started.extend(args)))
        headers = dict(started[1])
        content_type = headers.pop("Content-Type")
        return Response(200, content_type, body, (*headers.items(), ("Vary", "Accept, Accept-Encoding")))

    return scrape


def _endpoint(environ: Environ, site: Site, name: str) -> Response:
    one = site.state.get(name)
    if one is None:
        return _error(environ, 404, "the exporter monitors no endpoint with this name")
    if one.report is None or one.checked is None:
        return _error(environ, 503, "the first check of this endpoint has not finished yet", ("Retry-After", "3"))
    # `checked` is the end of the round, but a report contains the start
    started = datetime.fromtimestamp(one.checked - one.report.seconds, timezone.utc)
    report = Report(
        (one.report,), started=started.isoformat(timespec="seconds"), profile=site.profile, seconds=one.report.seconds
    )
    csp = f"{content_security_policy()}; frame-ancestors 'none'"
    return Response(200, HTML, as_html(report, home="../"), (("Content-Security-Policy", csp),))


def _is_loopback(host_header: str) -> bool:
    # without a Host header, as in HTTP/1.0, the name is empty and the request is refused
    try:
        host = urlsplit(f"//{host_header}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _error(environ: Environ, code: int, message: str, *headers: tuple[str, str]) -> Response:
    """An error: HTML for browsers, JSON for programs."""
    if "text/html" not in environ.get("HTTP_ACCEPT", ""):
        return Response(code, JSON, json.dumps({"error": message}) + "\n", headers)
    csp = f"{content_security_policy()}; frame-ancestors 'none'"
    body = jinja_environment().get_template("report/error.html.j2").render(
        code=code, message=message, style=load_css(), policy=content_security_policy(), nonce=None, many=False
    )  # fmt: skip
    return Response(code, HTML, body, (("Content-Security-Policy", csp), *headers))
