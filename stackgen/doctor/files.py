"""Checks of stack.yaml, the rendered files, the images, and the pinned versions of images and models."""

from __future__ import annotations

from pathlib import PurePosixPath

from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, rendered_folder, unknown, warn
from stackgen.render.write import LOCK
from stackgen.spec import is_local

__all__ = [
    "check_image_pins", "check_images_present", "check_model_revisions", "check_rendered_files", "check_stack_file",
]  # fmt: skip


def check_stack_file(inputs: DoctorInputs) -> Results:
    """stack.yaml has no errors."""
    for mistake in inputs.mistakes:
        line = f"line {mistake.line}" if mistake.line else ""
        evidence = f"{inputs.source} {line}".strip()
        yield fail(mistake.message, evidence=evidence, fix=mistake.hint, place=mistake.path)
    if inputs.stack:
        yield ok("stack.yaml is valid", evidence=inputs.source)


def check_rendered_files(inputs: DoctorInputs) -> Results:
    """The files on disk are those that stack.yaml renders to."""
    if inputs.stack is None:
        return
    # the lock file changes with every other file, so listing it adds nothing
    changes = [change for change in inputs.changes if change.kind != "same" and change.path != LOCK]
    # `up` never overwrites an edited file, but does re-render an outdated one
    edited = [change.path for change in changes if change.edited]
    outdated = [change.path for change in changes if not change.edited]
    folder = rendered_folder(inputs)
    if edited:
        yield warn(
            "rendered files were edited by hand: `up` uses the edited files",
            evidence=", ".join(edited),
            fix=f"`stackgen render {folder} --diff` shows the edits; move the edits to stack.yaml, "
            "or discard them with --force",
        )
    # a new stack has no rendered files yet, so a list of all its files adds nothing
    if outdated and not (folder / "compose.yaml").exists():
        yield warn(
            "the files are not rendered yet: `up` will render them",
            evidence=f"{len(outdated)} files",
            fix=f"stackgen render {folder}",
        )
    elif outdated:
        yield warn(
            "rendered files don't match stack.yaml: `up` will render them again",
            evidence=", ".join(outdated),
            fix=f"stackgen render {folder}",
        )
    if not changes:
        yield ok("the rendered files match stack.yaml", evidence=str(folder))


def check_image_pins(inputs: DoctorInputs) -> Results:
    """Every image is pinned to a version."""
    for image in dict.fromkeys(service.image for service in inputs.services()):
        # only the last path segment has the tag: a registry's port has a colon too
        if ":" not in PurePosixPath(image).name or image.endswith((":latest", ":nightly")):
            place = next((f"{place}.image" for place, model in inputs.model_specs() if model.image == image), "")
            yield warn(
                f"image {image} is not pinned to a version: the image can change at any pull",
                fix="use a version tag or a digest (image@sha256:…)",
                place=place,
            )
        else:
            yield ok(f"image {image} is pinned")


def check_images_present(inputs: DoctorInputs) -> Results:
    """Every image is present or is built on this machine."""
    present = inputs.host.images
    built = {service.image for service in inputs.services() if service.build}
    for image in dict.fromkeys(service.image for service in inputs.services()):
        if present is None:
            yield unknown(f"can't tell whether image {image} is present")
        elif image in present:
            yield ok(f"image {image} is present")
        # stackgen's own images are in no registry
        elif image in built:
            yield ok(
                f"image {image} is built at the first start",
                evidence="the build files of the image are next to compose.yaml",
            )
        else:
            yield unknown(
                f"image {image} is not present: only a start shows whether this image can be pulled",
                fix=f"docker pull {image} downloads the image now",
            )


def check_model_revisions(inputs: DoctorInputs) -> Results:
    """Models from the Hub are pinned to a revision."""
    for place, model in inputs.model_specs():
        if is_local(model.model):
            continue
        lookup = inputs.hub.get(model.model)
        # the commit that the branch points to now, ready to paste
        commit = lookup.commit if lookup and lookup.commit else "COMMIT (the model's page on the Hub shows it)"
        if not model.revision:
            yield warn(
                f"{model.model} is not pinned to a revision: two machines may serve different weights",
                fix=f"revision: {commit}",
                place=f"{place}.revision",
            )
        else:
            yield ok(f"{model.model} is pinned to a revision", evidence=model.revision, place=place)
