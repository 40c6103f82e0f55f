"""From a stack on disk to a case: its models, its `.env`, its drift. Files are read, nothing is started or asked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stackgen.doctor.facts import Host
from stackgen.doctor.finding import Case, EnvFacts
from stackgen.doctor.model_facts import ModelFacts, look_at_model
from stackgen.errors import SpecError
from stackgen.render.write import compare
from stackgen.spec import is_local
from stackgen.stack.envfile import read_env
from stackgen.stack.folder import Stack, open_stack, stack_file

if TYPE_CHECKING:
    from stackgen.check.huggingface import HubAnswer

__all__ = ["case_of", "env_of", "hub_models", "hub_token", "opened"]


def opened(words: str | None) -> tuple[Stack | None, tuple[Any, ...], str]:
    """The stack that the user means, the mistakes in it, and its file's name; nothing without a file here."""
    if words is None and not Path("stack.yaml").exists():
        return None, (), ""
    words = words or "."
    source = str(stack_file(words) or Path(words) / "stack.yaml")
    try:
        return open_stack(words), (), source
    except SpecError as error:
        return None, error.mistakes, source


def hub_models(stack: Stack | None) -> list[Any]:
    """The models that would be fetched from the Hub, each once."""
    models = [model for model in stack.spec.models if not is_local(model.model)] if stack else []
    return list({model.model: model for model in models}.values())


def hub_token(env: EnvFacts | None) -> str:
    """The token that the download would use, "" without one."""
    name = env.values.get("HF_TOKEN_FILE", "") if env else ""
    try:
        return Path(name).read_text("utf-8").strip() if name else ""
    except (OSError, UnicodeDecodeError, ValueError):
        return ""


def case_of(
    host: Host,
    stack: Stack | None = None,
    mistakes: tuple[Any, ...] = (),
    source: str = "",
    hub: Mapping[str, HubAnswer | None] | None = None,
    offline: bool = False,
) -> Case:
    """The case of a stack on a machine, with all that lies on its disk."""
    if stack is None:
        return Case(host, mistakes=mistakes, source=source)
    base, hub = stack.folder, hub or {}
    models: dict[str, ModelFacts] = {}
    cached: dict[str, bool | None] = {}
    for model in stack.spec.models:
        if is_local(model.model):
            path = _path(base, model.model)
            file = getattr(model, "file", None)
            models[model.model] = look_at_model(path / file if file and path.is_dir() else path)
            continue
        cached[model.model] = None if host.storage_root is None else False
        if host.storage_root and (snapshot := _snapshot(Path(host.storage_root), model.model, model.revision)):
            cached[model.model] = True
            models[model.model] = look_at_model(snapshot)
        elif (answer := hub.get(model.model)) and answer.config:
            models[model.model] = ModelFacts(answer.commit, True, config=answer.config)
    files = stack.files()
    return Case(
        host, stack, mistakes, source, models, hub, offline, cached, env_of(base), tuple(compare(files, base)),
        tuple(_missing(stack, base)), _compose_file(base / files[0].path, files[0].text),
    )  # fmt: skip


def _compose_file(path: Path, rendered: str) -> str:
    """The file that lies there, which its owner may have edited, else the one that would be written."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return rendered


def env_of(folder: Path) -> EnvFacts:
    """The facts of `folder/.env`."""
    path, mode = folder / ".env", None
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        values = read_env(folder)
    except FileNotFoundError:
        return EnvFacts(str(path), False, None, read_env(folder))
    except (OSError, UnicodeDecodeError) as error:
        return EnvFacts(str(path), True, mode, {}, getattr(error, "strerror", None) or "it is no text")
    lost = [name for name in ("HF_TOKEN_FILE",) if values.get(name) and not _readable(folder, values[name])]
    return EnvFacts(str(path), True, mode, values, "", tuple(lost))


def _readable(folder: Path, name: str) -> bool:
    # Compose takes a relative path from the project's folder, and `~` as a name like any other
    path = folder / name
    return "\0" not in name and path.exists() and not path.is_dir() and os.access(path, os.R_OK)


def _path(base: Path, words: str) -> Path:
    return Path(os.path.normpath(base / os.path.expanduser(words)))


def _snapshot(root: Path, model: str, revision: str | None) -> Path | None:
    """The snapshot of a revision in the Hub's cache, if it has a file in it."""
    folder = root / "hub" / f"models--{model.replace('/', '--')}"
    name = revision or "main"
    try:
        reference = folder / "refs" / name
        commit = reference.read_text("ascii").strip() if reference.is_file() else name
        path = folder / "snapshots" / commit
        return path if path.is_dir() and any(path.iterdir()) else None
    except (OSError, ValueError):
        return None


def _missing(stack: Stack, base: Path) -> Iterator[tuple[str, str]]:
    for index, model in enumerate(stack.spec.models):
        named = [("chat_template", getattr(model, "chat_template", None))]
        adapters = getattr(model, "lora_adapters", ())
        named += [(f"lora_adapters[{n}].path", one.path) for n, one in enumerate(adapters) if is_local(one.path)]
        for field, words in named:
            if words and not _path(base, words).exists():
                yield f"models[{index}].{field}", words
    storage = stack.spec.storage.path
    if storage and not _path(base, storage).is_dir():
        yield "storage.path", storage
