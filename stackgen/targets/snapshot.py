"""Snapshots of the Hub cache: folders whose files are links to `../../blobs`, so that only the whole repository works.

Layout: huggingface_hub 1.x, docs/source/en/guides/manage-cache.md: `models--ORG--NAME/snapshots/COMMIT/FILE`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["find_repository", "follow_link", "repository_id"]

SNAPSHOT = re.compile(r"(?P<repository>(?:.*/)?models--(?P<id>[^/]+))/snapshots/[^/]+(?:/.*)?", re.DOTALL)


def find_repository(path: str) -> str | None:
    """Returns the repository's folder if `path` is a snapshot, or in a snapshot; None otherwise. Reads no disk."""
    match = SNAPSHOT.fullmatch(os.path.normpath(path))
    return match["repository"] if match else None


def repository_id(path: str) -> str | None:
    """Returns the Hub id (`org/name`) of the snapshot `path`; None for another folder."""
    match = SNAPSHOT.fullmatch(os.path.normpath(path))
    return match["id"].replace("--", "/") if match else None


def follow_link(folder: Path, path: str) -> str:
    """Returns the absolute path of a snapshot if `path`, relative to `folder`, is a link to it; otherwise `path`."""
    if find_repository(path):
        return path
    real = os.path.realpath(folder / os.path.expanduser(path))
    return real if find_repository(real) else path
