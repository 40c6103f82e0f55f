"""Computes SHA-256 while the caller reads and writes: hashlib releases Python's lock, so another core computes."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["BUFFERS", "Hasher"]

# chunks that share buffers need so many: on a busy machine, a thread that waits for another one loses its turn
BUFFERS = 8
# updates that may be unfinished: so many chunks before the one that a buffer gets next
PENDING = BUFFERS - 2
# below this, a change between the threads takes longer than the digest
SMALLEST = 2**18
# one thread: the updates of a digest have an order
_pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")


class Hasher:
    """A SHA-256 whose `update` returns at once. Data must not change before `PENDING` further updates have returned."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._running: deque[Future[None]] = deque()

    def update(self, data: bytes | memoryview) -> None:
        """Adds data, after the data of the call before."""
        while self._running and (len(self._running) >= PENDING or self._running[0].done()):
            self._running.popleft().result()
        if not self._running and len(data) < SMALLEST:
            self._hash.update(data)
        else:
            self._running.append(_pool.submit(self._hash.update, data))

    def hexdigest(self) -> str:
        """The digest of everything so far, as 64 hexadecimal digits."""
        while self._running:
            self._running.popleft().result()
        return self._hash.hexdigest()
