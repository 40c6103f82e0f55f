"""Collects doctor's inputs from a stack on disk: models, `.env`, drift. Starts no program, sends no request."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from stackgen.doctor.adapter_facts import AdapterFacts, read_adapter_facts
from stackgen.doctor.certificate import find_tls_problem
from stackgen.doctor.cluster_facts import ClusterFacts
from stackgen.doctor.facts import Host
from stackgen.doctor.finding import DoctorInputs, EnvFacts
from stackgen.doctor.model_facts import ModelFacts, read_model_facts
from stackgen.doctor.named_files import find_missing_files, read_named_files, resolve_path
from stackgen.doctor.other_layouts import find_elsewhere
from stackgen.errors import SpecError, StackgenError
from stackgen.render.read import read_regular, stack_file_in
from stackgen.render.write import compare
from stackgen.spec import is_local
from stackgen.stack.envfile import env_file, read_env
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.keys import is_env_key_refused
from stackgen.stack.lost_keys import KeptKeys
from stackgen.stack.project import compare_folders
from stackgen.targets.compose import ComposeSite

if TYPE_CHECKING:
    from stackgen.check.huggingface import HubLookup

__all__ = [
    "collect_inputs", "collect_neighbour_inputs", "collect_start_inputs", "hub_models", "lora_sources",
    "read_env_facts", "read_hub_token", "try_open_stack",
]  # fmt: skip


# variables in .env with the path of a file
TOKEN_FILES = ("HF_TOKEN_FILE",)


def try_open_stack(path: str | None) -> tuple[Stack | None, tuple[Any, ...], str]:
    """The stack at `path` (default: here), the errors in its file, and the file's name.

    (None, (), "") if `path` is None and there is no stack.yaml here.
    """
    if path is None and not stack_file_in(Path()).exists():
        return None, (), ""
    path = path or "."
    source = str(find_stack_file(path) or Path(path) / "stack.yaml")
    try:
        return open_stack(path), (), source
    # errors in the file become findings, next to those of the machine
    except SpecError as error:
        return None, error.mistakes, source


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository to download: its id, its revision, and the only file to download, if there is one."""

    model: str
    revision: str | None = None
    file: str = ""


def hub_models(stack: Stack | None) -> list[HubRepository]:
    """The models and LoRA adapters that would be downloaded from the Hub, each once."""
    models = stack.spec.models if stack else ()
    found = [HubRepository(one.model, one.revision, getattr(one, "file", None) or "") for one in models]
    found += [HubRepository(lora.path, lora.revision) for one in models for lora in getattr(one, "lora_adapters", ())]
    drafts = [spec for one in models if (spec := getattr(one, "speculative", None)) and spec.model]
    found += [HubRepository(spec.model, spec.revision) for spec in drafts]
    # two entries may serve the same model with other flags: one request is enough
    return list({one.model: one for one in found if not is_local(one.model)}.values())


def lora_sources(stack: Stack) -> set[str]:
    """The repositories and folders of LoRA adapters. Their names often contain the size of the base model."""
    return {lora.path for one in stack.spec.models for lora in getattr(one, "lora_adapters", ())}


def read_hub_token(env: EnvFacts | None) -> str:
    """The Hub token that the download would use; "" without one."""
    name = env.values.get("HF_TOKEN_FILE", "") if env else ""
    try:
        # as in Compose, a relative path is relative to the project folder, not to the current folder
        return env_file(Path(env.path).parent, name).read_text("utf-8").strip() if env and name else ""
    # a wrong path is reported by SG-P074; ValueError: a null byte in the name
    except (OSError, UnicodeDecodeError, ValueError):
        return ""


def collect_inputs(
    host: Host,
    stack: Stack | None = None,
    mistakes: tuple[Any, ...] = (),
    source: str = "",
    hub: Mapping[str, HubLookup | None] | None = None,
    offline: bool = False,
    cluster: ClusterFacts | None = None,
    kept: KeptKeys | None = None,
) -> DoctorInputs:
    """The inputs for a stack on a machine, with all facts from the machine's disk."""
    if stack is None:
        return DoctorInputs(host, mistakes=mistakes, source=source)
    base, hub = stack.folder, hub or {}
    models: dict[str, ModelFacts] = {}
    cached: dict[str, bool | None] = {}
    for model in stack.spec.models:
        if is_local(model.model):
            # llama.cpp: the model is a folder with `file` in it, or the GGUF itself
            path = resolve_path(base, model.model)
            file = getattr(model, "file", None)
            # what the container sees, because a link out of the mounted folder leads nowhere there
            root = resolve_path(base, ComposeSite(base, base).mount(model.model).source)
            models[model.model] = read_model_facts(path / file if file and path.is_dir() else path, root)
            continue
        # unreadable storage must not count as empty storage
        cached[model.model] = None if host.storage_root is None else False
        # files on disk contain more facts than the Hub's answer, which is config.json only
        if host.storage_root and (snapshot := _find_snapshot(Path(host.storage_root), model.model, model.revision)):
            cached[model.model] = True
            models[model.model] = read_model_facts(snapshot)
        elif (lookup := hub.get(model.model)) and lookup.config:
            models[model.model] = ModelFacts(lookup.commit, True, config=lookup.config)
    files = stack.files()
    return DoctorInputs(
        host=host,
        stack=stack,
        mistakes=mistakes,
        source=source,
        models=models,
        hub=hub,
        offline=offline,
        cached=cached,
        elsewhere=_find_elsewhere(stack, host, cached),
        adapters=dict(_read_adapters(stack, base, host, hub)),
        vocabularies=_find_vocabularies(stack, host.storage_root),
        env=replace(read_env_facts(base), kept=kept or KeptKeys()),
        changes=tuple(compare(files, stack.output)),
        others=compare_folders((folder for name, folder in host.projects or () if name == stack.plan.name), base),
        missing=tuple(find_missing_files(stack, base)),
        named=tuple(read_named_files(stack, base)),
        tls_problem=find_tls_problem(stack.spec, base),
        compose_file=_read_compose_file(stack.output / files[0].path, files[0].text),
        cluster=cluster,
    )


def collect_start_inputs(host: Host, stack: Stack) -> DoctorInputs:
    """The inputs for the checks before a start. Reads no model file, because a network disk may be slow."""
    cached: dict[str, bool | None] = {}
    missing = [*find_missing_files(stack, stack.folder)]
    for index, model in enumerate(stack.spec.models):
        if is_local(model.model):
            if not resolve_path(stack.folder, model.model).exists():
                missing.append((f"models[{index}].model", model.model))
        elif host.storage_root is not None:
            root = Path(host.storage_root)
            cached[model.model] = bool(host.storage_root and _find_snapshot(root, model.model, model.revision))
    # Docker's proxy listens on the ports of this stack too, so sockets without containers prove nothing
    host = replace(host, listeners=None) if host.containers is None else host
    return DoctorInputs(host, stack, source=stack.source, cached=cached, missing=tuple(missing),
                        elsewhere=_find_elsewhere(stack, host, cached))  # fmt: skip


def collect_neighbour_inputs(host: Host, stack: Stack) -> DoctorInputs:
    """The inputs for a comparison with the other stacks of this machine, and nothing else."""
    others = compare_folders((folder for name, folder in host.projects or () if name == stack.plan.name), stack.folder)
    return DoctorInputs(host, stack, source=stack.source, others=others)


def _read_compose_file(path: Path, rendered: str) -> str:
    """The text of compose.yaml on disk, which its owner may have edited; `rendered` without such a file."""
    try:
        # a wrong byte must not hide the features in the rest of the file
        return read_regular(path).decode("utf-8", "replace")
    except OSError:
        return rendered


def read_env_facts(folder: Path) -> EnvFacts:
    """The facts about `folder/.env`."""
    path, mode = folder / ".env", None
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        values = read_env(folder)
    except FileNotFoundError:
        # the environment alone may set every variable, as Compose reads it too
        return EnvFacts(str(path), False, None, read_env(folder), key_refused=_is_key_refused(folder))
    except (OSError, UnicodeDecodeError) as error:
        return EnvFacts(str(path), True, mode, {}, getattr(error, "strerror", None) or "it is not UTF-8 text")
    lost = [name for name in TOKEN_FILES if values.get(name) and not _is_readable_file(folder, values[name])]
    files = [name for name in TOKEN_FILES if values.get(name) and name not in lost]
    empty = [name for name in files if not _has_text(env_file(folder, values[name]))]
    return EnvFacts(str(path), True, mode, values, "", tuple(lost), tuple(empty), _is_key_refused(folder))


def _is_key_refused(folder: Path) -> bool:
    try:
        return is_env_key_refused(folder)
    # `stackgen keys` reports an unreadable map
    except StackgenError:
        return False


def _is_readable_file(folder: Path, name: str) -> bool:
    path = env_file(folder, name)
    return "\0" not in name and path.exists() and not path.is_dir() and os.access(path, os.R_OK)


def _has_text(path: Path) -> bool:
    # /dev/null is no token on purpose
    return not path.is_file() or bool(path.read_bytes().strip())


def _find_snapshot(root: Path, model: str, revision: str | None) -> Path | None:
    """The snapshot of a revision in the Hub cache at `root`, if it contains a file."""
    folder = root / "hub" / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    try:
        # a branch or tag has a file in refs with its commit; anything else is a commit already
        reference = folder / "refs" / name
        commit = reference.read_text("ascii").strip() if reference.is_file() else name
        path = folder / "snapshots" / commit
        return path if path.is_dir() and any(path.iterdir()) else None
    except (OSError, ValueError):
        return None


def _find_elsewhere(stack: Stack, host: Host, cached: Mapping[str, bool | None]) -> dict[str, str]:
    # nobody puts files into a volume by hand
    if not host.storage_root or not stack.spec.storage.path:
        return {}
    root, lacking = Path(host.storage_root), (one for one in stack.spec.models if cached.get(one.model) is False)
    return {one.model: fix for one in lacking if (fix := find_elsewhere(root, one))}


def _find_vocabularies(stack: Stack, root: str | None) -> dict[str, bool | None]:
    """Whether the model storage at `root` has the vocabularies that engines read from it; see `DoctorInputs`."""
    found: dict[str, bool | None] = {}
    for service in stack.plan.services:
        folder = dict(service.environment).get("TIKTOKEN_ENCODINGS_BASE")
        # a path outside the storage is in the image, or in a mount of the user
        if isinstance(folder, str) and PurePosixPath("/models") in PurePosixPath(folder).parents:
            path = PurePosixPath(folder) / "o200k_base.tiktoken"
            # "" is a storage that does not exist
            exists = bool(root) and (Path(root or "") / path.relative_to("/models")).is_file()
            found[str(path)] = None if root is None else exists
    return found


def _read_adapters(
    stack: Stack, base: Path, host: Host, hub: Mapping[str, HubLookup | None]
) -> Iterator[tuple[str, AdapterFacts]]:
    for lora in (lora for model in stack.spec.models for lora in getattr(model, "lora_adapters", ())):
        snapshot = None
        if is_local(lora.path):
            snapshot = resolve_path(base, lora.path)
        elif host.storage_root:
            snapshot = _find_snapshot(Path(host.storage_root), lora.path, lora.revision)
        if snapshot:
            yield lora.path, read_adapter_facts(snapshot)
        elif (lookup := hub.get(lora.path)) and lookup.state == "ok":
            yield lora.path, AdapterFacts(lookup.files, lookup.config)
