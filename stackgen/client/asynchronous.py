"""`stackgen.AsyncClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stackgen.client.base import BaseClient
from stackgen.client.call import Answer, Call, unreadable
from stackgen.client.sdk import async_sdk, problem_of
from stackgen.errors import StackgenError

if TYPE_CHECKING:
    import openai

__all__ = ["AsyncClient"]


class AsyncClient(BaseClient):
    """As `Client`, for asyncio: `query`, `models` and `aclose` are awaited, `stream` is an async iterator.

    A model's name is looked up in a thread, so the event loop goes on.
    """

    @cached_property
    def openai(self) -> openai.AsyncOpenAI:
        """The SDK's own async client, set up for this endpoint. Its errors are its own."""
        return async_sdk(self.target, self.timeout, self.max_retries)

    async def query(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **more: Any,
    ) -> Answer:
        """See `Client.query`."""
        call = await self._ready(prompt, model, system, temperature, max_tokens, more)
        return call.whole(await self._sent(call, {**call.request, "stream": False}))

    async def stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **more: Any,
    ) -> AsyncIterator[str]:
        """See `Client.stream`."""
        import openai

        call = await self._ready(prompt, model, system, temperature, max_tokens, more)
        raw = await self._sent(call, call.streamed)
        caught: BaseException | None = None
        problem: StackgenError | None = None
        try:
            async with raw.parse() as chunks:
                async for chunk in chunks:
                    if piece := call.take(chunk):
                        yield piece
            call.told(raw.headers.get("content-type", ""))
        except StackgenError as error:
            problem = error
        except openai.APIError as error:
            caught = error
        except Exception:
            problem = unreadable()
        if caught:
            problem = await self._problem(caught, call)
        # a frame of the traceback must not hold the SDK's exception, which holds the key
        del caught
        if problem:
            raise problem

    async def models(self) -> list[str]:
        """See `Client.models`."""
        return await asyncio.to_thread(self._models)

    async def aclose(self) -> None:
        """Closes the connections; the client can't be used after that."""
        await self.openai.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # a client that was never used has no connection: making one would cost half a second
        if "openai" in self.__dict__:
            await self.aclose()

    async def _ready(self, *words: Any) -> Call:
        # the first look-up asks the server, and importing the SDK takes half a second
        call: Call = await asyncio.to_thread(self._call, *words)
        return call

    async def _sent(self, call: Call, request: dict[str, Any]) -> Any:
        """The raw response: apart from reading it, so that a wrong argument is not taken for a wrong answer."""
        caught: BaseException
        try:
            return await self.openai.chat.completions.with_raw_response.create(**request)
        except Exception as error:
            caught = error
        problem = await self._problem(caught, call)
        del caught
        raise problem

    async def _problem(self, error: BaseException, call: Call) -> StackgenError:
        # it may ask the server for its list, to name the nearest model
        return await asyncio.to_thread(problem_of, error, self.target, call.model, self.timeout)
