"""`stackgen.client.ask`: one question through the SDK, and errors that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from stackgen.check.target import Target
from stackgen.client import ask
from stackgen.errors import StackgenError, StartError

from .conftest import FASTCHAT, target
from .fake import (
    GOOD_STREAM,
    KEY,
    USAGE,
    Answer,
    Fake,
    chunk,
    completion,
    events,
    free_port,
    json_answer,
    model_list,
    raw_server,
    recorded,
    reset,
    with_usage_so_far,
)


def test_an_answer_has_text_model_duration_and_usage(vllm: Fake) -> None:
    answer = ask(target(vllm), "What's the capital of France?", system="Be brief", temperature=0.5, max_tokens=7)
    assert answer.text == "ier time4 usier time4 usize for), true"
    assert answer.model == "tiny"
    assert answer.usage == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    assert 0 < answer.seconds < 5
    assert [request.json() for request in vllm.seen] == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief"},
                {"role": "user", "content": "What's the capital of France?"},
            ],
            "temperature": 0.5,
            "max_tokens": 7,
            "stream": False,
        }
    ]


def test_a_streamed_answer_arrives_in_pieces(vllm: Fake) -> None:
    pieces: list[str] = []
    answer = ask(target(vllm), "hi", stream=True, on_text=pieces.append)
    assert len(pieces) == 6
    assert answer.text == "".join(pieces) == "ier time4 usier time"
    assert answer.usage == {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}


def test_a_usage_in_every_chunk_is_not_summed(vllm: Fake) -> None:
    vllm.stream(events(*with_usage_so_far(GOOD_STREAM)))
    answer = ask(target(vllm), "hi", stream=True)
    assert (answer.text, answer.usage) == ("Paris", USAGE)


def test_fastchat_chunks_without_usage_are_read(fastchat: Fake) -> None:
    answer = ask(target(fastchat, FASTCHAT), "hi", stream=True)
    assert answer.text.startswith("ddress")
    assert answer.usage is None


@pytest.mark.parametrize("bare", [False, True])
def test_without_a_model_the_first_listed_one_is_used(vllm: Fake, bare: bool) -> None:
    models = model_list("tiny", "other")
    vllm.routes["GET /v1/models"] = json_answer(models["data"] if bare else models)
    assert ask(target(vllm, models=()), "hi").model == "tiny"


def fails(kind: type[StackgenError], one: Target, *args: object, **kwargs: object) -> StackgenError:
    with pytest.raises(StackgenError) as caught:
        ask(one, "hi", *args, **kwargs)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def test_a_refused_connection_is_reported() -> None:
    error = fails(StartError, Target.from_url(f"http://127.0.0.1:{free_port()}", KEY, ("tiny",)))
    assert error.message.startswith("nothing listens on 127.0.0.1:")
    assert "docker compose ps" in error.hint


def test_a_refused_connection_is_reported_while_listing_models() -> None:
    error = fails(StartError, Target.from_url(f"http://127.0.0.1:{free_port()}", KEY))
    assert error.message.startswith("nothing listens on 127.0.0.1:")


def test_a_reset_connection_is_not_retried() -> None:
    seen: list[int] = []

    def count(connection: object) -> None:
        seen.append(1)
        reset(connection)  # type: ignore[arg-type]

    with raw_server(count) as port:
        error = fails(StartError, Target.from_url(f"https://127.0.0.1:{port}", KEY, ("tiny",)))
        assert len(seen) == 1
    assert "dropped it" in error.message


def test_a_silent_server_is_reported_after_the_timeout() -> None:
    started = time.monotonic()
    with raw_server(lambda _: time.sleep(0.8)) as port:
        error = fails(StartError, Target.from_url(f"http://127.0.0.1:{port}", KEY, ("tiny",)), timeout=0.3)
    assert error.message.endswith("sent nothing for 0.3 s")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("engine", ["vllm", "fastchat"])
def test_an_unknown_model_raises_with_the_closest_name(start: Callable[..., Fake], engine: str) -> None:
    error = fails(StackgenError, target(start(engine), None), "tinny")
    assert error.message == "fake does not serve the model 'tinny'"
    assert error.hint == "did you mean 'tiny'? (the names are similar)"
    assert error.exit_code == 2


def test_an_unlisted_model_is_not_requested(vllm: Fake) -> None:
    """llama.cpp would answer with whatever model it has loaded."""
    fails(StackgenError, target(vllm), "other")
    assert [request.route for request in vllm.seen] == ["GET /v1/models"]


@pytest.mark.parametrize("name", ["TINY", "org/tiny", "/models/Tiny/"])
def test_an_unambiguous_name_is_resolved_with_a_note(vllm: Fake, name: str) -> None:
    answer = ask(target(vllm), "hi", name)
    assert (answer.model, vllm.seen[-1].json()["model"]) == ("tiny", "tiny")
    assert answer.note.startswith(f"fake serves 'tiny', not {name!r}: ")
    assert ask(target(vllm), "hi", "tiny").note == ""


def test_without_a_list_of_models_the_name_is_requested_unchanged(vllm: Fake) -> None:
    for answer in (Answer(500, b"oops"), Answer(200, b"{}"), Answer(401, b"{}")):
        vllm.routes["GET /v1/models"] = answer
        assert ask(target(vllm), "hi", "tiny").text
        assert fails(StackgenError, target(vllm), "TINY").message == "fake does not serve the model 'TINY'"


def test_a_stream_measures_ttft(vllm: Fake) -> None:
    assert ask(target(vllm), "hi").ttft is None
    answer = ask(target(vllm), "hi", stream=True)
    assert answer.ttft is not None and 0 < answer.ttft <= answer.seconds
    assert answer.provider == "fake"


@pytest.mark.parametrize(
    ("status", "headers", "kind", "hint"),
    [
        (429, (("Retry-After", "3"),), StartError, "too many requests; retry in 3 s"),
        (429, (), StartError, "too many requests; retry later, or send fewer requests"),
        (402, (), StackgenError, "the account has no credit left"),
        (403, (), StackgenError, "the key has no access to this model, or the tokens of the prompt plus --max-tokens"
         " exceed the model's context length"),
    ],
)  # fmt: skip
def test_refusals_by_clouds_have_hints(
    vllm: Fake, status: int, headers: tuple[tuple[str, str], ...], kind: type[StackgenError], hint: str
) -> None:
    vllm.chat(Answer(status, b'{"error": {"message": "no"}}', headers=headers))
    assert fails(kind, target(vllm)).hint == hint


def test_no_error_contains_the_key(vllm: Fake) -> None:
    """Neither in its message nor in chained exceptions, which a traceback prints."""
    for answer in (Answer(500, KEY.encode()), Answer(200, b"{broken"), Answer(400, KEY.encode())):
        vllm.chat(answer)
        error = fails(StartError if answer.status != 400 else StackgenError, target(vllm))
        assert KEY not in f"{error.message}{error.hint}"
        assert error.__cause__ is None and error.__context__ is None


def test_no_module_hides_the_function_ask() -> None:
    """A module `stackgen.client.ask` would replace the function as soon as it is imported."""
    import stackgen.check
    import stackgen.client

    assert callable(stackgen.client.ask) and stackgen.client.Client


def test_a_wrong_key_and_a_missing_key_are_reported(vllm: Fake) -> None:
    assert fails(StackgenError, target(vllm, key="another-key")).message == "fake rejected the API key"
    assert fails(StackgenError, target(vllm, key=None)).message == "fake requires an API key, but none was given"
    assert (
        fails(StackgenError, target(vllm, key=None, models=())).message
        == "fake requires an API key, but none was given"
    )


def test_a_server_without_models_is_reported(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list())
    assert fails(StartError, target(vllm, models=())).message == "fake lists no models"


MALFORMED = "the server's response is not a valid chat completion"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Answer(500, b"<h1>oops</h1>", "text/html"), StartError, "fake returned HTTP 500 (text/html): <h1>oops</h1>"),
        (Answer(200, b"<h1>login</h1>", "text/html"), StartError, MALFORMED),
        (Answer(200, b"{broken"), StartError, MALFORMED),
        (json_answer({}), StartError, MALFORMED),
        (json_answer(completion(choices=[])), StartError, MALFORMED),
        (recorded("vllm-0.32.0", "notfound"), StackgenError, "fake returned HTTP 404 (application/json): Not Found"),
        (json_answer({"error": {"message": "too long"}}, 400), StackgenError,
         "fake returned HTTP 400 (application/json): too long"),
    ],
)  # fmt: skip
def test_server_errors_are_reported(vllm: Fake, answer: Answer, kind: type[StackgenError], message: str) -> None:
    vllm.chat(answer)
    error = fails(kind, target(vllm, None))
    assert error.message == message


CUT = "the stream was cut off: no chunk has a finish_reason, so the answer may be incomplete"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, b"", "text/event-stream"), "the server's response is empty"),
        (events(done=True), "the server's response is empty"),
        (Answer(200, b"<h1>login</h1>", "text/html"),
         "the server's response is text/html, but stackgen expected an event stream"),
        (json_answer(completion()), "the server's response is application/json, but stackgen expected an event stream"),
        (Answer(200, b"", ""), "the server's response has no content type, but stackgen expected an event stream"),
        (events(*GOOD_STREAM[:2], done=False), CUT),
        (events(*GOOD_STREAM[:2]), CUT),
        (events(GOOD_STREAM[3]), CUT),
        # FastChat's worker
        (events(GOOD_STREAM[0], {"text": "CUDA out of memory", "error_code": 50002}),
         "the server aborted the answer: CUDA out of memory"),
        (events({"object": "error", "message": "no worker", "code": 50001}),
         "the server aborted the answer: no worker"),
        (events([]), MALFORMED),
        (events("{broken"), MALFORMED),
        (events(chunk("a") | {"model": {}}), MALFORMED),
        (events(chunk("a") | {"choices": [{"index": 0, "delta": {"content": [{"type": "text"}]}}]}), MALFORMED),
        (Answer(200, b"data: \xff\xfe\n\n", "text/event-stream"), MALFORMED),
    ],
)  # fmt: skip
def test_an_incomplete_or_malformed_stream_raises(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.stream(answer)
    assert fails(StartError, target(vllm, None), stream=True).message == message


def answer_with(**message: object) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "length"}
    return json_answer(completion(choices=[choice]))


def test_an_answer_without_text_has_a_note_about_its_content(vllm: Fake) -> None:
    vllm.chat(answer_with())
    error = fails(StartError, target(vllm))
    assert error.message == "the server's answer has no text, because the field `content` is null"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for fields, note in (
        ({"reasoning": "hm"}, "the answer has no text, only reasoning; raise --max-tokens"),
        ({"reasoning_content": "hm"}, "the answer has no text, only reasoning; raise --max-tokens"),
        ({"tool_calls": [call]}, "the answer has no text, only tool calls"),
        ({"refusal": "no"}, "the answer has no text, only a refusal"),
        # a model may end its turn at once
        ({"content": ""}, "the model returned an empty answer"),
    ):
        vllm.chat(answer_with(**fields))
        answer = ask(target(vllm), "hi")
        assert (answer.text, answer.note) == ("", note)
    thinking = {"index": 0, "delta": {"reasoning": "hm"}, "finish_reason": None}
    vllm.stream(events(chunk("", role="assistant"), chunk() | {"choices": [thinking]}, chunk(finish="length")))
    answer = ask(target(vllm), "hi", stream=True)
    assert (answer.text, answer.note) == ("", "the answer has no text, only reasoning; raise --max-tokens")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {}},
        {"usage": {"prompt_tokens": None}},
        {"usage": USAGE | {"total_tokens": float("inf")}},
        {"choices": [{"message": {"content": [{"type": "text", "text": "hi"}]}}]},
        {"choices": {}},
        {"choices": "x"},
    ],
)
def test_values_of_the_wrong_type_are_a_server_error(vllm: Fake, changes: dict[str, object]) -> None:
    vllm.chat(json_answer(completion(**changes)))
    assert fails(StartError, target(vllm)).message == MALFORMED


@pytest.mark.parametrize("name", [{}, [], 1, None])
def test_invalid_entries_in_the_list_of_models_are_skipped(vllm: Fake, name: object) -> None:
    models = model_list("tiny")
    vllm.routes["GET /v1/models"] = json_answer(models | {"data": [{"id": name}, *models["data"]]})
    assert ask(target(vllm, models=()), "hi").model == "tiny"
    assert ask(target(vllm), "hi", "TINY").model == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"temperature": float("-inf")}, "temperature must be a finite number, got -inf"),
        ({"timeout": float("inf")}, "timeout must be above 0 and at most 86400 s, got inf"),
        ({"timeout": 1e300}, "timeout must be above 0 and at most 86400 s, got 1e+300"),
        ({"timeout": 0.0}, "timeout must be above 0 and at most 86400 s, got 0"),
    ],
)
def test_invalid_values_raise_before_anything_is_sent(vllm: Fake, options: dict[str, float], message: str) -> None:
    with pytest.raises(StackgenError) as caught:
        ask(target(vllm, models=()), "hi", **options)  # type: ignore[arg-type]
    assert (type(caught.value), caught.value.message) == (StackgenError, message)
    assert not vllm.seen


def test_an_exception_in_on_text_is_not_blamed_on_the_server(vllm: Fake) -> None:
    def broken(_: str) -> None:
        raise ValueError("I/O operation on closed file")

    with pytest.raises(ValueError, match="closed file"):
        ask(target(vllm), "hi", stream=True, on_text=broken)


def test_an_error_event_and_a_cut_connection_are_reported(vllm: Fake) -> None:
    vllm.stream(events(*GOOD_STREAM[:2], {"error": {"message": "EngineDeadError"}}))
    assert fails(StartError, target(vllm), stream=True).message == "the server aborted the answer: EngineDeadError"
    vllm.stream(events(*GOOD_STREAM[:2], done=False, cut=True))
    error = fails(StartError, target(vllm), stream=True)
    assert "closed the connection in the middle of its response" in error.message


def test_openai_variables_do_not_reach_other_servers(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[str | None] = []
    for name, value in (("OPENAI_API_KEY", "sk-other"), ("OPENAI_ORG_ID", "org-1"), ("OPENAI_BASE_URL", "http://x/v1"),
                        ("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-other")):  # fmt: skip
        monkeypatch.setenv(name, value)
    vllm.key = None
    for key in (KEY, None):
        ask(target(vllm, key=key), "hi")
    headers = [request.authorization for request in vllm.seen]
    assert headers == [f"Bearer {KEY}", None]
