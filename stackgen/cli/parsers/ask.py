"""Words of `stackgen ask`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Adder, endpoint_words

__all__ = ["add_ask"]


def add_ask(add: Adder) -> None:
    """`ask`: the question, whom, and how."""
    ask = add("ask", "ask a question, of one endpoint or of several at once", stack=False)
    ask.add_argument("question", help="what to ask; - reads it from standard input")
    ask.add_argument("--stack", default=".", help="stack.yaml, endpoints.yaml, or the folder it is in (default: here)")
    endpoint_words(ask)
    ask.add_argument("--stream", action="store_true", help="print the answer as it comes, then its figures")
    ask.add_argument("--system", default="You are a helpful assistant", help="system message; empty: none")
    ask.add_argument("--max-tokens", type=int, default=100, help="length of the answer, at most (default: 100)")
    ask.add_argument("--temperature", type=float, default=0.0, help="randomness (default: 0)")
