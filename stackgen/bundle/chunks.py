"""Copies files in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from stackgen.bundle.hasher import BUFFERS

__all__ = ["read_chunks", "write_all"]

CHUNK = 2**20
# bytes of one write: with 1 MiB, the kernel took 4 to 7 times as long for the same file (`dd` on ext4, Linux 6.18)
WRITE = 2**17


def read_chunks(file: Any) -> Iterator[memoryview]:
    """Yields the rest of a binary file, in chunks. A chunk is valid until BUFFERS further ones are requested.

    All chunks share a few buffers: with a new one for each, the kernel took longer for memory than for reading.
    """
    for buffer in itertools.cycle([memoryview(bytearray(CHUNK)) for _ in range(BUFFERS)]):
        count = file.readinto(buffer)
        if not count:
            return
        yield buffer[:count]


def write_all(file: Any, data: memoryview) -> None:
    """Writes all of `data` into a file that was opened without a buffer."""
    # a raw file may write less than it got, and the rest would be lost
    while data:
        data = data[file.write(data[:WRITE]) :]
