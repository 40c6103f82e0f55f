"""Answers to single requests. Only GET and HEAD; nothing that a client sends is ever printed back."""

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
from stackgen.check.report.page import as_html, environment, policy, style
from stackgen.exporter.rounds import Checker
from stackgen.exporter.state import State
from stackgen.exporter.status import page, status

__all__ = ["Handler", "Site"]

HTML, JSON = "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True, slots=True)
class Site:
    """What is served. `only_local` refuses requests for names that are not this machine's own."""

    state: State
    checker: Checker
    registry: CollectorRegistry
    interval: float
    profile: str
    only_local: bool

    def data(self) -> tuple[dict[str, Any], str]:
        """What `/api/status` sends, and its ETag."""
        # the version first: a report in between makes the tag too old, which costs one more request, and never too new
        version, trouble = self.state.version, self.checker.trouble()
        data = status(self.state.snapshot(), interval=self.interval, profile=self.profile, trouble=trouble)
        return data, f'"{version}{"-late" if trouble else ""}"'


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    # what is no HTTP at all gets an answer with headers as well
    default_request_version = "HTTP/1.0"
    # seconds that a client may stay silent: each holds a thread
    timeout = 30
    server: Any

    def do_GET(self) -> None:
        if not self._known_host():
            # DNS rebinding: a web page's own name that leads here would let its scripts read everything
            self._error(421, "this name is not served here: ask for localhost or 127.0.0.1")
            return
        try:
            path = urlsplit(self.path).path
        except ValueError:
            path = ""
        routes: dict[str, Callable[[], None]] = {
            "/": self._page,
            "/metrics": self._metrics,
            "/api/status": self._status,
            "/-/healthy": self._healthy,
        }
        if path in routes:
            routes[path]()
        elif path.startswith("/endpoint/"):
            self._endpoint(unquote(path.removeprefix("/endpoint/"), errors="replace"))
        else:
            self._error(404, "nothing is served under this path; see /, /metrics, /api/status and /-/healthy")

    do_HEAD = do_GET

    def __getattr__(self, name: str) -> Any:
        # the library looks for do_METHOD and answers 501 where there is none
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        # the body stays unread, so nothing else can be read from this connection
        self.close_connection = True
        self._error(405, "only GET and HEAD are served", ("Allow", "GET, HEAD"), ("Connection", "close"))

    def _page(self) -> None:
        data, tag = self._site.data()
        nonce = secrets.token_urlsafe(16)
        rules = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, HTML, page(data, version=tag, nonce=nonce), ("Content-Security-Policy", rules))

    def _status(self) -> None:
        data, tag = self._site.data()
        if self.headers.get("If-None-Match") == tag:
            self._send(304, JSON, "", ("ETag", tag))
        else:
            self._send(200, JSON, json.dumps(data, allow_nan=False), ("ETag", tag))

    def _metrics(self) -> None:
        """Formats and compression are the library's own work: its WSGI application is asked."""
        told: list[Any] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": "",
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        body = b"".join(make_wsgi_app(self._site.registry)(environ, lambda *answer: told.extend(answer)))
        headers = dict(told[1])
        kind = headers.pop("Content-Type")
        self._send(200, kind, body, *headers.items(), ("Vary", "Accept, Accept-Encoding"))

    def _healthy(self) -> None:
        trouble = self._site.checker.trouble()
        body = json.dumps({"healthy": not trouble, "trouble": trouble})
        self._send(503 if trouble else 200, JSON, body + "\n")

    def _endpoint(self, name: str) -> None:
        one = self._site.state.get(name)
        if one is None:
            self._error(404, "no endpoint of this name is watched")
        elif one.report is None or one.checked is None:
            self._error(503, "this endpoint is being checked for the first time", ("Retry-After", "3"))
        else:
            began = datetime.fromtimestamp(one.checked - one.report.seconds, timezone.utc)
            report = Report((one.report,), began.isoformat(timespec="seconds"), self._site.profile, one.report.seconds)
            rules = f"{policy()}; frame-ancestors 'none'"
            self._send(200, HTML, as_html(report, home="../"), ("Content-Security-Policy", rules))

    @property
    def _site(self) -> Site:
        site: Site = self.server.site
        return site

    def _known_host(self) -> bool:
        if not self._site.only_local:
            return True
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def _error(self, code: int, message: str, *headers: tuple[str, str]) -> None:
        """An error as a page for browsers, as JSON for programs."""
        if "text/html" in self.headers.get("Accept", ""):
            rules = f"{policy()}; frame-ancestors 'none'"
            body = environment().get_template("report/error.html.j2").render(
                code=code, message=message, style=style(), policy=policy(), nonce=None, many=False
            )  # fmt: skip
            self._send(code, HTML, body, ("Content-Security-Policy", rules), *headers)
        else:
            self._send(code, JSON, json.dumps({"error": message}) + "\n", *headers)

    def _send(self, code: int, kind: str, body: str | bytes, *headers: tuple[str, str]) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(code)
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        }
        for name, value in {**fixed, **dict(headers)}.items():
            # a 304 has no body, and its length would be that of the answer it stands for
            if code != 304 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and code != 304:
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library says of requests that it can't read, without its page and without the client's words."""
        self.close_connection = True
        self.command = self.command or "GET"
        self._send(code, JSON, json.dumps({"error": "the request can't be read"}) + "\n", ("Connection", "close"))

    def version_string(self) -> str:
        """No version: it helps nobody who may know it."""
        return "stackgen"

    def log_message(self, *_: object) -> None:
        """No line a request: Prometheus alone would write two a minute."""
