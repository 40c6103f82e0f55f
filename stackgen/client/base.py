"""The base class of both clients, which finds the endpoint and resolves model names."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

from stackgen.check.limits import validate_seconds
from stackgen.check.target import Target
from stackgen.client.call import Call, request_fields
from stackgen.client.question import resolve_model
from stackgen.client.sdk import fetch_models, pick_model
from stackgen.errors import StackgenError
from stackgen.providers.catalog import providers
from stackgen.providers.endpoints import find_targets
from stackgen.providers.named import target_from_provider

__all__ = ["DEFAULT_TIMEOUT", "BaseClient"]

# seconds for each read, not for the whole answer, which may take minutes
DEFAULT_TIMEOUT = 60.0
S = TypeVar("S", bound="BaseClient")


class BaseClient:
    """One endpoint, found in the same way as on the command line; see `Client`."""

    def __init__(
        self,
        *,
        provider: str | None = None,
        stack: str | Path | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = 0,
    ) -> None:
        self._configure(_find_target(provider, stack, base_url, api_key, model), model, timeout, max_retries)

    @classmethod
    def from_target(
        cls: type[S],
        target: Target,
        *,
        model: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = 0,
    ) -> S:
        """Returns a client for a target that you already have, for example from `providers.endpoints.find_targets`."""
        # not through __init__, which would look for a stack in the current folder
        client = cls.__new__(cls)
        client._configure(target, model, timeout, max_retries)
        return client

    def _configure(self, target: Target, model: str | None, timeout: float, max_retries: int) -> None:
        validate_seconds("timeout", timeout)
        if max_retries < 0:
            raise StackgenError(f"max_retries must be 0 or more, got {max_retries}")
        self.target = target
        self.timeout = timeout
        self.max_retries = max_retries
        self._model = model
        self._resolved: dict[str | None, tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target.name!r}, {self.target.base_url!r})"

    def _resolve_model(self, model: str | None) -> tuple[str, str]:
        """The served model name to request, and a note if it differs from `model`."""
        wanted = model or self._model
        # cached: resolving a name may need a request to /models
        if wanted not in self._resolved:
            self._resolved[wanted] = resolve_model(self.target, wanted, self.timeout)
        return self._resolved[wanted]

    def _build_call(
        self,
        prompt: str,
        model: str | None,
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
        extra: dict[str, Any],
    ) -> Call:
        # validated before the request to /models, because invalid fields are invalid for every model
        options = request_fields({"temperature": temperature, "max_tokens": max_tokens, **extra})
        name, note = self._resolve_model(model)
        return Call(self.target, model=name, note=note, prompt=prompt, system=system, options=options)

    def _list_models(self) -> list[str]:
        listed = fetch_models(self.target, self.timeout)
        # called only because it raises an error if the server lists no models
        pick_model(self.target, None, listed)
        return list(listed.names) if listed else []


def _find_target(
    provider: str | None, stack: str | Path | None, base_url: str | None, api_key: str | None, model: str | None
) -> Target:
    # if both are given, the provider determines the key and the dialect
    if base_url and provider:
        if provider not in providers():
            raise StackgenError(
                f"unknown provider {provider!r}",
                f"if you pass base_url, provider must be one of: {', '.join(providers())}",
            )
        return target_from_provider(providers()[provider], (Path(),), base_url=base_url, key=api_key)
    path = str(stack) if stack else "."
    # without `model`: find_targets would set it as the model of a named endpoint, but here it only selects an endpoint
    args = Namespace(
        provider=[provider] if provider else [],
        stack=path,
        base_url=[base_url] if base_url else [],
        api_key=api_key,
        model=None,
    )
    targets = find_targets(args)
    # as in `stackgen ask`: the endpoint that serves the model, else the first endpoint
    serving = [target for target in targets if model in target.models]
    return (serving or targets)[0]
