"""Reads a Compose file, in the style of version 1, 2 or 3, into containers. Format: the Compose specification.

stackgen parses the file itself, because Compose may be missing on this machine. Also, `docker compose config` prints no
line numbers, and replaces variables.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stackgen.errors import Mistake, SpecError
from stackgen.importing.compose_merge import merge, rebase
from stackgen.importing.compose_service import read_service
from stackgen.importing.compose_shape import find_shape_mistakes
from stackgen.importing.container import Container
from stackgen.importing.env_files import read_variables
from stackgen.importing.ledger import Ledger, Word
from stackgen.importing.variables import expand
from stackgen.render.read import read_regular
from stackgen.stack.load import read_text
from stackgen.stack.yaml_text import Loader, read_mapping

__all__ = ["ComposeReader", "is_compose", "load_text", "read_compose"]

SECTIONS = ("services", "version", "name", "volumes", "networks", "secrets", "configs", "include", "models")


class _TextLoader(Loader):
    """Reads every scalar as text, as Compose does with most of them: `22:22` is no number, and `1.50` stays `1.50`."""


# only null and `<<` keep a meaning of their own
_TextLoader.yaml_implicit_resolvers = {
    "<": [("tag:yaml.org,2002:merge", re.compile(r"^<<$"))],
    **{char: [("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"))] for char in ("~", "n", "N", "")},
}


def load_text(text: str, source: str) -> dict[str, Any]:
    """The mapping in `text` with all scalars as text. Raises SpecError for invalid YAML."""
    # finds duplicate keys, alias bombs and other types first
    read_mapping(text, source)
    data: dict[str, Any] = yaml.load(text, Loader=_TextLoader)  # noqa: S506 - a subclass of SafeLoader
    return data


def is_compose(data: Mapping[str, Any]) -> bool:
    """Whether `data` is a Compose file, also one of version 1 without `services`."""
    if isinstance(data.get("services"), dict) or isinstance(data.get("include"), list):
        return True
    services = [value for key, value in data.items() if not str(key).startswith("x-") and key not in SECTIONS]
    return bool(services) and all(isinstance(one, dict) and ("image" in one or "build" in one) for one in services)


class ComposeReader:
    """One Compose file: its variables, and the values in it, each registered in the ledger.

    `prefix` stands before the place of each value of an included file. `outer` are the variables of the file that
    includes it, and `env_files` replace its `.env`.
    """

    def __init__(
        self, data: dict[str, Any], folder: Path, source: str, ledger: Ledger, prefix: str = "",
        outer: Mapping[str, str] | None = None, env_files: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.data, self.folder, self.source, self.ledger, self.prefix = data, folder, source, ledger, prefix
        # the folder of the project, which the paths of the stack are relative to
        self.root = folder
        self.file_variables: dict[str, str] = {}
        for path in env_files or (folder / ".env",):
            self.file_variables |= read_variables(path) or {}
        # as in Compose, the environment overrides .env, and the including file the included one
        self.variables = {**self.file_variables, **(os.environ if outer is None else outer)}

    def at_root(self) -> ComposeReader:
        """The same reader for paths that are relative to the project's folder."""
        found = copy.copy(self)
        found.folder = self.root
        return found

    def word(self, path: str, value: Any) -> Word:
        """The scalar at `path`, with variables replaced."""
        raw = "" if value is None else str(value)
        text, unknown = expand(raw, self.variables, compose=True)
        return self.ledger.word(path, raw, text, unknown)

    def expand(self, text: str) -> str:
        """`text` with variables replaced."""
        return expand(text, self.variables, compose=True)[0]

    def walk(self, path: str, value: Any, reason: str, *, built_in: bool = True) -> None:
        """Registers every scalar below `path` with one reason."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self.walk(f"{path}.{key}", inner, reason, built_in=built_in)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                self.walk(f"{path}[{index}]", inner, reason, built_in=built_in)
        else:
            item = self.word(path, value).item
            if built_in:
                item.build_in(reason)
            else:
                item.drop(reason)


def read_compose(
    data: dict[str, Any], folder: Path, source: str, ledger: Ledger, overrides: Sequence[Path] = ()
) -> tuple[list[Container], str]:
    """The containers in a Compose file, and the name of its project. `overrides` are merged into it, in this order.

    Raises SpecError if a file can't be read.
    """
    replaced: list[tuple[str, Any]] = []
    for path in overrides:
        other = load_text(read_text(path), str(path))
        data = merge(_as_services(data), _as_services(other), lambda *one: replaced.append(one))
    reader = ComposeReader(data, folder, source, ledger)
    project = re.sub(r"[^a-z0-9_-]", "", folder.resolve().name.lower())
    if isinstance(data.get("services"), dict) and data.get("name"):
        word = reader.word("name", data["name"])
        project = project if word.unknown else word.text
        word.item.carry("name")
    for place, value in replaced:
        reader.walk(place, value, "a later file replaces it")
    containers = list(_read_project(reader, {Path(source).resolve()}))
    names = [one.name for one in containers]
    if twice := next((name for name in names if names.count(name) > 1), None):
        places = [one.place for one in containers if one.name == twice]
        raise SpecError(source, [Mistake(places[-1], f"the service is also at {places[0]}, and Compose "
                                         "refuses two services with the same name",
                                         hint="rename one of the two services")])  # fmt: skip
    return containers, project


def _as_services(data: dict[str, Any]) -> dict[str, Any]:
    # version 1 has services at the top
    is_old = not {"services", "include"} & set(data) and is_compose(data)
    return {"services": data} if is_old else data


def _read_project(reader: ComposeReader, seen: set[Path]) -> Iterator[Container]:
    """The containers of a file and of those that it includes."""
    data, source, prefix = reader.data, reader.source, reader.prefix
    is_old = _as_services(data) is not data
    services = {key: value for key, value in data.items() if not str(key).startswith("x-")} if is_old else (
        data.get("services") or {})  # fmt: skip
    sections = {} if is_old else dict(data)
    for key in ("volumes", "networks"):
        if sections.get(key) is not None and not isinstance(sections[key], dict):
            raise SpecError(source, [Mistake(key, "must be a mapping with names as keys")])
    if "version" in sections:
        reader.word(f"{prefix}version", sections["version"]).item.build_in("Compose ignores it")
    if prefix and "name" in sections:
        reader.word(f"{prefix}name", sections["name"]).item.build_in("the project has the name of the including file")
    for key, value in sections.items():
        if str(key).startswith("x-"):
            reader.walk(f"{prefix}{key}", value, "this block takes effect where its anchor is used")
    for inner in list(_read_includes(reader, sections.get("include"), seen)):
        yield from _read_project(inner, seen)
        for key in ("volumes", "networks"):
            # a service may use what an included file declares
            if isinstance(inner.data.get(key), dict):
                sections[key] = {**inner.data[key], **(sections.get(key) or {})}
    for name, service in services.items():
        path = f"{prefix}services.{name}" if not is_old else f"{prefix}{name}"
        if not isinstance(service, dict):
            raise SpecError(source, [Mistake(path, "must be a mapping with `image` or `build`")])
        merged = _extend(reader, data, service, path, set())
        if mistakes := list(find_shape_mistakes(merged, path)):
            raise SpecError(source, mistakes)
        # paths of the stack are relative to the folder of the project
        moved = rebase(merged, os.path.relpath(reader.folder, reader.root))
        yield read_service(reader.at_root(), str(name), path, moved, sections)
    for key in ("volumes", "networks", "secrets", "configs", "models"):
        if key in data and not is_old:
            _walk_section(reader, key, data[key])


def _read_includes(reader: ComposeReader, value: Any, seen: set[Path]) -> Iterator[ComposeReader]:
    """The files in `include`, each with its folder and variables (docs.docker.com, Compose file reference: include)."""
    for index, entry in enumerate(value if isinstance(value, list) else [value] if value else []):
        place = f"{reader.prefix}include[{index}]"
        long = entry if isinstance(entry, dict) else {"path": entry}
        words: dict[str, list[Word]] = {}
        for key, inner in long.items():
            at = f"{place}.{key}" if isinstance(entry, dict) else place
            values = inner if isinstance(inner, list) else [inner]
            names = [f"{at}[{i}]" for i in range(len(values))] if isinstance(inner, list) else [at]
            words[key] = [reader.word(name, one) for name, one in zip(names, values, strict=True)]
        used = [word for many in words.values() for word in many]
        paths = [reader.folder / word.text for word in words.get("path", [])]
        if missing := next((one for one in paths if not one.is_file()), None):
            for word in used:
                word.item.drop(f"{missing} is not here: import the project in its own folder, or import this file too")
            continue
        if not paths:
            raise SpecError(reader.source, [Mistake(place, "must be a path, or a mapping with `path`")])
        if found := next((one for one in paths if one.resolve() in seen), None):
            raise SpecError(reader.source, [Mistake(place, f"{found} is included twice, or includes itself",
                                                    hint="remove one of the lines")])  # fmt: skip
        seen.update(one.resolve() for one in paths)
        for word in used:
            word.item.build_in("the values of the included file are listed one by one")
        data: dict[str, Any] = {}
        replaced: list[tuple[str, Any]] = []
        for path in paths:
            data = merge(data, _as_services(load_text(read_text(path), str(path))), lambda *one: replaced.append(one))  # noqa: B023
        folder = reader.folder / words["project_directory"][0].text if "project_directory" in words else paths[0].parent
        envs = [reader.folder / word.text for word in words.get("env_file", [])]
        inside = ComposeReader(data, folder, str(paths[0]), reader.ledger, f"{words['path'][0].text}: ",
                               reader.variables, envs)  # fmt: skip
        inside.root = reader.root
        for at, old in replaced:
            inside.walk(f"{inside.prefix}{at}", old, "a later file replaces it")
        yield inside


def _walk_section(reader: ComposeReader, key: str, value: Any) -> None:
    reasons = {
        "models": "a model of Docker Model Runner: import the command that serves it",
        "volumes": "a stack declares its own volumes",
        "networks": "a stack has its own network",
        "secrets": "a stack declares its own secrets",
        "configs": "use `mounts`",
    }
    reader.walk(f"{reader.prefix}{key}", value, reasons[key], built_in=key in ("volumes", "networks"))


def _extend(reader: ComposeReader, data: dict[str, Any], service: dict[str, Any], path: str,
            seen: set[tuple[str, str]], at: str = "") -> dict[str, Any]:  # fmt: skip
    """The service with what it `extends`, from its own file (`data`, at the path `at`) or another one."""
    base = service.get("extends")
    if not base:
        return service
    name = base if isinstance(base, str) else str(base.get("service", ""))
    file = "" if isinstance(base, str) else reader.expand(str(base.get("file") or ""))
    at = file or at
    if (at, name) in seen:
        raise SpecError(reader.source, [Mistake(f"{path}.extends", "extends itself", hint="remove the loop")])
    if file:
        try:
            data = load_text(read_regular(reader.folder / file).decode("utf-8", "replace"), file)
        except OSError as error:
            message = f"the file {file} can't be read: {error.strerror}"
            raise SpecError(reader.source, [Mistake(f"{path}.extends", message)]) from None
    services: dict[str, Any] = data.get("services", data)
    if not isinstance(services, dict) or not isinstance(services.get(name), dict):
        raise SpecError(
            reader.source,
            [Mistake(f"{path}.extends", f"there is no service {name!r}" + (f" in {file}" if file else ""))],
        )
    found = rebase(services[name], os.path.dirname(at))
    inner = _extend(reader, data, found, path, seen | {(at, name)}, at)
    reader.walk(f"{path}.extends", base, "the values of the other service are listed here")
    own = {key: value for key, value in service.items() if key != "extends"}
    merged: dict[str, Any] = merge(inner, own, lambda at, value: reader.walk(
        f"{path}.extends: {at}", value, "the service with `extends` sets another value"))  # fmt: skip
    return merged
