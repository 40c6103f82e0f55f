"""What the table of a version says about the release: its images, the CUDA version in them, the models that it loads.

The tables are written by `scripts/generate_flags.py` and `scripts/read_release.py`.
"""

from __future__ import annotations

from typing import Any

from stackgen.flags import PINNED, Flags, known_versions, load_flags, load_table

__all__ = ["MIN_DRIVERS", "cuda_of_image", "flags_of", "image_of", "min_driver"]

# major version of CUDA -> oldest driver. NVIDIA, "CUDA Compatibility", minor version compatibility, table 1
# (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html, read in November 2026)
MIN_DRIVERS = {"12": 525, "13": 580}


def flags_of(model: Any) -> Flags | None:
    """The flags of the version that a model of stack.yaml gets; None if stackgen has no table of that version."""
    return load_flags(model.engine, getattr(model, "engine_version", None))


def image_of(engine: str, version: str | None, kind: str) -> str:
    """The image of a version (None: the pinned one) for `nvidia`, `amd`, `cpu-x86_64` or `cpu-arm64`.

    Without a table of the version, its tag is that of the pinned version with the other number.
    """
    pinned = PINNED[engine]
    found = load_table(engine, version or pinned).get("images", {}).get(kind)
    return str(found or load_table(engine, pinned)["images"][kind].replace(pinned, str(version)))


def cuda_of_image(image: str) -> str | None:
    """The major version of CUDA in an official image of a known version; None for every other image."""
    for engine in PINNED:
        for version in known_versions(engine):
            table = load_table(engine, version)
            if table.get("images", {}).get("nvidia") == image:
                return table.get("cuda")
    return None


def min_driver(cuda: str) -> int | None:
    """The oldest NVIDIA driver that a major version of CUDA needs; None if the version is not in NVIDIA's table."""
    return MIN_DRIVERS.get(cuda)
