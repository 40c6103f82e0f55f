"""Reads a model that is on this machine: config.json and the headers of its weights, or a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stackgen.errors import StackgenError
from stackgen.fit.config import read_config
from stackgen.fit.estimate import Model
from stackgen.fit.gguf import read_gguf
from stackgen.fit.weights import MAX_HEADER, Tensor, Weights, parse_header

__all__ = ["find_snapshot", "read_model"]

INDEX = "model.safetensors.index.json"
# formats without a header that can be read: only the size of the files is known
OTHER_FORMATS = (".bin", ".pt", ".pth")


def read_model(path: Path, name: str = "") -> Model:
    """The model in the folder or GGUF file at `path`. Raises StackgenError that names the file and the fix."""
    name = name or str(path)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return read_gguf(path)
        raise StackgenError(f"{path} is not a model: it is neither a folder nor a GGUF file", "pass the model's folder")
    if not path.is_dir():
        raise StackgenError(f"{path}: there is no such folder", "pass the model's folder, or its id on the Hub")
    config = _read_json(path / "config.json")
    if config is None:
        found = sorted(path.glob("*.gguf"))
        hint = f"for llama.cpp, pass the file: {found[0]}" if found else "download the model again: `hf download`"
        raise StackgenError(f"{path} has no config.json", hint)
    return Model(read_config(config, str(path / "config.json")), read_weights(path), name)


def read_weights(folder: Path) -> Weights:
    """The weights in `folder`, from the headers of its safetensors files. Raises StackgenError."""
    index = _read_json(folder / INDEX)
    names: set[str] = set()
    if index is not None:
        shards = index.get("weight_map")
        names = {one for one in shards.values() if isinstance(one, str)} if isinstance(shards, dict) else set()
        # the file comes from the internet: a name with a slash would read files elsewhere
        names = {one for one in names if "/" not in one and "\0" not in one and one not in (".", "..")}
        if not names:
            raise StackgenError(f"{folder / INDEX} lists no shard", "download the model again")
    if not names:
        names = {one.name for one in folder.glob("*.safetensors") if not one.name.startswith(("adapter_", "."))}
    if not names:
        return _weigh_others(folder)
    tensors: list[Tensor] = []
    total = 0
    for name in sorted(names):
        tensors += read_header(folder / name)
        total += (folder / name).stat().st_size
    return Weights(total, tuple(tensors), f"headers of {len(names)} safetensors file{'s' * (len(names) > 1)}")


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file. Only its header is read. Raises StackgenError."""
    try:
        with path.open("rb") as file:
            first = file.read(8)
            length = min(int.from_bytes(first, "little"), MAX_HEADER)
            # a Git LFS pointer is shorter than its first bytes announce
            data = first + file.read(length)
    except FileNotFoundError as error:
        raise StackgenError(f"{path} is missing", "download the model again: `hf download` resumes") from error
    return parse_header(data, str(path))


def _weigh_others(folder: Path) -> Weights:
    sizes = [one.stat().st_size for one in folder.iterdir() if one.suffix in OTHER_FORMATS and one.is_file()
             and not one.name.startswith("training_args")]  # fmt: skip
    if not sizes:
        raise StackgenError(
            f"{folder} has no weights (*.safetensors, *.bin)", "download the model again: `hf download`"
        )
    return Weights(sum(sizes), (), f"size of {len(sizes)} weight file{'s' * (len(sizes) > 1)} without readable headers")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    # RecursionError: JSON that is nested too deeply
    except (ValueError, RecursionError) as error:
        raise StackgenError(f"{path} is not JSON: {error}", "download the file again") from error
    if not isinstance(found, dict):
        raise StackgenError(f"{path} is not a JSON object", "download the file again")
    return found


def find_snapshot(cache: Path, model: str, revision: str = "main") -> Path | None:
    """The snapshot of a Hub model in a cache folder such as `~/.cache/huggingface/hub`; None without one."""
    folder = cache / f"models--{model.replace('/', '--')}"
    try:
        # a branch or tag has a file in refs with its commit; anything else is a commit already
        reference = folder / "refs" / revision
        commit = reference.read_text("ascii").strip() if reference.is_file() else revision
        path = folder / "snapshots" / commit
        return path if path.is_dir() and any(path.iterdir()) else None
    except (OSError, ValueError):
        return None
