"""Bounded load on a gateway, by threads of this process: short requests one after another, half of them streamed.

A request counts as failed where no answer began and its status was not 200; one that broke off after its first byte
is counted apart. Kept connections and new ones take turns by client, as a reload treats them differently.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field

__all__ = ["Load"]


@dataclass
class Load:
    """`with Load(port, key, model) as load:`, then `load.requests`, `load.failures` and `load.cut`.

    `keys` may be changed while it runs: each client takes its number's.
    """

    port: int
    keys: list[str]
    model: str = "tiny"
    clients: int = 4
    pause: float = 0.2
    # the engines are those of tests/resolve/addons/upstream.py, which stream only what they are told to
    made_up: bool = False
    requests: int = 0
    cut: int = 0
    failures: list[str] = field(default_factory=list)
    servers: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0

    def __enter__(self) -> Load:
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        # something must be under way before anything is done to the stack
        self.more(8)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int, limit: float = 120) -> None:
        """Waits until that many requests more were answered."""
        wanted, end = self.requests + count, time.monotonic() + limit
        while self.requests < wanted:
            assert time.monotonic() < end, f"{self}"
            time.sleep(0.05)

    def told(self, what: str) -> str:
        return (
            f"{what}: {self.requests} requests, {len(self.failures)} failed, {self.cut} cut while streaming, "
            f"slowest {self.slowest:.1f} s, {self.servers}"
        )

    def _client(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while not self._over.is_set():
            started, stream = time.monotonic(), number // 2 % 2 == 0
            try:
                began, problem, server = self._one(connection, self.keys[number % len(self.keys)], stream)
            except (OSError, http.client.HTTPException) as error:
                # a kept connection that was closed in the meantime counts too: not every client tries again
                began, problem, server = False, f"{type(error).__name__}: {error}", ""
                connection.close()
            if number % 2:  # it connects anew by itself
                connection.close()
            with self._lock:
                self.requests += 1
                self.slowest = max(self.slowest, time.monotonic() - started)
                self.servers[server] = self.servers.get(server, 0) + 1
                if problem and began:
                    self.cut += 1
                elif problem:
                    self.failures.append(f"client {number}: {problem}")
            # an engine that starts needs the processor more
            time.sleep(self.pause)
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, key: str, stream: bool) -> tuple[bool, str, str]:
        """Whether an answer began, what was wrong with it, and who gave it."""
        body: dict[str, object] = {
            "model": self.model,
            "prompt": "def main",
            "max_tokens": 8,
            "stream": stream,
            "ignore_eos": True,
        }
        if self.made_up and stream:
            body["test"] = {"chunks": 4, "every": 0.02}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        server = (answer.getheader("x-stackgen-served-by") or "").rpartition("/")[2]
        began = False
        try:
            parts = []
            while part := answer.read1(65536):
                began = stream and answer.status == 200
                parts.append(part)
            # ends the response, so that the connection can be used again
            parts.append(answer.read())
            answer.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return began, f"{type(error).__name__}: {error}", server
        text = b"".join(parts).decode(errors="replace")
        if answer.status != 200:
            return False, f"{answer.status} {text[:200]}", server
        whole = "[DONE]" in text or self.made_up if stream else text.endswith("}")
        return began, "" if whole else f"not whole: {text[-200:]}", server
