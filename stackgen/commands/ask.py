"""`stackgen ask`: one question, one answer."""

from __future__ import annotations

from argparse import Namespace

from stackgen.commands.output import print_data

__all__ = ["ask"]


def ask(words: Namespace) -> int:
    """`stackgen ask`: one question, one answer."""
    from stackgen.check import ask as ask_endpoint
    from stackgen.endpoints import from_words

    target = from_words(words)[0]
    answer = ask_endpoint(target, words.question, words.model, system=words.system, temperature=words.temperature,
                          max_tokens=words.max_tokens, timeout=words.timeout)  # fmt: skip
    print_data(
        words,
        {"answer": answer.text, "model": answer.model, "seconds": answer.seconds, "usage": answer.usage},
        [answer.text],
    )
    return 0
