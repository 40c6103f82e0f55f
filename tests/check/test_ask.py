"""One question through the SDK, and errors that say what to do."""

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
)


def test_an_answer_has_text_model_time_and_usage(vllm: Fake) -> None:
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


def test_a_streamed_answer_comes_in_pieces(vllm: Fake) -> None:
    pieces: list[str] = []
    answer = ask(target(vllm), "hi", stream=True, on_text=pieces.append)
    assert len(pieces) == 6
    assert answer.text == "".join(pieces) == "ier time4 usier time"
    assert answer.usage == {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}


def test_fastchats_bare_chunks_are_read(fastchat: Fake) -> None:
    answer = ask(target(fastchat, FASTCHAT), "hi", stream=True)
    assert answer.text.startswith("ddress")
    assert answer.usage is None


@pytest.mark.parametrize("bare", [False, True])
def test_without_a_model_the_first_listed_is_asked(vllm: Fake, bare: bool) -> None:
    cards = model_list("tiny", "other")
    vllm.routes["GET /v1/models"] = json_answer(cards["data"] if bare else cards)
    assert ask(target(vllm, models=()), "hi").model == "tiny"


def fails(kind: type[StackgenError], one: Target, *args: object, **kwargs: object) -> StackgenError:
    with pytest.raises(StackgenError) as caught:
        ask(one, "hi", *args, **kwargs)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert caught.value.hint
    return caught.value


def test_a_refused_connection() -> None:
    error = fails(StartError, Target.from_url(f"http://127.0.0.1:{free_port()}", KEY, ("tiny",)))
    assert error.message.startswith("nothing listens on 127.0.0.1:")
    assert "docker compose ps" in error.hint


def test_a_refused_connection_while_the_model_is_looked_up() -> None:
    error = fails(StartError, Target.from_url(f"http://127.0.0.1:{free_port()}", KEY))
    assert error.message.startswith("nothing listens on 127.0.0.1:")


def test_a_reset_connection_is_not_tried_again() -> None:
    seen: list[int] = []

    def count(connection: object) -> None:
        seen.append(1)
        reset(connection)  # type: ignore[arg-type]

    with raw_server(count) as port:
        error = fails(StartError, Target.from_url(f"https://127.0.0.1:{port}", KEY, ("tiny",)))
        assert len(seen) == 1
    assert "dropped it" in error.message


def test_silence_ends_at_the_time_out() -> None:
    started = time.monotonic()
    with raw_server(lambda _: time.sleep(0.8)) as port:
        error = fails(StartError, Target.from_url(f"http://127.0.0.1:{port}", KEY, ("tiny",)), timeout=0.3)
    assert error.message.endswith("was silent for 0.3 s")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("engine", ["vllm", "fastchat"])
def test_a_model_that_is_not_served(start: Callable[..., Fake], engine: str) -> None:
    error = fails(StackgenError, target(start(engine), None), "tinny")
    assert error.message == "fake serves no model 'tinny'"
    assert error.hint == "did you mean 'tiny'? (the names are alike)"
    assert error.exit_code == 2


def test_a_name_that_is_not_served_is_not_asked_for(vllm: Fake) -> None:
    """llama.cpp would answer it, with whatever model it has."""
    fails(StackgenError, target(vllm), "other")
    assert [request.route for request in vllm.seen] == ["GET /v1/models"]


@pytest.mark.parametrize("name", ["TINY", "org/tiny", "/models/Tiny/"])
def test_a_name_without_doubt_is_resolved_and_told(vllm: Fake, name: str) -> None:
    answer = ask(target(vllm), "hi", name)
    assert (answer.model, vllm.seen[-1].json()["model"]) == ("tiny", "tiny")
    assert answer.note.startswith(f"fake serves 'tiny', not {name!r}: ")
    assert ask(target(vllm), "hi", "tiny").note == ""


def test_where_no_list_can_be_had_the_name_is_asked_for_as_written(vllm: Fake) -> None:
    for answer in (Answer(500, b"oops"), Answer(200, b"{}"), Answer(401, b"{}")):
        vllm.routes["GET /v1/models"] = answer
        assert ask(target(vllm), "hi", "tiny").text
        assert fails(StackgenError, target(vllm), "TINY").message == "fake serves no model 'TINY'"


def test_figures_of_a_stream(vllm: Fake) -> None:
    assert ask(target(vllm), "hi").ttft is None
    answer = ask(target(vllm), "hi", stream=True)
    assert answer.ttft is not None and 0 < answer.ttft <= answer.seconds
    assert answer.provider == "fake"


@pytest.mark.parametrize(
    ("status", "headers", "kind", "hint"),
    [
        (429, (("Retry-After", "3"),), StartError, "too many requests: ask again in 3 s"),
        (429, (), StartError, "too many requests: ask again later, or slower"),
        (402, (), StackgenError, "the account has no credit left"),
        (403, (), StackgenError, "the key is not allowed this model, or question and --max-tokens are more than the"
         " model's context"),
    ],
)  # fmt: skip
def test_refusals_of_clouds_say_what_to_do(
    vllm: Fake, status: int, headers: tuple[tuple[str, str], ...], kind: type[StackgenError], hint: str
) -> None:
    vllm.chat(Answer(status, b'{"error": {"message": "no"}}', headers=headers))
    assert fails(kind, target(vllm)).hint == hint


def test_no_error_holds_the_key(vllm: Fake) -> None:
    """Neither in its words nor in the chain of exceptions, which a traceback prints."""
    for answer in (Answer(500, KEY.encode()), Answer(200, b"{broken"), Answer(400, KEY.encode())):
        vllm.chat(answer)
        error = fails(StartError if answer.status != 400 else StackgenError, target(vllm))
        assert KEY not in f"{error.message}{error.hint}"
        assert error.__cause__ is None and error.__context__ is None


def test_the_function_is_not_hidden_by_a_module() -> None:
    """A module `stackgen.client.ask` would take its place as soon as somebody imports it."""
    import stackgen.check
    import stackgen.client

    assert callable(stackgen.client.ask) and stackgen.client.Client


def test_a_wrong_and_a_missing_key(vllm: Fake) -> None:
    assert fails(StackgenError, target(vllm, key="another-key")).message == "fake refuses the API key"
    assert fails(StackgenError, target(vllm, key=None)).message == "fake wants an API key, and none is given"
    assert fails(StackgenError, target(vllm, key=None, models=())).message == "fake wants an API key, and none is given"


def test_a_server_that_lists_nothing(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list())
    assert fails(StartError, target(vllm, models=())).message == "fake lists no model"


UNREADABLE = "the server's answer has not the documented structure"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (Answer(500, b"<h1>oops</h1>", "text/html"), StartError, "fake answers HTTP 500 (text/html): <h1>oops</h1>"),
        (Answer(200, b"<h1>login</h1>", "text/html"), StartError, UNREADABLE),
        (Answer(200, b"{broken"), StartError, UNREADABLE),
        (json_answer({}), StartError, UNREADABLE),
        (json_answer(completion(choices=[])), StartError, UNREADABLE),
        (recorded("vllm-0.32.0", "notfound"), StackgenError, "fake answers HTTP 404 (application/json): Not Found"),
        (json_answer({"error": {"message": "too long"}}, 400), StackgenError,
         "fake answers HTTP 400 (application/json): too long"),
    ],
)  # fmt: skip
def test_errors_of_the_server(vllm: Fake, answer: Answer, kind: type[StackgenError], message: str) -> None:
    vllm.chat(answer)
    error = fails(kind, target(vllm, None))
    assert error.message == message


CUT = "the stream was cut: it ends without a finish_reason, so the answer may lack its end"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, b"", "text/event-stream"), "the server's answer is empty"),
        (events(done=True), "the server's answer is empty"),
        (Answer(200, b"<h1>login</h1>", "text/html"), "the server's answer is text/html and no stream"),
        (json_answer(completion()), "the server's answer is application/json and no stream"),
        (Answer(200, b"", ""), "the server's answer is of no type and no stream"),
        (events(*GOOD_STREAM[:2], done=False), CUT),
        (events(*GOOD_STREAM[:2]), CUT),
        (events(GOOD_STREAM[3]), CUT),
        # FastChat's worker
        (events(GOOD_STREAM[0], {"text": "CUDA out of memory", "error_code": 50002}),
         "the server broke off: CUDA out of memory"),
        (events({"object": "error", "message": "no worker", "code": 50001}), "the server broke off: no worker"),
        (events([]), UNREADABLE),
        (events("{broken"), UNREADABLE),
        (events(chunk("a") | {"model": {}}), UNREADABLE),
        (events(chunk("a") | {"choices": [{"index": 0, "delta": {"content": [{"type": "text"}]}}]}), UNREADABLE),
        (Answer(200, b"data: \xff\xfe\n\n", "text/event-stream"), UNREADABLE),
    ],
)  # fmt: skip
def test_a_stream_that_does_not_end_properly_is_no_answer(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.stream(answer)
    assert fails(StartError, target(vllm, None), stream=True).message == message


def spoken(**message: object) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "length"}
    return json_answer(completion(choices=[choice]))


def test_an_answer_without_text_says_what_came_instead(vllm: Fake) -> None:
    vllm.chat(spoken())
    assert fails(StartError, target(vllm)).message == "the server's answer holds no text: its content is null"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for more, note in (
        ({"reasoning": "hm"}, "the answer holds no text, but reasoning: allow more by --max-tokens"),
        ({"reasoning_content": "hm"}, "the answer holds no text, but reasoning: allow more by --max-tokens"),
        ({"tool_calls": [call]}, "the answer holds no text, but tool calls"),
        ({"refusal": "no"}, "the answer holds no text, but a refusal"),
        # a model may end at once
        ({"content": ""}, "the model answered with no text"),
    ):
        vllm.chat(spoken(**more))
        answer = ask(target(vllm), "hi")
        assert (answer.text, answer.note) == ("", note)
    thinking = {"index": 0, "delta": {"reasoning": "hm"}, "finish_reason": None}
    vllm.stream(events(chunk("", role="assistant"), chunk() | {"choices": [thinking]}, chunk(finish="length")))
    answer = ask(target(vllm), "hi", stream=True)
    assert (answer.text, answer.note) == ("", "the answer holds no text, but reasoning: allow more by --max-tokens")


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
def test_odd_values_are_an_error_of_the_server(vllm: Fake, changes: dict[str, object]) -> None:
    vllm.chat(json_answer(completion(**changes)))
    assert fails(StartError, target(vllm)).message == UNREADABLE


@pytest.mark.parametrize("name", [{}, [], 1, None])
def test_a_list_of_models_with_odd_names_is_read_around_them(vllm: Fake, name: object) -> None:
    cards = model_list("tiny")
    vllm.routes["GET /v1/models"] = json_answer(cards | {"data": [{"id": name}, *cards["data"]]})
    assert ask(target(vllm, models=()), "hi").model == "tiny"
    assert ask(target(vllm), "hi", "TINY").model == "tiny"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"temperature": float("nan")}, "temperature must be a number, and is nan"),
        ({"temperature": float("-inf")}, "temperature must be a number, and is -inf"),
        ({"timeout": float("inf")}, "timeout must be above 0 and at most 86400 s, and is inf"),
        ({"timeout": 1e300}, "timeout must be above 0 and at most 86400 s, and is 1e+300"),
        ({"timeout": 0.0}, "timeout must be above 0 and at most 86400 s, and is 0"),
    ],
)
def test_values_that_can_not_be_sent_are_the_callers_mistake(vllm: Fake, words: dict[str, float], message: str) -> None:
    with pytest.raises(StackgenError) as caught:
        ask(target(vllm, models=()), "hi", **words)  # type: ignore[arg-type]
    assert (type(caught.value), caught.value.message) == (StackgenError, message)
    assert not vllm.seen


def test_what_a_caller_does_with_a_piece_is_no_fault_of_the_server(vllm: Fake) -> None:
    def broken(_: str) -> None:
        raise ValueError("I/O operation on closed file")

    with pytest.raises(ValueError, match="closed file"):
        ask(target(vllm), "hi", stream=True, on_text=broken)


def test_an_error_event_and_a_cut_stream(vllm: Fake) -> None:
    vllm.stream(events(*GOOD_STREAM[:2], {"error": {"message": "EngineDeadError"}}))
    assert fails(StartError, target(vllm), stream=True).message == "the server broke off: EngineDeadError"
    vllm.stream(events(*GOOD_STREAM[:2], done=False, cut=True))
    assert "broke off" in fails(StartError, target(vllm), stream=True).message


def test_the_environment_of_the_sdk_does_not_reach_the_server(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[str | None] = []
    for name, value in (("OPENAI_API_KEY", "sk-other"), ("OPENAI_ORG_ID", "org-1"), ("OPENAI_BASE_URL", "http://x/v1"),
                        ("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer sk-other")):  # fmt: skip
        monkeypatch.setenv(name, value)
    vllm.key = None
    for key in (KEY, None):
        ask(target(vllm, key=key), "hi")
    headers = [request.authorization for request in vllm.seen]
    assert headers == [f"Bearer {KEY}", None]
