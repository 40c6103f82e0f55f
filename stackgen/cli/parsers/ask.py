"""The arguments of `stackgen ask`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands, add_context_argument, add_endpoint_arguments

__all__ = ["add_ask"]


def add_ask(subcommands: Subcommands) -> None:
    """Adds `stackgen ask`."""
    ask = subcommands.add("ask", "send a question to one or several endpoints", stack=False)
    # not the stack, because the first argument is the question
    ask.add_argument("question", help="the question (`-`: read the question from standard input)")
    ask.add_argument(
        "where", nargs="?", metavar="STACK",
        help="stack.yaml, endpoints.yaml, or a folder with one of these files (default: the current folder)",
    )  # fmt: skip
    ask.add_argument("--stack", default=".", help="another way to pass stack.yaml or its folder")
    add_endpoint_arguments(ask, default="the first endpoint that serves --model")
    add_context_argument(ask)
    ask.add_argument("--stream", action="store_true", help="print tokens as they arrive, then the timings")
    ask.add_argument(
        "--system",
        default="You are a helpful assistant",
        help="system message (to send no system message, pass an empty text)",
    )
    ask.add_argument("--max-tokens", type=int, default=100, help="maximum tokens of the answer (default: 100)")
    ask.add_argument("--temperature", type=float, default=0.0, help="sampling temperature (default: 0)")
