"""The command line: arguments in, one command run, an exit code out. Each command imports what it needs.

Exit codes: 0 yes, 1 the answer is no (drift, unhealthy), 2 your input is wrong, 3 your machine is not ready.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from stackgen.cli.parsers import build_parser

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. No traceback reaches a user without --debug."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
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
    from stackgen.errors import StackgenError

    if args.command in ("render", "init", "schema"):
        gc.disable()  # a short run leaves no garbage worth collecting
    # pydantic looks for plugins in the metadata of every installed package; we have none
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from stackgen.cli.commands import run

        return run(args)
    except StackgenError as error:
        if args.debug:
            raise
        _tell(error.message, error.hint, args.json)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        _tell(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), "", args.json)
        return 3
    except Exception as error:
        # a mistake of ours; its message may hold anything, so only its kind is shown
        if args.debug:
            raise
        hint = "`stackgen --debug …` shows where; please report it"
        _tell(f"a mistake in stackgen itself: {type(error).__name__}", hint, args.json)
        return 3
    except KeyboardInterrupt:
        print("stackgen: stopped; what was started so far is left (`stackgen status`)", file=sys.stderr)
        return 130


def _tell(message: str, hint: str, as_json: bool) -> None:
    if as_json:
        import json

        print(json.dumps({"error": message, "hint": hint}))
    print(f"stackgen: {message}" + (f"\n  hint: {hint}" if hint else ""), file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
