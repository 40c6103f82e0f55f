"""A deadline for a whole request, because the HTTP client's timeouts limit only the time between two reads."""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import suppress
from typing import Any

__all__ = ["Deadline"]


class Deadline:
    """A context manager that drops the connection of a request after `seconds`. Then `expired` is True.

    Without a deadline, a server that sends single bytes (in headers, in comments of a stream or in an event without an
    end) would block the check forever. No extension goes beyond `ends_at` (on the monotonic clock).
    """

    def __init__(self, seconds: float, ends_at: float = math.inf) -> None:
        self.expired = False
        self.seconds = seconds
        self._ends_at = ends_at
        self._expires_at = min(time.monotonic() + seconds, ends_at)
        self._socket: socket.socket | None = None
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stackgen-deadline")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._finished.set()

    def extend(self, seconds: float) -> None:
        """Moves the deadline to `seconds` from now."""
        self.seconds, self._expires_at = seconds, min(time.monotonic() + seconds, self._ends_at)

    @property
    def is_final(self) -> bool:
        """Whether the deadline is `ends_at`, which no extension moves."""
        return self._expires_at == self._ends_at

    def trace_socket(self, event: str, info: dict[str, Any]) -> None:
        """A trace hook of httpcore: keeps the socket of the connection, or the TLS socket over it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            # the deadline may pass while the client still connects; until then there was no socket to drop
            if self.expired:
                self._drop()

    def _watch(self) -> None:
        # `extend` may have moved the deadline during the wait
        while (left := self._expires_at - time.monotonic()) > 0:
            if self._finished.wait(left):
                return
        self._drop()

    def _drop(self) -> None:
        self.expired = True
        # the method of the plain socket: TLS has nothing left to send, and the TLS socket's method is not thread-safe
        with suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
