#!/usr/bin/env python3
"""A fake vLLM that answers a check in microseconds, so that a benchmark measures the client.

upstream.py    prints its port, and exits when its standard input is closed
"""

import asyncio
import json
import sys

KEY = "sk-benchmark"
USAGE = {"prompt_tokens": 9, "completion_tokens": 8, "total_tokens": 17}
HEAD = {"id": "chatcmpl-1", "created": 1795385683, "model": "tiny"}
MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "vllm"}]}
MESSAGE = {"role": "assistant", "content": "The capital of France is Paris."}


def whole(tokens):
    usage = USAGE | {"completion_tokens": tokens, "total_tokens": 9 + tokens}
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    return HEAD | {"object": "chat.completion", "choices": [choice], "usage": usage}


def chunks():
    words = ["", *MESSAGE["content"].split(" ")]
    for number, word in enumerate(words):
        delta = {"content": word + " " if word else ""} | ({"role": "assistant"} if not number else {})
        reason = "stop" if number == len(words) - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        yield HEAD | {"object": "chat.completion.chunk", "choices": [choice]}
    yield HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}


STREAM = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks()) + "data: [DONE]\n\n"


def answer(method, path, key, body):
    if path.startswith("/v1") and key != f"Bearer {KEY}":
        return 401, "application/json", '{"error":"Unauthorized"}'
    if path == "/v1/models":
        return 200, "application/json", json.dumps(MODELS)
    if path == "/v1/chat/completions":
        data = json.loads(body)
        if data.get("stream"):
            return 200, "text/event-stream", STREAM
        return 200, "application/json", json.dumps(whole(min(8, data["max_tokens"])))
    return (200, "", "") if path == "/health" else (404, "application/json", '{"detail":"Not Found"}')


async def serve(reader, writer):
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        status, kind, text = answer(method, path, headers.get("authorization"), body)
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(text)}\r\n"
                     f"Connection: close\r\n\r\n{text}".encode())  # fmt: skip
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass  # the check `connect` opens a connection and sends nothing
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
