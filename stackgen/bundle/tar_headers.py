"""Reads the names in a tar archive, and only the wanted files.

tarfile takes 60 µs for a member, most of it for fields that are not needed here: 6 s for an image with 100,000 files.
Formats: POSIX pax (ustar and extended headers), and the long names of GNU tar.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stackgen.bundle.hasher import BUFFERS

__all__ = ["scan_tar", "stream_tar"]

BLOCK, CHUNK = 512, 2**20
# no content follows these: links, devices, folders, pipes
EMPTY = b"123456"


def scan_tar(file: Any) -> Iterator[tuple[bytes, int, Callable[[], bytes]]]:
    """Yields the name, the size, and a function that reads the content, of each regular file. gzip is unpacked.

    Yields nothing for another compression, and stops at a header that is none.
    """
    start = file.read(2)
    file.seek(0)
    if start == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from _scan(unpacked)
        return
    source = io.BufferedReader(file, 2**18)
    try:
        yield from _scan(source)
    finally:
        # the caller closes the file
        source.detach()


def _scan(source: Any) -> Iterator[tuple[bytes, int, Callable[[], bytes]]]:
    position, name, long_size = 0, b"", -1
    while True:
        header = source.read(BLOCK)
        if len(header) < BLOCK or not header[0]:
            return
        kind = header[156:157]
        try:
            size = _number(header[124:136])
        except ValueError:
            # not a tar archive: zstd, for example
            return
        position += BLOCK
        if kind in b"xL" and kind:
            data = source.read(size)
            if kind == b"L":
                name = data.rstrip(b"\0")
            else:
                fields = dict(re.findall(rb"\d+ (path|size)=([^\n]*)\n", data))
                name, long_size = fields.get(b"path", name), int(fields.get(b"size", b"-1"))
        else:
            size = 0 if kind in EMPTY else long_size if long_size >= 0 else size
            if kind in b"0\0":
                yield name or _short_name(header), size, lambda size=size: source.read(size)  # type: ignore[misc]
            name, long_size = b"", -1
        position += (size + BLOCK - 1) // BLOCK * BLOCK
        source.seek(position)


def stream_tar(stream: Any) -> Iterator[tuple[str, int, Iterator[memoryview]]]:
    """Yields the name, the size and the content of each regular file in a tar archive that can only be read once.

    The content is read before the next file is requested, or skipped. A chunk is valid until BUFFERS further ones
    are requested. Raises EOFError if the archive ends early. Names longer than 100 bytes are not supported: the engine
    writes none.
    """
    # the same buffers for everything: tarfile copies each byte three times
    buffers = [memoryview(bytearray(CHUNK)) for _ in range(BUFFERS)]
    while True:
        header = stream.read(BLOCK)
        if len(header) < BLOCK:
            raise EOFError("the archive has no end marker")
        # a block of zeros
        if not header.strip(b"\0"):
            return
        size = _number(header[124:136]) if header[156:157] not in (b"1", b"2") else 0
        content = _stream_content(stream, size, buffers)
        if header[156:157] in (b"0", b"\0"):
            yield _short_name(header).decode("utf-8", "replace"), size, content
        for _ in content:
            pass
        stream.read(-size % BLOCK)


def _stream_content(stream: Any, size: int, buffers: Sequence[memoryview]) -> Iterator[memoryview]:
    for buffer in itertools.cycle(buffers):
        if not size:
            return
        count = stream.readinto(buffer[: min(size, len(buffer))])
        if not count:
            raise EOFError(f"the archive ends {size} bytes early")
        size -= count
        yield buffer[:count]


def _number(field: bytes) -> int:
    # above 8 GiB, GNU tar writes binary numbers
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b"\0 ") or b"0", 8)


def _short_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
