"""Downloads the vocabulary that gpt-oss needs and that no repository on the Hub has in this format.

openai-harmony, which vLLM uses for gpt-oss, reads NAME.tiktoken from the folder in TIKTOKEN_ENCODINGS_BASE, and refuses
a file with another checksum. Without that variable, it downloads the file when the engine starts, after the weights.
URL, name and checksum: openai-harmony 0.0.8, src/tiktoken_ext/public_encodings.rs. Only the standard library is used.
"""

import errno
import hashlib
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

NETWORK, DISK, PERMISSION = 12, 13, 14
URL = "https://openaipublic.blob.core.windows.net/encodings/"
CHECKSUMS = {"o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"}
# bytes; the file has 3.6 MB, and a captive portal may answer without end
LIMIT = 20_000_000


def matches(name: str, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == CHECKSUMS[name]


def is_complete(path: Path) -> bool:
    try:
        return matches(path.stem, path.read_bytes())
    except FileNotFoundError:
        return False


def fetch(path: Path, url: str) -> None:
    """One attempt. Raises OSError; its subclass HTTPError has `code`, and ConnectionError means a wrong checksum."""
    with urllib.request.urlopen(url, timeout=30) as response:
        data: bytes = response.read(LIMIT)
    if not matches(path.stem, data):
        raise ConnectionError(f"the answer is not the vocabulary: {len(data)} bytes with another checksum")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def ensure_downloaded(folder: Path, name: str, attempts: int) -> int:
    """Downloads `folder`/NAME.tiktoken unless it is complete. Returns 0, or the exit code of download.py."""
    path, url = folder / f"{name}.tiktoken", f"{URL}{name}.tiktoken"
    attempt = 0
    while True:
        attempt += 1
        try:
            if is_complete(path):
                print(f"stackgen: the vocabulary {name} is already there", flush=True)
                return 0
            fetch(path, url)
            print(f"stackgen: downloaded the vocabulary {name}", flush=True)
            return 0
        except OSError as error:
            code, cause, remedy = explain(error, path, url)
            status = getattr(error, "code", 0)
            if code != NETWORK or attempt >= attempts or (400 <= status < 500 and status not in (408, 429)):
                print(f"stackgen: cannot download the vocabulary {name}: {cause}; {remedy}", file=sys.stderr)
                return code
        pause = min(2**attempt, 30)
        print(f"stackgen: attempt {attempt} of {attempts} at the vocabulary {name}: {cause}; again in {pause} s",
              flush=True)  # fmt: skip
        time.sleep(pause)


def explain(error: OSError, path: Path, url: str) -> tuple[int, str, str]:
    """Exit code, cause and remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK, f"the disk of {path.parent} is full", "free some space"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PERMISSION, f"{error.strerror}: {error.filename}", f"give uid {os.getuid()} access to this path"
    place = f"check network, DNS and proxy, or copy the file from another machine to {path}"
    if isinstance(error, urllib.error.HTTPError):
        return NETWORK, f"{url} answers HTTP {error.code}", place
    reason = getattr(error, "reason", error)
    return NETWORK, f"{url}: {reason or 'timed out'}", place
