"""The vocabulary of gpt-oss: downloaded by the download service, and read from the storage by every engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main

VARIABLE, FOLDER = "TIKTOKEN_ENCODINGS_BASE", "/models/tiktoken"
VLLM = {"engine": "vllm", "gpus": 1}


def render(folder: Path, *models: dict[str, Any], **fields: Any) -> dict[str, dict[str, Any]]:
    """The services of the rendered Compose file, by name."""
    (folder / "stack.yaml").write_text(json.dumps({"name": "n", "models": models, **fields}), encoding="utf-8")
    assert main(["render", str(folder), "--no-validate"]) == 0
    found: dict[str, dict[str, Any]] = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]
    return found


@pytest.mark.parametrize(
    "model",
    [{"model": "openai/gpt-oss-20b"}, {"model": "org/GPT_OSS-120b-FP4"}, {"model": "./gptoss"},
     {"model": "org/finetune", "reasoning_parser": "openai_gptoss"}, {"model": "org/x", "tool_call_parser": "openai"}],
)  # fmt: skip
def test_gpt_oss_reads_the_vocabulary_that_the_download_service_stores(tmp_path: Path, model: dict[str, Any]) -> None:
    made = render(tmp_path, VLLM | model | {"served_names": ["m"], "replicas": 2, "gpus": 1})
    assert made["download"]["command"][-2:] == ["--vocabulary", "o200k_base"]
    assert (tmp_path / "scripts/vocabulary.py").exists()
    engines = [service for name, service in made.items() if name.startswith("vllm-")]
    assert len(engines) == 2
    for engine in engines:
        assert engine["environment"][VARIABLE] == FOLDER
        # also for a local model, whose weights need no storage
        assert "/models" in [mount["target"] for mount in engine["volumes"]]
        assert "download" in engine["depends_on"]


def test_other_models_and_engines_need_no_vocabulary(tmp_path: Path) -> None:
    made = render(
        tmp_path,
        VLLM | {"model": "org/m"},
        {"engine": "llamacpp", "model": "org/gpt-oss-20b-GGUF", "file": "m.gguf", "gpus": 1},
    )
    assert "--vocabulary" not in made["download"]["command"]
    assert not any(VARIABLE in service.get("environment", {}) for service in made.values())
    assert not (tmp_path / "scripts/vocabulary.py").exists()


def test_the_folder_in_extra_env_takes_precedence(tmp_path: Path) -> None:
    made = render(tmp_path, VLLM | {"model": "openai/gpt-oss-20b", "extra_env": {VARIABLE: "/opt/x"}})
    assert "--vocabulary" not in made["download"]["command"]
    assert made["vllm-gpt-oss-20b"]["environment"][VARIABLE] == "/opt/x"


def test_an_offline_stack_reads_the_vocabulary_and_downloads_nothing(tmp_path: Path) -> None:
    made = render(tmp_path, VLLM | {"model": "openai/gpt-oss-20b"}, storage={"path": "/srv/models", "offline": True})
    assert "download" not in made
    assert made["vllm-gpt-oss-20b"]["environment"][VARIABLE] == FOLDER
