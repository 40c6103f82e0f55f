"""The entry point of the command line: parses the arguments, runs one command, and returns its exit code.

Exit codes: 0 success, 1 failure (drift, unhealthy), 2 wrong input, 3 this machine is not ready.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
from collections.abc import Sequence

from stackgen.cli.encoding import use_safe_encoding
from stackgen.cli.parsers import build_parser
from stackgen.cli.scrub import scrub
from stackgen.cli.signals import exit_code, was_stopped

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Prints tracebacks only with --debug."""
    closed = _replace_closed_streams()
    use_safe_encoding()
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        # only the completion script of a shell sets this variable
        import argcomplete

        argcomplete.autocomplete(parser)
    _refuse_dashes(parser, sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    if args.version:
        from stackgen import __version__

        print(__version__)
        return 0
    if not args.command:
        parser.print_help()
        return 2
    # not imported at the top, because `--help` and `--version` don't need it
    from stackgen.errors import StackgenError

    if args.command in ("render", "init", "import", "schema"):
        gc.disable()  # a short run is faster without garbage collection (docs/decisions/startup-cost.md)
    # pydantic would search the metadata of every installed package for plugins
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from stackgen.cli.commands import run

        if "stdout" in closed and args.command == "keys" and args.action in ("new", "rotate"):
            raise StackgenError(
                "standard output is closed, so the new key would be lost", "don't close standard output (remove >&-)"
            )
        code = run(args)
        if problem := _flush():
            raise problem
        return code
    except StackgenError as error:
        if args.debug:
            raise
        _print_error(error.message, error.hint, args.json, error)
        return error.exit_code
    # `stackgen … | head`: the rest of the output must not raise again when Python flushes stdout
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        # Python would try again to write the buffered output when it exits
        _print_error(*_describe(_flush() or error), args.json)
        return 3
    except BaseException as error:
        if was_stopped() or isinstance(error, KeyboardInterrupt):
            return _print_stopped()
        if not isinstance(error, Exception):
            raise
        # a bug: only the type of the exception is printed, because its message may contain a key
        if args.debug:
            raise
        hint = "`stackgen --debug …` prints the traceback. Please report the bug"
        _print_error(f"a bug in stackgen: {type(error).__name__}", hint, args.json)
        return 3


def _print_stopped() -> int:
    print("stackgen: stopped. Services that were started keep running (see `stackgen status`)", file=sys.stderr)
    return exit_code()


def _replace_closed_streams() -> list[str]:
    """Opens the null device in place of each standard stream that is closed (`>&-`). Returns the names of these."""
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        # the next file that is opened gets the free number: output would go into .env, or into a child's pipe
        handle, number = os.open(os.devnull, os.O_RDWR), ("stdin", "stdout", "stderr").index(name)
        if handle != number:
            os.dup2(handle, number)
            os.close(handle)
        os.set_inheritable(number, True)
        setattr(sys, name, os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))
    return closed


def _flush() -> OSError | None:
    """Writes what standard output still buffers. Returns the error, which Python would otherwise report at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OSError(error.errno, error.strerror, "standard output")
    return None


def _refuse_dashes(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Exits with 2 for an option with the value `--`, such as `--timeout=--`."""
    for one in argv:
        # what follows are no options
        if one == "--":
            return
        # argparse before Python 3.12.5 drops the value, and returns an empty list instead of a number or text
        if one.startswith("-") and (one.endswith("=--") or (len(one) == 4 and one[2:] == "--")):
            parser.error(f"{one}: `--` is not a value")


def _describe(error: OSError) -> tuple[str, str]:
    """The message and the hint for an error of the system."""
    hints = {
        errno.EACCES: "check the owner and the mode of the file and of its folders",
        errno.EISDIR: "stackgen writes a file there: move the folder away",
        errno.ENOTDIR: "a part of the path is a file: choose another path, or move the file away",
        errno.EINVAL: "stackgen writes a file there: move the existing folder away",
        errno.ELOOP: "a symbolic link points to itself: remove the link",
        errno.ENOSPC: "free some disk space, and run the command again",
        errno.EDQUOT: "free some disk space, and run the command again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EMFILE: "too many files are open: raise the limit with `ulimit -n`",
    }
    # of a rename, the second path is the file that the user knows
    path = error.filename2 or error.filename or ""
    # errors of files name the file, so these are of the stream
    if not path and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        path = "standard output"
    return f"{error.strerror or error}: {path}".rstrip(": "), hints.get(error.errno or 0, "")


def _print_error(message: str, hint: str, as_json: bool, error: Exception | None = None) -> None:
    message, hint = scrub(message), scrub(hint)
    if as_json:
        import json

        print(json.dumps({"error": message, "hint": hint, **_places(error)}))
    print(f"stackgen: {message}" + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)


def _places(error: Exception | None) -> dict[str, object]:
    """The errors of a stack file one by one, with their places, for programs such as editors."""
    from stackgen.errors import SpecError

    if not isinstance(error, SpecError):
        return {}
    return {"mistakes": [
        {"file": scrub(error.source), "path": scrub(one.path), "message": scrub(one.message), "hint": scrub(one.hint),
         "line": one.line, "column": one.column}
        for one in error.mistakes
    ]}  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
