"""Facts about a model's folder or GGUF file: its config, its tokenizer, and whether every shard is complete.

Only headers are read, so a folder of hundreds of GB takes milliseconds. No function raises, whatever the files contain.
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

__all__ = [
    "OUTSIDE", "ModelFacts", "Unreadable", "find_gguf_problem", "find_safetensors_problem", "find_unreadable",
    "parse_shard_index", "read_model_facts",
]  # fmt: skip

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "tiktoken.model")
# Sentence Transformers' config files that vLLM 0.32.0 looks for
ENCODERS = r"sentence_(?:bert|roberta|distilbert|camembert|albert|xlm-roberta|xlnet)_config\.json"
# name, owner's uid, group's gid, mode
Unreadable = tuple[str, int, int, int]
# the start of the problem of a file that exists, but not for the container
OUTSIDE = "links to a file outside of the mounted folder"
# bytes; the format's own limit for headers (safetensors, `MAX_HEADER_SIZE`)
MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model on this machine.

    - `config`: config.json; None if the file can't be read. `config_error` is the reason.
    - `problems`: weight files that are missing, truncated or empty.
    - `listed`: False if this user can't list the folder; then no other fact about its files is known.
    - `complete`: whether the weights have all bytes that their headers require. Only safetensors files have lengths.
    - `unreadable`: files that not everybody may read.
    - `tokenizer_length`, `encoder_length`: tokens; from tokenizer_config.json and the Sentence Transformers config.
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
    unreadable: tuple[Unreadable, ...] = ()
    tokenizer_length: int | None = None
    encoder_length: int | None = None
    listed: bool = True
    complete: bool = False

    def number(self, *names: str) -> int | None:
        """The first of `names` that the config has as a positive integer; also searches nested text configs."""
        config = self.config or {}
        # multimodal models nest the language model's config
        for part in (config, config.get("text_config"), config.get("llm_config")):
            for name in names if isinstance(part, dict) else ():
                value = part.get(name)  # type: ignore[union-attr]
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return None

    def dtype(self) -> str:
        """The dtype of the weights as config.json names it; "" if there is none."""
        config = self.config or {}
        parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
        # Transformers 5 writes dtype, older versions torch_dtype
        found = [part.get(name) for part in parts for name in ("dtype", "torch_dtype")]
        return next((one.removeprefix("torch.") for one in found if isinstance(one, str)), "")

    def quantization(self) -> str:
        """The method in config.json's `quantization_config`; "" if there is none."""
        found = (self.config or {}).get("quantization_config")
        method = found.get("quant_method", "") if isinstance(found, dict) else ""
        return method.lower() if isinstance(method, str) else ""


def read_model_facts(path: Path, root: Path | None = None) -> ModelFacts:
    """The facts about the model folder or file at `path`, of which a container sees only what is below `root`.

    Default of `root`: everything. Docker follows a link at `root` itself.
    """
    try:
        if path.is_file():
            problem = find_gguf_problem(path) if path.suffix == ".gguf" else ""
            return ModelFacts(
                str(path), exists=True, is_file=True, weight_bytes=path.stat().st_size, weight_files=1,
                problems=(f"{path.name}: {problem}",) if problem else (), unreadable=tuple(find_unreadable([path])),
            )  # fmt: skip
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return ModelFacts(str(path), exists=False)
    # the folder exists, but this user can't list it
    except OSError as error:
        return ModelFacts(str(path), exists=True, problems=(f"{path}: {error.strerror}",), listed=False)
    config, config_error = _read_json_object(path / "config.json")
    expected, problems = _expected_weight_files(path, names)
    outside = [name for name in names if root and not _is_inside(path / name, root)]
    problems += [f"{name}: {OUTSIDE} {root}" for name in outside]
    total = 0
    for name in expected:
        file = path / name
        if name in outside:
            continue
        try:
            total += file.stat().st_size
        except OSError:
            problems.append(f"{name}: is missing")
            continue
        # the other formats have no sizes in a header, so only an empty file counts as a problem
        problem = find_safetensors_problem(file) if file.suffix == ".safetensors" else _find_empty_problem(file)
        if file.suffix == ".gguf":
            problem = find_gguf_problem(file)
        if problem:
            problems.append(f"{name}: {problem}")
    tokenizer_config, _ = _read_json_object(path / "tokenizer_config.json")
    encoder = next((_read_json_object(path / name)[0] for name in names if re.fullmatch(ENCODERS, name)), None)
    # the template is a file of its own (chat_template.jinja or .json), or part of tokenizer_config.json
    has_template = any(name.startswith("chat_template") for name in names) or bool(
        tokenizer_config and tokenizer_config.get("chat_template")
    )
    return ModelFacts(
        str(path), exists=True, is_file=False, config=config, config_error=config_error,
        tokenizer=any(name in names for name in TOKENIZERS), chat_template=has_template, weight_bytes=total,
        weight_files=len(expected), problems=tuple(problems),
        # "." is the folder itself, which needs the execute bit too, as do the folders of a Hub repository
        unreadable=tuple(find_unreadable([*_list_parents(path, root), *(path / name for name in (".", *names))])),
        tokenizer_length=_read_length(tokenizer_config, "model_max_length"),
        encoder_length=_read_length(encoder, "max_seq_length"),
        complete=bool(expected) and not problems and all(name.endswith(".safetensors") for name in expected),
    )  # fmt: skip


def _is_inside(file: Path, root: Path) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root))


def _list_parents(path: Path, root: Path | None) -> list[Path]:
    """The folders between `root` and the model, and the folder of its blobs, if `root` is a repository of the Hub."""
    real = Path(os.path.realpath(path))
    if root is None or real == Path(os.path.realpath(root)) or not (root / "blobs").is_dir():
        return []
    return [root, root / "blobs", *(one for one in real.parents if one.is_relative_to(root) and one != root)]


def _read_length(config: dict[str, Any] | None, name: str) -> int | None:
    found = (config or {}).get(name)
    # tokenizers write 1e30 for "no limit"
    return int(found) if isinstance(found, (int, float)) and not isinstance(found, bool) and 0 < found < 2**40 else None


def _read_json_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The JSON object in a file and "", or None and what is wrong with it."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None, "is missing"
    except OSError as error:
        return None, f"can't be read: {error.strerror}"
    # RecursionError: JSON that is nested too deeply
    except (ValueError, RecursionError) as error:
        return None, f"is not JSON: {error}"
    return (found, "") if isinstance(found, dict) else (None, "is not a JSON object")


def _expected_weight_files(folder: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The weight files that should be in the folder (from its index, if any), and the problems of the index."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if index in names:
            try:
                shards = parse_shard_index((folder / index).read_bytes())
            except OSError as error:
                return [], [f"{index}: {error.strerror}"]
            return (shards, []) if shards else ([], [f"{index}: lists no shard"])
    # the first format that is present; training_args.bin of a Transformers Trainer has no weights
    for suffix in (".safetensors", ".gguf", ".bin", ".pt", ".pth"):
        found = [name for name in names if name.endswith(suffix) and not name.startswith(("training_args", "."))]
        if found:
            return found, []
    return [], ["no weights found (*.safetensors, *.bin, *.gguf)"]


def parse_shard_index(data: bytes) -> list[str]:
    """The shards that an index file names, sorted; [] if it is not an index. Names outside the folder are dropped."""
    try:
        weights = json.loads(data).get("weight_map")
        shards = {name for name in weights.values() if isinstance(name, str)}
    except (ValueError, AttributeError, RecursionError):
        return []
    # the file comes from the internet: a name with a slash would make doctor read files elsewhere
    return sorted(name for name in shards if name and "/" not in name and "\0" not in name and name not in (".", ".."))


def find_safetensors_problem(path: Path) -> str:
    """What is wrong with a safetensors file, by the sizes in its own header; "" if nothing is."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            if len(first) < 8:
                return f"truncated: {size} bytes are too few for a header"
            # a clone without Git LFS has a text file instead, which begins with "version https://git-lfs…"
            if first == b"version ":
                return "a Git LFS pointer, not the weights: `git lfs pull` downloads the weights"
            # safetensors: the length of the header as a little-endian u64, then the header as JSON
            length = struct.unpack("<Q", first)[0]
            if length > MAX_HEADER:
                return "not a safetensors file: its header is longer than safetensors allows"
            if 8 + length > size:
                return f"truncated inside its header: {size} bytes instead of at least {8 + length}"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        # a file without tensors ends with its header
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "not a safetensors file: its header is not JSON, or contains no valid list of tensors"
    # offsets may be any JSON value, and bool is an int in Python
    if not isinstance(expected, int) or isinstance(expected, bool):
        return "not a safetensors file: its header is not JSON, or contains no valid list of tensors"
    if size == expected:
        return ""
    return f"{'truncated' if size < expected else 'too long'}: {size} bytes instead of {expected}"


def find_gguf_problem(path: Path) -> str:
    """What is wrong with a GGUF file, by its first four bytes; "" if nothing is."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    return "" if magic == b"GGUF" else "not a GGUF file: its first four bytes are not `GGUF`"


def _find_empty_problem(path: Path) -> str:
    return "" if path.stat().st_size else "is empty"


def find_unreadable(paths: Iterable[Path]) -> list[Unreadable]:
    """Files and folders that not everybody may read, as `ModelFacts.unreadable`."""
    found = []
    for path in paths:
        # follows links: a Hub snapshot is links to blobs
        try:
            about = path.stat()
        # a broken link has no mode to test
        except OSError:
            continue
        needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(about.st_mode) else stat.S_IROTH
        if about.st_mode & needed != needed and not path.name.startswith("."):
            found.append((path.name or ".", about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)))
    return found
