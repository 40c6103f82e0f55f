"""The commands, one module each. Each is a module with the name of the command, and has a function of the same name.

A module is imported when its command runs, so `--help` and `render` don't load what only other commands need.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from importlib import import_module
from keyword import iskeyword
from pathlib import Path

from stackgen.cli.commands.words import take_stack
from stackgen.cli.scrub import protect
from stackgen.cli.signals import raise_on_signals

__all__ = ["run"]


def run(args: Namespace) -> int:
    """Runs the command `args.command` and returns its exit code."""
    take_stack(args)
    protect(args)
    _remove_leftovers(args)
    _note_version(args)
    # `import` is a word of Python
    name = f"{args.command}_" if iskeyword(args.command) else args.command
    module = import_module(f"stackgen.cli.commands.{name}")
    # not before the imports: a signal that raises in the import of an extension module breaks that module
    with raise_on_signals():
        _end_left_over_drains(args)
        return int(getattr(module, name)(args))


def _remove_leftovers(args: Namespace) -> None:
    # `init` has a folder, `ask` and `keys` an option, and most commands an argument; None: no stack was given
    if where := getattr(args, "stack", None) or getattr(args, "folder", None):
        # imports nothing that the command itself does not need
        from stackgen.render.write import clean_stack

        path = Path(str(where))
        clean_stack(path.parent if path.is_file() else path)


def _end_left_over_drains(args: Namespace) -> None:
    """Enables replicas that a killed `update` or `scale` has left drained."""
    folder = _find_folder(args)
    # `status` lists drained replicas, also those that it enables itself
    if folder is None or args.command == "status" or not (folder / ".stackgen" / "drained.json").exists():
        return
    # not imported before: hardly ever is a drain recorded
    from stackgen.cli.commands.drains import end_left_over_drains

    end_left_over_drains(folder, args.command)


def _find_folder(args: Namespace) -> Path | None:
    """The folder of the stack that `args` name or imply, None for a command without a stack."""
    given = [getattr(args, name) for name in ("output", "stack", "folder") if hasattr(args, name)]
    # `scale` takes models with their counts and the stack in one list
    given += [next((one for one in args.replicas if "=" not in one), "")] if args.command == "scale" else []
    if not given:
        return None
    path = Path(next(filter(None, given), "."))
    return path.parent if path.suffix in (".yaml", ".yml") else path


def _note_version(args: Namespace) -> None:
    """Prints that another version rendered the stack, before a command writes or starts the files of this version."""
    if args.command not in ("render", "up", "update", "scale"):
        return
    from stackgen.render.read import read_regular
    from stackgen.render.version import describe_version

    try:
        lock = read_regular((_find_folder(args) or Path()) / "stackgen.lock").decode("utf-8", "replace")
    except (OSError, ValueError):
        # not rendered yet; errors are reported by the command
        return
    if text := describe_version(lock):
        print(f"stackgen: {text}", file=sys.stderr)
