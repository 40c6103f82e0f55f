"""Finds the stack among the positional arguments of commands whose other arguments are names or a question."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.read import STACK_FILES

__all__ = ["is_stack", "take_stack"]

# what marks a folder as one that commands can work on
FILES = (*STACK_FILES, "compose.yaml", "endpoints.yaml")


def take_stack(args: Namespace) -> None:
    """Moves the stack that `logs`, `bench` or `ask` got as a positional argument to `args.stack`.

    Raises StackgenError for two stacks, and for a second word of `ask` that is no stack.
    """
    if args.command == "logs":
        found = [one for one in args.services if is_stack(one)]
        args.services = [one for one in args.services if one not in found]
    elif args.command == "ask":
        found = _take_from_question(args)
    elif args.command == "bench":
        # a folder of this name is `./compare`
        args.compare = args.places[1:] if args.places[:1] == ["compare"] else None
        found = args.places if args.compare is None else []
    else:
        return
    # `--stack` has the default `.`
    given = dict.fromkeys([*([args.stack] if args.stack != "." else []), *found])
    if len(given) > 1:
        raise StackgenError(f"{len(given)} stacks were given: {' and '.join(given)}", "pass one stack")
    args.stack = next(iter(found), args.stack)


def is_stack(word: str) -> bool:
    """Whether `word` is a path of a stack: names of services and models contain no slash, and have no file."""
    path = Path(word)
    if "/" in word or word in (".", "..") or path.suffix in (".yaml", ".yml"):
        return True
    return any((path / name).exists() for name in FILES)


def _take_from_question(args: Namespace) -> list[str]:
    if args.where is None:
        return []
    # other commands have the stack first; a question is never the path of an existing stack
    if not is_stack(args.where) and Path(args.question).exists() and is_stack(args.question):
        args.question, args.where = args.where, args.question
    if not is_stack(args.where):
        raise StackgenError(
            f"{args.where} is not a stack: it contains no {STACK_FILES[0]} and no endpoints.yaml",
            'put a question of several words in quotes: `stackgen ask "Who are you?" STACK`',
        )
    return [args.where]
