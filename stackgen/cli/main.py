"""The entry point of the command line: parses the arguments, runs one command, and returns its exit code.

Exit codes: 0 success, 1 failure (drift, unhealthy), 2 wrong input, 3 this machine is not ready.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from stackgen.cli.parsers import build_parser

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Prints tracebacks only with --debug."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        # only the completion script of a shell sets this variable
        import argcomplete

        argcomplete.autocomplete(parser)
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

    if args.command in ("render", "init", "schema"):
        gc.disable()  # a short run is faster without garbage collection (docs/decisions/startup-cost.md)
    # pydantic would search the metadata of every installed package for plugins
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from stackgen.cli.commands import run

        return run(args)
    except StackgenError as error:
        if args.debug:
            raise
        _print_error(error.message, error.hint, args.json)
        return error.exit_code
    # `stackgen … | head`: the rest of the output must not raise again when Python flushes stdout
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        _print_error(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), "", args.json)
        return 3
    except Exception as error:
        # a bug: only the type of the exception is printed, because its message may contain a key
        if args.debug:
            raise
        hint = "`stackgen --debug …` prints the traceback. Please report the bug"
        _print_error(f"a bug in stackgen: {type(error).__name__}", hint, args.json)
        return 3
    except KeyboardInterrupt:
        print("stackgen: stopped. Services that were started keep running (see `stackgen status`)", file=sys.stderr)
        return 130


def _print_error(message: str, hint: str, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"error": message, "hint": hint}))
    print(f"stackgen: {message}" + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
