"""`python -m stackgen`, and the console script `stackgen`.

The imports of the command line take longer than many commands. A Ctrl-C during these imports must not print a
traceback, so the signal is handled before them.
"""

# no `from __future__`: it would be the first module that is searched, which takes time on a busy machine
# the module `signal` imports `enum` first, which takes several milliseconds
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command line with the arguments of the process, and returns its exit code."""
    # not if SIGINT is ignored (`nohup`, background jobs)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_at_once)
    from stackgen.cli.main import main as run

    return run()


def _exit_at_once(_number: int, _frame: object) -> None:
    # before and after a command, there is nothing to clean up
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr:
                print("stackgen: stopped", file=stream)
            stream.flush()
        # the signal may interrupt a write, and a second one is refused; the stream may be closed
        except Exception:  # noqa: S112
            continue
    os._exit(130)


if __name__ == "__main__":
    raise SystemExit(main())
