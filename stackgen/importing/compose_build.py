"""Reads `build` of a service: what its Dockerfile sets, and what only a build can do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.importing.container import Container
from stackgen.importing.dockerfile import apply_dockerfile
from stackgen.render.read import read_regular

if TYPE_CHECKING:
    from stackgen.importing.compose_file import ComposeReader

__all__ = ["read_build"]

REASON = "stackgen does not build your Dockerfile: build the image yourself, and set `image`"
WARNING = "the source builds its own image. The stack uses stackgen's image, unless you set `image`"


def read_build(reader: ComposeReader, path: str, build: Any, container: Container) -> None:
    """Gives `container` the image, variables and command of its Dockerfile, as far as the service sets none.

    Format: docs.docker.com, Compose Build Specification.
    """
    values = build if isinstance(build, dict) else {"context": build}
    found = _read_dockerfile(reader, values)
    built = container.image
    has_steps = True
    if found is not None:
        text, place = found
        args = {name: value for name, value in _args(reader, values.get("args")) if value is not None}
        has_steps = apply_dockerfile(
            text, f"{path}.build, {place}", container, reader.ledger, args, str(values.get("target") or "")
        )
    if has_steps:
        reader.walk(f"{path}.build", build, REASON, built_in=False)
        reader.ledger.warn(f"{path}.build", WARNING)
    else:
        reader.walk(f"{path}.build", build, "the instructions of the Dockerfile are listed one by one")
    if built and not has_steps:
        built.item.build_in("the name of the image that Compose builds. Its Dockerfile contains only settings")
    elif built and (container.image not in (None, built) or "/" not in built.text):
        # the name of the image that Compose builds: no registry has it
        built.item.drop(REASON)
    # of a base without an engine, the name is what is known
    container.image = container.image or built


def _read_dockerfile(reader: ComposeReader, values: dict[str, Any]) -> tuple[str, str] | None:
    """The text of the Dockerfile and its name; None if it is not here, for example in a Git repository."""
    if values.get("dockerfile_inline"):
        return str(values["dockerfile_inline"]), "dockerfile_inline"
    folder = reader.folder / Path(reader.expand(str(values.get("context") or "."))).expanduser()
    path = folder / reader.expand(str(values.get("dockerfile") or "Dockerfile"))
    try:
        return read_regular(path).decode("utf-8", "replace"), str(path)
    except OSError:
        return None


def _args(reader: ComposeReader, value: Any) -> list[tuple[str, str | None]]:
    if isinstance(value, dict):
        pairs = [(str(name), inner) for name, inner in value.items()]
    else:
        words = [str(one) for one in value] if isinstance(value, list) else []
        pairs = [(one.partition("=")[0], one.partition("=")[2] if "=" in one else None) for one in words]
    # without a value, Compose passes the variable of the shell
    return [(name, reader.variables.get(name) if inner is None else reader.expand(str(inner))) for name, inner in pairs]
