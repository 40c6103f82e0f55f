"""Models on this disk: real folders with one fault each, and readers that accept any bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen.doctor.collect import collect_inputs, try_open_stack
from stackgen.doctor.finding import Finding
from stackgen.doctor.model_facts import find_safetensors_problem, parse_shard_index, read_model_facts
from stackgen.doctor.table import run_checks
from tests.doctor.hosts import (
    CONFIG,
    EIGHT_80,
    NO_GPU,
    ONE_24,
    findings,
    problem_ids,
    single_problem,
    write_model,
    write_stack,
)

anything = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Path:
    """A stack that serves a copy of the real small model; tests break `tmp_path/model`."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model").chmod(0o755)
    return write_stack(tmp_path, gpus="none", model="./model")


def look(path: Path) -> tuple[Finding, ...]:
    return findings(NO_GPU, path)


@pytest.mark.docker
def test_real_small_model_has_no_problem(tiny: Path) -> None:
    assert not problem_ids(look(tiny), "fail", "warn", "unknown")


@pytest.mark.docker
def test_each_fault_of_a_real_small_model_is_found(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shard, config = folder / "model.safetensors", folder / "config.json"
    whole, text = shard.read_bytes(), config.read_text()

    shard.write_bytes(whole[:-1000])
    assert (
        f"{len(whole) - 1000} bytes instead of {len(whole)}" in single_problem(look(tiny), "SG-P053", "fail").evidence
    )
    shard.write_bytes(whole[:100])
    assert "inside its header" in single_problem(look(tiny), "SG-P053", "fail").evidence
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in single_problem(look(tiny), "SG-P053", "fail").evidence
    shard.unlink()
    assert "no weights" in single_problem(look(tiny), "SG-P053", "fail").evidence
    shard.write_bytes(whole)

    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    assert "model-00002-of-00002.safetensors: is missing" in single_problem(look(tiny), "SG-P053", "fail").evidence
    (folder / "model.safetensors.index.json").unlink()

    config.write_text(text[:-10])
    assert "is not JSON" in single_problem(look(tiny), "SG-P050", "fail").message
    config.write_text("{}")
    assert "no architecture" in single_problem(look(tiny), "SG-P050", "fail").message
    config.unlink()
    assert "is missing" in single_problem(look(tiny), "SG-P050", "fail").message
    config.write_text(text)

    os.rename(folder / "tokenizer.json", folder / "away")
    single_problem(look(tiny), "SG-P051", "fail")
    os.rename(folder / "away", folder / "tokenizer.json")
    (folder / "chat_template.jinja").unlink()
    single_problem(look(tiny), "SG-P052", "warn")


def test_file_that_the_containers_user_cannot_read_fails(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    shard = tmp_path / "model" / "model.safetensors"
    shard.chmod(0o600)
    found = single_problem(findings(ONE_24, path), "SG-P054", "fail")
    assert "uid 0 and has mode 0600; the container runs as 2000:0" in found.evidence or os.getuid()
    # the CPU image runs as root, who owns the file
    if not os.getuid():
        assert not problem_ids(findings(NO_GPU, write_stack(tmp_path, gpus="none", model="./model")))


def test_missing_folder_file_instead_of_folder_and_broken_gguf_are_reported(tmp_path: Path) -> None:
    assert (
        single_problem(look(write_stack(tmp_path, gpus="none", model="./none")), "SG-P050", "fail").place
        == "models[0].model"
    )
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    path = write_stack(tmp_path, gpus="none", model="./m.gguf")
    assert "llamacpp" in single_problem(look(path), "SG-P050", "fail").fix
    path = write_stack(tmp_path, gpus="none", model="./m.gguf", engine="llamacpp")
    assert not problem_ids(look(path))
    (tmp_path / "m.gguf").write_bytes(b"<html>")
    single_problem(look(path), "SG-P053", "fail")


def test_cached_model_in_the_storage_is_checked(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "store"
    root.mkdir()
    path = write_stack(
        tmp_path, gpus="none", model="org/m", revision="main", max_model_len="32k",
        stack_storage={"path": str(root), "offline": True},
    )  # fmt: skip
    import dataclasses

    machine = dataclasses.replace(NO_GPU, storage_root=str(root))
    assert problem_ids(findings(machine, path), "fail") == {"SG-P063"}
    cache = root / "hub" / "models--org--m"
    write_model(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    single_problem(findings(machine, path), "SG-P055", "fail")  # its config.json says 8192
    unknown = findings(dataclasses.replace(machine, storage_root=None), path)
    assert "SG-P063" in problem_ids(unknown, "unknown") and not problem_ids(unknown, "fail")


def test_nested_text_config_is_read(tmp_path: Path) -> None:
    nested = {"architectures": ["Llama4"], "text_config": CONFIG}
    facts = read_model_facts(write_model(tmp_path / "m", nested))
    assert facts.number("num_attention_heads") == 32 and facts.dtype() == "bfloat16"


BERT = {"architectures": ["BertModel"], "model_type": "bert", "position_embedding_type": "absolute",
        "max_position_embeddings": 8192}  # fmt: skip
NESTED = {"full_attention": {"rope_type": "linear", "factor": 4.0}, "sliding_attention": {"rope_type": "default"}}


@pytest.mark.parametrize(
    ("config", "files", "limit"),
    [
        ({}, {}, 8192),
        # YaRN and llama3: the config has the scaled length (vLLM once multiplied it again)
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, 8192),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, {}, 8192),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, {}, 8192),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, {}, 8192),
        ({"rope_scaling": {"type": "su", "factor": 4.0}}, {}, 8192),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {}, 32768),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, {}, 32768),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, {}, 16384),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": None}}, {}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {}, 8192),
        ({"rope_parameters": NESTED}, {}, 32768),
        ({"rope_parameters": NESTED, "model_type": "gemma3_text"}, {}, 8192),
        ({"model_max_length": 32768}, {}, 32768),
        ({"max_seq_len": 4096}, {}, 4096),
        ({"max_position_embeddings": None, "n_positions": 1024}, {}, 1024),
        ({"text_config": {"max_position_embeddings": 65536, "rope_scaling": None}}, {}, 65536),
        # vLLM reads the tokenizer's length for embedders with absolute positions, not for decoders
        ({}, {"tokenizer_config.json": '{"model_max_length": 2048}'}, 8192),
        (BERT, {"tokenizer_config.json": '{"model_max_length": 512}'}, 512),
        (BERT, {"tokenizer_config.json": '{"model_max_length": 1e30}'}, 8192),
        (BERT, {"sentence_bert_config.json": '{"max_seq_length": 256}'}, 256),
    ],
)
def test_context_limit_equals_vllms_own(
    config: dict[str, Any], files: dict[str, str], limit: int, tmp_path: Path
) -> None:
    """Each row is from vLLM 0.32.0's `_get_and_verify_max_len`."""
    for asked, word in ((limit, "ok"), (limit + 1, "fail")):
        path = write_stack(tmp_path, gpus="none", config=CONFIG | config, max_model_len=str(asked))
        for name, text in files.items():
            (tmp_path / "model" / name).write_text(text)
        (found,) = [one for one in look(path) if one.id == "SG-P055"]
        assert found.status == word, found
        if word == "fail":
            assert found.fix == f"set `max_model_len: {limit}`, or `auto`" and ".json: " in found.evidence


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 8192),
        ({"max_sequence_length": 4096}, 4096),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, 32768),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 2048}}, 8192),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, 8192),
        ({"text_config": {"max_position_embeddings": 1024}}, 1024),
    ],
)
def test_context_limit_equals_sglangs_own(config: dict[str, Any], limit: int, tmp_path: Path) -> None:
    """Each row is by hand from SGLang 0.5.23's `get_context_length`."""
    for asked, status in ((limit, "ok"), (limit + 1, "fail")):
        path = write_stack(tmp_path, engine="sglang", config=CONFIG | config, max_model_len=str(asked))
        assert [one.status for one in look(path) if one.id == "SG-P055"] == [status]
    allowed = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    path = write_stack(tmp_path, engine="sglang", config=CONFIG | config, max_model_len="64k", extra_env=allowed)
    (found,) = [one for one in look(path) if one.id == "SG-P055"]
    assert found.status == "warn" and "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN" in found.evidence
    longer = ["--json-model-override-args", '{"max_position_embeddings": 65536, "text_config": null}']
    fields = {"max_model_len": "32k", "extra_args": longer}
    if "rope_scaling" not in config and "max_sequence_length" not in config:
        path = write_stack(tmp_path, engine="sglang", config=CONFIG | config, **fields)
        assert [one.status for one in look(path) if one.id == "SG-P055"] == ["ok"]


def test_overrides_by_the_user_change_the_context_limit(tmp_path: Path) -> None:
    longer = ["--hf-overrides", '{"max_position_embeddings": 32768}']
    assert not problem_ids(look(write_stack(tmp_path, gpus="none", max_model_len="32k", extra_args=longer)))
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    single_problem(look(write_stack(tmp_path, gpus="none", max_model_len="32k", extra_env=allowed)), "SG-P055", "warn")
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}
    single_problem(look(write_stack(tmp_path, gpus="none", max_model_len="32k", extra_env=allowed)), "SG-P055", "fail")


@anything
@given(st.binary(max_size=400))
def test_any_bytes_are_read_as_a_shard_without_an_exception(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert isinstance(find_safetensors_problem(path), str)


@anything
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_read_as_a_header_without_an_exception(tmp_path: Path, value: object) -> None:
    header = json.dumps(value).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert isinstance(find_safetensors_problem(path), str)


@anything
@given(st.integers(0, 3000), st.integers(-500, 500).filter(bool))
def test_shard_is_complete_only_at_the_length_in_its_header(tmp_path: Path, size: int, more: int) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"data_offsets": [0, size]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size)
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert not find_safetensors_problem(path)
    path.write_bytes(data + bytes(more) if more > 0 else data[:more])
    assert find_safetensors_problem(path)


@given(st.binary())
def test_any_bytes_are_parsed_as_an_index_without_an_exception(data: bytes) -> None:
    assert isinstance(parse_shard_index(data), list)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_index_cannot_name_files_in_other_folders(weights: dict[str, object]) -> None:
    for name in parse_shard_index(json.dumps({"weight_map": weights}).encode()):
        assert "/" not in name and name not in (".", "..") and "\0" not in name


@anything
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    )
)
def test_any_config_passes_through_all_checks_without_an_exception(tmp_path: Path, value: object) -> None:
    path = tmp_path / "stack.yaml"
    if not path.exists():
        write_stack(tmp_path, tensor_parallel_size=1, max_model_len="32k")
    config = dict.fromkeys(
        [
            *CONFIG,
            "text_config",
            "quantization_config",
            "rope_scaling",
            "rope_parameters",
            "model_max_length",
            "torch_dtype",
        ],
        value,
    )
    write_model(tmp_path / "model", config)
    assert run_checks(collect_inputs(ONE_24, *try_open_stack(str(path))))


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(("tensor", "config", "status"), [
    (8, {}, "fail"), (4, {}, ""), (1, {}, ""), (8, {"intermediate_size": 16384}, ""), (8, {"num_experts": 8}, ""),
    (8, {"quantization_config": FP8 | {"weight_block_size": None}}, ""),
    (8, {"quantization_config": FP8 | {"modules_to_not_convert": ["model.layers.0.mlp.down_proj"]}}, ""),
])  # fmt: skip
def test_blocks_of_fp8_weights_must_be_divisible(
    tmp_path: Path, tensor: int, config: dict[str, Any], status: str
) -> None:
    config = CONFIG | {"intermediate_size": 9728, "quantization_config": FP8} | config
    found = [
        one for one in findings(EIGHT_80, write_stack(tmp_path, gpus=tensor, config=config)) if "FP8" in one.message
    ]
    assert [one.status for one in found] == ([status] if status else [])
    for one in found:
        assert one.id == "SG-P057" and "9728 / 8 = 1216" in one.evidence and "tensor_parallel_size: 4" in one.fix
