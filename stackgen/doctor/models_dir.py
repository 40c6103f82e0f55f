"""Checks the folder of llama.cpp's router mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackgen.doctor.finding import Result, fail, ok, unknown
from stackgen.doctor.model_facts import ModelFacts
from stackgen.engines._llamacpp_router import list_gguf_models

__all__ = ["check_models_dir"]


def check_models_dir(model: Any, facts: ModelFacts, place: str) -> Result:
    """Whether the folder of a router contains models."""
    try:
        names = list_gguf_models(Path(facts.path))
    except OSError as error:
        return unknown(f"{model.models_dir} can't be read: {error.strerror}", evidence=facts.path,
                       fix="run doctor as a user who can read the folder", place=f"{place}.models_dir")  # fmt: skip
    if not names:
        return fail(f"{model.models_dir} contains no GGUF file", evidence=facts.path,
                    fix="put NAME.gguf files into the folder, or set `models_dir` to another folder",
                    place=f"{place}.models_dir")  # fmt: skip
    models = f"{len(names)} GGUF model{'s' * (len(names) > 1)}"
    return ok(f"{model.models_dir} contains {models}", evidence=", ".join(names), place=place)
