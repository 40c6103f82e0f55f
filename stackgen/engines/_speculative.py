"""Speculative decoding in vLLM: the field `speculative`, and the JSON of `--speculative-config`.

Source: vLLM 0.32.0, `vllm/config/speculative.py` (`SpeculativeConfig`, `__post_init__`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stackgen.engines.base import Replica
from stackgen.errors import Mistake
from stackgen.flags.releases import flags_of
from stackgen.plan import Site
from stackgen.spec import Strict, Text, is_local, parse_token_count
from stackgen.spec.types import ModelSource

__all__ = ["SpeculativeSpec", "draft_download", "draft_folder", "find_speculative_mistakes", "speculative_config"]

# methods that propose tokens from the text itself, without a second model
WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix")
# methods whose weights are in the repository of the model itself, or in one of their own
OWN_WEIGHTS = ("mtp", "dspark")

Method = Literal[
    "ngram", "ngram_gpu", "suffix", "mtp", "draft_model", "eagle", "eagle3", "medusa", "mlp_speculator", "dflash",
    "dspark",
]  # fmt: skip


class SpeculativeSpec(Strict):
    """Sets how vLLM guesses several tokens at once, which the model then accepts or rejects in one step."""

    method: Method | None = Field(
        None,
        description="How tokens are guessed: `ngram` and `suffix` repeat earlier text, `mtp` and `dspark` use layers "
        "of the model itself unless `model` is set, and the others use `model`. Default: from the config of `model`",
    )  # fmt: skip
    model: ModelSource | None = Field(
        None, description="Draft model or speculator head: a Hugging Face id, or a local folder. It is downloaded too"
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of the Hub repository of `model`")
    num_speculative_tokens: int | None = Field(
        None, ge=1, description="Number of tokens that are guessed in each step. Default: from the config of `model`"
    )
    prompt_lookup_max: int | None = Field(
        None, ge=1, description="Only ngram: the longest sequence of tokens that is looked up. vLLM's default is 5"
    )
    prompt_lookup_min: int | None = Field(
        None, ge=1, description="Only ngram: the shortest sequence that is looked up. Default: `prompt_lookup_max`"
    )
    draft_tensor_parallel_size: int | None = Field(
        None, ge=1, description="GPUs that each layer of `model` is split across: 1, or tensor_parallel_size"
    )
    max_model_len: int | None = Field(None, ge=1, description="Context length of `model` in tokens")

    @model_validator(mode="after")
    def _require_source(self) -> SpeculativeSpec:
        if not (self.method or self.model):
            raise PydanticCustomError("speculative", "needs `method` or `model`")
        if self.method in WITHOUT_MODEL and self.model:
            raise PydanticCustomError(
                "speculative", "has `model`, which the method {method} does not use. Remove one of them",
                {"method": self.method},
            )  # fmt: skip
        if self.method and self.method not in (*WITHOUT_MODEL, *OWN_WEIGHTS) and not self.model:
            raise PydanticCustomError("speculative", "needs `model` for the method {method}", {"method": self.method})
        # vLLM reads the number only from the config of a second model, and a plain model's config has none
        unknown = self.method in OWN_WEIGHTS and not self.model
        unknown = unknown or self.method in ("ngram", "ngram_gpu", "draft_model")
        if unknown and not self.num_speculative_tokens:
            raise PydanticCustomError(
                "speculative", "needs `num_speculative_tokens` for the method {method}", {"method": self.method}
            )
        if (self.prompt_lookup_max or self.prompt_lookup_min) and self.method not in ("ngram", "ngram_gpu"):
            raise PydanticCustomError("speculative", "has prompt_lookup fields, which only the method ngram uses")
        if (self.prompt_lookup_min or 1) > (self.prompt_lookup_max or self.prompt_lookup_min or 1):
            raise PydanticCustomError("speculative", "has a prompt_lookup_min above prompt_lookup_max")
        if self.revision and (not self.model or is_local(self.model)):
            raise PydanticCustomError("speculative", "has `revision`, which needs a Hub id in `model`")
        return self


def speculative_config(model: Any, site: Site) -> str | None:
    """The value of `--speculative-config`; None without speculative decoding."""
    spec = model.speculative
    if spec is None:
        return None
    values = spec.model_dump(exclude_none=True)
    if spec.model and is_local(spec.model):
        values["model"] = site.local_path(spec.model)
    return json.dumps(values)


def draft_download(model: Any) -> tuple[str, ...]:
    """Arguments of `download.py` for the draft model."""
    spec = model.speculative
    if spec is None or not spec.model or is_local(spec.model):
        return ()
    return ("--model", spec.model, *(("--revision", spec.revision) if spec.revision else ()))


def draft_folder(model: Any) -> str:
    """The local folder of the draft model, which the engine must see; "" if there is none."""
    return model.speculative.model if model.speculative and is_local(model.speculative.model or "") else ""


def find_speculative_mistakes(replica: Replica, tensor: int) -> Iterator[Mistake]:
    """Values that don't fit the model or its version of vLLM. `tensor` is the model's tensor parallel size."""
    spec, length = replica.spec.speculative, replica.spec.max_model_len or ""
    if spec is None:
        return
    known = None if replica.spec.image else flags_of(replica.spec)
    methods = known.by_name.get("--spec-method", {}).get("choices", ()) if known else ()
    if known and methods and spec.method and spec.method not in methods:
        usable = [one for one in get_args(Method) if one in methods]
        yield Mistake(f"{replica.path}.speculative.method", f"vllm {known.version} does not know the value "
                      f"{spec.method!r}", hint=f"use one of {', '.join(usable)}")  # fmt: skip
    # `auto` and -1 are known only after the start
    if re.match(r"\d", length) and (spec.max_model_len or 0) > parse_token_count(length):
        yield Mistake(f"{replica.path}.speculative.max_model_len", f"is {spec.max_model_len}, which is more than "
                      f"the model's max_model_len ({length})", hint="decrease it, or remove it")  # fmt: skip
    if spec.draft_tensor_parallel_size not in (None, 1, tensor):
        yield Mistake(
            f"{replica.path}.speculative.draft_tensor_parallel_size",
            f"is {spec.draft_tensor_parallel_size}, but vLLM splits a draft model across 1 GPU, or across {tensor} "
            "GPUs like the model itself", hint=f"set 1 or {tensor}",
        )  # fmt: skip
