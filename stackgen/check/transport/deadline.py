"""The end of a request, however it drips: the HTTP client's own time-outs bound single silences only."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any

__all__ = ["End"]


class End:
    """Drops the connection of a request after `seconds`, and tells so by `passed`.

    A server that sends a byte now and then, in headers, in comments of a stream or in an event without end, would hold
    the check for ever.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self.seconds = seconds
        self._until = time.monotonic() + seconds
        self._socket: socket.socket | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stackgen-end")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def extend(self, seconds: float) -> None:
        """Puts the end off: `seconds` from now."""
        self.seconds, self._until = seconds, time.monotonic() + seconds

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """A hook of httpcore: keeps the socket of the connection, or the TLS one over it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")
            if self.passed:
                self._drop()

    def _watch(self) -> None:
        # an end that was put off meanwhile is waited for once more
        while (left := self._until - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self._drop()

    def _drop(self) -> None:
        self.passed = True
        # the plain method: TLS has nothing to say any more, and its own is not made for two threads
        with suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
