"""`stackgen.Client`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stackgen.client.base import BaseClient
from stackgen.client.call import Answer
from stackgen.client.question import pieces, whole
from stackgen.client.sdk import sync_sdk

if TYPE_CHECKING:
    import openai

__all__ = ["Client"]


class Client(BaseClient):
    """Asks one endpoint: `Client(provider="together")`, `Client(stack="llama/")`, `Client(base_url=…, api_key=…)`.

    `provider` is anything that `--provider` takes; `stack` a stack file, an endpoints file or the folder of either.
    Without any of them it is the stack in the current folder. `model` is asked for where a call names none.
    `timeout` (s) bounds each silence, connecting takes at most 10 s. `max_retries` is 0: a question that is sent again
    may be paid for twice, and a retry hides what is wrong; with more, the SDK waits as the server's Retry-After says.
    Raises StackgenError for names, files and keys that are wrong; nothing is asked before the first call.
    """

    @cached_property
    def openai(self) -> openai.OpenAI:
        """The SDK's own client, set up for this endpoint: for everything that is not here. Its errors are its own."""
        return sync_sdk(self.target, self.timeout, self.max_retries)

    def query(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **more: Any,
    ) -> Answer:
        """The answer to `prompt`. `more` are fields of the request, as the SDK names them (`seed`, `stop`, …).

        Raises StartError when the server is away or fails, StackgenError when key, name or a value is wrong; neither
        holds the key.
        """
        call = self._call(prompt, model, system, temperature, max_tokens, more)
        return whole(self.openai, call, self.target, self.timeout)

    def stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **more: Any,
    ) -> Iterator[str]:
        """The answer piece by piece as it comes; see `query`. Closing the iterator ends the request.

        A stream that ends before the model did raises StartError after its last piece.
        """
        call = self._call(prompt, model, system, temperature, max_tokens, more)
        yield from pieces(self.openai, call, self.target, self.timeout)

    def models(self) -> list[str]:
        """The names that the server lists, in its order. Raises StackgenError as `query`."""
        return self._models()

    def close(self) -> None:
        """Closes the connections; the client can't be used after that."""
        self.openai.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a client that was never used has no connection: making one would cost half a second
        if "openai" in self.__dict__:
            self.close()
