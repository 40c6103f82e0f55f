"""The health checks of the engines' containers ask for one token, and need no text: any model may answer without."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from tests.check.fake import KEY, Answer, Fake, json_answer, serve

SCRIPTS = Path(__file__).parents[2] / "templates"
# what a token may look like: text, a part of a character, a control token, or the start of a reasoning
ONE_TOKEN: dict[str, dict[str, Any]] = {
    "text": {"text": "2", "finish_reason": "length"},
    "no text": {"text": "", "finish_reason": "length"},
    "a control token": {"text": "", "finish_reason": "stop"},
    "null": {"text": None, "finish_reason": "stop"},
    "reasoning": {"text": "", "reasoning": "Hm", "finish_reason": "length"},
}


def run(script: str, fake: Fake, ready: Path) -> int:
    base = fake.url.removesuffix("/v1")
    command = {
        "vllm": [sys.executable, str(SCRIPTS / "engines/vllm_health.py"), base],
        "llamacpp": ["sh", str(SCRIPTS / "engines/llamacpp_health.sh"), base],
    }[script]
    keys = {"VLLM_API_KEY": KEY, "LLAMA_API_KEY": KEY, "STACKGEN_READY_FILE": str(ready)}
    return subprocess.run(command, env={**os.environ, **keys}, capture_output=True, timeout=30, check=False).returncode


@pytest.mark.parametrize("script", ["vllm", "llamacpp"])
@pytest.mark.parametrize("answer", ONE_TOKEN)
def test_an_engine_that_generates_any_token_is_healthy(script: str, answer: str, tmp_path: Path) -> None:
    with serve("vllm") as fake:
        choice = {"index": 0, **ONE_TOKEN[answer]}
        fake.routes["POST /v1/completions"] = json_answer({"object": "text_completion", "choices": [choice]})
        assert run(script, fake, tmp_path / "ready") == 0
        bodies: list[Any] = [request.json() for request in fake.seen if request.method == "POST"]
    assert [body["max_tokens"] for body in bodies] == [1]
    assert (tmp_path / "ready").exists()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (500, False)])
def test_a_model_that_only_transcribes_is_asked_for_a_transcription(status: int, healthy: bool, tmp_path: Path) -> None:
    with serve("vllm") as fake:
        # as vLLM 0.32.0 with Whisper: only the paths of the model's tasks exist
        for path in ("completions", "embeddings"):
            fake.routes[f"POST /v1/{path}"] = Answer(404, b'{"detail": "Not Found"}')
        fake.routes["POST /v1/audio/transcriptions"] = Answer(status, b'{"text": ""}')
        assert (run("vllm", fake, tmp_path / "ready") == 0) == healthy
        form = next(one for one in fake.seen if one.path.endswith("/transcriptions"))
    assert (tmp_path / "ready").exists() == healthy
    assert form.body.count(b"--stackgen") == 3 and b'name="model"\r\n\r\ntiny\r\n' in form.body
    start = form.body.index(b"RIFF")
    with wave.open(io.BytesIO(form.body[start:])) as sound:
        assert (sound.getframerate(), sound.getnframes(), sound.getnchannels()) == (16000, 16000, 1)


@pytest.mark.parametrize("script", ["vllm", "llamacpp"])
def test_an_engine_that_fails_to_generate_is_unhealthy(script: str, tmp_path: Path) -> None:
    with serve("vllm") as fake:
        fake.routes["POST /v1/completions"] = Answer(500, b'{"error": {"message": "EngineDeadError"}}')
        assert run(script, fake, tmp_path / "ready") != 0
    assert not (tmp_path / "ready").exists()
