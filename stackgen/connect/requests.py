"""The first requests of a client for one model: the bodies of a recipe, filled in."""

from __future__ import annotations

from typing import Any

from stackgen.connect.recipe import Recipe, Request

__all__ = ["fill_requests"]

# plain English has about as many characters a token as the instructions of coding agents
SENTENCE = "Read the file before you change it, and run the tests after each change. "


def fill_requests(recipe: Recipe, model: str, output_tokens: int) -> list[Request]:
    """Returns the requests with `model` in place of MODEL, `output_tokens` of OUTPUT, and a long text of PADDING."""
    words = {"MODEL": model, "OUTPUT": output_tokens}
    return [
        request.model_copy(update={"body": _fill(request.body, words, _pad(request.padding))})
        for request in recipe.requests
    ]


def _fill(value: Any, words: dict[str, Any], padding: str) -> Any:
    if isinstance(value, dict):
        return {name: _fill(one, words, padding) for name, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, words, padding) for one in value]
    if isinstance(value, str):
        return words[value] if value in words else value.replace("PADDING", padding)
    return value


def _pad(length: int) -> str:
    return (SENTENCE * (length // len(SENTENCE) + 1))[:length]
