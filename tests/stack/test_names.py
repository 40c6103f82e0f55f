"""Warnings of `render` about names: folders that are read as repositories of the Hub, and parsers of other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main


def warnings_of(folder: Path, capsys: pytest.CaptureFixture[str], *models: dict[str, Any]) -> list[str]:
    entries = [{"engine": "vllm", "revision": "abc", "gpus": [number], **one} for number, one in enumerate(models)]
    (folder / "stack.yaml").write_text(json.dumps({"name": "s", "models": entries}))
    assert main(["render", str(folder), "--no-validate", "--json"]) == 0
    found: list[str] = json.loads(capsys.readouterr().out)["warnings"]
    return [one for one in found if "models[" in one]


def test_a_folder_that_is_read_as_a_repository_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("models/foo", "adapters/sql"):
        (tmp_path / name).mkdir(parents=True)
    adapters = [{"name": "sql", "path": "adapters/sql"}, {"name": "hub", "path": "acme/lora", "revision": "abc"}]
    loras = {"max_lora_rank": 16, "lora_adapters": adapters}
    first, second = warnings_of(tmp_path, capsys, {"model": "models/foo", **loras})
    assert "models[0].model: models/foo is read as a repository of the Hub, but a folder of this name exists" in first
    assert "write ./models/foo if you mean the folder" in first and "stack.yaml:1: " in first
    assert "models[0].lora_adapters[0].path: adapters/sql is read" in second and "write ./adapters/sql" in second
    adapters[0]["path"] = "./adapters/sql"
    assert not warnings_of(tmp_path, capsys, {"model": "./models/foo", "revision": None, **loras})


def test_the_folder_of_the_stack_file_counts_and_not_that_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models" / "foo").mkdir(parents=True)
    (tmp_path / "stack.yaml").write_text("{name: s, models: [{model: models/foo, engine: vllm, revision: abc}]}")
    assert main(["render", str(tmp_path), "--output", str(tmp_path / "out"), "--no-validate"]) == 0
    assert "write ./models/foo" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "parser", "said"), [
    ("openai/gpt-oss-20b", "qwen3", "vLLM sets openai_gptoss itself: remove the field"),
    ("./gpt-oss-20b", "qwen3", "vLLM sets openai_gptoss itself"),
    ("Qwen/Qwen3-8B", "mistral", "vLLM's recipe for the model (2026-08-14) names qwen3"),
    ("Qwen/Qwen3-235B-A22B", "kimi_k2", "the documentation (2026-11-28) names qwen3"),
    ("openai/gpt-oss-20b", "openai_gptoss", ""), ("Qwen/Qwen3-8B", "qwen3", ""),
    # reads the same format, takes the format from the model, or the catalog does not know
    ("Qwen/Qwen3-14B", "deepseek_r1", ""), ("Qwen/Qwen3-8B", "hf", ""), ("acme/unknown-7B", "mistral", ""),
])  # fmt: skip
def test_a_reasoning_parser_of_another_family_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, parser: str, said: str
) -> None:
    if model.startswith("./"):
        (tmp_path / model).mkdir()
    revision = {"revision": None} if model.startswith("./") else {}
    found = warnings_of(tmp_path, capsys, {"model": model, "reasoning_parser": parser, **revision})
    assert len(found) == (said != "")
    assert all(f"models[0].reasoning_parser: the parser {parser} is for other models" in one for one in found)
    assert said in "".join(found)


@pytest.mark.parametrize(("model", "fields", "said"), [
    ("Qwen/Qwen3-4B-Instruct-2507", {"reasoning_parser": "qwen3"}, "is not a reasoning model (QwenLM/Qwen3, docs/"),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", {"reasoning_parser": "qwen3"}, "Remove the field"),
    ("Qwen/Qwen3-30B-A3B-Thinking-2507", {"reasoning_parser": "qwen3"}, ""),
    ("meta-llama/Llama-3.1-8B-Instruct", {"reasoning_parser": "qwen3"}, "not in vLLM's list of reasoning models"),
    ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", {"reasoning_parser": "qwen3"}, "is not a reasoning model"),
    ("google/gemma-3-12b-it", {"reasoning_parser": "gemma4"}, "is not a reasoning model"),
    ("Qwen/Qwen2.5-7B-Instruct-AWQ", {"reasoning_parser": "qwen3"}, "is not a reasoning model"),
    ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", {"reasoning_parser": "deepseek_r1"}, "is not a reasoning model"),
    # trained further on such a model, or newer
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", {"reasoning_parser": "deepseek_r1"}, ""),
    ("acme/Llama-3.1-8B-Instruct-Reasoning", {"reasoning_parser": "deepseek_r1"}, ""),
    ("acme/R1-Qwen2.5-7B-Instruct", {"reasoning_parser": "deepseek_r1"}, ""),
    ("mistralai/Mistral-Small-4-119B-2603", {"reasoning_parser": "mistral"}, ""),
    ("meta-llama/Llama-3.1-8B-Instruct", {"tool_call_parser": "mistral"}, "names llama3_json"),
    ("meta-llama/Llama-3.1-8B-Instruct", {"tool_call_parser": "llama3_json"}, ""),
    # a chat template of the user's decides, and without one the model's own
    ("meta-llama/Llama-3.2-3B-Instruct", {"tool_call_parser": "pythonic"}, "names llama3_json"),
    ("meta-llama/Llama-3.2-3B-Instruct", {"tool_call_parser": "pythonic", "chat_template": "./mine.jinja"}, ""),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", {"tool_call_parser": "llama4_json"}, ""),
    ("Qwen/Qwen3-8B", {"tool_call_parser": "qwen3_xml"}, "names hermes"),
    ("Qwen/Qwen3-8B", {"tool_call_parser": "qwen3_json"}, ""),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", {"tool_call_parser": "hermes"}, "names qwen3_xml"),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", {"tool_call_parser": "qwen3_coder"}, ""),
    ("deepseek-ai/DeepSeek-V3.1", {"tool_call_parser": "deepseek_v3"}, "names deepseek_v31"),
    ("acme/unknown-7B", {"tool_call_parser": "mistral"}, ""),
])  # fmt: skip
def test_parsers_that_can_not_read_the_model_are_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, fields: dict[str, str], said: str
) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    found = warnings_of(tmp_path, capsys, {"model": model, **fields})
    assert len(found) == (said != "") and said in "".join(found)
    assert all(f"models[0].{next(iter(fields))}: " in one for one in found)


@pytest.mark.parametrize(("model", "parser", "hint"), [
    # qwen3_xml is the name that is most similar, but the parser of other models
    ("Qwen/Qwen3-8B", "qwen3", "use hermes, which vLLM's recipe for the model names"),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "qwen3-coder", "use qwen3_xml, which the documentation names"),
    ("Qwen/Qwen3-8B", "Hermes", "did you mean hermes?"), ("acme/unknown-7B", "qwen3", "did you mean qwen3_xml?"),
])  # fmt: skip
def test_the_suggestion_for_an_unknown_parser_is_that_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, parser: str, hint: str
) -> None:
    stack = {"name": "names", "models": [{"model": model, "engine": "vllm", "gpus": 1, "tool_call_parser": parser}]}
    (tmp_path / "stack.yaml").write_text(json.dumps(stack))
    assert main(["render", str(tmp_path)]) == 2
    assert f"does not know the value '{parser}' ({hint})" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "fields", "said"), [
    ("Qwen/Qwen3-8B", {"max_model_len": "128K"}, "max_model_len is 131072, but the limit of Qwen/Qwen3-8B is probably"),
    ("Qwen/Qwen3-8B", {"max_model_len": 40960}, ""), ("Qwen/Qwen3-8B", {"max_model_len": "auto"}, ""),
    # YaRN, or a decision of the user
    ("Qwen/Qwen3-8B", {"max_model_len": "128K", "extra_args": ['--hf-overrides={"rope_parameters": {}}']}, ""),
    ("Qwen/Qwen3-8B", {"max_model_len": "128K", "extra_args": ["--hf_overrides.max_position", "131072"]}, ""),
    ("Qwen/Qwen3-8B", {"max_model_len": "128K", "extra_env": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}}, ""),
    ("acme/unknown-7B", {"max_model_len": "128K"}, ""),
])  # fmt: skip
def test_a_context_beyond_the_models_limit_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, fields: dict[str, Any], said: str
) -> None:
    found = warnings_of(tmp_path, capsys, {"model": model, **fields})
    assert len(found) == (said != "") and said in "".join(found)


@pytest.mark.parametrize(("model", "said"), [
    ({"model": "Qwen/Qwen3-8B-GGUF"}, "looks like a repository of GGUF files, which vllm does not load"),
    ({"model": "acme/m-gguf", "engine": "fastchat"}, "which fastchat does not load"),
    ({"model": "Qwen/Qwen3-8B-GGUF", "engine": "llamacpp", "file": "m.gguf"}, ""),
    ({"model": "Qwen3-0.6B"}, "write ORGANIZATION/Qwen3-0.6B"), ({"model": "qwen3-8b"}, "write Qwen/Qwen3-8B"),
    ({"model": "gpt2"}, ""), ({"model": "Qwen/Qwen3-0.6B"}, ""), ({"model": "./Qwen3-0.6B", "revision": None}, ""),
])  # fmt: skip
def test_repositories_that_are_probably_another_model_are_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: dict[str, Any], said: str
) -> None:
    (tmp_path / "Qwen3-0.6B").mkdir()
    (tmp_path / "Qwen3-0.6B").rename(tmp_path / ("Qwen3-0.6B" if model["model"].startswith("./") else "other"))
    found = warnings_of(tmp_path, capsys, model)
    assert len(found) == (said != "") and said in "".join(found)
    assert all("models[0].model: " in one for one in found)


def test_llama_cpp_refuses_a_file_that_is_no_gguf_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = {"model": "Qwen/Qwen3-4B-GGUF", "engine": "llamacpp", "file": "Qwen3-4B.safetensors"}
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "models": [model]}))
    assert main(["render", str(tmp_path)]) == 2
    assert "models[0].file: is no GGUF file" in capsys.readouterr().err


def test_all_parts_of_a_gguf_file_are_downloaded(tmp_path: Path) -> None:
    file = "q4/Qwen2.5-7B-Q4_K_M-00001-of-00002.gguf"
    model = {"model": "Qwen/Qwen2.5-7B-Instruct-GGUF", "engine": "llamacpp", "file": file, "revision": "abc"}
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "models": [model]}))
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    services = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]
    words = [str(word) for one in services.values() for word in one.get("command") or ()]
    assert words[words.index("--file") + 1] == "q4/Qwen2.5-7B-Q4_K_M-*-of-00002.gguf"
    # llama.cpp opens the first part
    assert any(word.endswith(f"/abc/{file}") for word in words)


QWEN, V31 = "Qwen/Qwen3-4B-Instruct-2507", "deepseek-ai/DeepSeek-V3.1"


@pytest.mark.parametrize(("model", "fields", "said"), [
    (QWEN, {"tool_call_parser": "deepseekv3"}, "SGLang's documentation (2026-11-28) names qwen"),
    (QWEN, {"reasoning_parser": "qwen3-thinking"}, "is not a reasoning model"),
    # leaves an answer without tags in the content
    (QWEN, {"reasoning_parser": "qwen3"}, ""),
    ("Qwen/Qwen3-Coder-30B-A3B-Instruct", {"tool_call_parser": "hermes"}, "names qwen3_coder"),
    (V31, {"tool_call_parser": "deepseekv3"}, "names deepseekv31"),
    (V31, {"reasoning_parser": "deepseek-r1"}, "names deepseek-v3"),
    (V31, {"tool_call_parser": "deepseekv31", "reasoning_parser": "deepseek-v3"}, ""),
    ("zai-org/GLM-4.6", {"tool_call_parser": "qwen"}, "SGLang's source code (2026-11-28) names glm"),
    ("Qwen/Qwen3-8B", {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}, ""),
    ("Qwen/Qwen3-4B-Thinking-2507", {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3-thinking"}, ""),
    ("Qwen/Qwen3-8B", {"tool_call_parser": "auto", "reasoning_parser": "auto"}, ""),
    ("acme/unknown-7B", {"tool_call_parser": "mistral", "reasoning_parser": "kimi"}, ""),
])  # fmt: skip
def test_a_parser_of_another_family_is_a_warning_for_sglang(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, fields: dict[str, Any], said: str
) -> None:
    found = warnings_of(tmp_path, capsys, {"engine": "sglang", "model": model, "served_names": ["a"], **fields})
    assert len(found) == (said != "") and all(said in one for one in found)


def test_messages_name_the_field_and_the_value_that_were_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "models": [
        {"model": "Qwen/Qwen3-4B", "engine": "vllm", "gpus": 1, "max_tokens": 100, "ctx": 4096}]}))  # fmt: skip
    assert main(["render", str(tmp_path), "--no-validate"]) == 2
    found = capsys.readouterr().err
    assert "max_model_len limits the context" in found and "(the field is max_model_len)" in found
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "models": [
        {"model": "Qwen/Qwen3-4B", "engine": "sglang", "gpus": 1, "kv_cache_dtype": "fp8"}]}))  # fmt: skip
    assert main(["render", str(tmp_path), "--no-validate"]) == 2
    assert "did you mean fp8_e4m3 or fp8_e5m2?" in capsys.readouterr().err
    (tmp_path / "stack.yaml").write_text(json.dumps({"name": "s", "target": "kubernetes", "models": [
        {"model": "Qwen/Qwen3-4B", "engine": "vllm", "gpus": 16, "data_parallel_size": 16,
         "tensor_parallel_size": 1}]}))  # fmt: skip
    assert main(["render", str(tmp_path), "--no-validate"]) == 2
    assert "models[0].data_parallel_size: data parallelism can't be combined" in capsys.readouterr().err
