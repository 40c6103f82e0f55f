"""`stackgen.Client`: prompts and streams without asyncio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stackgen.client.base import BaseClient
from stackgen.client.call import Answer
from stackgen.client.question import complete, stream_text
from stackgen.client.sdk import sync_sdk

if TYPE_CHECKING:
    import openai

__all__ = ["Client"]


class Client(BaseClient):
    """Sends prompts to one endpoint: `Client(provider="together")`, `Client(stack="llama/")`, `Client(base_url=…)`.

    - `provider`: anything that `--provider` accepts.
    - `stack`: a stack file, an endpoints file, or the folder of either. The default is the current folder.
    - `base_url`, `api_key`: the URL and key of any server. With `provider`, the server is of that kind.
    - `model`: the default for calls without a model. It also selects the endpoint that serves this model.
    - `timeout`: seconds for each read; connecting takes at most 10 s.
    - `max_retries`: 0 by default, because you may pay for a retried request twice, and a retry hides the failure.
      Between retries, the SDK waits for the time in the server's Retry-After.

    Raises StackgenError for unknown names, invalid files and invalid values. No request is sent before the first call.
    """

    @cached_property
    def openai(self) -> openai.OpenAI:
        """The OpenAI SDK's client for this endpoint, with features that `Client` lacks. It raises the SDK's errors."""
        # created on first use: importing the SDK takes half a second
        return sync_sdk(self.target, self.timeout, self.max_retries)

    def query(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **extra: Any,
    ) -> Answer:
        """The answer to `prompt`. `extra` are request fields with the SDK's names (`seed`, `stop`, …).

        Raises StartError if the server is unreachable or fails, StackgenError if the key, the model name or a value is
        wrong. Neither contains the key.
        """
        call = self._build_call(prompt, model, system, temperature, max_tokens, extra)
        return complete(self.openai, call, self.target, self.timeout)

    def stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **extra: Any,
    ) -> Iterator[str]:
        """Yields the answer's text as it arrives; arguments and errors as in `query`.

        Closing the iterator cancels the request. A stream that ends before the model has finished raises StartError
        after its last text.
        """
        call = self._build_call(prompt, model, system, temperature, max_tokens, extra)
        # `yield from` also passes on close(), which ends the request
        yield from stream_text(self.openai, call, self.target, self.timeout)

    def models(self) -> list[str]:
        """The model names that the server lists, in its order. Raises StackgenError as `query` does."""
        return self._list_models()

    def close(self) -> None:
        """Closes all connections; the client can't be used afterwards."""
        self.openai.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # an unused client has nothing to close, and creating its SDK client costs half a second
        if "openai" in self.__dict__:
            self.close()
