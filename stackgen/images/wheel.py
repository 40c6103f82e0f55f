"""This very stackgen as a wheel, made of the files that are installed: what the exporter's image is built from.

No registry is asked for it: a checkout's code is in none, and a name that nobody owns there is anybody's. The same
files give the same bytes, whether they lie in a checkout or were installed from a wheel.
Format: packaging.python.org, "Binary distribution format" 1.0; `entry_points.txt` as in "Entry points specification".
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
from stackgen.resources import env_example, templates_dir

__all__ = ["NAME", "digest", "wheel"]

# the only name under which pip takes it
NAME = f"stackgen-{__version__}-py3-none-any.whl"
INFO = f"stackgen-{__version__}.dist-info"
TEMPLATES = "stackgen/_templates"
METADATA = {
    # no dependencies: the image pins them all
    "METADATA": f"Metadata-Version: 2.1\nName: stackgen\nVersion: {__version__}\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: stackgen\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "entry_points.txt": "[console_scripts]\nstackgen = stackgen.cli.main:main\n",
}
# the oldest that a zip file can hold
EPOCH = (1980, 1, 1, 0, 0, 0)


@cache
def wheel() -> bytes:
    """The wheel, whose file has to be called `NAME`."""
    files = {**_files(), **{f"{INFO}/{name}": text.encode() for name, text in METADATA.items()}}
    lines = [f"{path},sha256={_sum(data)},{len(data)}" for path, data in files.items()]
    files[f"{INFO}/RECORD"] = ("\n".join([*lines, f"{INFO}/RECORD,,"]) + "\n").encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return made.getvalue()


@cache
def digest() -> str:
    """What is in the wheel, as 16 hexadecimal digits; unlike the wheel's bytes the same with every zlib."""
    total = hashlib.sha256()
    for path, data in _files().items():
        total.update(f"{path}\0{len(data)}\0".encode() + data)
    return total.hexdigest()[:16]


def _files() -> dict[str, bytes]:
    package = Path(__file__).resolve().parents[1]
    found = dict(_below(package, "stackgen"))
    # beside the package in a checkout, inside of it where a wheel was installed
    found |= dict(_below(templates_dir(), TEMPLATES))
    found[f"{TEMPLATES}/env.example"] = env_example().encode()
    return dict(sorted(found.items()))


def _below(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        ours = not any(part == "__pycache__" or part.startswith(".") for part in parts) and path.suffix != ".pyc"
        if ours and path.is_file():
            yield f"{name}/{'/'.join(parts)}", path.read_bytes()


def _sum(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    import sys

    (Path(sys.argv[1]) / NAME).write_bytes(wheel())
    print(digest())
