"""`stackgen.Client` and `stackgen.AsyncClient`: one way to ask any provider, sync and async.

    with stackgen.Client(provider="together") as client:
        print(client.query("What is the capital of France?", model="…").text)
        for piece in client.stream("Tell me more"):
            print(piece, end="")

Both are thin: time-outs, keys and errors are stackgen's, everything else is the OpenAI SDK under `.openai`.
"""

from __future__ import annotations

from stackgen.client.asynchronous import AsyncClient
from stackgen.client.call import Answer
from stackgen.client.question import ask
from stackgen.client.synchronous import Client

__all__ = ["Answer", "AsyncClient", "Client", "ask"]
