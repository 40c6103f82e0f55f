"""The fields of a model that llama.cpp serves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from stackgen.engines._versions import BuildNumber
from stackgen.spec import ModelSpec, Text, TokenCount, allow_instead
from stackgen.spec.types import RepositoryFile

__all__ = ["LlamaCppModel"]


class LlamaCppModel(ModelSpec):
    """A GGUF model served by llama.cpp."""

    model_config = ConfigDict(json_schema_extra=allow_instead("model", "models_dir"))

    engine: Literal["llamacpp"] = Field(description="The engine")
    engine_version: BuildNumber = None
    file: RepositoryFile | None = Field(None, description="GGUF file in the Hub repository (required for a Hub id)")
    models_dir: Text | None = Field(
        None,
        description="Local folder with GGUF files, instead of `model`: one server for all of them, which loads each "
        "model when a request names it. `served_names` lists the models that clients may use",
    )
    models_max: int | None = Field(
        None, ge=1, description="With `models_dir`: how many models are loaded at the same time. Default: 1. The least "
        "recently used model is unloaded, after its requests have ended",
    )  # fmt: skip
    max_model_len: TokenCount | None = Field(
        None,
        description="Context length of each request in tokens: 8192, 32k (32,000), 32K (32,768), or `auto` for the "
        "model's own context length, which is also the default. If `max_num_seqs` is not set, all requests in flight "
        "share this length: a long request leaves less context for the others",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Number of requests that run at the same time (llama.cpp calls them slots). If you set it, each "
        "request has its own context of `max_model_len` tokens, so the KV cache needs this many times the memory. Set "
        "both fields: without a number in `max_model_len`, the model's own context is divided by this number. "
        "Default: up to 4 requests, which share one context of `max_model_len` tokens",
    )
    gpu_layers: int | None = Field(
        None, ge=0, description="Number of layers on the GPU. Default: all layers, if there is a GPU"
    )

    @model_validator(mode="before")
    @classmethod
    def _copy_models_dir(cls, data: Any) -> Any:
        # everything about local files (mounts, doctor) reads `model`
        if isinstance(data, dict) and isinstance(data.get("models_dir"), str):
            if "model" in data:
                raise PydanticCustomError("models_dir", "has both `model` and `models_dir`. Remove one of them")
            return {**data, "model": data["models_dir"]}
        return data
