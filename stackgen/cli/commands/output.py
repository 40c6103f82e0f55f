"""Output of all commands: data on stdout, everything else on stderr, the files of `--junit` and `--html`, and exits."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stackgen.cli.scrub import scrub, scrub_json
from stackgen.cli.signals import STOP_SIGNALS, exit_code, stop
from stackgen.errors import MachineError
from stackgen.render.write import write_atomically

if TYPE_CHECKING:
    from stackgen.check.report import Report

__all__ = [
    "exit_interrupted", "exit_now", "exit_on_interrupt", "is_stdout", "note", "print_data", "print_line",
    "print_report", "require_writable", "write_text",
]  # fmt: skip

# seconds from Ctrl-C until a read-only command is ended even if Python raised no KeyboardInterrupt
INTERRUPT_GRACE = 2.0


def print_data(args: Namespace, data: Any, lines: list[str], *, has_new_key: bool = False) -> None:
    """Prints `data` as JSON with `--json`, otherwise `lines`, without the stack's secrets.

    `has_new_key`: prints everything, for the command that prints a new key once.
    """
    if args.json:
        print(json.dumps(data if has_new_key else scrub_json(data), indent=2))
    elif lines:
        text = "\n".join(lines)
        print(text if has_new_key else scrub(text))


def print_line(line: str) -> None:
    """Prints one line of a result that arrives in pieces at once, without the stack's secrets."""
    print(scrub(line), flush=True)


def print_report(
    args: Namespace, report: Report, verbose: bool = False, *, to_stderr: bool = False,
    more: Mapping[str, Any] | None = None,
) -> int:  # fmt: skip
    """Prints a report as text or JSON, and returns its exit code.

    `to_stderr`: prints the text to stderr, because stdout is used for a file. `more`: further fields of the JSON.
    """
    if args.json:
        print(json.dumps(scrub_json({**report.to_json(), **(more or {})}), indent=2))
    else:
        # only `check` and `ask` print a report
        from stackgen.check.report.text import as_text

        out = sys.stderr if to_stderr else sys.stdout
        print(scrub(as_text(report, color=out.isatty(), verbose=verbose)), file=out)
    return report.exit_code


def is_stdout(path: str) -> bool:
    """Returns whether the output file `path` is standard output: `-`, or the file that stdout is redirected to."""
    if path in ("-", "/dev/stdout"):
        return True
    # `--junit report.txt > report.txt`: replacing the file would lose what was printed to it
    with suppress(OSError, ValueError):
        return Path(path).is_file() and os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    return False


def require_writable(path: str, option: str) -> None:
    """Raises MachineError if no file can be written to `path`, which is the value of `option`."""
    # tested before the check runs, because the result of the check would be lost
    if is_stdout(path):
        return
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise MachineError(f"{path} is a folder", f"{option} needs the path of a file, such as {path}/report")
    # pipes and terminals are written to in place, so their folder does not matter
    if os.path.exists(path) and not target.is_file():
        if not os.access(path, os.W_OK):
            raise MachineError(f"{path} can't be written", f"{option} needs a file or pipe with write permission")
        return
    folder = next(one for one in target.parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise MachineError(f"{path} can't be written: {folder} is not a writable folder",
                           f"choose another path for {option}")  # fmt: skip


def write_text(path: str, text: str) -> None:
    """Writes a regular file atomically, and a pipe or terminal in place. `-` is standard output.

    A symbolic link stays a link. The stack's secrets are replaced. Raises MachineError if the text can't be written.
    """
    text = scrub(text)
    if is_stdout(path):
        print(text, end="", flush=True)
        return
    # not realpath() first, because the target of /dev/fd/3 has no name
    is_regular = not os.path.exists(path) or os.path.isfile(path)
    try:
        if is_regular and not path.startswith(("/dev/fd/", "/dev/std", "/proc/")):
            write_atomically(Path(os.path.realpath(path)), text)
        else:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "w", encoding="utf-8", newline="") as file:
                file.write(text)
    except OSError as error:
        # a pipe without a reader is an error too, because nobody received the report
        problem = MachineError(f"{path} can't be written: {error.strerror or error}", "choose another path")
    else:
        return
    raise problem


def exit_interrupted(code: int | None = None) -> NoReturn:
    """Ends a read-only command after Ctrl-C (130) or the signal that is being handled: at once, with its exit code."""
    note("stackgen: stopped")
    exit_now(exit_code() if code is None else code)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Within the block, Ctrl-C (or SIGTERM) ends the process even if the KeyboardInterrupt is lost or delayed.

    Python loses the exception in finalizers. The exception is delayed if the signal arrives between the interpreter's
    last check for signals and a blocking system call: nothing interrupts that call, and the exception comes after the
    server's timeout. So a thread also gets the signal, and ends a process that runs `INTERRUPT_GRACE` seconds later.

    Source: docs.python.org/3/library/signal.html, "Note on Signal Handlers and Exceptions" and `set_wakeup_fd`.
    The exception was delayed in 1 of 200 rounds with Python 3.11 on a busy machine.
    """
    # set_wakeup_fd works in the main thread only, and a signal handler that other code has set must stay
    is_default = signal.getsignal(signal.SIGINT) in (signal.default_int_handler, stop)
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    receiver, sender = socket.socketpair()
    # required by set_wakeup_fd
    sender.setblocking(False)

    def watch() -> None:
        while signals := receiver.recv(64):
            if stops := [number for number in STOP_SIGNALS if number in signals]:
                receiver.settimeout(INTERRUPT_GRACE)
                with suppress(TimeoutError):
                    # an empty read means that the block ended in time and closed the sender
                    while receiver.recv(64):
                        pass
                    return
                exit_interrupted(128 + stops[0])

    # not started in a signal handler, which can run while a lock of `threading` is held
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        receiver.close()


def exit_now(code: int) -> NoReturn:
    """Ends the process at once. Python would wait for threads, which a silent server can block until the timeout."""
    for stream in (sys.stdout, sys.stderr):
        # the reader of a pipe may be gone
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def note(line: str) -> None:
    """Prints a line to stderr, for the person at the terminal, without the stack's secrets."""
    print(scrub(line), file=sys.stderr)
