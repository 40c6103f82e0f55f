"""Checks whether the chat templates inside GGUF files have tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stackgen.doctor.finding import Results, ok, unknown, warn
from stackgen.doctor.model_facts import ModelFacts
from stackgen.engines._llamacpp_template import find_tool_support

__all__ = ["check_gguf_template"]


def check_gguf_template(model: Any, facts: ModelFacts, place: str) -> Results:
    """What the template of each GGUF file of a model says about tools."""
    for one in find_tool_support(model, Path(facts.path)):
        where = f"tokenizer.chat_template of {one.file.name}"
        if one.ignores_tools:
            yield warn(
                f"{one.file.name} ignores `tools` and `tool_choice` of requests, and answers with text",
                evidence=f"{where} uses neither" if one.has_template else f"{one.file.name} has no chat template",
                fix=(
                    "for tool calls, use a model whose chat template supports tools, or set --chat-template-file in "
                    "extra_args"
                ),
                place=f"{place}.model",
            )
        elif one.missing:
            yield unknown(f"can't tell whether {one.file.name} can call tools",
                          evidence=f"{where} does not use `{one.missing[0]}`", place=f"{place}.model")  # fmt: skip
        else:
            yield ok(f"the chat template of {one.file.name} supports tools", evidence=where, place=f"{place}.model")
