"""The SDKs of OpenAI and Together AI against real stacks. docs/reference/providers.md describes the differences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from stackgen import Client
from stackgen.cli import main as cli
from stackgen.stack.folder import open_stack
from tests.live.stacks import QUESTION, LiveStack

together = pytest.importorskip("together")

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]
MESSAGES = [{"role": "user", "content": QUESTION}]
ENGINES = ("vllm", "fastchat", "llamacpp")


@pytest.fixture(params=ENGINES)
def stack(request: pytest.FixtureRequest) -> LiveStack:
    """The shared stack of each engine."""
    found: LiveStack = request.getfixturevalue(f"{request.param}_stack")
    return found


@pytest.fixture
def engine(stack: LiveStack) -> str:
    return open_stack(str(stack.folder)).plan.endpoints[0].dialect.name


def base_url(stack: LiveStack) -> str:
    return open_stack(str(stack.folder)).plan.endpoints[0].base_url


@pytest.fixture
def together_sdk(stack: LiveStack) -> Iterator[Any]:
    """Together's base URL has no /v1, because since 3.x all of its paths begin with it."""
    root = base_url(stack).removesuffix("/v1")
    with closing(together.Together(api_key=stack.key, base_url=root, max_retries=0, timeout=60)) as client:
        yield client


@pytest.fixture
def openai_sdk(stack: LiveStack) -> Iterator[openai.OpenAI]:
    with closing(openai.OpenAI(api_key=stack.key, base_url=base_url(stack), max_retries=0, timeout=60)) as client:
        yield client


@pytest.mark.parametrize("sdk", ["together_sdk", "openai_sdk"])
def test_both_sdks_chat_and_stream(sdk: str, request: pytest.FixtureRequest, engine: str) -> None:
    client = request.getfixturevalue(sdk)
    options: dict[str, Any] = {"model": "smollm2", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    done = client.chat.completions.create(**options)
    assert "Paris" in done.choices[0].message.content
    assert done.choices[0].finish_reason == "stop" and done.usage.completion_tokens > 0
    chunks = list(client.chat.completions.create(**options, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == done.choices[0].message.content
    assert sum(map(bool, pieces)) > 1, "one piece is no stream"


@pytest.mark.parametrize("sdk", ["together_sdk", "openai_sdk"])
def test_both_sdks_report_an_unknown_model(sdk: str, request: pytest.FixtureRequest, engine: str) -> None:
    library = together if sdk == "together_sdk" else openai
    client = request.getfixturevalue(sdk)
    options: dict[str, Any] = {"model": "no-such-model", "messages": MESSAGES, "max_tokens": 2}
    if engine == "llamacpp":
        # llama.cpp serves one model and ignores the requested name
        assert client.chat.completions.create(**options).model != "no-such-model"
        return
    kind = {"vllm": library.NotFoundError, "fastchat": library.BadRequestError}[engine]
    with pytest.raises(kind):
        client.chat.completions.create(**options)


def test_listing_models_works_with_openais_sdk_and_not_with_togethers(
    engine: str, together_sdk: Any, openai_sdk: openai.OpenAI, stack: LiveStack
) -> None:
    with Client(stack=stack.folder) as client:
        names = client.models()
    listed = [model.id for model in openai_sdk.models.list()]
    assert set(listed) <= set(names) and {"smollm2", "smol"} <= set(names)
    # llama.cpp lists one name as the id and the other as an alias
    assert len(listed) == len(names) - (engine == "llamacpp")
    # since 3.x these use the cloud's /v2 paths for projects and its catalog, which no engine has
    with pytest.raises(ValueError, match="project_id"):
        together_sdk.models.list()
    with pytest.raises(together.NotFoundError):
        together_sdk.models.list_supported()
    raw = together_sdk.get("/v1/models", cast_to=object)
    assert {model["id"] for model in raw["data"]} == set(listed)


def test_togethers_sdk_needs_a_base_url_without_v1(stack: LiveStack) -> None:
    with closing(together.Together(api_key=stack.key, base_url=base_url(stack), max_retries=0)) as client:
        with pytest.raises(together.NotFoundError):
            client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=2)


def test_streams_report_usage_if_requested(openai_sdk: openai.OpenAI) -> None:
    chunks = openai_sdk.chat.completions.create(
        model="smollm2", messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}
    )
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    assert [usage.completion_tokens for usage in usages] == [4]


def test_our_client_queries_every_engine_and_resolves_names(stack: LiveStack) -> None:
    with Client(stack=stack.folder) as client:
        answer = client.query(QUESTION, "SmolLM2", max_tokens=24)
        assert "Paris" in answer.text and "'smollm2'" in answer.note and answer.usage
        assert "Paris" in "".join(client.stream(QUESTION, "smol", max_tokens=24))


@pytest.mark.parametrize("client", ["openai-sdk", "together-sdk"])
def test_the_settings_of_connect_work_as_they_are_printed(
    client: str, stack: LiveStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # FastChat's stack serves several models
    assert cli.main(["connect", client, str(stack.folder), "--model", "smollm2", "--json", "--try"]) == 0
    shown = capsys.readouterr().out
    settings = json.loads(shown)
    assert settings["works"] and stack.key not in shown
    for file in settings["files"]:
        (tmp_path / file["path"]).write_text(file["text"])
    exports = [f'export {name}="{value}"' for name, value in settings["environment"].items()]
    script = "\n".join([settings["key"]["command"], *exports, settings["command"]])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Error" not in done.stdout


def test_try_shows_what_the_engine_answers_to_a_client_that_does_not_work(
    fastchat_stack: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["connect", "claude-code", str(fastchat_stack.folder), "--model", "smollm2", "--json", "--try"]
    assert cli.main(arguments) == 1
    data = json.loads(capsys.readouterr().out)
    assert not data["works"] and data["problems"][0]["field"] == "models[0].engine"
    assert data["attempts"][-1]["status"] == 404
