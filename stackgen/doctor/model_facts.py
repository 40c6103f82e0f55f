"""What a model's folder (or GGUF file) holds: its config, its tokenizer, and whether every shard is whole.

Only headers are read, so a folder of hundreds of GB costs milliseconds. Whatever stands in the files, nothing raises.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ModelFacts", "gguf_problem", "look_at_model", "read_index", "safetensors_problem"]

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "tiktoken.model")
# of Sentence Transformers, as vLLM 0.32.0 looks for them
ENCODERS = r"sentence_(?:bert|roberta|distilbert|camembert|albert|xlm-roberta|xlnet)_config\.json"
# the format's own limit for headers (safetensors, `MAX_HEADER_SIZE`)
MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model on this machine. `config` is config.json, None where it can't be read (`config_error` says why).

    `problems` are of weights: missing, cut off, empty. `unreadable` are files that others than their owner can't read,
    as (name, owner's uid). `tokenizer_length` and `encoder_length` are the lengths in tokenizer_config.json and in
    that of Sentence Transformers. `numbers` of the config are asked by `number`, which knows nested text configs.
    """

    path: str
    exists: bool
    is_file: bool = False
    config: dict[str, Any] | None = field(default=None, hash=False)
    config_error: str = ""
    tokenizer: bool = False
    chat_template: bool = False
    weight_bytes: int = 0
    weight_files: int = 0
    problems: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, int, int], ...] = ()
    tokenizer_length: int | None = None
    encoder_length: int | None = None

    def number(self, *names: str) -> int | None:
        """The first of `names` that the config holds as a whole number; multimodal models nest theirs."""
        config = self.config or {}
        for part in (config, config.get("text_config"), config.get("llm_config")):
            for name in names if isinstance(part, dict) else ():
                value = part.get(name)  # type: ignore[union-attr]
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return None

    def dtype(self) -> str:
        """The type of the weights as the config names it, "" without one."""
        config = self.config or {}
        parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
        found = [part.get(name) for part in parts for name in ("dtype", "torch_dtype")]
        return next((one.removeprefix("torch.") for one in found if isinstance(one, str)), "")

    def quantization(self) -> str:
        """The method of the config's `quantization_config`, "" without one."""
        found = (self.config or {}).get("quantization_config")
        method = found.get("quant_method", "") if isinstance(found, dict) else ""
        return method.lower() if isinstance(method, str) else ""


def look_at_model(path: Path) -> ModelFacts:
    """The facts of the folder or file at `path`."""
    try:
        if path.is_file():
            problem = gguf_problem(path) if path.suffix == ".gguf" else ""
            told = (f"{path.name}: {problem}",) if problem else ()
            closed = tuple(_closed([path]))
            return ModelFacts(str(path), True, True, weight_bytes=path.stat().st_size, weight_files=1,
                              problems=told, unreadable=closed)  # fmt: skip
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return ModelFacts(str(path), False)
    except OSError as error:
        return ModelFacts(str(path), True, problems=(f"{path}: {error.strerror}",))
    config, wrong = _config(path / "config.json")
    wanted, problems = _wanted(path, names)
    total = 0
    for name in wanted:
        file = path / name
        try:
            total += file.stat().st_size
        except OSError:
            problems.append(f"{name}: is missing")
            continue
        problem = safetensors_problem(file) if file.suffix == ".safetensors" else _empty(file)
        if file.suffix == ".gguf":
            problem = gguf_problem(file)
        if problem:
            problems.append(f"{name}: {problem}")
    tokenizer_config, _ = _config(path / "tokenizer_config.json")
    encoder = next((_config(path / name)[0] for name in names if re.fullmatch(ENCODERS, name)), None)
    template = any(name.startswith("chat_template") for name in names) or bool(
        tokenizer_config and tokenizer_config.get("chat_template")
    )
    return ModelFacts(
        str(path), True, False, config, wrong, any(name in names for name in TOKENIZERS), template, total,
        len(wanted), tuple(problems), tuple(_closed(path / name for name in (".", *names))),
        _length(tokenizer_config, "model_max_length"), _length(encoder, "max_seq_length"),
    )  # fmt: skip


def _length(config: dict[str, Any] | None, name: str) -> int | None:
    found = (config or {}).get(name)
    # "no limit" is written as 1e30
    return int(found) if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 < found < 2**40 else None


def _config(path: Path) -> tuple[dict[str, Any] | None, str]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None, "is missing"
    except OSError as error:
        return None, f"can't be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON: {error}"
    return (found, "") if isinstance(found, dict) else (None, "is no JSON object")


def _wanted(folder: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The weight files that belong there, by the index where there is one; what is wrong with the index."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if index in names:
            try:
                shards = read_index((folder / index).read_bytes())
            except OSError as error:
                return [], [f"{index}: {error.strerror}"]
            return (shards, []) if shards else ([], [f"{index}: names no shard"])
    for suffix in (".safetensors", ".gguf", ".bin", ".pt", ".pth"):
        found = [name for name in names if name.endswith(suffix) and not name.startswith(("training_args", "."))]
        if found:
            return found, []
    return [], ["holds no weights (*.safetensors, *.bin, *.gguf)"]


def read_index(data: bytes) -> list[str]:
    """The shards that an index file names, sorted; none where it is no index, or names files elsewhere."""
    try:
        weights = json.loads(data).get("weight_map")
        shards = {name for name in weights.values() if isinstance(name, str)}
    except (ValueError, AttributeError, RecursionError):
        return []
    return sorted(name for name in shards if name and "/" not in name and "\0" not in name and name not in (".", ".."))


def safetensors_problem(path: Path) -> str:
    """What is wrong with a safetensors file, by its header's own sizes; "" where nothing is."""
    try:
        have = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            if len(first) < 8:
                return f"cut off: {have} bytes hold no header"
            if first == b"version ":
                return "a Git LFS pointer, not the weights: `git lfs pull` fetches them"
            length = struct.unpack("<Q", first)[0]
            if length > MAX_HEADER:
                return "no safetensors file: its header can't be that long"
            if 8 + length > have:
                return f"cut off inside its header: {have} of at least {8 + length} bytes"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        need = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "no safetensors file: its header is no JSON of tensors"
    if not isinstance(need, int) or isinstance(need, bool):
        return "no safetensors file: its header is no JSON of tensors"
    return "" if have == need else f"{'cut off' if have < need else 'too long'}: {have} of {need} bytes"


def gguf_problem(path: Path) -> str:
    """What is wrong with a GGUF file, by its first bytes; "" where nothing shows."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return "" if magic == b"GGUF" else "no GGUF file: it doesn't start with GGUF"


def _empty(path: Path) -> str:
    return "" if path.stat().st_size else "is empty"


def _closed(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Files (and the folder) that not everybody may read: (name, uid of the owner, mode)."""
    found = []
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            continue
        wanted = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(about.st_mode) else stat.S_IROTH
        if about.st_mode & wanted != wanted and not path.name.startswith("."):
            found.append((path.name or ".", about.st_uid, stat.S_IMODE(about.st_mode)))
    return found
