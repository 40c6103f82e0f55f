"""The HTTP server around the exporter's application: bounded threads and connections, no room for slow clients.

waitress 3.0.2 reads requests and writes responses in one thread and runs the application in a few others, so a slow
client holds no thread. Its defaults are changed where they assume a proxy in front of the server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import socket
import threading
import time
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from stackgen.exporter.handler import DEFAULT_HEADERS, JSON, App

__all__ = ["MAX_CONNECTIONS", "HttpServer", "raise_file_limit"]

MAX_CONNECTIONS = 2000
# file descriptors for everything that is not a client: requests of the checks, logs, the listening socket
RESERVED_FILES = 256
THREADS = 4
ACCEPTS_PER_PASS = 64
# seconds from one complete request to the next, whatever a client sends in between
MAX_IDLE_SECONDS = 30.0
# the same while no more connections are accepted: a burst of slow clients ends after a moment
MAX_IDLE_SECONDS_WHEN_FULL = 1.0
# bytes; a GET needs no body, and browsers send a few KiB of headers
MAX_BODY, MAX_HEADERS = 64 * 1024, 32 * 1024


def raise_file_limit() -> None:
    """Raises the process's limit of open files as far as needed for `MAX_CONNECTIONS`, if the machine allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class HttpServer:
    """Serves `app` on the bound socket `listener` in threads of its own, from `start` to `stop`."""

    def __init__(self, app: App, listener: socket.socket) -> None:
        # the server would print each burst to stderr; clients that disconnect are no errors
        logger = logging.getLogger("waitress")
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
        self._map: dict[int, Any] = {}
        name = listener.getsockname()
        self._server = _Server(
            app, self._map, _sock=listener, bind_socket=False, adj=_settings(listener),
            sockinfo=(listener.family, listener.type, listener.proto, name),
        )  # fmt: skip
        self.host, self.port = str(name[0]), int(name[1])
        # daemon: a program that forgets to stop the exporter can still end
        self._thread = threading.Thread(target=self._server.run, name="stackgen-http", daemon=True)

    def start(self) -> None:
        """Starts serving; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Closes all connections, also those that clients keep open, and frees the port."""
        if self._thread.is_alive():
            # in the server's own thread, because its loop must not see a half-closed map
            self._server.trigger.pull_trigger(self._close_all)
            self._thread.join()
        else:
            self._close_all()
        self._server.task_dispatcher.shutdown()

    def _close_all(self) -> None:
        wasyncore.close_all(self._map, ignore_all=True)


def _settings(listener: socket.socket) -> Any:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    connections = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft - RESERVED_FILES)
    return Adjustments(
        sockets=[listener],
        threads=THREADS,
        # the server counts its two own sockets too
        connection_limit=max(connections, 16) + 2,
        backlog=MAX_CONNECTIONS,
        channel_timeout=int(MAX_IDLE_SECONDS),
        cleanup_interval=1,
        max_request_header_size=MAX_HEADERS,
        max_request_body_size=MAX_BODY,
        # select() fails for file descriptors above 1023
        asyncore_use_poll=True,
        # a larger response goes to a temporary file, which a read-only container can't create
        outbuf_overflow=64 * 1024 * 1024,
        # without a version, which would only help an attacker
        ident="stackgen",
        log_socket_errors=False,
    )


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    """Responds to malformed requests. The library's own page repeats what the client sent."""

    def execute(self) -> None:
        self.status = f"{self.request.error.code} {self.request.error.reason}"
        body = json.dumps({"error": "the request is not valid HTTP"}).encode() + b"\n"
        self.response_headers += [("Content-Type", JSON), *DEFAULT_HEADERS.items()]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):  # type: ignore[misc]
    error_task_class = _ErrorTask
    last_served = 0.0

    def service(self) -> None:
        super().service()
        self.last_served = time.time()


class _Server(TcpWSGIServer):  # type: ignore[misc]
    channel_class = _Channel

    def handle_accept(self) -> None:
        # the library accepts one client for each pass over all connections, which takes milliseconds with 2000 of them
        for _ in range(ACCEPTS_PER_PASS):
            before = len(self._map)
            super().handle_accept()
            if len(self._map) == before or len(self._map) >= self.adj.connection_limit:
                return

    def maintenance(self, now: float) -> None:
        """Closes connections without a complete request in time; a client that sends a byte now and then is one."""
        limit = MAX_IDLE_SECONDS_WHEN_FULL if self.in_connection_overflow else MAX_IDLE_SECONDS
        for channel in tuple(self.active_channels.values()):
            if not channel.requests and now - max(channel.creation_time, channel.last_served) > limit:
                channel.will_close = True
