"""The size of a model's weights on this machine."""

from __future__ import annotations

import os

__all__ = ["weigh_files"]

# the formats that the engines load; a folder may have copies of its weights in several of them
FORMATS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")


def weigh_files(path: str) -> int:
    """Bytes of the weights in the folder `path`, or of the file `path`; 0 if it has none or can't be read.

    If the folder has weights in several formats, only the first of `FORMATS` counts. Links are followed, because a
    snapshot of the Hub cache consists of links.
    """
    sizes: dict[str, int] = {}
    try:
        if os.path.isfile(path):
            return os.path.getsize(path)
        with os.scandir(path) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1]
                # a broken link has no size
                if suffix in FORMATS and entry.is_file():
                    sizes[suffix] = sizes.get(suffix, 0) + entry.stat().st_size
    except OSError:
        return 0
    return next((sizes[suffix] for suffix in FORMATS if suffix in sizes), 0)
