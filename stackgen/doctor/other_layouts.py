"""Finds a model that `storage.path` contains in another layout than that of the Hub's cache, which engines read.

The layout `hub/models--ORGANIZATION--NAME` is that of huggingface_hub 1 (constants.py, HF_HUB_CACHE).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["find_elsewhere"]

# what a folder of a model contains at least: Transformers, Mistral's own format
CONFIGS = ("config.json", "params.json")


def find_elsewhere(root: Path, model: Any) -> str:
    """What to set so that the engine finds `model`, which is in `root` in another layout; "" if it isn't.

    `root` is the folder `storage.path` on this machine, and the cache in it lacks the model.
    """
    # the user reads these paths, and `..` hides the name of the folder
    root = Path(os.path.realpath(root))
    organization, _, name = model.model.rpartition("/")
    folder = f"models--{model.model.replace('/', '--')}"
    for cache in (root, root / "huggingface/hub", root / ".cache/huggingface/hub"):
        if os.path.isdir(cache / folder / "snapshots"):
            if cache.name == "hub":
                return f"set `storage.path` to {cache.parent}, the folder that contains `hub`"
            # HF_HUB_CACHE may name any folder
            return f"set `model` to a folder in {cache / folder / 'snapshots'}, and remove `storage`"
    for path in (root / organization / name, root / name, root / f"{organization}--{name}"):
        if _is_model(path, getattr(model, "file", None)):
            served = "" if model.served_names else f" and `served_names: [{model.model}]`"
            return (
                f"set `model: {path}`{served}, if this folder contains the model. Then remove `storage`, unless "
                "another model uses it"
            )
    return ""


def _is_model(path: Path, file: str | None) -> bool:
    return any(os.path.isfile(path / name) for name in ((file,) if file else CONFIGS))
