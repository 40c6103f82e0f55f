"""What both clients share: whom they mean, and how a model's name is found."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

from stackgen.check.limits import seconds
from stackgen.check.target import Target
from stackgen.client.call import Call, fields
from stackgen.client.question import named
from stackgen.client.sdk import Listing, listing
from stackgen.client.sdk import model_for as chosen
from stackgen.errors import StackgenError
from stackgen.providers.catalog import providers
from stackgen.providers.endpoints import found
from stackgen.providers.named import from_provider

__all__ = ["DEFAULT_TIMEOUT", "BaseClient"]

# seconds for each silence of the server; an answer may take longer as a whole
DEFAULT_TIMEOUT = 60.0
S = TypeVar("S", bound="BaseClient")


class BaseClient:
    """One endpoint, found as the command line finds it; see `Client`."""

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
        self._set(_target(provider, stack, base_url, api_key, model), model, timeout, max_retries)

    @classmethod
    def from_target(
        cls: type[S],
        target: Target,
        *,
        model: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = 0,
    ) -> S:
        """A client for an endpoint that is known already, as `stackgen.providers.endpoints.from_words` gives it."""
        client = cls.__new__(cls)
        client._set(target, model, timeout, max_retries)
        return client

    def _set(self, target: Target, model: str | None, timeout: float, max_retries: int) -> None:
        seconds("timeout", timeout)
        if max_retries < 0:
            raise StackgenError(f"max_retries must not be below 0, and is {max_retries}")
        self.target = target
        self.timeout = timeout
        self.max_retries = max_retries
        self._model = model
        self._known: dict[str | None, tuple[str, str]] = {}

    def __repr__(self) -> str:
        # the target hides its key
        return f"{type(self).__name__}({self.target.name!r}, {self.target.base_url!r})"

    def _named(self, model: str | None) -> tuple[str, str]:
        """The name to ask for; asked of the server once for each `model`."""
        wanted = model or self._model
        if wanted not in self._known:
            self._known[wanted] = named(self.target, wanted, self.timeout)
        return self._known[wanted]

    def _call(
        self,
        prompt: str,
        model: str | None,
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
        more: dict[str, Any],
    ) -> Call:
        # before the server is asked for its names: what is wrong here is wrong for all of them
        options = fields({"temperature": temperature, "max_tokens": max_tokens, **more})
        name, note = self._named(model)
        return Call(self.target, name, note, prompt, system, options)

    def _models(self) -> list[str]:
        listed: Listing | None = listing(self.target, self.timeout)
        # raises where nothing is served
        chosen(self.target, None, listed)
        return list(listed.names) if listed else []


def _target(
    provider: str | None, stack: str | Path | None, base_url: str | None, api_key: str | None, model: str | None
) -> Target:
    if base_url and provider:
        if provider not in providers():
            raise StackgenError(
                f"{provider!r} is no provider", f"with a base_url it is one of {', '.join(providers())}"
            )
        return from_provider(providers()[provider], (Path(),), base_url=base_url, key=api_key)
    where = str(stack) if stack else "."
    words = Namespace(provider=[provider] if provider else [], stack=where, base_url=[base_url] if base_url else [],
                      api_key=api_key, model=None)  # fmt: skip
    targets = [one.target for one in found(words)]
    # of several endpoints the one that serves the model, else the first, as `stackgen ask` does it
    serving = [target for target in targets if model in target.models]
    return (serving or targets)[0]
