"""Builds a wheel of this stackgen from its installed files, for the exporter's image.

The wheel does not come from a package index: an index doesn't have a checkout's code, and if stackgen doesn't own its
name there, anybody can take that name. Equal files give equal bytes, in a checkout and in an installation from a wheel.
Format: packaging.python.org, "Binary distribution format" 1.0 and "Entry points specification".
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from stackgen import __version__
from stackgen.resources import read_env_example, templates_dir

__all__ = ["WHEEL_NAME", "build_wheel", "package_digest"]

# pip accepts a wheel only under this name
WHEEL_NAME = f"stackgen-{__version__}-py3-none-any.whl"
INFO = f"stackgen-{__version__}.dist-info"
TEMPLATES = "stackgen/_templates"
METADATA = {
    "METADATA": f"Metadata-Version: 2.1\nName: stackgen\nVersion: {__version__}\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: stackgen\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[console_scripts]\nstackgen = stackgen.__main__:main\n",
}
# a fixed time, so that the bytes are reproducible; this is the earliest date that a zip file supports
EPOCH = (1980, 1, 1, 0, 0, 0)


@cache
def build_wheel(requirements: tuple[str, ...] = ()) -> bytes:
    """Returns the bytes of the wheel. Its file must be called `WHEEL_NAME`.

    `requirements` are what pip installs with it (PEP 508). By default nothing, because the requirements.txt of the
    exporter's image pins all packages.
    """
    files = {**_files(), **{f"{INFO}/{name}": text.encode() for name, text in METADATA.items()}}
    files[f"{INFO}/METADATA"] += "".join(f"Requires-Dist: {one}\n" for one in requirements).encode()
    lines = [f"{path},sha256={_record_hash(data)},{len(data)}" for path, data in files.items()]
    files[f"{INFO}/RECORD"] = ("\n".join([*lines, f"{INFO}/RECORD,,"]) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


@cache
def package_digest() -> str:
    """Hash of the files in the wheel, as 16 hexadecimal digits."""
    # hashes the files and not the wheel, because the wheel's bytes depend on the version of zlib
    total = hashlib.sha256()
    for path, data in _files().items():
        total.update(f"{path}\0{len(data)}\0".encode() + data)
    return total.hexdigest()[:16]


def _files() -> dict[str, bytes]:
    package = Path(__file__).resolve().parents[1]
    found = dict(_read_files(package, "stackgen"))
    # templates are next to the package in a checkout, and inside it if installed from a wheel
    found |= dict(_read_files(templates_dir(), TEMPLATES))
    found[f"{TEMPLATES}/env.example"] = read_env_example().encode()
    return dict(sorted(found.items()))


def _read_files(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        is_ours = not any(part == "__pycache__" or part.startswith(".") for part in parts) and path.suffix != ".pyc"
        if is_ours and path.is_file():
            yield f"{name}/{'/'.join(parts)}", path.read_bytes()


def _record_hash(data: bytes) -> str:
    # RECORD uses URL-safe base64 without padding
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    import sys

    (Path(sys.argv[1]) / WHEEL_NAME).write_bytes(build_wheel())
    print(package_digest())
