"""Handles one HTTP request. Only GET and HEAD are allowed, and no response repeats what the client sent."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app

from stackgen.check.report import Report
from stackgen.check.report.page import as_html, content_security_policy, jinja_environment, load_css
from stackgen.exporter.rounds import Checker
from stackgen.exporter.state import State
from stackgen.exporter.status import build_status, render_page

__all__ = ["Handler", "Site"]

HTML, JSON = "text/html; charset=utf-8", "application/json"


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


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    # the default, HTTP/0.9, would answer garbage without status line and headers
    default_request_version = "HTTP/1.0"
    # seconds a client may stay silent; each connection occupies a thread
    timeout = 30
    server: Any

    def do_GET(self) -> None:
        if not self._is_allowed_host():
            # DNS rebinding: scripts of a web page whose name resolves to 127.0.0.1 could read everything
            self._send_error(421, "this exporter does not serve this host name; use localhost or 127.0.0.1")
            return
        # urlsplit raises ValueError for a path such as `//[`
        try:
            path = urlsplit(self.path).path
        except ValueError:
            path = ""
        routes: dict[str, Callable[[], None]] = {
            "/": self._send_page,
            "/metrics": self._send_metrics,
            "/api/status": self._send_status,
            "/-/healthy": self._send_health,
        }
        if path in routes:
            routes[path]()
        elif path.startswith("/endpoint/"):
            self._send_endpoint(unquote(path.removeprefix("/endpoint/"), errors="replace"))
        else:
            self._send_error(404, "there is no such path; try /, /metrics, /api/status or /-/healthy")

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Any:
        # without a do_METHOD attribute the base class would respond with 501 and its own page
        if name.startswith("do_"):
            return self._reject_method
        raise AttributeError(name)

    def _reject_method(self) -> None:
        # the request's body is not read, so the connection can't be reused
        self.close_connection = True
        self._send_error(405, "only GET and HEAD are allowed", ("Allow", "GET, HEAD"), ("Connection", "close"))

    def _send_page(self) -> None:
        data, tag = self._site.status_and_etag()
        # a new nonce for each response: a known one would let injected markup run scripts
        nonce = secrets.token_urlsafe(16)
        csp = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, HTML, render_page(data, version=tag, nonce=nonce), ("Content-Security-Policy", csp))

    def _send_status(self) -> None:
        data, tag = self._site.status_and_etag()
        if self.headers.get("If-None-Match") == tag:
            self._send(304, JSON, "", ("ETag", tag))
        else:
            self._send(200, JSON, json.dumps(data, allow_nan=False), ("ETag", tag))

    def _send_metrics(self) -> None:
        # through the library's WSGI application, which negotiates the format and the compression
        started: list[Any] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": "",
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        body = b"".join(make_wsgi_app(self._site.registry)(environ, lambda *args: started.extend(args)))
        headers = dict(started[1])
        content_type = headers.pop("Content-Type")
        self._send(200, content_type, body, *headers.items(), ("Vary", "Accept, Accept-Encoding"))

    def _send_health(self) -> None:
        stall_reason = self._site.checker.stall_reason()
        body = json.dumps({"healthy": not stall_reason, "trouble": stall_reason})
        self._send(503 if stall_reason else 200, JSON, body + "\n")

    def _send_endpoint(self, name: str) -> None:
        one = self._site.state.get(name)
        if one is None:
            self._send_error(404, "no monitored endpoint has this name")
        elif one.report is None or one.checked is None:
            self._send_error(503, "the first check of this endpoint has not finished yet", ("Retry-After", "3"))
        else:
            # `checked` is the end of the round, but a report contains the start
            started = datetime.fromtimestamp(one.checked - one.report.seconds, timezone.utc)
            report = Report(
                (one.report,),
                started=started.isoformat(timespec="seconds"),
                profile=self._site.profile,
                seconds=one.report.seconds,
            )
            csp = f"{content_security_policy()}; frame-ancestors 'none'"
            self._send(200, HTML, as_html(report, home="../"), ("Content-Security-Policy", csp))

    @property
    def _site(self) -> Site:
        site: Site = self.server.site
        return site

    def _is_allowed_host(self) -> bool:
        if not self._site.loopback_only:
            return True
        # without a Host header, as in HTTP/1.0, the name is empty and the request is refused
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def _send_error(self, code: int, message: str, *headers: tuple[str, str]) -> None:
        """Sends an error: HTML to browsers, JSON to programs."""
        if "text/html" in self.headers.get("Accept", ""):
            csp = f"{content_security_policy()}; frame-ancestors 'none'"
            body = jinja_environment().get_template("report/error.html.j2").render(
                code=code, message=message, style=load_css(), policy=content_security_policy(), nonce=None, many=False
            )  # fmt: skip
            self._send(code, HTML, body, ("Content-Security-Policy", csp), *headers)
        else:
            self._send(code, JSON, json.dumps({"error": message}) + "\n", *headers)

    def _send(self, code: int, content_type: str, body: str | bytes, *headers: tuple[str, str]) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        defaults = {
            "Content-Type": content_type,
            "Content-Length": str(len(data)),
            # reports contain models' answers and server addresses
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            # for metrics, JSON and errors; the pages send their own policies
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        }
        for name, value in {**defaults, **dict(headers)}.items():
            # in a 304, Content-Length would be the length of the full response (RFC 9110, 8.6), which is unknown here
            if code != 304 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and code != 304:
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Replaces the base class's error page for malformed requests, which repeats the client's input."""
        self.close_connection = True
        # None until the request line is parsed, and `_send` reads it
        self.command = self.command or "GET"
        self._send(code, JSON, json.dumps({"error": "the request is not valid HTTP"}) + "\n", ("Connection", "close"))

    def version_string(self) -> str:
        """The Server header, without versions, because versions would only help an attacker."""
        return "stackgen"

    def log_message(self, *_: object) -> None:
        """Logs nothing: Prometheus alone would add two lines a minute."""
