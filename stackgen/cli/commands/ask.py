"""`stackgen ask`: one question, to one endpoint or to several at once."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from stackgen.check.limits import seconds
from stackgen.check.target import Target
from stackgen.check.transport.redact import Redactor
from stackgen.cli.commands.output import ends_on_interrupt, interrupted, note, print_data
from stackgen.client import ask as ask_endpoint
from stackgen.client.call import Answer, fields
from stackgen.errors import StackgenError, StartError
from stackgen.providers.endpoints import from_words, unique

__all__ = ["ask"]

# a column that is narrower than this is harder to read than one answer below the other
COLUMN = 38
# questions at the same time
WORKERS = 32


class Live(Redactor):
    """Cleans a text that comes in pieces: what may be the beginning of a key waits for the piece that tells."""

    def __init__(self, key: str | None) -> None:
        super().__init__(key)
        self._held = ""

    def piece(self, text: str) -> str:
        """What can be shown by now."""
        shown = self(self._held + text)
        held = self._beginning(shown)
        self._held = shown[len(shown) - held :]
        return shown[: len(shown) - held]

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """How many characters at the end of `text` begin a key, in any of the forms that one is written in."""
        longest = max((len(form) for form in self._forms), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(form.startswith(text[-size:]) for form in self._forms)), 0)


def ask(args: Namespace) -> int:
    """`stackgen ask`: prints the answer, or the answers of all endpoints that were named; 1 where one gave none."""
    question = _question(args.question)
    seconds("timeout", args.timeout)
    fields({"temperature": args.temperature})
    targets = unique(from_words(args))
    # a stack without further words means its first endpoint: only who names several asks several
    if not args.base_url and not args.provider:
        targets = targets[:1]
    try:
        with ends_on_interrupt():
            return _ask_all(args, targets, question) if len(targets) > 1 else _ask_one(args, targets[0], question)
    except KeyboardInterrupt:
        # at once: the threads of servers that are silent would hold the program up to their time-out
        interrupted()


def _ask_one(args: Namespace, target: Target, question: str) -> int:
    answer = _ask(args, target, question, live=args.stream and not args.json)
    if answer.note:
        note(f"note: {_shown(answer.note, target)}")
    print_data(args, _data(answer, target), [] if args.stream else [_shown(answer.text, target)])
    if args.stream:
        note(_figures(answer, target))
    return 0


def _question(text: str) -> str:
    question = sys.stdin.read().strip() if text == "-" else text
    if not question.strip():
        raise StackgenError("the question is empty", "`stackgen ask -` reads it from standard input")
    return question


def _ask(args: Namespace, target: Target, question: str, live: bool = False) -> Answer:
    screen, began = Live(target.api_key), False

    def show(piece: str) -> None:
        nonlocal began
        began = True
        print(screen.piece(piece), end="", flush=True)

    try:
        return ask_endpoint(target, question, args.model, system=args.system, temperature=args.temperature,
                            max_tokens=args.max_tokens, timeout=args.timeout, stream=args.stream,
                            on_text=show if live else None)  # fmt: skip
    finally:
        # also of a stream that broke: what came is shown, and the error begins on a line of its own
        if began:
            print(screen.rest(), flush=True)


def _ask_all(args: Namespace, targets: Sequence[Target], question: str) -> int:
    def one(target: Target) -> Answer | StackgenError:
        # what one of them can't do is told in its place, and the others are kept
        try:
            return _ask(args, target, question)
        except StackgenError as error:
            return error
        except Exception as error:
            if args.debug:
                raise
            # a mistake of ours; its message may hold anything, so only its kind is shown
            kind = type(error).__name__
        return StartError(f"a mistake in stackgen itself: {kind}", "`stackgen --debug …` shows where; please report it")

    pool = ThreadPoolExecutor(max_workers=min(len(targets), WORKERS))
    try:
        answers = list(pool.map(one, targets))
    finally:
        # after Ctrl-C nobody waits here for servers that are silent
        pool.shutdown(wait=False, cancel_futures=True)
    failed = any(isinstance(answer, Exception) for answer in answers)
    if args.json:
        told = [_data(answer, target) for answer, target in zip(answers, targets, strict=True)]
        print_data(args, {"answers": told}, [])
        return int(failed)
    for answer, target in zip(answers, targets, strict=True):
        if not isinstance(answer, Exception) and answer.note:
            note(f"note: {_shown(answer.note, target)}")
    wide = sys.stdout.isatty() and shutil.get_terminal_size().columns >= COLUMN * len(targets)
    (_side_by_side if wide else _one_below_the_other)(targets, answers)
    return int(failed)


def _side_by_side(targets: Sequence[Target], answers: Sequence[Answer | StackgenError]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_lines=True)
    for target in targets:
        table.add_column(Text(target.name), ratio=1, overflow="fold")
    # Text, for what a model writes in brackets is no markup
    pairs = list(zip(answers, targets, strict=True))
    table.add_row(*(Text(_shown(_text(answer), target)) for answer, target in pairs))
    table.add_row(*(Text(_figures(answer, target), style="dim") for answer, target in pairs))
    Console().print(table)


def _one_below_the_other(targets: Sequence[Target], answers: Sequence[Answer | StackgenError]) -> None:
    blocks = [
        f"── {target.name} ({_figures(answer, target)})\n{_shown(_text(answer), target)}"
        for answer, target in zip(answers, targets, strict=True)
    ]
    print("\n\n".join(blocks))


def _text(answer: Answer | StackgenError) -> str:
    if isinstance(answer, Exception):
        return f"error: {answer.message}" + (f"\nhint: {answer.hint}" if answer.hint else "")
    return answer.text


def _shown(text: str, target: Target) -> str:
    """Fit for a terminal: no control characters that could steer it, and no key."""
    return Redactor(target.api_key)(text)


def _figures(answer: Answer | StackgenError, target: Target) -> str:
    if isinstance(answer, Exception):
        return "no answer"
    parts = [answer.model, f"{answer.seconds:.2f} s"]
    if answer.ttft is not None:
        parts.append(f"first token after {answer.ttft:.2f} s")
    if answer.usage:
        parts.append(f"{answer.usage['completion_tokens']} tokens")
    # the model's name is the server's word, and one line
    return " ".join(_shown(", ".join(parts), target).split())


def _data(answer: Answer | StackgenError, target: Target) -> dict[str, Any]:
    if isinstance(answer, Exception):
        told = {"provider": target.name, "error": answer.message, "hint": answer.hint}
        return {name: _shown(text, target) for name, text in told.items()}
    return {
        "answer": _shown(answer.text, target),
        "model": _shown(answer.model, target),
        "provider": answer.provider,
        "seconds": answer.seconds,
        "ttft": answer.ttft,
        "usage": answer.usage,
        "note": _shown(answer.note, target),
    }
