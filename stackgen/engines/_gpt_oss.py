"""The vocabulary of gpt-oss, which is not in the model's repository.

vLLM 0.32 parses gpt-oss with openai-harmony, which reads `o200k_base.tiktoken` from TIKTOKEN_ENCODINGS_BASE. Without
the variable, it downloads the file when the engine starts (openai-harmony 0.0.8, src/tiktoken_ext/public_encodings.rs;
measured).
"""

from __future__ import annotations

import re
from typing import Any

from stackgen.plan import Site

__all__ = ["vocabulary_arguments", "vocabulary_environment"]

VARIABLE, NAME = "TIKTOKEN_ENCODINGS_BASE", "o200k_base"
# vLLM recognizes the model type in config.json, which is not known before the download
GPT_OSS = re.compile(r"gpt[-_.]?oss", re.IGNORECASE)
# only these parsers read the format of gpt-oss
PARSERS = ("openai_gptoss", "openai")


def vocabulary_arguments(model: Any) -> tuple[str, ...]:
    """Arguments of `download.py` for the vocabulary; empty if the model needs none, or stack.yaml names its folder."""
    is_gpt_oss = GPT_OSS.search(model.model) or {model.reasoning_parser, model.tool_call_parser} & {*PARSERS}
    return ("--vocabulary", NAME) if is_gpt_oss and VARIABLE not in model.extra_env else ()


def vocabulary_environment(model: Any, site: Site) -> tuple[tuple[str, str], ...]:
    """Environment with which the engine reads the vocabulary from the model storage; empty if it needs none."""
    return ((VARIABLE, f"{site.models_dir()}/tiktoken"),) if vocabulary_arguments(model) else ()
