"""Checks that stack.yaml is valid, rendered files are unchanged, and images and revisions are pinned."""

from __future__ import annotations

from pathlib import PurePosixPath

from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, rendered_folder, unknown, warn
from stackgen.render.version import describe_version
from stackgen.render.write import LOCK
from stackgen.spec import is_local

__all__ = [
    "check_image_pins", "check_images_present", "check_model_revisions", "check_project_folder",
    "check_rendered_files", "check_stack_file",
]  # fmt: skip

# the first file of a rendered stack, with Compose and on Kubernetes
FIRST_FILES = ("compose.yaml", "kustomization.yaml")

# for machines without Internet access
LOAD_IMAGE = (
    "copy the image with `docker save` and `docker load` from a machine that has it, or create a bundle of the stack "
    "there with `stackgen bundle create`"
)


def check_stack_file(inputs: DoctorInputs) -> Results:
    """stack.yaml has no errors."""
    for mistake in inputs.mistakes:
        evidence = f"{inputs.source}:{mistake.line}" if mistake.line else inputs.source
        yield fail(mistake.message, evidence=evidence, fix=mistake.hint, place=mistake.path, line=mistake.line,
                   column=mistake.column)  # fmt: skip
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
    lock = next((change.old for change in inputs.changes if change.path == LOCK), "")
    if version := describe_version(lock):
        yield warn(version, evidence=LOCK, fix=f"`stackgen render {folder} --diff` shows what this version changes")
    if edited:
        yield warn(
            "rendered files were edited by hand: `up` uses the edited files",
            evidence=", ".join(edited),
            fix=f"`stackgen render {folder} --diff` shows the edits. Move the edits to stack.yaml, or "
            f"discard the edits with `stackgen render {folder} --force`",
        )
    # a new stack has no rendered files yet, so a list of all its files adds nothing
    if outdated and not any((inputs.stack.output / name).exists() for name in FIRST_FILES):
        yield warn(
            "the files of the stack are not rendered yet: `up` will render them",
            evidence=f"{len(outdated)} files",
            fix=f"run `stackgen render {folder}`",
        )
    elif outdated:
        yield warn(
            "some rendered files don't match stack.yaml: `up` will render them again",
            evidence=", ".join(outdated),
            fix=f"run `stackgen render {folder}`",
        )
    if not changes:
        yield ok("the rendered files match stack.yaml", evidence=str(folder))


def check_project_folder(inputs: DoctorInputs) -> Results:
    """The containers with the name of this stack belong to its folder."""
    if inputs.stack is None:
        return
    name, folder = inputs.stack.plan.name, rendered_folder(inputs)
    if inputs.others.present:
        yield fail(
            f"another folder has a stack with the name {name}: `up` would take over its containers",
            evidence=", ".join(inputs.others.present),
            fix="set another `name:`, or run the command in the other folder",
            place="name",
        )
    elif inputs.host.projects is None:
        yield unknown(f"can't tell whether another folder has a stack with the name {name}",
                      evidence="the list of containers is unknown", place="name")  # fmt: skip
    elif inputs.others.gone:
        yield warn(
            f"the containers of {name} were started in another folder, which no longer contains a stack",
            evidence=", ".join(inputs.others.gone),
            fix=f"if you moved the stack, `stackgen up {folder}` continues here. Otherwise, set another `name:`",
            place="name",
        )
    else:
        yield ok(f"no other folder has containers with the name {name}",
                 evidence="compared with the containers on this machine")  # fmt: skip


def check_image_pins(inputs: DoctorInputs) -> Results:
    """Every image is pinned to a version."""
    for image in dict.fromkeys(service.image for service in inputs.services()):
        # only the last path segment has the tag: a registry's port has a colon too
        # a digest (image@sha256:…) contains a colon too, so it counts as pinned
        if ":" not in PurePosixPath(image).name or image.endswith((":latest", ":nightly")):
            place = next((f"{place}.image" for place, model in inputs.model_specs() if model.image == image), "")
            yield warn(
                f"image {image} is not pinned to a version: each pull can get another image",
                fix="use a version tag or a digest (image@sha256:…)",
                place=place,
            )
        else:
            yield ok(f"image {image} is pinned")


def check_images_present(inputs: DoctorInputs) -> Results:
    """Every image is present or is built on this machine."""
    present = inputs.host.images
    built = {service.image for service in inputs.services() if service.build}
    offline = ["--offline"] if inputs.offline else []
    offline += ["storage.offline: true"] if inputs.stack and inputs.stack.spec.storage.offline else []
    # replicas share one image
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
        elif offline:
            # either alone is about the Hub: a registry in the same network may still answer
            report = fail if len(offline) == 2 else warn
            yield report(
                f"image {image} is not present, so a start would have to pull it",
                evidence=" and ".join(offline),
                fix=f"if this machine can't reach the image's registry, {LOAD_IMAGE}. Otherwise run "
                f"`docker pull {image}`",
            )
        else:
            yield unknown(
                f"image {image} is not present: doctor can't tell before a start whether the image can be pulled",
                fix=f"`docker pull {image}` downloads the image now",
            )


def check_model_revisions(inputs: DoctorInputs) -> Results:
    """Models and LoRA adapters from the Hub are pinned to a revision."""
    named = [(place, model.model, model.revision) for place, model in inputs.model_specs()]
    named += [
        (f"{place}.lora_adapters[{index}]", lora.path, lora.revision)
        for place, model in inputs.model_specs()
        for index, lora in enumerate(getattr(model, "lora_adapters", ()))
    ]
    for place, name, revision in named:
        if is_local(name):
            continue
        lookup = inputs.hub.get(name)
        # the commit that the branch points to now, ready to paste
        commit = lookup.commit if lookup else ""
        if not revision:
            yield warn(
                f"{name} is not pinned to a revision: two machines may serve different weights",
                fix=f"set `revision: {commit}`" if commit else "set `revision` to a commit that the Hub lists",
                place=f"{place}.revision",
            )
        else:
            yield ok(f"{name} is pinned to a revision", evidence=revision, place=place)
