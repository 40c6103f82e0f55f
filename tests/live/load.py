"""Bounded load on a gateway from threads of this process: short requests one after another, half of them streamed.

A request has failed if it got no complete response. A stream that breaks off after its status 200 is counted
separately, as interrupted: the gateway cannot retry it, because the client already has the header fields. Half of the
clients keep their connection, because a reload treats kept connections and new ones differently.
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
    """`with Load(port, keys, model) as load:`, then read `load.requests`, `load.failures` and `load.interrupted`.

    `keys` may be changed while it runs: client N uses key N modulo their number.
    """

    port: int
    keys: list[str]
    model: str = "tiny"
    clients: int = 4
    pause: float = 0.2
    # with tests/resolve/addons/upstream.py, whose streams have to be requested in the body
    fake_engines: bool = False
    requests: int = 0
    interrupted: int = 0
    failures: list[str] = field(default_factory=list)
    servers: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0

    def __enter__(self) -> Load:
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        # requests must be in flight before a test changes the stack
        self.wait_for_requests(8)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def wait_for_requests(self, count: int, limit: float = 120) -> None:
        """Waits until `count` more requests have ended. Fails after `limit` seconds."""
        target, end = self.requests + count, time.monotonic() + limit
        while self.requests < target:
            assert time.monotonic() < end, f"{self}"
            time.sleep(0.05)

    def summary(self, what: str) -> str:
        """Returns the counts as one line that begins with `what`."""
        return (
            f"{what}: {self.requests} requests, {len(self.failures)} failed, {self.interrupted} streams interrupted, "
            f"slowest {self.slowest:.1f} s, {self.servers}"
        )

    def _client(self, number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        while not self._stopped.is_set():
            started, stream = time.monotonic(), number // 2 % 2 == 0
            try:
                began, problem, server = self._send(connection, self.keys[number % len(self.keys)], stream)
            except (OSError, http.client.HTTPException) as error:
                # a kept connection that the gateway closed counts as a failure: not every client retries
                began, problem, server = False, f"{type(error).__name__}: {error}", ""
                connection.close()
            if number % 2:  # http.client reconnects by itself
                connection.close()
            with self._lock:
                self.requests += 1
                self.slowest = max(self.slowest, time.monotonic() - started)
                self.servers[server] = self.servers.get(server, 0) + 1
                if problem and began:
                    self.interrupted += 1
                elif problem:
                    self.failures.append(f"client {number}: {problem}")
            # leave the processor to engines that are starting
            time.sleep(self.pause)
        connection.close()

    def _send(self, connection: http.client.HTTPConnection, key: str, stream: bool) -> tuple[bool, str, str]:
        """Sends a request. Returns whether a stream began, what was wrong with the answer or "", and the replica."""
        body: dict[str, object] = {
            "model": self.model,
            "prompt": "def main",
            "max_tokens": 8,
            "stream": stream,
            # without it, tiny may end after any token
            "ignore_eos": True,
        }
        if self.fake_engines and stream:
            body["test"] = {"chunks": 4, "every": 0.02}
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        server = (answer.getheader("x-stackgen-served-by") or "").rpartition("/")[2]
        # an engine sends the header fields before the first event
        began = stream and answer.status == 200
        try:
            parts = []
            while part := answer.read1(65536):
                parts.append(part)
            # read to the end, or the connection can't be reused
            parts.append(answer.read())
            answer.close()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return began, f"{type(error).__name__}: {error}", server
        text = b"".join(parts).decode(errors="replace")
        if answer.status != 200:
            return False, f"{answer.status} {text[:200]}", server
        is_complete = "[DONE]" in text or self.fake_engines if stream else text.endswith("}")
        return began, "" if is_complete else f"incomplete: {text[-200:]}", server
