"""The endpoints that a command uses: from a stack, `endpoints.yaml`, `--provider` or `--base-url`."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from stackgen.check.target import Target
from stackgen.errors import StackgenError
from stackgen.providers.catalog import find_key, find_provider, key_names_for
from stackgen.providers.named import EndpointSource, find_by_name, open_endpoint_source
from stackgen.providers.targets import (
    ResolvedTarget,
    dialects,
    targets_from_plan,
    targets_from_stack,
    with_unique_names,
)
from stackgen.stack.secrets import collect_secrets

__all__ = [
    "EndpointSource",
    "ResolvedTarget",
    "dialects",
    "find_targets",
    "open_endpoint_source",
    "resolve_targets",
    "targets_from_plan",
    "targets_from_stack",
    "with_unique_names",
]


def find_targets(args: Namespace) -> list[Target]:
    """Returns the endpoints of a command line: `--base-url` and `--provider`, else the endpoints of the stack or file.

    Raises StackgenError for an unknown name, SpecError for an invalid file.
    """
    return [one.target for one in resolve_targets(args)]


def resolve_targets(args: Namespace) -> list[ResolvedTarget]:
    """Returns the same endpoints as `find_targets`, each with the stack that it belongs to.

    Reads `base_url`, `provider`, `stack`, `api_key` and `model` of `args`; any of them may be missing.
    """
    urls, names = _as_list(args, "base_url"), _provider_names(args)
    key, model = getattr(args, "api_key", None), getattr(args, "model", None)
    path = getattr(args, "stack", None) or "."
    if not urls and not names:
        everything = open_endpoint_source(path).resolve_all()
        if not everything:
            raise StackgenError(f"{path} defines no endpoints", "add an endpoint under `endpoints:`")
        return _serving(_with_key(everything, key), model)
    chosen = [ResolvedTarget(_target_from_url(url, key)) for url in urls]
    if names:
        # if names are given, the default folder may be empty; a path that was passed must exist
        chosen += _with_key(find_by_name(names, open_endpoint_source(path, optional=path == ".")), key)
    return [replace(one, target=_with_model(one.target, model)) for one in chosen]


def _as_list(args: Namespace, name: str) -> list[str]:
    value = getattr(args, name, None) or []
    return [value] if isinstance(value, str) else list(value)


def _provider_names(args: Namespace) -> list[str]:
    return [name.strip() for text in _as_list(args, "provider") for name in text.split(",") if name.strip()]


def _target_from_url(url: str, key: str | None) -> Target:
    # from_url comes first, because it validates and normalizes the URL
    target = replace(Target.from_url(url, None), secrets=collect_secrets(Path()))
    provider = find_provider(target.base_url)
    names = key_names_for(target.base_url)
    # a bare URL belongs to no stack, so only the .env of the current folder applies
    known = find_key(names, [Path()], key)
    dialect = provider.dialect_at(target.base_url) if provider else None
    return replace(target, api_key=known.value if known else None, dialect=dialect, key_names=names)


def _with_key(targets: list[ResolvedTarget], key: str | None) -> list[ResolvedTarget]:
    # --api-key applies to every endpoint, also to endpoints that have their own key
    return [replace(one, target=replace(one.target, api_key=key)) for one in targets] if key else targets


def _with_model(target: Target, model: str | None) -> Target:
    # a request to a named endpoint uses this model even if the endpoint doesn't list it
    return target if model is None else replace(target, models=(model,))


def _serving(targets: list[ResolvedTarget], model: str | None) -> list[ResolvedTarget]:
    if model is None:
        return targets
    serving = [one for one in targets if model in one.target.models]
    # request an unserved name anyway: the check of a misspelled name must not pass on another model
    return [replace(one, target=_with_model(one.target, model)) for one in serving or targets[:1]]
