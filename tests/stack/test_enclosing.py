"""A stack inside a folder that its containers mount: they could read the keys in .env."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackgen.cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "Qwen3-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "stack.yaml").write_text("name: s\nmodels: [{model: ../Qwen3-8B, engine: vllm, gpus: 1}]\n")
    return folder


@pytest.mark.parametrize("inside", ["", "deploy/here"])
def test_files_are_not_rendered_into_the_mounted_model(
    inside: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(model.rglob("*"))
    for command in (["render", str(tmp_path / "s")], ["render", str(model), "--engine", "vllm", "--gpus", "1"]):
        assert main([*command, "-o", str(model / inside), "--no-validate"]) == 2
        error = capsys.readouterr().err
        assert f"{model / inside} is in {model}, which is mounted into the containers" in error
        assert "choose a folder for --output outside of the model's folder" in error
    assert sorted(model.rglob("*")) == before
    # a link does not hide the folder
    (tmp_path / "link").symlink_to(model)
    assert main(["render", str(tmp_path / "s"), "-o", str(tmp_path / "link"), "--no-validate"]) == 2


def test_a_stack_in_the_folder_of_its_model_is_warned_about(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "stack.yaml").write_text("name: s\nmodels: [{model: ., engine: vllm, gpus: 1}]\n")
    assert main(["render", str(model), "--no-validate"]) == 0
    assert f"warning: {model} is mounted into the containers of vllm-" in capsys.readouterr().err


def test_folders_next_to_the_stack_are_no_problem(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", str(tmp_path / "s"), "--no-validate"]) == 0
    assert main(["render", str(tmp_path / "s"), "-o", str(tmp_path / "out"), "--no-validate"]) == 0
    assert "is mounted into" not in capsys.readouterr().err
