"""Stacks that several test modules share. Each is started once per session, by the first test that uses it.

A start takes half a minute. A test that breaks something must repair it, or set `stopped`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.stacks import LiveStack


def _model_entry(path: Path, engine: str, names: list[str], **more: Any) -> dict[str, Any]:
    return {"model": str(path), "engine": engine, "served_names": names, **more}


@pytest.fixture(scope="session")
def _vllm(vllm_image: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    model = _model_entry(smollm2, "vllm", ["smollm2", "smol"], image=vllm_image, max_model_len=2048, cpu_kv_cache_gib=1,
                   dtype="bfloat16", enforce_eager=True)  # fmt: skip
    with LiveStack(
        tmp_path_factory.mktemp("vllm"), {"name": "sgtest-vllm", "port": 18101, "models": [model]}
    ) as started:
        yield started


@pytest.fixture(scope="session")
def _fastchat(
    fastchat_image: str, smollm2: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    models = [
        _model_entry(smollm2, "fastchat", ["smollm2", "smol"]),
        _model_entry(tiny_model, "fastchat", ["tiny"], replicas=2),
    ]
    # these tests talk to FastChat directly; tests/live/test_gateway.py covers it behind the gateway
    data = {"name": "sgtest-fastchat", "port": 18111, "gateway": False, "models": models}
    with LiveStack(tmp_path_factory.mktemp("fastchat"), data) as started:
        assert fastchat_image in (started.folder / "compose.yaml").read_text()
        yield started


@pytest.fixture(scope="session")
def _llamacpp(llamacpp_image: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    model = _model_entry(gguf, "llamacpp", ["smollm2", "smol"], max_model_len="2K")
    data = {"name": "sgtest-llamacpp", "port": 18140, "models": [model]}
    with LiveStack(tmp_path_factory.mktemp("llamacpp"), data) as started:
        assert llamacpp_image in (started.folder / "compose.yaml").read_text()
        yield started


@pytest.fixture
def vllm_stack(_vllm: LiveStack) -> LiveStack:
    """vLLM with SmolLM2 under two names."""
    return _ensure_running(_vllm)


@pytest.fixture
def fastchat_stack(_fastchat: LiveStack) -> LiveStack:
    """FastChat's controller, API server and workers, with two models, one of them in two replicas."""
    return _ensure_running(_fastchat)


@pytest.fixture
def llamacpp_stack(_llamacpp: LiveStack) -> LiveStack:
    """llama.cpp's server with SmolLM2."""
    return _ensure_running(_llamacpp)


def _ensure_running(stack: LiveStack) -> LiveStack:
    if stack.stopped:
        stack.up()
    return stack
