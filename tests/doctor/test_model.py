"""Models on this disk: real folders with one fault each, and readers that whatever bytes don't break."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen.doctor.collect import case_of, opened
from stackgen.doctor.finding import Finding
from stackgen.doctor.model_facts import look_at_model, read_index, safetensors_problem
from stackgen.doctor.table import examine
from tests.doctor.hosts import CONFIG, NO_GPU, ONE_24, bad, findings, only, write_model, write_stack

anything = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path) -> Path:
    """A stack that serves a copy of the real tiny model; `tmp_path/model` is there to be broken."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model").chmod(0o755)
    return write_stack(tmp_path, gpus="none", model="./model")


def look(path: Path) -> tuple[Finding, ...]:
    return findings(NO_GPU, path)


@pytest.mark.docker
def test_the_real_tiny_model_is_whole(tiny: Path) -> None:
    assert not bad(look(tiny), "fail", "warn", "unknown")


@pytest.mark.docker
def test_each_fault_of_the_real_tiny_model(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shard, config = folder / "model.safetensors", folder / "config.json"
    whole, text = shard.read_bytes(), config.read_text()

    shard.write_bytes(whole[:-1000])
    assert f"{len(whole) - 1000} of {len(whole)} bytes" in only(look(tiny), "SG-P053", "fail").evidence
    shard.write_bytes(whole[:100])
    assert "inside its header" in only(look(tiny), "SG-P053", "fail").evidence
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in only(look(tiny), "SG-P053", "fail").evidence
    shard.unlink()
    assert "no weights" in only(look(tiny), "SG-P053", "fail").evidence
    shard.write_bytes(whole)

    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    assert "model-00002-of-00002.safetensors: is missing" in only(look(tiny), "SG-P053", "fail").evidence
    (folder / "model.safetensors.index.json").unlink()

    config.write_text(text[:-10])
    assert "is not JSON" in only(look(tiny), "SG-P050", "fail").message
    config.write_text("{}")
    assert "no architecture" in only(look(tiny), "SG-P050", "fail").message
    config.unlink()
    assert "is missing" in only(look(tiny), "SG-P050", "fail").message
    config.write_text(text)

    os.rename(folder / "tokenizer.json", folder / "away")
    only(look(tiny), "SG-P051", "fail")
    os.rename(folder / "away", folder / "tokenizer.json")
    (folder / "chat_template.jinja").unlink()
    only(look(tiny), "SG-P052", "warn")


def test_a_file_that_the_container_s_user_can_t_read(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    shard = tmp_path / "model" / "model.safetensors"
    shard.chmod(0o600)
    found = only(findings(ONE_24, path), "SG-P054", "fail")
    assert "uid 0 with mode 0600; the container runs as 2000:0" in found.evidence or os.getuid()
    # the CPU image runs as root, whose own file it is
    if not os.getuid():
        assert not bad(findings(NO_GPU, write_stack(tmp_path, gpus="none", model="./model")))


def test_a_path_that_leads_nowhere_a_file_and_a_gguf(tmp_path: Path) -> None:
    assert only(look(write_stack(tmp_path, gpus="none", model="./none")), "SG-P050", "fail").place == "models[0].model"
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    path = write_stack(tmp_path, gpus="none", model="./m.gguf")
    assert "llamacpp" in only(look(path), "SG-P050", "fail").fix
    path = write_stack(tmp_path, gpus="none", model="./m.gguf", engine="llamacpp")
    assert not bad(look(path))
    (tmp_path / "m.gguf").write_bytes(b"<html>")
    only(look(path), "SG-P053", "fail")


def test_a_model_in_the_cache_of_the_storage_is_looked_at(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "store"
    root.mkdir()
    path = write_stack(
        tmp_path, gpus="none", model="org/m", revision="main", max_model_len="32k",
        stack_storage={"path": str(root), "offline": True},
    )  # fmt: skip
    import dataclasses

    machine = dataclasses.replace(NO_GPU, storage_root=str(root))
    assert bad(findings(machine, path), "fail") == {"SG-P063"}
    cache = root / "hub" / "models--org--m"
    write_model(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    only(findings(machine, path), "SG-P055", "fail")  # its config.json says 8192
    unknown = findings(dataclasses.replace(machine, storage_root=None), path)
    assert "SG-P063" in bad(unknown, "unknown") and not bad(unknown, "fail")


def test_a_nested_text_config_is_read(tmp_path: Path) -> None:
    nested = {"architectures": ["Llama4"], "text_config": CONFIG}
    facts = look_at_model(write_model(tmp_path / "m", nested))
    assert facts.number("num_attention_heads") == 32 and facts.dtype() == "bfloat16"


BERT = {"architectures": ["BertModel"], "model_type": "bert", "position_embedding_type": "absolute",
        "max_position_embeddings": 8192}  # fmt: skip
NESTED = {"full_attention": {"rope_type": "linear", "factor": 4.0}, "sliding_attention": {"rope_type": "default"}}


@pytest.mark.parametrize(
    ("config", "files", "limit"),
    [
        ({}, {}, 8192),
        # YaRN and llama3: the config's length is the scaled one (vLLM once multiplied it again)
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
        # of decoders vLLM doesn't read the tokenizer's length, of embedders with absolute positions it does
        ({}, {"tokenizer_config.json": '{"model_max_length": 2048}'}, 8192),
        (BERT, {"tokenizer_config.json": '{"model_max_length": 512}'}, 512),
        (BERT, {"tokenizer_config.json": '{"model_max_length": 1e30}'}, 8192),
        (BERT, {"sentence_bert_config.json": '{"max_seq_length": 256}'}, 256),
    ],
)
def test_the_longest_context_is_vllm_s_own(
    config: dict[str, Any], files: dict[str, str], limit: int, tmp_path: Path
) -> None:
    """Each row was read off vLLM 0.32.0's `_get_and_verify_max_len`."""
    for asked, word in ((limit, "ok"), (limit + 1, "fail")):
        path = write_stack(tmp_path, gpus="none", config=CONFIG | config, max_model_len=str(asked))
        for name, text in files.items():
            (tmp_path / "model" / name).write_text(text)
        (found,) = [one for one in look(path) if one.id == "SG-P055"]
        assert found.status == word, found
        if word == "fail":
            assert found.fix == f"max_model_len: {limit}, or auto" and ".json: " in found.evidence


def test_what_the_user_overrides_counts_for_the_context(tmp_path: Path) -> None:
    longer = ["--hf-overrides", '{"max_position_embeddings": 32768}']
    assert not bad(look(write_stack(tmp_path, gpus="none", max_model_len="32k", extra_args=longer)))
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    only(look(write_stack(tmp_path, gpus="none", max_model_len="32k", extra_env=allowed)), "SG-P055", "warn")
    allowed = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "0"}
    only(look(write_stack(tmp_path, gpus="none", max_model_len="32k", extra_env=allowed)), "SG-P055", "fail")


@anything
@given(st.binary(max_size=400))
def test_any_bytes_as_a_shard(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert isinstance(safetensors_problem(path), str)


@anything
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_as_a_header(tmp_path: Path, value: object) -> None:
    header = json.dumps(value).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert isinstance(safetensors_problem(path), str)


@anything
@given(st.integers(0, 3000), st.integers(-500, 500).filter(bool))
def test_a_shard_is_whole_at_its_own_length_only(tmp_path: Path, size: int, more: int) -> None:
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"data_offsets": [0, size]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(size)
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert not safetensors_problem(path)
    path.write_bytes(data + bytes(more) if more > 0 else data[:more])
    assert safetensors_problem(path)


@given(st.binary())
def test_any_bytes_as_an_index(data: bytes) -> None:
    assert isinstance(read_index(data), list)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_an_index_leads_to_no_other_folder(weights: dict[str, object]) -> None:
    for name in read_index(json.dumps({"weight_map": weights}).encode()):
        assert "/" not in name and name not in (".", "..") and "\0" not in name


@anything
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    )
)
def test_any_config_breaks_no_check(tmp_path: Path, value: object) -> None:
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
    assert examine(case_of(ONE_24, *opened(str(path))))
