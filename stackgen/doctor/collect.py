"""Collects doctor's inputs from a stack on disk: models, `.env`, drift. Starts no program, sends no request."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.doctor.facts import Host
from stackgen.doctor.finding import DoctorInputs, EnvFacts
from stackgen.doctor.model_facts import ModelFacts, read_model_facts
from stackgen.errors import SpecError
from stackgen.render.write import compare
from stackgen.spec import is_local
from stackgen.stack.envfile import read_env
from stackgen.stack.folder import Stack, find_stack_file, open_stack

if TYPE_CHECKING:
    from stackgen.check.huggingface import HubLookup

__all__ = ["collect_inputs", "hub_models", "read_env_facts", "read_hub_token", "try_open_stack"]


def try_open_stack(path: str | None) -> tuple[Stack | None, tuple[Any, ...], str]:
    """The stack at `path` (default: here), the errors in its file, and the file's name.

    (None, (), "") if `path` is None and there is no stack.yaml here.
    """
    if path is None and not Path("stack.yaml").exists():
        return None, (), ""
    path = path or "."
    source = str(find_stack_file(path) or Path(path) / "stack.yaml")
    try:
        return open_stack(path), (), source
    # errors in the file become findings, next to those of the machine
    except SpecError as error:
        return None, error.mistakes, source


def hub_models(stack: Stack | None) -> list[Any]:
    """The models that would be downloaded from the Hub, each once."""
    models = [model for model in stack.spec.models if not is_local(model.model)] if stack else []
    # two entries may serve the same model with other flags: one request is enough
    return list({model.model: model for model in models}.values())


def read_hub_token(env: EnvFacts | None) -> str:
    """The Hub token that the download would use; "" without one."""
    name = env.values.get("HF_TOKEN_FILE", "") if env else ""
    try:
        # as in Compose, a relative path is relative to the project folder, not to the current folder
        return (Path(env.path).parent / name).read_text("utf-8").strip() if env and name else ""
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
            path = _resolve_path(base, model.model)
            file = getattr(model, "file", None)
            models[model.model] = read_model_facts(path / file if file and path.is_dir() else path)
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
        env=read_env_facts(base),
        changes=tuple(compare(files, base)),
        missing=tuple(_find_missing_files(stack, base)),
        compose_file=_read_compose_file(base / files[0].path, files[0].text),
    )


def _read_compose_file(path: Path, rendered: str) -> str:
    """The text of compose.yaml on disk, which its owner may have edited; `rendered` without such a file."""
    try:
        # a wrong byte must not hide the features in the rest of the file
        return path.read_text("utf-8", "replace")
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
        return EnvFacts(str(path), False, None, read_env(folder))
    except (OSError, UnicodeDecodeError) as error:
        return EnvFacts(str(path), True, mode, {}, getattr(error, "strerror", None) or "it is not UTF-8 text")
    lost = [name for name in ("HF_TOKEN_FILE",) if values.get(name) and not _is_readable_file(folder, values[name])]
    return EnvFacts(str(path), True, mode, values, "", tuple(lost))


def _is_readable_file(folder: Path, name: str) -> bool:
    # Compose resolves relative paths against the project folder and doesn't expand `~`
    path = folder / name
    return "\0" not in name and path.exists() and not path.is_dir() and os.access(path, os.R_OK)


def _resolve_path(base: Path, path: str) -> Path:
    return Path(os.path.normpath(base / os.path.expanduser(path)))


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


def _find_missing_files(stack: Stack, base: Path) -> Iterator[tuple[str, str]]:
    for index, model in enumerate(stack.spec.models):
        named = [("chat_template", getattr(model, "chat_template", None))]
        adapters = getattr(model, "lora_adapters", ())
        # adapters from the Hub are downloaded, so they need not exist on this machine yet
        named += [(f"lora_adapters[{n}].path", one.path) for n, one in enumerate(adapters) if is_local(one.path)]
        for field, path in named:
            if path and not _resolve_path(base, path).exists():
                yield f"models[{index}].{field}", path
    storage = stack.spec.storage.path
    if storage and not _resolve_path(base, storage).is_dir():
        yield "storage.path", storage
