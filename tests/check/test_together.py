"""Together AI: its dialect against a fake built from its API reference, and the real service if a key is set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from stackgen import Client
from stackgen.check import check
from stackgen.check.dialects import TOGETHER
from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.cli.parsers import build_parser
from stackgen.client import ask
from stackgen.errors import StackgenError, StartError
from stackgen.providers.endpoints import find_targets
from tests.conftest import STRICT

from .together import CHAT, DEDICATED, KEY, WORDS, Together, serve_together

ANSWER = "".join(WORDS)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    """The fake; TOGETHER_BASE_URL directs every client to it."""
    with serve_together() as running:
        monkeypatch.setenv("TOGETHER_BASE_URL", running.url)
        monkeypatch.setenv("TOGETHER_API_KEY", KEY)
        yield running


def fake_target(together: Together, key: str | None = KEY, models: tuple[str, ...] = ()) -> Target:
    return Target("together", base_url=together.url, api_key=key, models=models, dialect=TOGETHER)


def fails(kind: type[StackgenError], target: Target, *args: object, **kwargs: object) -> StackgenError:
    with pytest.raises(StackgenError) as caught:
        ask(target, "hi", *args, **kwargs)  # type: ignore[arg-type]
    assert type(caught.value) is kind and KEY not in f"{caught.value} {caught.value.hint}"
    return caught.value


def test_the_fake_passes_the_checks_of_its_dialect(together: Together) -> None:
    report = check(
        [fake_target(together, models=(CHAT,))], Options(timeout=5, select=("models", "chat", "stream", "auth"))
    )
    results = {one.name: one for one in report.endpoints[0].results}
    assert {name: one.status for name, one in results.items() if one.status not in ("pass", "skip")} == {}, results
    assert results["chat"].status == results["stream"].status == results["auth"].status == "pass"


def test_the_dialect_is_detected_from_the_bare_array(together: Together) -> None:
    report = check([Target.from_url(together.url, KEY, (CHAT,))], Options(timeout=5, select=("models", "chat")))
    # with any other dialect the bare array is a warning
    assert [one.status for one in report.endpoints[0].results if one.name in ("models", "chat")] == ["pass", "pass"]


def test_without_a_model_the_first_chat_model_is_checked(together: Together) -> None:
    """The first listed model makes images."""
    report = check([fake_target(together)], Options("deep", timeout=5)).endpoints[0]
    assert {one.model for one in report.results if one.model} == {CHAT}
    assert report.ok, [one for one in report.results if one.status == "fail"]
    requested = {data["model"] for _, _, data in together.seen if isinstance(data, dict) and "model" in data}
    assert requested - {CHAT} == {"stackgen-check-no-such-model"}


def test_a_refused_model_is_not_suggested_as_the_right_name(together: Together) -> None:
    report = check([fake_target(together, models=(DEDICATED,))], Options(timeout=5))
    (chat,) = [one for one in report.endpoints[0].results if one.name == "chat"]
    assert chat.status == "fail" and "non-serverless" in chat.message
    assert "did you mean" not in chat.hint


def test_the_provider_uses_the_url_variable(together: Together) -> None:
    (target,) = find_targets(build_parser().parse_args(["ask", "hi", "--provider", "together"]))
    assert (target.base_url, target.api_key, target.dialect) == (together.url, KEY, TOGETHER)


def test_whole_and_streamed_answers_agree(together: Together) -> None:
    whole = ask(fake_target(together), "What is the capital of France?", CHAT)
    assert (whole.text, whole.model, whole.ttft) == (ANSWER, CHAT, None)
    streamed = ask(fake_target(together), "What is the capital of France?", CHAT, stream=True)
    assert (streamed.text, streamed.usage) == (ANSWER, whole.usage)
    assert streamed.ttft is not None and 0 < streamed.ttft <= streamed.seconds


def test_ask_without_a_model_uses_the_first_chat_model(together: Together) -> None:
    """The first listed model makes images."""
    assert ask(fake_target(together), "hi").model == CHAT


@pytest.mark.parametrize("name", ["Meta-Llama-3.1-8B-Instruct-Turbo", "meta-llama/meta-llama-3_1-8b-instruct-turbo"])
def test_a_name_is_resolved_with_the_servers_list(together: Together, name: str) -> None:
    answer = ask(fake_target(together), "hi", name)
    assert answer.model == CHAT and CHAT in answer.note and name in answer.note


def test_a_name_that_a_cloud_does_not_list_is_still_requested(together: Together) -> None:
    """The list doesn't contain a user's own fine-tuned models."""
    error = fails(StackgenError, fake_target(together), "me/my-tuned-model")
    assert error.message == "together does not serve the model 'me/my-tuned-model'"
    requested = [data["model"] for route, _, data in together.seen if route.startswith("POST")]
    assert requested == ["me/my-tuned-model"]


def test_a_model_without_a_running_endpoint_shows_the_servers_reason(together: Together) -> None:
    error = fails(StackgenError, fake_target(together), DEDICATED)
    assert "non-serverless" in error.message


def test_errors_are_translated(together: Together) -> None:
    assert fails(StackgenError, fake_target(together, "wrong"), CHAT).message == "together rejected the API key"
    assert "requires an API key" in fails(StackgenError, fake_target(together, None), CHAT).message
    assert "HTTP 422" in fails(StackgenError, fake_target(together), CHAT, max_tokens=-1).message
    together.busy = True
    error = fails(StartError, fake_target(together), CHAT)
    assert "HTTP 429" in error.message and error.hint == "too many requests; retry in 7 s"


def test_the_openai_sdk_fails_on_the_bare_array(together: Together) -> None:
    """The reason why stackgen reads the list of models itself."""
    with Client(provider="together") as client:
        # depending on the SDK's version, an AttributeError or an empty list: never the names
        with pytest.raises(AttributeError):
            [model.id for model in client.openai.models.list()]
        assert client.models()[1] == CHAT


def test_togethers_own_sdk_works_with_the_fake(together: Together) -> None:
    """The fake was built from what this SDK sends and reads, so a change of the SDK fails here."""
    sdk = pytest.importorskip("together")
    # this SDK adds /v1 to each path
    with sdk.Together(api_key=KEY, base_url=together.url.removesuffix("/v1"), max_retries=0) as client:
        done = client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "hi"}])
        assert done.choices[0].message.content == ANSWER and done.choices[0].finish_reason == "eos"
        chunks = list(
            client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "hi"}], stream=True)
        )
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ANSWER
        assert chunks[-1].usage.completion_tokens == len(WORDS)
        together.busy = True
        with pytest.raises(sdk.RateLimitError) as caught:
            client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "hi"}])
        assert caught.value.response.headers["x-ratelimit-reset"] == "7"
    assert [route for route, _, _ in together.seen] == ["POST /v1/chat/completions"] * 3


@pytest.mark.network
def test_the_real_together_ai_answers() -> None:
    if not os.environ.get("TOGETHER_API_KEY"):
        # xfail in strict runs, where a skip is a failure: they may not have a paid account either
        (pytest.xfail if STRICT else pytest.skip)("no TOGETHER_API_KEY: the real Together AI is not tested")
    with Client(provider="together", model=CHAT) as client:
        names = client.models()
        assert len(names) > 10 and all(isinstance(name, str) for name in names)
        assert "Paris" in client.query("Name the capital of France.", max_tokens=20).text
        assert "Paris" in "".join(client.stream("Name the capital of France.", max_tokens=20))
