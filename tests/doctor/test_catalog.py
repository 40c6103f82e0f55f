"""What doctor knows about a model from the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stackgen.check.huggingface import HubLookup
from stackgen.doctor.finding import Finding
from tests.doctor.hosts import EIGHT_80, findings, write_stack

MODEL, GATED = "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct"


def one(found: tuple[Finding, ...], id: str) -> list[Finding]:
    return [finding for finding in found if finding.id == id]


def test_a_missing_tool_parser_is_suggested_by_name(tmp_path: Path) -> None:
    (found,) = one(findings(EIGHT_80, write_stack(tmp_path, model=MODEL), offline=True), "SG-P067")
    assert found.status == "warn" and "tool_call_parser: hermes" in found.fix and "recipe" in found.evidence
    for fields in ({"tool_call_parser": "hermes"}, {"extra_args": ["--tool-call-parser=hermes"]}):
        path = write_stack(tmp_path, model=MODEL, **fields)
        assert [finding.status for finding in one(findings(EIGHT_80, path, offline=True), "SG-P067")] == ["ok"]


def test_a_tool_parser_of_another_family_is_a_warning(tmp_path: Path) -> None:
    path = write_stack(tmp_path, model=GATED, tool_call_parser="mistral")
    (found,) = one(findings(EIGHT_80, path, offline=True), "SG-P067")
    assert found.status == "warn" and found.fix == "set `tool_call_parser: llama3_json`" and "mistral" in found.message


@pytest.mark.parametrize(("model", "fields", "parser"), [
    (MODEL, {"tool_call_parser": "qwen3_xml"}, "hermes"),
    (MODEL, {"extra_args": ["--tool-call-parser=qwen3_coder"]}, "hermes"),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", {"tool_call_parser": "hermes"}, "qwen3_xml"),
    ("meta-llama/Llama-3.3-70B-Instruct", {"tool_call_parser": "llama4_pythonic"}, "llama3_json"),
])  # fmt: skip
def test_a_tool_parser_of_other_models_of_the_vendor_is_a_warning(
    tmp_path: Path, model: str, fields: dict[str, Any], parser: str
) -> None:
    path = write_stack(tmp_path, model=model, **fields)
    (found,) = one(findings(EIGHT_80, path, offline=True), "SG-P067")
    assert found.status == "warn" and found.fix == f"set `tool_call_parser: {parser}`"


@pytest.mark.parametrize(("model", "fields", "status"), [
    (MODEL, {"max_model_len": "128K"}, "warn"), (MODEL, {"max_model_len": "16K"}, "ok"),
    ("acme/unknown-7B", {"max_model_len": "128K"}, "unknown"),
    # may raise the limit
    (MODEL, {"max_model_len": "128K", "extra_args": ["--hf-overrides", '{"rope_parameters": {}}']}, "unknown"),
])  # fmt: skip
def test_without_config_json_the_catalog_knows_the_context(
    model: str, fields: dict[str, Any], status: str, tmp_path: Path
) -> None:
    (found,) = one(findings(EIGHT_80, write_stack(tmp_path, model=model, **fields), offline=True), "SG-P055")
    assert found.status == status and (found.fix == "set `max_model_len: 40960`, or `auto`") == (status == "warn")


def test_an_older_vllm_than_the_recipe_needs_is_a_warning(tmp_path: Path) -> None:
    name = "deepseek-ai/DeepSeek-V4-Flash"
    (found,) = one(findings(EIGHT_80, write_stack(tmp_path, model=name), offline=True), "SG-P068")
    assert found.status == "ok"
    path = write_stack(tmp_path, model=name, image="vllm/vllm-openai:v0.11.0")
    (found,) = one(findings(EIGHT_80, path, offline=True), "SG-P068")
    assert found.status == "warn" and "and this is 0.11.0" in found.message and "`image`" in found.fix
    # the tag names no version
    path = write_stack(tmp_path, model=name, image="registry.example.com/vllm:mine")
    assert not one(findings(EIGHT_80, path, offline=True), "SG-P068")


@pytest.mark.parametrize(
    ("model", "hub", "status"),
    [
        (GATED, None, ["warn"]),
        (GATED, HubLookup("unreachable"), ["warn"]),
        # the Hub's own answer is in SG-P061
        (GATED, HubLookup("ok", gated=True), []),
        (MODEL, None, []),
    ],
)
def test_a_gated_model_is_named_before_the_download(
    model: str, hub: HubLookup | None, status: list[str], tmp_path: Path
) -> None:
    found = one(findings(EIGHT_80, write_stack(tmp_path, model=model), {model: hub}), "SG-P069")
    assert [finding.status for finding in found] == status


def test_a_reasoning_parser_of_another_family_is_a_warning(tmp_path: Path) -> None:
    def check(model: str, parser: str) -> list[Finding]:
        path = write_stack(tmp_path, model=model, reasoning_parser=parser)
        return one(findings(EIGHT_80, path, offline=True), "SG-P076")

    (found,) = check("openai/gpt-oss-20b", "qwen3")
    assert found.status == "warn" and "vLLM sets openai_gptoss itself" in found.fix
    (found,) = check(MODEL, "mistral")
    assert found.status == "warn" and found.fix == "set `reasoning_parser: qwen3`" and "recipe" in found.evidence
    assert [finding.status for finding in check(MODEL, "qwen3")] == ["ok"]
    (found,) = check("Qwen/Qwen3-4B-Instruct-2507", "qwen3")
    assert found.status == "warn" and "is not a reasoning model" in found.message
    assert found.fix == "remove `reasoning_parser`"
    assert not [finding for finding in check("acme/unknown-7B", "qwen3") if finding.status != "skip"]


def test_the_parsers_of_sglang_have_names_of_their_own(tmp_path: Path) -> None:
    def check(id: str, model: str, **fields: Any) -> list[Finding]:
        path = write_stack(tmp_path, model=model, engine="sglang", **fields)
        return one(findings(EIGHT_80, path, offline=True), id)

    (found,) = check("SG-P067", MODEL)
    assert found.status == "warn" and "set `tool_call_parser: qwen`" in found.fix and "as text" in found.message
    (found,) = check("SG-P067", MODEL, extra_args=["--tool-call-parser=deepseekv3"])
    assert found.status == "warn" and found.fix == "set `tool_call_parser: qwen`"
    assert [found.status for found in check("SG-P067", MODEL, tool_call_parser="qwen25")] == ["ok"]
    (found,) = check("SG-P076", "deepseek-ai/DeepSeek-V3.1", reasoning_parser="deepseek-r1")
    assert found.status == "warn" and found.fix == "set `reasoning_parser: deepseek-v3`"
    (found,) = check("SG-P076", "Qwen/Qwen3-4B-Instruct-2507", reasoning_parser="qwen3-thinking")
    assert found.status == "warn" and found.fix == "remove `reasoning_parser`"
    assert [found.status for found in check("SG-P076", MODEL, reasoning_parser="qwen3")] == ["ok"]
