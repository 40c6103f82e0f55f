"""Checks of features beyond chat, one row each, in the order they run.

Features that the dialect claims must work. The runner skips features that the dialect lacks. The check tries all other
features and reports the result.
"""

from __future__ import annotations

from collections.abc import Callable

from stackgen.check.checks.features.answers import json_schema, logprobs, seed, tools
from stackgen.check.checks.features.texts import completions, embeddings, tokenize
from stackgen.check.checks.verdict import Check, Context, Verdict

__all__ = ["FEATURES"]


def _feature_check(name: str, run: Callable[[Context, str], Verdict], about: str) -> Check:
    # one model is enough: features depend on the engine and its flags
    return Check(name, run=run, about=about, needs=("chat",), per_model=True, exhaustive=False, depth=2)


FEATURES: tuple[Check, ...] = (
    _feature_check("completions", run=completions, about="the model completes a plain text"),
    _feature_check("embeddings", run=embeddings, about="the server returns embedding vectors"),
    _feature_check("tokenize", run=tokenize, about="the server's tokenizer turns text into tokens and back"),
    _feature_check(
        "tools",
        run=tools,
        about="if a function call is required, the model returns a well-formed call, with and without streaming",
    ),
    _feature_check("json-schema", run=json_schema, about="an answer follows a JSON schema"),
    _feature_check("logprobs", run=logprobs, about="each token of an answer has a log probability"),
    _feature_check("seed", run=seed, about="requests with the same seed or at temperature 0 get the same text"),
)
