"""`stackgen.AsyncClient`: prompts and streams with asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stackgen.client.base import BaseClient
from stackgen.client.call import Answer, Call, malformed_response
from stackgen.client.sdk import async_sdk, translate_error
from stackgen.errors import StackgenError
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import openai
else:
    openai = LazyModule("openai")

__all__ = ["AsyncClient"]


class AsyncClient(BaseClient):
    """`Client` for asyncio: `query`, `models` and `aclose` are coroutines, `stream` is an async iterator."""

    @cached_property
    def openai(self) -> openai.AsyncOpenAI:
        """The OpenAI SDK's async client for this endpoint. It raises the SDK's errors."""
        # created on first use: importing the SDK takes half a second
        return async_sdk(self.target, self.timeout, self.max_retries)

    async def query(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **extra: Any,
    ) -> Answer:
        """See `Client.query`."""
        call = await self._prepare_call(prompt, model, system, temperature, max_tokens, extra)
        return call.read_completion(await self._send(call, {**call.request, "stream": False}))

    async def stream(
        self,
        prompt: str,
        model: str | None = None,
        *,
        system: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int | None = None,
        **extra: Any,
    ) -> AsyncIterator[str]:
        """See `Client.stream`."""
        call = await self._prepare_call(prompt, model, system, temperature, max_tokens, extra)
        raw = await self._send(call, call.stream_request)
        caught: BaseException | None = None
        problem: StackgenError | None = None
        try:
            async with raw.parse() as chunks:
                async for chunk in chunks:
                    if text := call.add_chunk(chunk):
                        yield text
            call.finish_stream(raw.headers.get("content-type", ""))
        except StackgenError as error:
            problem = error
        except openai.APIError as error:
            caught = error
        except Exception:
            # the SDK doesn't validate chunks, so a malformed chunk can raise any exception
            problem = malformed_response()
        if caught:
            problem = await self._translate_error(caught, call)
        # no frame of the traceback may contain the SDK's exception, which contains the key
        del caught
        if problem:
            raise problem

    async def models(self) -> list[str]:
        """See `Client.models`."""
        return await asyncio.to_thread(self._list_models)

    async def aclose(self) -> None:
        """Closes all connections; the client can't be used afterwards."""
        await self.openai.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # an unused client has nothing to close, and creating its SDK client costs half a second
        if "openai" in self.__dict__:
            await self.aclose()

    async def _prepare_call(self, *args: Any) -> Call:
        # in a thread: the first lookup of a model sends a blocking request, and importing the SDK takes half a second
        call: Call = await asyncio.to_thread(self._build_call, *args)
        return call

    async def _send(self, call: Call, request: dict[str, Any]) -> Any:
        """The raw response. It is not parsed here, so an invalid argument isn't reported as a malformed response."""
        caught: BaseException
        try:
            return await self.openai.chat.completions.with_raw_response.create(**request)
        except Exception as error:
            caught = error
        problem = await self._translate_error(caught, call)
        # as in `stream`: this frame is part of the traceback
        del caught
        raise problem

    async def _translate_error(self, error: BaseException, call: Call) -> StackgenError:
        # in a thread: translate_error may send a blocking request to /models, to suggest the closest name
        return await asyncio.to_thread(translate_error, error, self.target, call.model, self.timeout)
