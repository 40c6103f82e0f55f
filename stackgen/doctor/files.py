"""stack.yaml, the rendered files and the images."""

from __future__ import annotations

from pathlib import PurePosixPath

from stackgen.doctor.finding import Case, Results, fail, folder_of, good, unknown, warn
from stackgen.render.write import LOCK
from stackgen.spec import is_local

__all__ = ["pinned", "pulled", "rendered", "stack_file", "weights_pinned"]


def stack_file(case: Case) -> Results:
    """stack.yaml holds no mistake."""
    for mistake in case.mistakes:
        where = f"line {mistake.line}" if mistake.line else ""
        yield fail(mistake.message, f"{case.source} {where}".strip(), mistake.hint, mistake.path)
    if case.stack:
        yield good("stack.yaml is valid", case.source)


def rendered(case: Case) -> Results:
    """The rendered files are those that stack.yaml gives."""
    if case.stack is None:
        return
    changes = [change for change in case.changes if change.kind != "same" and change.path != LOCK]
    edited = [change.path for change in changes if change.edited]
    stale = [change.path for change in changes if not change.edited]
    folder = folder_of(case)
    if edited:
        yield warn(
            "files were edited by hand since they were rendered: `up` starts them as they are",
            ", ".join(edited),
            f"stackgen render {folder} --diff; put the change into stack.yaml, or --force",
        )
    if stale and not (folder / "compose.yaml").exists():
        yield warn("nothing is rendered yet: `up` does it", f"{len(stale)} files", f"stackgen render {folder}")
    elif stale:
        yield warn("rendered files are out of step with stack.yaml: `up` renders them anew", ", ".join(stale),
                   f"stackgen render {folder}")  # fmt: skip
    if not changes:
        yield good("the rendered files are in step with stack.yaml", str(folder))


def pinned(case: Case) -> Results:
    """Every image names a version."""
    for image in dict.fromkeys(service.image for service in case.services()):
        if ":" not in PurePosixPath(image).name or image.endswith((":latest", ":nightly")):
            place = next((f"{place}.image" for place, model in case.specs() if model.image == image), "")
            yield warn(f"image {image} is not pinned to a version: it changes under you", "",
                       "name a version, or a digest (image@sha256:…)", place)  # fmt: skip
        else:
            yield good(f"image {image} is pinned")


def pulled(case: Case) -> Results:
    """Every image is there, or is built here."""
    have = case.host.images
    built = {service.image for service in case.services() if service.build}
    for image in dict.fromkeys(service.image for service in case.services()):
        if have is None:
            yield unknown(f"whether image {image} is here is unknown")
        elif image in have:
            yield good(f"image {image} is here")
        elif image in built:
            yield good(f"image {image} is built at the first start", "its files are rendered beside compose.yaml")
        else:
            yield unknown(f"image {image} is not here: whether it can be pulled shows at the start", "",
                          f"docker pull {image} fetches it beforehand")  # fmt: skip


def weights_pinned(case: Case) -> Results:
    """A model of the Hub names a revision."""
    for place, model in case.specs():
        if is_local(model.model):
            continue
        answer = case.hub.get(model.model)
        commit = answer.commit if answer and answer.commit else "the commit that its page on the Hub shows"
        if not model.revision:
            yield warn(f"{model.model} has no revision: two machines may serve different weights", "",
                       f"revision: {commit}", f"{place}.revision")  # fmt: skip
        else:
            yield good(f"{model.model} has a revision", model.revision, place)
