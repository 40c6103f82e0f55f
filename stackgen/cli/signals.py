"""Signals that stop a command: they raise an exception, so that the command ends its children and cleans up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["STOP_SIGNALS", "Stopped", "exit_code", "raise_on_signals", "stop", "was_stopped"]

# a user's Ctrl-C; `kill`, systemd and CI; the end of an SSH session
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal stopped the command. Code that cleans up after Ctrl-C also cleans up after SIGTERM and SIGHUP."""


def stop(number: int, _frame: FrameType | None) -> None:
    """The handler of all three signals: raises `Stopped`. Only Ctrl-C may interrupt the clean-up."""
    _received.append(number)
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_IGN)
    raise Stopped


def was_stopped() -> bool:
    """Whether a signal has stopped the command.

    Libraries turn the exception into errors of their own: pydantic-core, interrupted during its import, raises a
    PanicException (pyo3).
    """
    return bool(_received)


def exit_code() -> int:
    """128 plus the number of the signal that stopped the command, as a shell reports it; that of SIGINT if none did."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def _send_again() -> threading.Timer:
    """Sends the last signal again, a moment later. Call it in the main thread."""
    number = _received[-1]
    signal.signal(number, stop)
    timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP raise `Stopped`.

    By default, SIGTERM ends Python at once, and a `docker compose` that stackgen has started goes on unobserved.
    Ignored signals stay ignored (`nohup`). Python can't raise an exception out of a destructor or a callback of a
    library: it prints and drops the exception. Then the signal is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    dropped, timers = sys.unraisablehook, list[threading.Timer]()

    def send_again(found: sys.UnraisableHookArgs) -> None:
        if isinstance(found.exc_value, Stopped):
            timers.append(_send_again())
        else:
            dropped(found)

    try:
        sys.unraisablehook = send_again
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        sys.unraisablehook = dropped
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            # None: the handler was not installed from Python
            if handler is not None:
                signal.signal(number, handler)
