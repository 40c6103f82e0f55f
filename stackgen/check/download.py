"""Downloads one small file, such as the catalog of `models sync`, with limits of size and time. No weights."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stackgen.errors import MachineError, StackgenError
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = ["download"]

# seconds for a whole download
TIME_LIMIT = 120.0


def download(url: str, limit: int, timeout: float = 20.0) -> bytes:
    """The content of `url`, at most `limit` bytes. Each wait ends after `timeout` seconds.

    Raises StackgenError for a wrong URL, and MachineError if the server does not send the file.
    """
    if not url.startswith(("https://", "http://")):
        raise StackgenError(f"{url} is not a URL that stackgen reads", "use https:// or http://")
    end, data = time.monotonic() + TIME_LIMIT, bytearray()
    hint = "check the URL, the network and the proxy, or download the file yourself and name it"
    try:
        with httpx2.Client(timeout=timeout, follow_redirects=True) as client, client.stream("GET", url) as response:
            if response.status_code != 200:
                raise MachineError(f"{url} answers with HTTP {response.status_code}", hint)
            for part in response.iter_bytes():
                data += part
                if len(data) > limit:
                    raise StackgenError(f"{url} sends more than {limit // 2**20} MiB", "no catalog is that large")
                if time.monotonic() > end:
                    raise MachineError(f"{url} has not sent the whole file within {TIME_LIMIT:.0f} seconds", hint)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise MachineError(f"{url} can't be read: {type(error).__name__}: {error}"[:300], hint) from error
    return bytes(data)
