"""`stackgen ask`: sends a question to one endpoint, or to several concurrently."""

from __future__ import annotations

import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from stackgen.check.limits import validate_seconds
from stackgen.check.target import Target
from stackgen.check.transport.redact import Redactor
from stackgen.cli.commands.cluster_access import reach
from stackgen.cli.commands.output import exit_interrupted, exit_on_interrupt, note, print_data
from stackgen.cli.commands.ownership import check_ownership
from stackgen.cli.commands.port_holder import explain_rejection
from stackgen.client import ask as ask_endpoint
from stackgen.client.call import Answer, request_fields
from stackgen.client.sdk import KEY_REJECTED
from stackgen.errors import StackgenError, StartError
from stackgen.lazy import LazyModule
from stackgen.providers.endpoints import ResolvedTarget, resolve_targets, with_unique_names

if TYPE_CHECKING:
    from rich import console as rich_console
    from rich import table as rich_table
    from rich import text as rich_text
else:
    rich_console = LazyModule("rich.console")
    rich_table = LazyModule("rich.table")
    rich_text = LazyModule("rich.text")

__all__ = ["ask"]

# narrower columns would be harder to read than answers one below the other
MIN_COLUMN_WIDTH = 38
MAX_CONCURRENCY = 32


class StreamRedactor(Redactor):
    """A Redactor for text in chunks. Holds back the end of a chunk while it may be the start of a key."""

    def __init__(self, key: str | None) -> None:
        super().__init__(key)
        self._pending = ""

    def feed(self, chunk: str) -> str:
        """Adds a chunk and returns the text that is safe to print."""
        text = self._pending + chunk
        decided = len(text) - self.undecided_length(text)
        tail = text[decided:]
        text = self(text[:decided]) + tail
        safe = len(text) - max(self.unfinished_length(text), len(tail))
        self._pending = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """Returns the text that was held back, at the end of the stream."""
        text, self._pending = self._pending, ""
        return self(text)


def ask(args: Namespace) -> int:
    """Runs `stackgen ask`: prints the answer of each endpoint. Returns 1 if an endpoint gave none."""
    question = _read_question(args.question)
    validate_seconds("timeout", args.timeout)
    request_fields({"temperature": args.temperature})
    resolved = resolve_targets(args)
    targets = with_unique_names([one.target for one in resolved])
    # without --base-url and --provider, only the first endpoint of the stack answers
    if not args.base_url and not args.provider:
        targets = targets[:1]
    resolved = resolved[: len(targets)]
    _require_own_stacks(resolved)
    with reach(args, resolved) as reached:
        return _ask_targets(args, with_unique_names([one.target for one in reached]), reached, question)


def _ask_targets(args: Namespace, targets: list[Target], resolved: list[ResolvedTarget], question: str) -> int:
    try:
        with exit_on_interrupt():
            return _ask_all(args, targets, question) if len(targets) > 1 else _ask_one(args, targets[0], question)
    except StackgenError as error:
        problem = explain_rejection(resolved[0], error) if error.message.endswith(KEY_REJECTED) else error
    except KeyboardInterrupt:
        # exit at once: threads that wait for a silent server would keep the process alive until their timeout
        exit_interrupted()
    # outside of the except block: the cause is an exception of the client, which --debug would print first
    raise problem


def _require_own_stacks(resolved: Sequence[ResolvedTarget]) -> None:
    """Raises StackgenError if a stack's containers belong to another folder, whose stack would answer instead."""
    for stack in {
        one.stack.folder: one.stack for one in resolved if one.stack and not one.stack.site.is_cluster
    }.values():
        # a stack that runs as processes has no containers
        if not (stack.folder / ".stackgen" / "state.json").exists():
            check_ownership(stack.plan.name, stack.folder, changes=False, timeout=5.0)


def _ask_one(args: Namespace, target: Target, question: str) -> int:
    answer = _ask(args, target, question, live=args.stream and not args.json)
    if answer.note:
        note(f"note: {_redact(answer.note, target)}")
    # a streamed answer is printed already
    print_data(args, _to_json(answer, target), [] if args.stream else [_redact(answer.text, target)])
    if args.stream:
        note(_format_stats(answer, target))
    return 0


def _read_question(text: str) -> str:
    question = sys.stdin.read().strip() if text == "-" else text
    if not question.strip():
        raise StackgenError("the question is empty", "`stackgen ask -` reads the question from standard input")
    return question


def _ask(args: Namespace, target: Target, question: str, live: bool = False) -> Answer:
    redactor, has_output = StreamRedactor(target.api_key), False

    def print_chunk(chunk: str) -> None:
        nonlocal has_output
        has_output = True
        print(redactor.feed(chunk), end="", flush=True)

    try:
        return ask_endpoint(target, question, args.model, system=args.system, temperature=args.temperature,
                            max_tokens=args.max_tokens, timeout=args.timeout, stream=args.stream,
                            on_text=print_chunk if live else None)  # fmt: skip
    except StackgenError as error:
        error.hint = (target.reword or str)(error.hint)
        raise
    finally:
        # also after a broken stream, so that the error starts on a new line
        if has_output:
            print(redactor.flush(), flush=True)


def _ask_all(args: Namespace, targets: Sequence[Target], question: str) -> int:
    def ask_one(target: Target) -> Answer | StackgenError:
        # an endpoint's error is printed instead of its answer, so the other answers are not lost
        try:
            return _ask(args, target, question)
        except StackgenError as error:
            return error
        except Exception as error:
            if args.debug:
                raise
            # a bug: only the type of the exception is printed, because its message may contain a key
            kind = type(error).__name__
        return StartError(
            f"a bug in stackgen: {kind}", "`stackgen --debug …` prints the traceback. Please report the bug"
        )

    pool = ThreadPoolExecutor(max_workers=min(len(targets), MAX_CONCURRENCY))
    try:
        answers = list(pool.map(ask_one, targets))
    finally:
        # after Ctrl-C, don't wait for silent servers
        pool.shutdown(wait=False, cancel_futures=True)
    failed = any(isinstance(answer, Exception) for answer in answers)
    if args.json:
        rows = [_to_json(answer, target) for answer, target in zip(answers, targets, strict=True)]
        print_data(args, {"answers": rows}, [])
        return int(failed)
    for answer, target in zip(answers, targets, strict=True):
        if not isinstance(answer, Exception) and answer.note:
            note(f"note: {_redact(answer.note, target)}")
    is_wide = sys.stdout.isatty() and shutil.get_terminal_size().columns >= MIN_COLUMN_WIDTH * len(targets)
    (_print_columns if is_wide else _print_blocks)(targets, answers)
    return int(failed)


def _print_columns(targets: Sequence[Target], answers: Sequence[Answer | StackgenError]) -> None:
    table = rich_table.Table(expand=True, show_lines=True)
    for target in targets:
        table.add_column(rich_text.Text(target.name), ratio=1, overflow="fold")
    # Text and not str: rich would read brackets in an answer as markup
    pairs = list(zip(answers, targets, strict=True))
    table.add_row(*(rich_text.Text(_redact(_format_answer(answer), target)) for answer, target in pairs))
    table.add_row(*(rich_text.Text(_format_stats(answer, target), style="dim") for answer, target in pairs))
    rich_console.Console().print(table)


def _print_blocks(targets: Sequence[Target], answers: Sequence[Answer | StackgenError]) -> None:
    blocks = [
        f"── {target.name} ({_format_stats(answer, target)})\n{_redact(_format_answer(answer), target)}"
        for answer, target in zip(answers, targets, strict=True)
    ]
    print("\n\n".join(blocks))


def _format_answer(answer: Answer | StackgenError) -> str:
    if isinstance(answer, Exception):
        return f"error: {answer.message}" + (f"\nhint: {answer.hint}" if answer.hint else "")
    return answer.text


def _redact(text: str, target: Target) -> str:
    """Removes the key, and control characters that a server could use to control the terminal."""
    return Redactor(target.api_key)(text)


def _format_stats(answer: Answer | StackgenError, target: Target) -> str:
    if isinstance(answer, Exception):
        return "no answer"
    parts = [answer.model, f"{answer.seconds:.2f} s"]
    if answer.ttft is not None:
        parts.append(f"first token after {answer.ttft:.2f} s")
    if answer.usage:
        parts.append(f"{answer.usage['completion_tokens']} tokens")
    # the model's name comes from the server, so it may contain anything
    return " ".join(_redact(", ".join(parts), target).split())


def _to_json(answer: Answer | StackgenError, target: Target) -> dict[str, Any]:
    if isinstance(answer, Exception):
        row = {"provider": target.name, "error": answer.message, "hint": answer.hint}
        return {name: _redact(text, target) for name, text in row.items()}
    return {
        "answer": _redact(answer.text, target),
        "model": _redact(answer.model, target),
        "provider": answer.provider,
        "seconds": answer.seconds,
        "ttft": answer.ttft,
        "usage": answer.usage,
        "note": _redact(answer.note, target),
    }
