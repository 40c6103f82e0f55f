"""Together AI: its dialect against a stand-in made from its reference, and the real one where a key is set."""

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
from stackgen.providers.endpoints import from_words
from tests.conftest import STRICT

from .together import CHAT, DEDICATED, KEY, WORDS, Together, serve_together

ANSWER = "".join(WORDS)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    """The stand-in, in the place of the real one: TOGETHER_BASE_URL moves every client there."""
    with serve_together() as running:
        monkeypatch.setenv("TOGETHER_BASE_URL", running.url)
        monkeypatch.setenv("TOGETHER_API_KEY", KEY)
        yield running


def stand_in(together: Together, key: str | None = KEY, models: tuple[str, ...] = ()) -> Target:
    return Target("together", together.url, key, models, TOGETHER)


def fails(kind: type[StackgenError], target: Target, *args: object, **kwargs: object) -> StackgenError:
    with pytest.raises(StackgenError) as caught:
        ask(target, "hi", *args, **kwargs)  # type: ignore[arg-type]
    assert type(caught.value) is kind and KEY not in f"{caught.value} {caught.value.hint}"
    return caught.value


def test_together_dialect_against_a_stand_in(together: Together) -> None:
    report = check(
        [stand_in(together, models=(CHAT,))], Options(timeout=5, select=("models", "chat", "stream", "auth"))
    )
    results = {one.name: one for one in report.endpoints[0].results}
    assert {name: one.status for name, one in results.items() if one.status not in ("pass", "skip")} == {}, results
    assert results["chat"].status == results["stream"].status == results["auth"].status == "pass"


def test_the_dialect_is_recognized_by_the_stand_ins_bare_array(together: Together) -> None:
    report = check([Target.from_url(together.url, KEY, (CHAT,))], Options(timeout=5, select=("models", "chat")))
    # another dialect would warn of the bare array
    assert [one.status for one in report.endpoints[0].results if one.name in ("models", "chat")] == ["pass", "pass"]


def test_without_a_model_the_first_that_can_chat_is_checked_of_a_stand_in(together: Together) -> None:
    """The first of all is an image model."""
    report = check([stand_in(together)], Options("deep", timeout=5)).endpoints[0]
    assert {one.model for one in report.results if one.model} == {CHAT}
    assert report.ok, [one for one in report.results if one.status == "fail"]
    asked = {data["model"] for _, _, data in together.seen if isinstance(data, dict) and "model" in data}
    assert asked - {CHAT} == {"stackgen-check-no-such-model"}


def test_a_listed_name_that_is_refused_is_not_met_with_itself(together: Together) -> None:
    (chat,) = [one for one in check([stand_in(together, models=(DEDICATED,))], Options(timeout=5)).endpoints[0].results
               if one.name == "chat"]  # fmt: skip
    assert chat.status == "fail" and "non-serverless" in chat.message
    assert "did you mean" not in chat.hint


def test_the_provider_leads_to_the_stand_in(together: Together) -> None:
    (target,) = from_words(build_parser().parse_args(["ask", "hi", "--provider", "together"]))
    assert (target.base_url, target.api_key, target.dialect) == (together.url, KEY, TOGETHER)


def test_asked_of_a_stand_in_whole_and_streamed(together: Together) -> None:
    whole = ask(stand_in(together), "What is the capital of France?", CHAT)
    assert (whole.text, whole.model, whole.ttft) == (ANSWER, CHAT, None)
    streamed = ask(stand_in(together), "What is the capital of France?", CHAT, stream=True)
    assert (streamed.text, streamed.usage) == (ANSWER, whole.usage)
    assert streamed.ttft is not None and 0 < streamed.ttft <= streamed.seconds


def test_without_a_model_the_first_that_can_chat_is_asked_of_a_stand_in(together: Together) -> None:
    """The first of all is an image model."""
    assert ask(stand_in(together), "hi").model == CHAT


@pytest.mark.parametrize("name", ["Meta-Llama-3.1-8B-Instruct-Turbo", "meta-llama/meta-llama-3_1-8b-instruct-turbo"])
def test_a_name_is_resolved_by_the_stand_ins_list(together: Together, name: str) -> None:
    answer = ask(stand_in(together), "hi", name)
    assert answer.model == CHAT and CHAT in answer.note and name in answer.note


def test_a_name_that_a_cloud_does_not_list_is_asked_for_all_the_same(together: Together) -> None:
    """One's own fine-tuned models are in no list."""
    error = fails(StackgenError, stand_in(together), "me/my-tuned-model")
    assert error.message == "together serves no model 'me/my-tuned-model'"
    asked = [data["model"] for route, _, data in together.seen if route.startswith("POST")]
    assert asked == ["me/my-tuned-model"]


def test_a_model_without_a_running_endpoint_is_told_in_the_stand_ins_words(together: Together) -> None:
    error = fails(StackgenError, stand_in(together), DEDICATED)
    assert "non-serverless" in error.message


def test_errors_of_a_stand_in(together: Together) -> None:
    assert fails(StackgenError, stand_in(together, "wrong"), CHAT).message == "together refuses the API key"
    assert "wants an API key" in fails(StackgenError, stand_in(together, None), CHAT).message
    assert "HTTP 422" in fails(StackgenError, stand_in(together), CHAT, max_tokens=-1).message
    together.busy = True
    error = fails(StartError, stand_in(together), CHAT)
    assert "HTTP 429" in error.message and error.hint == "too many requests: ask again in 7 s"


def test_the_openai_sdks_own_list_breaks_on_a_stand_ins_bare_array(together: Together) -> None:
    """The reason why stackgen reads the list itself."""
    with Client(provider="together") as client:
        # an AttributeError or a list of nothing, by the SDK's version: no names in any case
        with pytest.raises(AttributeError):
            [model.id for model in client.openai.models.list()]
        assert client.models()[1] == CHAT


def test_togethers_own_sdk_speaks_to_the_stand_in(together: Together) -> None:
    """What it sends and reads is how the stand-in was made; a change of the SDK shows here."""
    sdk = pytest.importorskip("together")
    # it adds /v1 to each path itself
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
        # in strict runs a skip is a failure; a cloud that costs money may be missing there too
        (pytest.xfail if STRICT else pytest.skip)("no TOGETHER_API_KEY: Together AI is not asked")
    with Client(provider="together", model=CHAT) as client:
        names = client.models()
        assert len(names) > 10 and all(isinstance(name, str) for name in names)
        assert "Paris" in client.query("Name the capital of France.", max_tokens=20).text
        assert "Paris" in "".join(client.stream("Name the capital of France.", max_tokens=20))
