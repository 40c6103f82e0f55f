"""Facts about a LoRA adapter: its config, which files it has, and the hidden size that its weights were trained for."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackgen.targets.adapter import read_adapter_config

__all__ = ["AdapterFacts", "read_adapter_facts"]

# bytes; an adapter has a few thousand tensors
MAX_HEADER = 10_000_000
# these layers read the hidden state, so their input size is the model's hidden size
INPUT_LAYERS = tuple(f".{name}_proj.lora_A.weight" for name in ("q", "k", "v"))


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """A LoRA adapter on this machine or on the Hub.

    - `files`: the names of the files in its folder; None if the folder can't be listed.
    - `config`: adapter_config.json; None if the file can't be read.
    - `hidden_sizes`: the input sizes of the attention layers that the adapter changes; empty if they are unknown.
    """

    files: tuple[str, ...] | None = None
    config: dict[str, Any] | None = field(default=None, hash=False)
    hidden_sizes: tuple[int, ...] = ()


def read_adapter_facts(folder: Path) -> AdapterFacts:
    """The facts about the adapter in `folder`. Never raises."""
    try:
        names = tuple(sorted(os.listdir(folder)))
    except OSError:
        return AdapterFacts()
    return AdapterFacts(names, read_adapter_config(folder), _read_hidden_sizes(folder / "adapter_model.safetensors"))


def _read_hidden_sizes(path: Path) -> tuple[int, ...]:
    try:
        with path.open("rb") as file:
            # safetensors: the length of the header as a little-endian u64, then the header as JSON
            length = struct.unpack("<Q", file.read(8))[0]
            header = json.loads(file.read(length)) if length <= MAX_HEADER else {}
        # lora_A has the shape [rank, input size]; layers of an image encoder have another size
        return tuple(sorted({
            int(entry["shape"][1])
            for name, entry in header.items()
            if name.endswith(INPUT_LAYERS) and "vision" not in name and "visual" not in name
        }))  # fmt: skip
    except (OSError, ValueError, struct.error, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        return ()
