"""Checks of features beyond chat, in the order they run: one row each.

Features that the dialect claims must work, and the runner skips those that it lacks. The others are tried, and the
check reports what they do.
"""

from __future__ import annotations

from collections.abc import Callable

from stackgen.check.checks.features.answers import json_schema, logprobs, seed, tools
from stackgen.check.checks.features.texts import completions, embeddings, tokenize
from stackgen.check.checks.verdict import Check, Context, Verdict

__all__ = ["FEATURES"]


def _feature_check(name: str, run: Callable[[Context, str], Verdict], about: str) -> Check:
    # one model is enough: features depend on the engine and on how it was started
    return Check(name, run=run, about=about, needs=("chat",), per_model=True, exhaustive=False, depth=2)


FEATURES: tuple[Check, ...] = (
    _feature_check("completions", run=completions, about="plain text completions"),
    _feature_check("embeddings", run=embeddings, about="embedding vectors"),
    _feature_check("tokenize", run=tokenize, about="the server's tokenizer, both ways"),
    _feature_check("tools", run=tools, about="a required function call comes back, well formed"),
    _feature_check("json-schema", run=json_schema, about="an answer follows a JSON schema"),
    _feature_check("logprobs", run=logprobs, about="tokens come with their log probabilities"),
    _feature_check("seed", run=seed, about="the same seed, or temperature 0, gives the same text"),
)
