"""Endpoints by name: entries of `endpoints.yaml` or of a stack file, a stack's own endpoints, and providers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from stackgen.check.target import Target
from stackgen.errors import SpecError, StackgenError
from stackgen.plan import Dialect
from stackgen.providers.catalog import Provider, find_key, find_provider, key_names_for, providers
from stackgen.providers.targets import ResolvedTarget, dialects, targets_from_stack
from stackgen.render.read import stack_file_in
from stackgen.spec import EndpointSpec
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.load import load_endpoints, read_text
from stackgen.stack.yaml_text import read_mapping

__all__ = [
    "FILE_NAME",
    "EndpointSource",
    "find_by_name",
    "open_endpoint_source",
    "target_from_provider",
    "targets_from_entry",
]

FILE_NAME = "endpoints.yaml"
NO_SOURCE_HINT = (
    "run `stackgen init` to create a stack.yaml, specify an endpoint with --provider or --base-url, or write an "
    "endpoints.yaml"
)


@dataclass(frozen=True, slots=True)
class EndpointSource:
    """The endpoints that a folder or file defines: endpoints of a stack, named entries, both or none.

    Relative paths are relative to `folder`, which also contains `.env`.
    """

    folder: Path
    stack: Stack | None = None
    entries: tuple[EndpointSpec, ...] = ()

    def resolve_all(self) -> list[ResolvedTarget]:
        """All endpoints: the stack's own, then the named entries."""
        own = targets_from_stack(self.stack) if self.stack else []
        return own + [one for entry in self.entries for one in targets_from_entry(entry, self.folder)]


def open_endpoint_source(path: str = ".", *, optional: bool = False) -> EndpointSource:
    """Opens a stack file, an endpoints file, or the folder of either.

    For a folder, this opens its stack.yaml, else its endpoints.yaml. With `optional`, a folder without both files is an
    empty source. Raises SpecError for an invalid file, StackgenError if there is no file.
    """
    where = Path(path)
    if where.suffix in (".yaml", ".yml"):
        return _open_endpoints_file(where) if _is_endpoints_file(where) else _open_stack_file(where)
    if stack_file_in(where).exists():
        return _open_stack_file(find_stack_file(path) or stack_file_in(where))
    if (where / FILE_NAME).exists():
        return _open_endpoints_file(where / FILE_NAME)
    if optional:
        return EndpointSource(where)
    raise StackgenError(f"{where} contains no stack.yaml and no {FILE_NAME}", NO_SOURCE_HINT)


def find_by_name(names: Iterable[str], source: EndpointSource) -> list[ResolvedTarget]:
    """The endpoints called `names`, without duplicates.

    Each name is looked up as a named entry, then as an endpoint, service or engine of the stack, then as a provider.
    Raises StackgenError, with the closest known name, for an unknown name.
    """
    entries = _named_entries(source)
    own = targets_from_stack(source.stack) if source.stack else []
    chosen = list[ResolvedTarget]()
    for name in names:
        # entries first: a name that the user chose overrides a built-in one
        if name in entries:
            entry, folder = entries[name]
            chosen += targets_from_entry(entry, folder)
        elif matching := [one for one in own if name in _names(one)]:
            chosen += matching
        elif name in providers():
            chosen.append(ResolvedTarget(target_from_provider(providers()[name], (Path(), source.folder))))
        else:
            known = [*entries, *(each for one in own for each in _names(one)), *providers()]
            # lower-case, as built-in names are: `VLLM` should suggest `vllm`
            close = get_close_matches(name.lower(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known names: {', '.join(dict.fromkeys(known))}"
            raise StackgenError(f"unknown provider or endpoint {name!r}", hint)
    # `--provider vllm,vllm-a` may name the same endpoint twice
    return list({(one.target.name, one.target.base_url): one for one in chosen}.values())


def target_from_provider(
    provider: Provider, folders: Iterable[Path] = (), *, base_url: str | None = None, key: str | None = None
) -> Target:
    """The provider's endpoint, or a server of the same kind at `base_url`, with the key found for it."""
    known = find_key(provider.key_names, folders, key)
    target = Target.from_url(base_url or provider.base_url, known.value if known else None)
    dialect = provider.dialect_at(target.base_url)
    return replace(target, name=provider.name, dialect=dialect, key_names=provider.key_names)


def targets_from_entry(entry: EndpointSpec, folder: Path) -> list[ResolvedTarget]:
    """Returns the endpoint of an entry, or all endpoints of the entry's stack; `folder` contains the entry's file."""
    if entry.stack:
        # only the stack's own endpoints: two files that refer to each other would recurse forever
        found = targets_from_stack(_open_stack(folder / Path(entry.stack).expanduser()))
        # the suffix is needed only to distinguish several endpoints
        names = [entry.name] if len(found) == 1 else [f"{entry.name}/{one.target.name}" for one in found]
        return [_with_limits(replace(one, target=replace(one.target, name=name)), entry)
                for one, name in zip(found, names, strict=True)]  # fmt: skip
    provider = providers().get(entry.provider or "")
    url = entry.base_url or (provider.base_url if provider else "")
    target = Target.from_url(url, None, entry.models)
    # if the entry specifies a variable, no other is tried: another variable may contain a key of another account
    fallback_names = provider.key_names if provider else key_names_for(target.base_url)
    key_names = (entry.api_key_env,) if entry.api_key_env else fallback_names
    # the .env of the current folder comes before the .env next to the file
    key = find_key(key_names, (Path(), folder))
    kind = provider or find_provider(target.base_url)
    dialect = _find_dialect(entry.dialect) if entry.dialect else kind.dialect_at(target.base_url) if kind else None
    named = replace(target, name=entry.name, api_key=key.value if key else None, dialect=dialect, key_names=key_names)
    return [_with_limits(ResolvedTarget(named), entry)]


def _with_limits(resolved: ResolvedTarget, entry: EndpointSpec) -> ResolvedTarget:
    limits = replace(resolved.target, max_ttft=entry.max_ttft, min_tokens_per_second=entry.min_tokens_per_second)
    return replace(resolved, target=limits)


def _find_dialect(name: str) -> Dialect:
    return (dialects() | {one.dialect.name: one.dialect for one in providers().values()})[name]


def _named_entries(source: EndpointSource) -> dict[str, tuple[EndpointSpec, Path]]:
    entries = {entry.name: (entry, source.folder) for entry in source.entries}
    # names in an endpoints.yaml next to the stack file, or in the current folder, are valid too
    for folder in (source.folder, Path()):
        if (folder / FILE_NAME).exists():
            for entry in load_endpoints(folder / FILE_NAME).endpoints:
                # entries of the stack file win, then entries of the file next to the stack file
                entries.setdefault(entry.name, (entry, folder))
    return entries


def _names(resolved: ResolvedTarget) -> tuple[str, ...]:
    # users know an endpoint by its name, its Compose service or its engine
    endpoint = resolved.endpoint
    return (endpoint.name, endpoint.service, endpoint.dialect.name) if endpoint else (resolved.target.name,)


def _is_endpoints_file(path: Path) -> bool:
    if path.name == FILE_NAME:
        return True
    # a file with another name is recognized by its content; opening an unreadable file as a stack reports the error
    try:
        data = read_mapping(read_text(path), str(path))
    except SpecError:
        return False
    return "endpoints" in data and not data.keys() & {"models", "name"}


def _open_endpoints_file(path: Path) -> EndpointSource:
    return EndpointSource(path.parent, entries=load_endpoints(path).endpoints)


def _open_stack_file(path: Path) -> EndpointSource:
    stack = _open_stack(path)
    return EndpointSource(path.parent, stack, stack.spec.endpoints)


def _open_stack(path: Path) -> Stack:
    return open_stack(str(path))
