"""Build the exporter's image, unless one exists that contains exactly this stackgen.

The image's tag contains stackgen's version and a hash of the build context. In a checkout, the code can change while
the version stays the same. So `up` and `update` compare a label on the image with the digest of the wheel, and rebuild
the image if they differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.images.wheel import WHEEL_NAME, build_wheel, package_digest
from stackgen.plan import Plan, Service
from stackgen.render.write import write_atomically
from stackgen.resolve.addons.monitoring_targets import EXPORTER
from stackgen.runtimes.compose.command import compose_command, compose_error, run
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import connect

__all__ = ["LABEL", "build_exporter", "write_wheel"]

# the same names as in templates/images/exporter/Dockerfile
LABEL, BUILD_ARG = "stackgen.package", "STACKGEN_PACKAGE"


def write_wheel(plan: Plan, folder: Path) -> Path | None:
    """Writes stackgen's wheel into the exporter's build context.

    Returns its path, or None if the stack builds no exporter or the wheel is up to date.
    """
    service = _exporter_service(plan)
    if service is None or service.build is None:
        return None
    path = folder / service.build.context / WHEEL_NAME
    data = build_wheel()
    if path.exists() and path.read_bytes() == data:
        return None
    # the file name contains the version, so the wheel of another version would stay in the build context
    for old in path.parent.glob("stackgen-*.whl"):
        old.unlink()
    write_atomically(path, data)
    return path


def build_exporter(plan: Plan, folder: Path, progress: Callable[[str, str], None]) -> bool:
    """Builds the exporter's image unless it already contains this stackgen. Returns whether it was built.

    Raises StackgenError with the end of Docker's output.
    """
    service = _exporter_service(plan)
    if service is None or _packaged_digest(service.image) == package_digest():
        return False
    write_wheel(plan, folder)
    progress(EXPORTER, "building the image")
    # the Dockerfile writes the digest into the label that the next call compares
    build_arg = f"{BUILD_ARG}={package_digest()}"
    try:
        run([*compose_command(folder), "--progress", "plain", "build", "--build-arg", build_arg, EXPORTER])
    except StackgenError as error:
        # only Compose's own output needs a diagnosis: the hints of other errors contain what to install
        if error.message.startswith("docker compose:"):
            raise compose_error(error.message) from None
        raise
    return True


def _exporter_service(plan: Plan) -> Service | None:
    # an image set with `exporter_image` belongs to the user: there is nothing to build
    return next((service for service in plan.services if service.name == EXPORTER and service.build), None)


def _packaged_digest(image: str) -> str:
    """The digest of the stackgen inside `image`; "" if there is no such image or no label."""
    try:
        labels = connect().images.get(image).labels
    except sdk().errors.ImageNotFound:
        return ""
    return str(labels.get(LABEL, ""))
