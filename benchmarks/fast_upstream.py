#!/usr/bin/env python3
"""A fake engine that answers in microseconds, so that a benchmark measures the gateway in front of it.

With `stream` it sends `max_tokens` server-sent events at intervals of `temperature` seconds; otherwise one small
response. These fields are used because vllm-router and smg rewrite bodies, and forward only fields that they know.
"""

import asyncio
import json
import os

NAME = os.environ.get("NAME", "upstream")
WHOLE = json.dumps({"id": "1", "object": "chat.completion", "by": NAME, "choices": [
    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris"}}]}).encode()  # fmt: skip
EVENT = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Rome "}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            at = head.find(b"content-length:")
            raw = await reader.readexactly(int(head[at + 15 : head.index(b"\r", at)])) if at > 0 else b"{}"
            body_fields = json.loads(raw)
            if not body_fields.get("stream"):
                body = WHOLE if head.startswith(b"post") else b'{"object":"list","data":[{"id":"bench"}]}'
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                             % (len(body), body))  # fmt: skip
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            # smg or sglang-router renames the field
            for _ in range(body_fields.get("max_tokens") or body_fields["max_completion_tokens"]):
                writer.write(CHUNK)
                await writer.drain()
                await asyncio.sleep(body_fields["temperature"])
            writer.write(DONE)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", 8000, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
