"""Which endpoints a command means: those of a stack, of providers, of `endpoints.yaml`, or given by their URLs."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from stackgen.check.target import Target
from stackgen.errors import StackgenError
from stackgen.providers.catalog import find_key, key_names, of_url
from stackgen.providers.named import Place, choose, open_place
from stackgen.providers.targets import Found, dialects, from_plan, of_stack, unique

__all__ = ["Found", "Place", "dialects", "found", "from_plan", "from_words", "of_stack", "open_place", "unique"]


def from_words(words: Namespace) -> list[Target]:
    """The endpoints that a command line names: `--base-url` and `--provider`, else those of the stack or file.

    Raises StackgenError for a name that nobody has, and SpecError for a file that is wrong.
    """
    return [one.target for one in found(words)]


def found(words: Namespace) -> list[Found]:
    """As `from_words`, each endpoint with the stack it belongs to.

    Looks at `base_url`, `provider`, `stack`, `api_key` and `model` of `words`; any of them may be missing.
    """
    urls, names = _many(words, "base_url"), _named(words)
    key, model = getattr(words, "api_key", None), getattr(words, "model", None)
    where = getattr(words, "stack", None) or "."
    if not urls and not names:
        everything = open_place(where).found()
        if not everything:
            raise StackgenError(f"{where} names no endpoint", "add one to its `endpoints:`")
        return _serving(_keyed(everything, key), model)
    chosen = [Found(_of_url(url, key)) for url in urls]
    if names:
        chosen += _keyed(choose(names, open_place(where, optional=where == ".")), key)
    return [replace(one, target=_asked_for(one.target, model)) for one in chosen]


def _many(words: Namespace, name: str) -> list[str]:
    value = getattr(words, name, None) or []
    return [value] if isinstance(value, str) else list(value)


def _named(words: Namespace) -> list[str]:
    return [name.strip() for text in _many(words, "provider") for name in text.split(",") if name.strip()]


def _of_url(url: str, key: str | None) -> Target:
    # made first: it says what is wrong with a URL, and brings it into its normal form
    target = Target.from_url(url, None)
    provider = of_url(target.base_url)
    names = key_names(target.base_url)
    known = find_key(names, [Path()], key)
    dialect = provider.dialect_at(target.base_url) if provider else None
    return replace(target, api_key=known.value if known else None, dialect=dialect, key_names=names)


def _keyed(chosen: list[Found], key: str | None) -> list[Found]:
    return [replace(one, target=replace(one.target, api_key=key)) for one in chosen] if key else chosen


def _asked_for(target: Target, model: str | None) -> Target:
    """An endpoint that was named itself is asked for the model, whether it lists it or not."""
    return target if model is None else replace(target, models=(model,))


def _serving(everything: list[Found], model: str | None) -> list[Found]:
    if model is None:
        return everything
    serving = [one for one in everything if model in one.target.models]
    # a name that none of them serves is still the one to ask for: its check has to fail
    return [replace(one, target=_asked_for(one.target, model)) for one in serving or everything[:1]]
