"""LoRA adapters on disk: a folder with adapter_config.json and the adapter's weights, as PEFT saves them.

Source: vLLM 0.32.0, `vllm/lora/peft_helper.py` (`validate_legal`) and `vllm/lora/lora_model.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "CONFIG",
    "DEFAULT_RANK",
    "RANKS",
    "WEIGHTS",
    "adapter_rank",
    "read_adapter_config",
    "round_up_rank",
    "served_rank",
]

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
# the values of `--max-lora-rank` (`MaxLoRARanks` in `vllm/config/lora.py`), and its default
RANKS, DEFAULT_RANK = (1, 8, 16, 32, 64, 128, 256, 320, 512), 16
# bytes; a real file has a few thousand
MAX_BYTES = 2**20


def read_adapter_config(folder: Path) -> dict[str, Any] | None:
    """The content of adapter_config.json; None if the file is missing, can't be read, or is no JSON object."""
    try:
        with (folder / CONFIG).open("rb") as file:
            found = json.loads(file.read(MAX_BYTES))
    # RecursionError: JSON that is nested too deeply
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def adapter_rank(config: dict[str, Any] | None) -> int | None:
    """The highest rank in an adapter's config, of all modules; None if it has none."""
    patterns = (config or {}).get("rank_pattern")
    ranks = [(config or {}).get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    return max((one for one in ranks if isinstance(one, int) and not isinstance(one, bool) and one > 0), default=None)


def round_up_rank(rank: int) -> int:
    """The lowest value of `--max-lora-rank` that is enough for `rank`; the highest value if none is."""
    return next((one for one in RANKS if one >= rank), RANKS[-1])


def served_rank(command: Sequence[str]) -> int:
    """The highest rank that `vllm serve` accepts, from its arguments; vLLM's default if no argument sets a rank."""
    flag = "--max-lora-rank"
    values = [after for word, after in zip(command, (*command[1:], ""), strict=True) if word == flag]
    values += [word.partition("=")[2] for word in command if word.startswith(f"{flag}=")]
    return next((int(one) for one in reversed(values) if one.isascii() and one.isdigit()), DEFAULT_RANK)
