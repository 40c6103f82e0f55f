"""Printing of all commands: data goes to stdout, all else to stderr; and files that a command was told to write."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from stackgen.check.report import Report
from stackgen.check.report.text import as_text
from stackgen.errors import MachineError
from stackgen.render.write import write_atomically

__all__ = [
    "ends_on_interrupt", "interrupted", "is_stdout", "leave", "must_be_writable", "note", "print_data", "print_report",
    "write_text",
]  # fmt: skip

# seconds after Ctrl-C in which a command that only asks is gone, whatever became of the exception
GONE = 2.0


def print_data(args: Namespace, data: Any, lines: list[str]) -> None:
    """`data` as JSON where `--json` was given, else `lines`."""
    if args.json:
        print(json.dumps(data, indent=2))
    elif lines:
        print("\n".join(lines))


def print_report(args: Namespace, report: Report, verbose: bool = False, *, aside: bool = False) -> int:
    """A report as text or JSON; the exit code that it means. `aside`: the text goes to stderr, as stdout is taken."""
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        out = sys.stderr if aside else sys.stdout
        print(as_text(report, color=out.isatty(), verbose=verbose), file=out)
    return report.exit_code


def is_stdout(where: str) -> bool:
    """Whether `where`, the word of an option that writes a file, means standard output: `-`, or its own file."""
    if where in ("-", "/dev/stdout"):
        return True
    # `--junit report.txt > report.txt`: a new file in its place would lose what is printed
    with suppress(OSError, ValueError):
        return Path(where).is_file() and os.path.samestat(os.stat(where), os.fstat(sys.stdout.fileno()))
    return False


def must_be_writable(where: str, option: str) -> None:
    """Raises MachineError where no file can be written to `where`: before the work, which would be lost."""
    if is_stdout(where):
        return
    path = Path(os.path.realpath(where))
    if path.is_dir():
        raise MachineError(f"{where} is a folder", f"{option} writes a file: name one in it")
    if os.path.exists(where) and not path.is_file():
        if not os.access(where, os.W_OK):
            raise MachineError(f"{where} can't be written", f"{option} needs a file or pipe that it may write to")
        return
    folder = next(one for one in path.parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise MachineError(f"{where} can't be written: {folder} is no folder in which this user may write",
                           f"{option} writes a file: name another place")  # fmt: skip


def write_text(where: str, text: str) -> None:
    """Writes a file whole or not at all; what is no plain file (a pipe, a terminal) is written to as it is.

    `-` is standard output; a symbolic link stays one. Raises MachineError where that fails.
    """
    if is_stdout(where):
        print(text, end="", flush=True)
        return
    # not realpath first: the target of /dev/fd/3 has no name
    plain = not os.path.exists(where) or os.path.isfile(where)
    try:
        if plain and not where.startswith(("/dev/fd/", "/dev/std", "/proc/")):
            write_atomically(Path(os.path.realpath(where)), text)
        else:
            with os.fdopen(os.open(where, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8", newline="") as file:
                file.write(text)
    except OSError as error:
        # a reader of the pipe that went away is an error too: nobody got the report
        problem = MachineError(f"{where} can't be written: {error.strerror or error}", "name another place")
    else:
        return
    raise problem


def interrupted() -> NoReturn:
    """What Ctrl-C means for a command that only asks: gone at once, with the code that shells know."""
    note("stackgen: stopped")
    leave(130)


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C ends the program even where its KeyboardInterrupt is lost, or comes only after a long wait.

    Python loses it in finalizers; and where the signal comes between the interpreter's last look at its signals and
    the system call that waits, nothing wakes that call, and the exception comes after the server's time-out. So a
    thread is told of the signal as well, and ends the program when it is still there `GONE` seconds later.

    Source: docs.python.org/3/library/signal.html, "Note on Signal Handlers and Exceptions" and `set_wakeup_fd`;
    the second case was met with Python 3.11 in 1 of 200 rounds on a busy machine.
    """
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not plain or threading.current_thread() is not threading.main_thread():
        yield
        return
    told, tell = socket.socketpair()
    tell.setblocking(False)

    def watch() -> None:
        while numbers := told.recv(64):
            if signal.SIGINT in numbers:
                told.settimeout(GONE)
                with suppress(TimeoutError):
                    while told.recv(64):
                        pass
                    return
                interrupted()

    # begun here: in a signal handler, a lock of `threading` may be held at this very moment
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        tell.close()
        thread.join()
        told.close()


def leave(code: int) -> NoReturn:
    """Ends the program at once: Python would wait for threads that a silent server holds, up to their time-out."""
    for stream in (sys.stdout, sys.stderr):
        # whoever read it may be gone
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def note(line: str) -> None:
    """A line for the person at the terminal."""
    print(line, file=sys.stderr)
