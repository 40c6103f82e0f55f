"""llama.cpp's server with the GGUF file of SmolLM2."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(900)]


@pytest.fixture
def stack(llamacpp_stack: LiveStack) -> LiveStack:
    return llamacpp_stack


def test_the_model_answers(stack: LiveStack) -> None:
    assert "Paris" in stack.ask()


def test_the_check_passes(stack: LiveStack) -> None:
    report = stack.check()
    (endpoint,) = report["endpoints"]
    assert report["ok"] and endpoint["dialect"] == "llamacpp"
    assert {result["name"]: result["status"] for result in endpoint["results"]}["stream"] == "pass"


def test_the_context_length_is_max_model_len(stack: LiveStack) -> None:
    """`2K` is 2,048 tokens, as vLLM reads it."""
    request = urllib.request.Request("http://127.0.0.1:18140/props", headers={"Authorization": f"Bearer {stack.key}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert json.load(response)["default_generation_settings"]["n_ctx"] == 2048


def test_the_key_is_not_in_the_process_list(stack: LiveStack) -> None:
    assert stack.key not in " ".join(stack.inspect("llamacpp-smollm2")["Config"]["Cmd"])
    assert stack.key not in stack.logs()


def test_the_check_fails_for_a_model_that_is_not_served(stack: LiveStack) -> None:
    """llama.cpp itself accepts any model name."""
    done = stack.run_stackgen("check", str(stack.folder), "--model", "SmolLM2")
    assert done.returncode == 1, done.stdout
    assert "smollm2" in done.stdout
