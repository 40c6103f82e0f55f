"""stackgen itself and the Python packages that it needs, as wheels for the machine without Internet access."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from stackgen.bundle.blobs import BlobWriter, Progress
from stackgen.bundle.chunks import read_chunks
from stackgen.bundle.manifest import Wheel
from stackgen.errors import MachineError, StackgenError
from stackgen.images.wheel import WHEEL_NAME, build_wheel
from stackgen.runtimes.process.pip import PLATFORM_TAGS, download_wheels

__all__ = ["collect_wheels", "this_python"]


def this_python() -> str:
    """The version of the Python that runs this, such as 3.12."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def collect_wheels(pythons: Sequence[str], platform: str, writer: BlobWriter, progress: Progress) -> list[Wheel]:
    """Adds the wheels for these versions of Python to the bundle.

    stackgen's own wheel is built from its installed files: a registry does not have a checkout's code. Raises
    StackgenError if pip finds no wheel of a package.
    """
    requirements = _find_requirements()
    if platform not in PLATFORM_TAGS:
        raise StackgenError(f"there are no Python packages for {platform}", "leave the packages out with --no-wheels")
    wheels = {WHEEL_NAME: Wheel(name=WHEEL_NAME, digest=writer.add_bytes(build_wheel(requirements)))}
    for number, python in enumerate(pythons):
        progress("Python packages", number, len(pythons))
        # the requirements are a part of the key: an update of stackgen may change them
        key = f"wheels:{python}:{platform}:{hashlib.sha256(repr(requirements).encode()).hexdigest()}"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            download_wheels(requirements, folder, platform, python)
            for path in sorted(folder.glob("*.whl")):
                with open(path, "rb") as file:
                    digest = writer.add(read_chunks(file), path.stat().st_size, f"{key}:{path.name}", own=True)
                wheels[path.name] = Wheel(name=path.name, digest=digest)
    progress("Python packages", len(pythons), len(pythons))
    return list(wheels.values())


def _find_requirements() -> tuple[str, ...]:
    try:
        found = metadata.requires("stackgen") or []
    except metadata.PackageNotFoundError:
        raise MachineError(
            "this stackgen is not installed, so the packages that it needs are unknown",
            "install stackgen (`pip install -e .` in a checkout), or leave the packages out with --no-wheels",
        ) from None
    # the extras are for the development of stackgen
    return tuple(sorted(one for one in found if "extra ==" not in one))
