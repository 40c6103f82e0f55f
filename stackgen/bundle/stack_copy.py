"""The stack as it runs on a machine without Internet access: offline, and with local files next to stack.yaml.

No secret gets into it: the files are rendered from stack.yaml, and not copied from the stack's folder.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from stackgen.errors import StackgenError
from stackgen.plan import EnvRef, Plan
from stackgen.render.read import STACK_FILES, read_regular
from stackgen.render.templating import render
from stackgen.resolve.hosts import resolve
from stackgen.spec import StackSpec
from stackgen.stack.clear_text import find_clear_text
from stackgen.stack.copies import replace_paths
from stackgen.stack.envfile import GENERATED_SECRETS
from stackgen.stack.folder import Stack
from stackgen.stack.load import parse_stack
from stackgen.stack.secrets import collect_secrets
from stackgen.stack.yaml_text import read_value
from stackgen.targets.compose import ComposeSite
from stackgen.targets.snapshot import find_repository, follow_link, repository_id

__all__ = ["LocalModel", "StackCopy", "copy_stack", "move_store"]

WEIGHTS, FILES = "weights", "files"
MODEL = re.compile(r"models\[\d+\]\.(model|lora_adapters\[\d+\]\.path)")
MOUNT = re.compile(r"models\[\d+\]\.mounts\[\d+\]\.source")
COPIED = re.compile(r"ca_certificates|models\[\d+\]\.(chat_template|extra_args\[\d+\])")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model or an adapter in a folder of this machine, and where it is in the copied stack's folder."""

    source: Path
    name: str
    place: str


@dataclass(slots=True)
class StackCopy:
    """The copied stack: `files` (path, content, whether it is rendered), and `needed`: what the user has to create."""

    spec: StackSpec
    plan: Plan
    files: list[tuple[str, bytes, bool]] = field(default_factory=list)
    local_models: list[LocalModel] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)


def copy_stack(stack: Stack, images: Mapping[str, str]) -> StackCopy:
    """Returns the copy of `stack` for a bundle. `images` maps names of images to the names that replace them.

    Raises StackgenError if stack.yaml contains a secret, names a file that can't be copied, or has several machines.
    """
    if stack.spec.host:
        raise StackgenError(
            "a bundle is for a stack on one machine, but this stack has `hosts`",
            "write a stack.yaml with the models of one machine, and create a bundle of that stack",
        )
    if found := next(find_clear_text(stack.spec), None):
        raise StackgenError(
            f"a bundle must not contain secrets, but stack.yaml does: {found}", "move the secret into .env"
        )
    paths = _Paths(stack)
    text = replace_paths(stack.text, paths.choose)
    for index, model in enumerate(stack.spec.models):
        # the name of a snapshot's folder is a commit, so the name of its repository is kept as it is served
        name = repository_id(follow_link(stack.folder, model.model))
        if name and not model.served_names:
            text = _edit(text, ("models", index, "served_names"), f"[{name}]")
    for path, value in _find_values(read_value(text), ()):
        if value in images:
            text = _edit(text, path, images[value])
    text = _set_storage(text, "offline", "true")
    spec = parse_stack(text, STACK_FILES[0])
    if any(model.gpus == "auto" for model in spec.models):
        raise StackgenError("`gpus: auto` chooses GPUs of this machine, but a bundle is for another machine",
                            "set a count, for example `gpus: 1`, in stack.yaml")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths.link_into(folder)
        plan = resolve(spec, ComposeSite(folder, folder), STACK_FILES[0])
        rendered = [
            (file.path, file.text.encode("utf-8", "surrogateescape"), True) for file in render(plan, STACK_FILES[0])
        ]
    copy = StackCopy(spec, plan, [(STACK_FILES[0], text.encode(), False), *paths.files, *rendered], paths.models)
    copy.needed = [*paths.needed, *_find_variables(plan), *_find_overrides(stack.folder)]
    _refuse_secrets(stack.folder, copy)
    return copy


def move_store(text: str, path: str) -> str:
    """Returns the stack file `text` with another folder for the weights."""
    return _set_storage(text, "path", f'"{path}"')


class _Paths:
    """The local paths of a stack file: which files are copied, and what is written instead of the paths."""

    def __init__(self, stack: Stack) -> None:
        self._folder = stack.folder
        self.files: list[tuple[str, bytes, bool]] = []
        self.models: list[LocalModel] = []
        self.needed: list[str] = []
        self._places: dict[str, Path] = {}

    def choose(self, place: str, path: str) -> str | None:
        """See `replace_paths`."""
        real = self._folder / os.path.expanduser(path)
        if MODEL.fullmatch(place):
            return self._add_model(place, path, real)
        if COPIED.fullmatch(place):
            return self._add_file(place, path, real)
        if place.startswith("gateway.tls."):
            sentence = f"{place}: {path} (certificates and keys are in no bundle: copy this file by hand)"
            self.needed.append(sentence)
        elif MOUNT.fullmatch(place):
            self.needed.append(f"{place}: {path} (a bundle does not contain `mounts`: copy it by hand)")
        elif place.startswith("endpoints["):
            self.needed.append(f"{place}: {path} (another stack, which needs its own bundle)")
        return None

    def link_into(self, folder: Path) -> None:
        """Creates what the plan reads from disk: copied files, and folders with links to the files of models."""
        for path, data, _ in self.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        for model in self.models:
            for one in [model.source] if model.source.is_file() else model.source.rglob("*"):
                target = folder / model.place / one.relative_to(model.source)
                if one.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(one.resolve())

    def _add_model(self, place: str, path: str, real: Path) -> str:
        if not real.exists():
            raise StackgenError(f"{place}: {path} does not exist", "a bundle needs the model's files")
        linked = follow_link(self._folder, path)
        name = repository_id(linked) or os.path.basename(
            os.path.realpath(real) if path in (".", "./") else os.path.normpath(path)
        )
        chosen = self._reserve(WEIGHTS, os.path.basename(name), real.resolve())
        model = LocalModel(real.resolve() if find_repository(linked) else real.absolute(), name, chosen)
        if model not in self.models:
            self.models.append(model)
        return f"./{chosen}"

    def _add_file(self, place: str, path: str, real: Path) -> str | None:
        # an inline template, or a path of the image
        if not real.is_file():
            if place == "ca_certificates":
                raise StackgenError(f"{place}: {path} does not exist", "a bundle needs the file")
            return None
        data = read_regular(real)
        if b"PRIVATE KEY-----" in data:
            raise StackgenError(f"{place}: {path} contains a private key, but a bundle must not contain secrets",
                                "set the path to a file without the key")  # fmt: skip
        chosen = self._reserve(FILES, real.name, real.resolve())
        if all(known != chosen for known, _, _ in self.files):
            self.files.append((chosen, data, False))
        return f"./{chosen}"

    def _reserve(self, folder: str, name: str, real: Path) -> str:
        """A path below `folder` for the file or folder `real`: the same one for the same file."""
        for number in range(1, 1000):
            chosen = f"{folder}/{name}" if number == 1 else f"{folder}/{number}/{name}"
            if self._places.setdefault(chosen, real) == real:
                return chosen
        raise StackgenError(f"the stack names 1000 files with the same name, {name}", "rename some of them")


def _set_storage(text: str, name: str, value: str) -> str:
    storage = read_value(text).get("storage")
    return _edit(text, ("storage", name), value) if storage else _edit(text, ("storage",), f"{{{name}: {value}}}")


def _edit(text: str, path: tuple[str | int, ...], value: str) -> str:
    # not imported before: the package compiles the patterns of all rules, and most actions edit nothing
    from stackgen.diagnose.rule import Edit
    from stackgen.diagnose.stack_edit import apply_edit

    # LookupError: for a place outside of the models, its message can't name the place
    with suppress(StackgenError, LookupError):
        return apply_edit(text, Edit(path, value))
    # aliases and block scalars can't be edited in place: the copy loses its comments, and the user's file keeps them
    data = read_value(text)
    owner = data
    for part in path[:-1]:
        owner = owner[part]
    owner[path[-1]] = read_value(value)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)


def _find_values(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yields each text in the data of a stack file, with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _find_values(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _find_values(inner, (*path, index))


def _find_variables(plan: Plan) -> Iterator[str]:
    """Sentences about the variables in .env that nobody can generate."""
    values = (value for service in plan.services for _, value in service.environment)
    for value in dict.fromkeys(value for value in values if isinstance(value, EnvRef)):
        if value.name not in GENERATED_SECRETS and (value.required or not value.default):
            yield f"{value.name} in .env" + (f": {value.required}" if value.required else " (optional)")


def _find_overrides(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*compose.override.y*ml")):
        yield f"{path.name}: Compose reads this file of yours, which is not in the bundle: copy it by hand"


def _refuse_secrets(folder: Path, copy: StackCopy) -> None:
    secrets = [secret.encode() for secret in collect_secrets(folder) if len(secret) >= 8]
    for path, data, _ in copy.files:
        if any(secret in data for secret in secrets):
            raise StackgenError(
                f"{path} contains a secret of this stack, but a bundle must not contain secrets",
                "move the secret into .env, and read the variable in stack.yaml with from_env",
            )
