"""`stackgen.Client` and `stackgen.AsyncClient`: send prompts to any provider, synchronously or with asyncio.

    with stackgen.Client(provider="together") as client:
        print(client.query("What is the capital of France?", model="…").text)
        for text in client.stream("Tell me more"):
            print(text, end="")

stackgen adds timeouts, key lookup, model names and error messages. Everything else is the OpenAI SDK's client, which is
available as `.openai`.
"""

from __future__ import annotations

from stackgen.client.asynchronous import AsyncClient
from stackgen.client.call import Answer
from stackgen.client.question import ask
from stackgen.client.synchronous import Client

__all__ = ["Answer", "AsyncClient", "Client", "ask"]
