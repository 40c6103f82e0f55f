"""Models on this disk: real folders with one fault each, and readers that whatever bytes don't break."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen.doctor.finding import Finding
from stackgen.doctor.gather import case_of, opened
from stackgen.doctor.model_facts import look_at_model, read_index, safetensors_problem
from stackgen.doctor.table import examine
from tests.doctor.hosts import CONFIG, NO_GPU, ONE_24, bad, findings, only, write_model, write_stack

anything = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


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
    config = dict.fromkeys([*CONFIG, "text_config", "quantization_config", "rope_scaling", "torch_dtype"], value)
    write_model(tmp_path / "model", config)
    assert examine(case_of(ONE_24, *opened(str(path))))
