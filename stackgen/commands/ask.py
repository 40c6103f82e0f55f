"""`stackgen ask`: one question, to one endpoint or to several at once."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stackgen.commands.output import note, print_data

if TYPE_CHECKING:
    from stackgen.check.sdk import Answer
    from stackgen.check.target import Target
    from stackgen.errors import StackgenError

__all__ = ["ask"]

# a column that is narrower than this is harder to read than one answer below the other
COLUMN = 38
# questions at the same time
WORKERS = 32


def ask(words: Namespace) -> int:
    """`stackgen ask`: prints the answer, or the answers of all endpoints that were named; 1 where one gave none."""
    from stackgen.endpoints import from_words

    question = _question(words.question)
    targets = from_words(words)
    # a stack without further words means its first endpoint: only who names several asks several
    if not words.base_url and not words.provider:
        targets = targets[:1]
    if len(targets) > 1:
        return _ask_all(words, targets, question)
    answer = _ask(words, targets[0], question, live=words.stream and not words.json)
    if answer.note:
        note(f"note: {answer.note}")
    print_data(words, _data(answer), [] if words.stream else [_shown(answer.text, targets[0])])
    if words.stream:
        note(_figures(answer))
    return 0


def _question(text: str) -> str:
    from stackgen.errors import StackgenError

    question = sys.stdin.read().strip() if text == "-" else text
    if not question.strip():
        raise StackgenError("the question is empty", "`stackgen ask -` reads it from standard input")
    return question


def _ask(words: Namespace, target: Target, question: str, live: bool = False) -> Answer:
    from stackgen.check import ask as ask_endpoint

    def show(piece: str) -> None:
        sys.stdout.write(_shown(piece, target))
        sys.stdout.flush()

    answer = ask_endpoint(target, question, words.model, system=words.system, temperature=words.temperature,
                          max_tokens=words.max_tokens, timeout=words.timeout, stream=words.stream,
                          on_text=show if live else None)  # fmt: skip
    if live:
        print()
    return answer


def _ask_all(words: Namespace, targets: Sequence[Target], question: str) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from stackgen.errors import StackgenError

    def one(target: Target) -> Answer | StackgenError:
        # what one of them can't do is told in its place, and the others are kept
        try:
            return _ask(words, target, question)
        except StackgenError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(len(targets), WORKERS)) as pool:
        answers = list(pool.map(one, targets))
    failed = any(isinstance(answer, Exception) for answer in answers)
    if words.json:
        told = [_data(answer, target) for answer, target in zip(answers, targets, strict=True)]
        print_data(words, {"answers": told}, [])
        return int(failed)
    for answer in answers:
        if not isinstance(answer, Exception) and answer.note:
            note(f"note: {answer.note}")
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
    table.add_row(*(Text(_figures(answer), style="dim") for answer, _ in pairs))
    Console().print(table)


def _one_below_the_other(targets: Sequence[Target], answers: Sequence[Answer | StackgenError]) -> None:
    blocks = [
        f"── {target.name} ({_figures(answer)})\n{_shown(_text(answer), target)}"
        for answer, target in zip(answers, targets, strict=True)
    ]
    print("\n\n".join(blocks))


def _text(answer: Answer | StackgenError) -> str:
    if isinstance(answer, Exception):
        return f"error: {answer.message}" + (f"\nhint: {answer.hint}" if answer.hint else "")
    return answer.text


def _shown(text: str, target: Target) -> str:
    """Fit for a terminal: no control characters that could steer it, and no key."""
    from stackgen.check.redact import Redactor

    return Redactor(target.api_key)(text)


def _figures(answer: Answer | StackgenError) -> str:
    if isinstance(answer, Exception):
        return "no answer"
    parts = [answer.model, f"{answer.seconds:.2f} s"]
    if answer.ttft is not None:
        parts.append(f"first token after {answer.ttft:.2f} s")
    if answer.usage:
        parts.append(f"{answer.usage['completion_tokens']} tokens")
    return ", ".join(parts)


def _data(answer: Answer | StackgenError, target: Target | None = None) -> dict[str, Any]:
    if isinstance(answer, Exception):
        return {"provider": target.name if target else "", "error": answer.message, "hint": answer.hint}
    return {
        "answer": answer.text,
        "model": answer.model,
        "provider": answer.provider,
        "seconds": answer.seconds,
        "ttft": answer.ttft,
        "usage": answer.usage,
        "note": answer.note,
    }
