"""Endpoints by name: those of `endpoints.yaml`, of a stack file, and the providers' own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from stackgen.check.target import Target
from stackgen.errors import SpecError, StackgenError
from stackgen.plan import Dialect
from stackgen.providers.catalog import Provider, find_key, key_names, of_url, providers
from stackgen.providers.targets import Found, dialects, of_stack
from stackgen.spec import EndpointSpec
from stackgen.stack.folder import Stack, open_stack
from stackgen.stack.load import load_endpoints, read_mapping, read_text

__all__ = ["FILE_NAME", "Place", "choose", "from_provider", "open_place", "targets_of"]

FILE_NAME = "endpoints.yaml"
NOWHERE_HINT = (
    "`stackgen init` writes a stack.yaml; or name an endpoint by --provider or --base-url, or write an endpoints.yaml"
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a folder or file knows: a stack, named endpoints, both or none. Paths and `.env` are those of `folder`."""

    folder: Path
    stack: Stack | None = None
    named: tuple[EndpointSpec, ...] = ()

    def found(self) -> list[Found]:
        """All its endpoints: the stack's own, then the named ones."""
        own = of_stack(self.stack) if self.stack else []
        return own + [one for entry in self.named for one in targets_of(entry, self.folder)]


def open_place(words: str = ".", *, optional: bool = False) -> Place:
    """The stack file, the endpoints file, or the folder of either that `words` name.

    A folder means its stack.yaml, else its endpoints.yaml. An `optional` place that holds neither is empty.
    Raises SpecError for a file that is wrong, StackgenError where there is none.
    """
    path = Path(words)
    if path.suffix in (".yaml", ".yml"):
        return _endpoints_file(path) if _is_endpoints_file(path) else _stack(path)
    if (path / "stack.yaml").exists():
        return _stack(path / "stack.yaml")
    if (path / FILE_NAME).exists():
        return _endpoints_file(path / FILE_NAME)
    if optional:
        return Place(path)
    raise StackgenError(f"{path} holds no stack.yaml and no {FILE_NAME}", NOWHERE_HINT)


def choose(names: Iterable[str], place: Place) -> list[Found]:
    """The endpoints called `names`: a named endpoint, an endpoint, service or engine of the stack, or a provider.

    In this order: what somebody named goes before what is built in. Raises StackgenError for a name that nobody has.
    """
    named = _all_named(place)
    own = of_stack(place.stack) if place.stack else []
    chosen = list[Found]()
    for name in names:
        if name in named:
            entry, folder = named[name]
            chosen += targets_of(entry, folder)
        elif mine := [one for one in own if name in _names(one)]:
            chosen += mine
        elif name in providers():
            chosen.append(Found(from_provider(providers()[name], (Path(), place.folder))))
        else:
            known = [*named, *(each for one in own for each in _names(one)), *providers()]
            close = get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(dict.fromkeys(known))}"
            raise StackgenError(f"there is no provider or endpoint {name!r}", hint)
    # `--provider vllm,vllm-a` may mean the same one twice
    return list({(one.target.name, one.target.base_url): one for one in chosen}.values())


def from_provider(
    provider: Provider, folders: Iterable[Path] = (), *, base_url: str | None = None, key: str | None = None
) -> Target:
    """The provider's own endpoint (or `base_url`, of the same kind), with the key that is found for it."""
    known = find_key(provider.keys, folders, key)
    target = Target.from_url(base_url or provider.base_url, known.value if known else None)
    return replace(target, name=provider.name, dialect=provider.dialect_at(target.base_url), key_names=provider.keys)


def targets_of(entry: EndpointSpec, folder: Path) -> list[Found]:
    """What an entry stands for: one endpoint, or all of the stack that it names. `folder` is where its file lies."""
    if entry.stack:
        # not the endpoints that this stack names in turn: two files that name each other would never end
        found = of_stack(_open(folder / Path(entry.stack).expanduser()))
        titles = [entry.name] if len(found) == 1 else [f"{entry.name}/{one.target.name}" for one in found]
        return [_limited(replace(one, target=replace(one.target, name=name)), entry)
                for one, name in zip(found, titles, strict=True)]  # fmt: skip
    provider = providers().get(entry.provider or "")
    url = entry.base_url or (provider.base_url if provider else "")
    target = Target.from_url(url, None, entry.models)
    names = (entry.api_key_env,) if entry.api_key_env else provider.keys if provider else key_names(target.base_url)
    key = find_key(names, (Path(), folder))
    kind = provider or of_url(target.base_url)
    dialect = _dialect(entry.dialect) if entry.dialect else kind.dialect_at(target.base_url) if kind else None
    named = replace(target, name=entry.name, api_key=key.value if key else None, dialect=dialect, key_names=names)
    return [_limited(Found(named), entry)]


def _limited(found: Found, entry: EndpointSpec) -> Found:
    limits = replace(found.target, max_ttft=entry.max_ttft, min_tokens_per_second=entry.min_tokens_per_second)
    return replace(found, target=limits)


def _dialect(name: str) -> Dialect:
    return (dialects() | {one.dialect.name: one.dialect for one in providers().values()})[name]


def _all_named(place: Place) -> dict[str, tuple[EndpointSpec, Path]]:
    named = {entry.name: (entry, place.folder) for entry in place.named}
    # beside a stack.yaml an endpoints.yaml is looked at for names only; the one here counts too
    for folder in (place.folder, Path()):
        if (folder / FILE_NAME).exists():
            for entry in load_endpoints(folder / FILE_NAME).endpoints:
                named.setdefault(entry.name, (entry, folder))
    return named


def _names(found: Found) -> tuple[str, ...]:
    endpoint = found.endpoint
    return (endpoint.name, endpoint.service, endpoint.dialect.name) if endpoint else (found.target.name,)


def _is_endpoints_file(path: Path) -> bool:
    if path.name == FILE_NAME:
        return True
    # any other name: what it holds tells
    try:
        data = read_mapping(read_text(path), str(path))
    except SpecError:
        return False
    return "endpoints" in data and not data.keys() & {"models", "name"}


def _endpoints_file(path: Path) -> Place:
    return Place(path.parent, None, load_endpoints(path).endpoints)


def _stack(path: Path) -> Place:
    stack = open_stack(str(path))
    return Place(path.parent, stack, stack.spec.endpoints)


def _open(path: Path) -> Stack:
    return open_stack(str(path))
