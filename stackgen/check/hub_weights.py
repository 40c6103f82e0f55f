"""Reads the headers of a model's safetensors files on the Hugging Face Hub, without downloading the weights.

Two requests with `Range` for each file: the length of its header, and the header. `stackgen.fit` computes memory from
the tensors in them. Format: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stackgen.check.huggingface import HUB
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = ["HubError", "read_hub_headers", "read_hub_start"]

# a header of a file of 5 GB has about 40 kB; most fit into the first request
FIRST = 65_536
MAX_HEADER = 100_000_000
# requests at the same time
THREADS = 8


class HubError(Exception):
    """A file's header can't be read from the Hub."""


def read_hub_headers(
    model: str,
    files: tuple[str, ...],
    revision: str | None = None,
    token: str = "",
    endpoint: str = HUB,
    timeout: float = 10.0,
) -> dict[str, bytes]:
    """The beginning of each safetensors file in `files`, with its whole header. Raises HubError."""
    base = f"{endpoint.rstrip('/')}/{quote(model)}/resolve/{quote(revision or 'main', safe='')}"
    names = [name for name in files if name.endswith(".safetensors") and not name.startswith("adapter_")]
    # copies in other layouts, such as original/, are not loaded
    names = [name for name in names if "/" not in name]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        # a redirect to the CDN drops the key, because the host differs
        with httpx2.Client(headers=headers, timeout=timeout, follow_redirects=True) as client:
            with ThreadPoolExecutor(THREADS) as pool:
                return dict(
                    zip(names, pool.map(lambda name: _read(client, f"{base}/{quote(name)}"), names), strict=True)
                )
    except httpx2.HTTPError as error:
        raise HubError(f"{type(error).__name__}: {error}"[:200]) from error


def _read(client: Any, url: str) -> bytes:
    data = _get(client, url, 0, FIRST)
    end = 8 + int.from_bytes(data[:8], "little")
    # not a header: the caller reports what the bytes are
    if end > MAX_HEADER or data[:4] == b"GGUF":
        return data
    return data if end <= len(data) else data + _get(client, url, len(data), end)


def _get(client: Any, url: str, start: int, end: int) -> bytes:
    with client.stream("GET", url, headers={"Range": f"bytes={start}-{end - 1}"}) as response:
        if response.status_code not in (200, 206):
            raise HubError(f"HTTP {response.status_code} for {url.rpartition('/')[2]}")
        # a server without ranges sends the whole file, of which the beginning is enough
        skipped, parts = start if response.status_code == 200 else 0, b""
        for part in response.iter_bytes():
            parts += part
            if len(parts) - skipped >= end - start:
                break
    return bytes(parts[skipped : skipped + end - start])


def read_hub_start(
    model: str,
    file: str,
    size: int,
    revision: str | None = None,
    token: str = "",
    endpoint: str = HUB,
    timeout: float = 30.0,
) -> bytes:
    """The first `size` bytes of a file on the Hub, fewer if it is shorter. Raises HubError."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{endpoint.rstrip('/')}/{quote(model)}/resolve/{quote(revision or 'main', safe='')}/{quote(file)}"
    try:
        with httpx2.Client(headers=headers, timeout=timeout, follow_redirects=True) as client:
            return _get(client, url, 0, size)
    except httpx2.HTTPError as error:
        raise HubError(f"{type(error).__name__}: {error}"[:200]) from error
