"""The exporter's image: what it is built from, and whether the one that is there holds this very stackgen.

Its tag tells version and recipe. The code of a checkout changes under one version, so `up` and `update` compare the
label that they gave the image, and build it anew where it says something else.
"""

from __future__ import annotations

from stackgen.runtimes.compose.docker_sdk import sdk

from collections.abc import Callable
from pathlib import Path

from stackgen.resolve.addons.monitoring_targets import EXPORTER
from stackgen.errors import StackgenError
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose import lifecycle as compose
from stackgen.runtimes.compose.command import compose_command, run
from stackgen.images.wheel import NAME, digest, wheel
from stackgen.render.write import write_atomically

__all__ = ["LABEL", "build_exporter", "write_wheel"]

LABEL, ARGUMENT = "stackgen.package", "STACKGEN_PACKAGE"


def write_wheel(plan: Plan, folder: Path) -> Path | None:
    """Puts stackgen's wheel into the build context of the exporter, where the stack builds one; None: nothing to do."""
    service = _built(plan)
    if service is None or service.build is None:
        return None
    path = folder / service.build.context / NAME
    data = wheel()
    if path.exists() and path.read_bytes() == data:
        return None
    for old in path.parent.glob("stackgen-*.whl"):
        old.unlink()
    write_atomically(path, data)
    return path


def build_exporter(plan: Plan, folder: Path, progress: Callable[[str, str], None]) -> bool:
    """Builds the exporter's image unless one is there that holds this very stackgen; whether it did.

    Raises StackgenError with the end of Docker's output.
    """
    service = _built(plan)
    if service is None or _held(service.image) == digest():
        return False
    write_wheel(plan, folder)
    progress(EXPORTER, "build the image")
    argument = f"{ARGUMENT}={digest()}"
    try:
        run([*compose_command(folder), "--progress", "plain", "build", "--build-arg", argument, EXPORTER])
    except StackgenError as error:
        if error.message.startswith("docker compose:"):
            raise compose._refused(error.message) from None
        raise
    return True


def _built(plan: Plan) -> Service | None:
    return next((one for one in plan.services if one.name == EXPORTER and one.build), None)


def _held(image: str) -> str:
    """The digest of the stackgen in `image`; "" where there is no such image, or nobody said."""

    try:
        labels = compose._client().images.get(image).labels
    except sdk().errors.ImageNotFound:
        return ""
    return str(labels.get(LABEL, ""))
