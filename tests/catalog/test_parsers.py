"""Parsers by model: names of the pinned vLLM, from its recipes and from the documentation of model families."""

from __future__ import annotations

import re

import pytest

from stackgen.catalog import find_model, find_parser, find_tool_parser
from stackgen.catalog.lookup import read_families
from stackgen.flags import load_flags

DATA = read_families()


def test_every_parser_is_a_choice_of_the_pinned_vllm() -> None:
    known = load_flags("vllm")
    assert known is not None
    choices = known.by_name["--tool-call-parser"]["values"]
    assert {one["parser"] for one in DATA["families"]} <= set(choices)
    choices = known.by_name["--reasoning-parser"]["values"]
    sglang = load_flags("sglang")
    assert sglang is not None
    for table, flag in (("sglang_families", "--tool-call-parser"), ("sglang_reasoning", "--reasoning-parser")):
        named = {value for one in DATA[table] for value in (one["parser"], *one.get("same", ()))}
        assert named <= set(sglang.by_name[flag]["choices"])
    assert {one["parser"] for one in DATA["reasoning"]} <= set(choices)
    assert all(re.search(r"commit [0-9a-f]{40}|vLLM 0\.32\.0, vllm/", one.get("source", DATA["reasoning_source"]))
               for one in DATA["reasoning"])  # fmt: skip
    # a file at a fixed commit, for each family
    assert DATA["read"] and all(
        re.search(r"commit [0-9a-f]{40}", one.get("source", DATA["source"])) for one in DATA["families"]
    )


@pytest.mark.parametrize(
    ("name", "parser"),
    [
        ("NousResearch/Hermes-2-Pro-Llama-3-8B", "hermes"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "hermes"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "hermes"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3_xml"),
        ("meta-llama/Llama-3.2-3B-Instruct", "llama3_json"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4_pythonic"),
        ("Salesforce/Llama-xLAM-2-8B-fc-r", "xlam"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek_v31"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek_v3"),
        ("zai-org/GLM-4.7-Flash", "glm47"),
        ("zai-org/GLM-4.5-Air", "glm45"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral"),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen2.5-7B-Instruct/snapshots/abc", "hermes"),
        ("qwen2.5", "hermes"),
        ("Qwen/Qwen3-8B", "hermes"),
        ("Qwen/Qwen3-0.6B", "hermes"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "hermes"),
        ("Qwen/Qwen3-14B", "hermes"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama3_json"),
        ("nvidia/Llama-3.3-Nemotron-Super-49B-v1.5", ""),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "mistral"),
        ("mistralai/Devstral-Small-2507", "mistral"),
        # other checkpoints of families that have a recipe
        ("acme/Qwen3.5-9B-AWQ-mine", "qwen3_coder"),
        ("acme/Kimi-K2.6-NVFP4", "kimi_k2"),
        ("acme/GLM-5.1-FP8-mine", "glm47"),
        ("acme/DeepSeek-V3.2-AWQ", "deepseek_v32"),
        # from a recipe, also for a variant, a folder of a Hub cache and a served name
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", "qwen3_coder"),
        ("nvidia/Qwen3-Coder-480B-A35B-Instruct-NVFP4", "qwen3_coder"),
        ("/hub/models--zai-org--GLM-4.6/snapshots/abc", "glm45"),
        ("qwen3.5-9b", "qwen3_coder"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "hermes"),
        ("Qwen/Qwen3.5-35B-A3B", "qwen3_coder"),
        # the recipe names a parser that the pinned vLLM does not have
        ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", ""),
        ("/models/models--Qwen--Qwen3-32B-AWQ/snapshots/abc", "hermes"),
        # not in the documentation, or a model of another family that has such a name in the middle
        ("Qwen/Qwen3-VL-8B-Instruct", ""),
        ("Qwen/Qwen3-Embedding-8B", ""),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", ""),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", ""),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ""),
        ("meta-llama/Meta-Llama-3-8B", ""),
        ("", ""),
    ],
)
def test_the_family_of_a_model_decides_the_parser(name: str, parser: str) -> None:
    assert find_tool_parser(name) == parser


def test_the_first_name_with_a_known_family_wins() -> None:
    assert find_tool_parser("my-model", "Qwen/Qwen2.5-7B-Instruct", "gpt-oss") == "hermes"


def test_a_parser_that_another_version_lacks_is_not_suggested() -> None:
    # vLLM 0.33.0 has all parsers that 0.32.0 has, and a version without a table is not checked
    assert find_parser("reasoning_parser", "Qwen/Qwen3-8B", version="0.33.0")
    assert find_parser("reasoning_parser", "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16") is None
    assert find_parser("reasoning_parser", "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16", version="0.20.0")


def test_each_suggestion_has_an_origin_and_a_date() -> None:
    recipe, family = find_parser("tool_call_parser", "Qwen/Qwen3-8B"), find_parser("tool_call_parser", "ToolACE-8B")
    assert recipe and family
    assert "recipe" in recipe.origin and "documentation" in family.origin
    assert recipe.date >= "2026-08-14" and family.date == DATA["read"]


@pytest.mark.parametrize("name", ["", "/", "..", "models--", "a" * 5000, "models--Qwen--", "Qwen/", "/Qwen3-8B-other"])
def test_names_of_nothing_find_nothing(name: str) -> None:
    assert find_model(name) is None


@pytest.mark.parametrize(("name", "parser"), [
    ("Qwen/Qwen3-235B-A22B", "qwen3"), ("Qwen/Qwen3-235B-A22B-FP8", "qwen3"),
    ("Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3"), ("unsloth/Qwen3-14B-AWQ", "qwen3"), ("./Qwen3-8B", "qwen3"),
    ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "deepseek_r1"), ("acme/DeepSeek-R1-Distill-Qwen-7B", "deepseek_r1"),
    ("openai/gpt-oss-120b", "openai_gptoss"), ("./gpt_oss_20b", "openai_gptoss"), ("Qwen/QwQ-32B-AWQ", "deepseek_r1"),
    # these don't think, or nothing is known of them
    ("Qwen/Qwen3-235B-A22B-Instruct-2507", ""), ("Qwen/Qwen3-4B-Instruct-2507-FP8", ""), ("Qwen/Qwen3-8B-Base", ""),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", ""), ("Qwen/Qwen3-Embedding-8B", ""), ("microsoft/Phi-4-reasoning", ""),
])  # fmt: skip
def test_the_family_decides_the_parser_of_the_reasoning(name: str, parser: str) -> None:
    fact = find_parser("reasoning_parser", name)
    assert (fact.value if fact else "") == parser
