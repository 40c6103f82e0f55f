"""Checks of what a server offers besides chat, in the order they run: a line for each.

What the dialect claims must work; what it lacks the runner skips; of the rest it is found out what they do.
"""

from __future__ import annotations

from collections.abc import Callable

from stackgen.check.checks.features.answers import json_schema, logprobs, seed, tools
from stackgen.check.checks.features.texts import completions, embeddings, tokenize
from stackgen.check.checks.verdict import Check, Context, Verdict

__all__ = ["FEATURES"]


def _feature(name: str, run: Callable[[Context, str], Verdict], about: str) -> Check:
    # one model stands for the server: features belong to the engine and to how it was started
    return Check(name, run, about, needs=("chat",), per_model=True, exhaustive=False, depth=2)


FEATURES: tuple[Check, ...] = (
    _feature("completions", completions, "plain text completions"),
    _feature("embeddings", embeddings, "vectors of texts"),
    _feature("tokenize", tokenize, "the server's tokenizer, there and back"),
    _feature("tools", tools, "a function call that is required comes, well formed"),
    _feature("json-schema", json_schema, "an answer follows a JSON schema"),
    _feature("logprobs", logprobs, "tokens come with their probabilities"),
    _feature("seed", seed, "the same seed, or temperature 0, gives the same text"),
)
