"""The checks from end to end, on recorded servers and on faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check import check
from stackgen.check.checks.table import CHECKS, choose
from stackgen.check.checks.verdict import Verdict
from stackgen.check.dialects import OPENAI
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report
from stackgen.check.report.text import as_text
from stackgen.check.target import Target
from stackgen.errors import StackgenError
from stackgen.plan import Dialect

from .conftest import DIALECTS, FASTCHAT, VLLM, look, result, target
from .fake import (
    GOOD_STREAM,
    KEY,
    USAGE_CHUNK,
    Answer,
    Fake,
    Request,
    chunk,
    completion,
    events,
    json_answer,
    model_list,
    recorded,
    slow,
)


def test_a_recorded_vllm_is_healthy_but_for_its_open_paths(vllm: Fake) -> None:
    report = look(target(vllm))
    assert [(one.name, one.status, one.model) for one in report.results] == [
        ("resolve", "pass", ""), ("connect", "pass", ""), ("tls", "skip", ""), ("http", "pass", ""),
        ("alive", "pass", ""), ("models", "pass", ""),
        ("chat", "pass", "tiny"), ("stream", "pass", "tiny"), ("auth", "warn", ""),
    ]  # fmt: skip
    assert report.ok
    assert report.answer == "ier time4 usier time4 usize for), true"
    assert "TTFT" in result(report, "stream").message
    assert result(report, "stream").figures["ttft_seconds"] > 0
    assert result(report, "chat").figures == {"prompt_tokens": 9, "completion_tokens": 12}


def test_a_recorded_fastchat_is_healthy_and_its_slips_are_noted_once(fastchat: Fake) -> None:
    report = look(target(fastchat, FASTCHAT), max_tokens=16)
    assert {one.name: one.status for one in report.results if one.status != "pass"} == {
        "tls": "skip", "alive": "skip", "auth": "warn",
    }  # fmt: skip
    assert result(report, "chat").notes == ("fastchat counts one token too few at the limit",)
    assert result(report, "stream").notes == (
        "fastchat sends object and created in the last chunk only",
        "fastchat reports no usage in streams",
    )


def test_the_same_slips_fail_without_the_dialect(fastchat: Fake) -> None:
    report = look(target(fastchat, Dialect("openai")))
    assert result(report, "stream").status == "fail"
    assert "object: field required" in result(report, "stream").message


@pytest.mark.parametrize(("engine", "dialect"), [("vllm", "vllm"), ("fastchat", "fastchat")])
def test_the_dialect_is_recognized(start: Callable[..., Fake], engine: str, dialect: str) -> None:
    assert look(target(start(engine), None)).dialect == dialect


def test_vllm_is_recognized_by_its_version_where_the_list_tells_nothing(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", owner="somebody"))
    assert look(target(vllm, None)).dialect == "vllm"
    del vllm.routes["GET /version"]
    assert look(target(vllm, None)).dialect == "openai"


def test_a_bare_array_is_togethers_and_wrong_elsewhere(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer([{"id": "tiny", "object": "model"}])
    report = look(target(vllm, None))
    assert (report.dialect, result(report, "models").status, report.ok) == ("together", "pass", True)
    found = result(look(target(vllm, VLLM)), "models")
    assert (found.status, found.message) == ("warn", "tiny listed, but the list is a bare array, not {object, data}")


def test_a_wrong_model_name_is_met_with_the_right_one(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("meta-llama/Llama-3.2-1B-Instruct"))
    report = look(target(vllm, models=("meta-llama/llama-3-2-1b-instruct",)))
    found = result(report, "models")
    assert (found.status, found.message) == ("fail", "not served: meta-llama/llama-3-2-1b-instruct")
    assert "did you mean 'meta-llama/Llama-3.2-1B-Instruct'?" in found.hint
    assert found.evidence == "listed: meta-llama/Llama-3.2-1B-Instruct"
    assert [(one.name, one.status, one.message) for one in report.results if one.name in ("chat", "stream")] == [
        ("chat", "skip", "there is no served model to ask"), ("stream", "skip", "there is no served model to ask"),
    ]  # fmt: skip


def test_one_missing_model_does_not_keep_the_others_from_being_asked(vllm: Fake) -> None:
    report = look(target(vllm, models=("tiny", "gone")))
    assert result(report, "models").status == "fail"
    assert (result(report, "chat").model, result(report, "chat").status) == ("tiny", "pass")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (json_answer({"object": "list", "data": []}), "the server lists no model"),
        (Answer(500, b"<html>oops</html>", "text/html"), "no list of models came but HTTP 500 (text/html)"),
        (Answer(200, b"<html>hello</html>", "text/html"), "no list of models came but HTTP 200 (text/html)"),
        (Answer(404, b'{"detail":"Not Found"}'), "/models is not found"),
        (json_answer({"error": {"message": "Loading model"}}, 503),
         "no list of models came but HTTP 503 (application/json): Loading model"),
    ],
)  # fmt: skip
def test_a_server_without_models(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.routes["GET /v1/models"] = answer
    report = look(target(vllm, models=()))
    assert (result(report, "models").status, result(report, "models").message) == ("fail", message)
    assert result(report, "models").hint
    assert not report.ok


def test_a_list_that_is_not_as_documented_is_a_warning(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer({"data": [{"id": "tiny"}, {"id": 3}, 4]})
    found = result(look(target(vllm)), "models")
    assert (found.status, found.message) == ("warn", "tiny listed, but object: field required")


def test_without_expected_models_the_first_listed_is_asked(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))
    report = look(target(vllm, models=()))
    assert result(report, "models").message == "tiny, other listed"
    assert result(report, "chat").model == "tiny"


def test_each_expected_model_is_asked_up_to_the_limit(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("a", "b", "c", "d"))

    def chat(request: Request) -> Answer:
        data = request.json()
        if data.get("stream"):
            return events(*[{**one, "model": data["model"]} for one in GOOD_STREAM])
        return json_answer(completion(model=data["model"]))

    vllm.routes["POST /v1/chat/completions"] = chat
    report = look(target(vllm, models=("a", "b", "c")), max_models=2)
    assert [(one.name, one.model, one.status) for one in report.results if one.name in ("chat", "stream")] == [
        ("chat", "a", "pass"), ("chat", "b", "pass"), ("chat", "", "skip"),
        ("stream", "a", "pass"), ("stream", "b", "pass"), ("stream", "", "skip"),
    ]  # fmt: skip
    assert (
        next(one for one in report.results if one.status == "skip" and one.name == "chat").message
        == "1 more model(s) not asked: at most 2 are"
    )
    assert result(report, "models").message == "a, b, c listed, 4 in all"


@pytest.mark.parametrize(
    ("status", "expected"), [(200, "pass"), (404, "warn"), (401, "warn"), (503, "fail"), (500, "fail")]
)
def test_the_liveness_path(vllm: Fake, status: int, expected: str) -> None:
    vllm.routes["GET /health"] = Answer(status)
    report = look(target(vllm))
    assert result(report, "alive").status == expected
    # /health says nothing about inference, in either direction
    assert result(report, "chat").status == "pass"


def _with_usage(prompt: int, done: int, total: int) -> Answer:
    usage = {"prompt_tokens": prompt, "completion_tokens": done, "total_tokens": total}
    return json_answer(completion(usage=usage))


def _with_choice(content: str | None = "hi", finish: str = "stop", **more: str) -> Answer:
    message = {"role": "assistant", "content": content, **more}
    return json_answer(completion(choices=[{"index": 0, "message": message, "finish_reason": finish}]))


def _with_choices(*changes: dict[str, Any]) -> Answer:
    (choice,) = completion()["choices"]
    return json_answer(completion(choices=[choice | one for one in changes]))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(500, b"<html><h1>Internal Server Error</h1></html>", "text/html"),
         "HTTP 500 (text/html) instead of a completion"),
        (Answer(200, b"<html>login</html>", "text/html"), "the body is not as documented: text/html instead of JSON"),
        (Answer(200, b"", ""), "the body is not as documented: an empty body instead of JSON"),
        (json_answer(completion(object="text_completion")),
         "the body is not as documented: object: input should be 'chat.completion'"),
        (_with_usage(9, 2, 12), "usage: 9 + 2 is not 12"),
        (_with_choice(""), "the answer has no content"),
        (_with_choice(None), "the answer has no content"),
        (_with_choice(finish="eos"), "finish_reason 'eos' is not documented"),
        (_with_choice(finish="tool_calls"), "finish_reason 'tool_calls' does not fit a plain answer"),
        (_with_choice(finish="function_call"), "finish_reason 'function_call' does not fit a plain answer"),
        (_with_choice(finish="content_filter"), "finish_reason 'content_filter' does not fit a plain answer"),
        (_with_usage(9, 0, 9), "usage counts no completion token, and there is text"),
        (_with_choices({"index": 5}), "the only choice has the index 5"),
        (_with_choices({}, {"index": 1}, {"index": 2}), "3 choices, and one was asked for"),
        (json_answer(completion(model="other")), "asked 'tiny', and 'other' answers"),
        (recorded("fastchat-0.2.36", "wrong-model"),
         "HTTP 400 (application/json) instead of a completion: Only tiny allowed now, your model nope"),
    ],
)  # fmt: skip
def test_a_completion_that_is_not_as_documented(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.chat(answer)
    report = look(target(vllm))
    found = result(report, "chat")
    assert (found.status, found.message) == ("fail", message)
    assert found.hint
    assert found.evidence
    assert (report.ok, report.answer) == (False, None)
    assert result(report, "stream").status == "pass"


def test_a_listed_model_that_the_server_then_denies_is_told_as_such(vllm: Fake) -> None:
    vllm.chat(recorded("vllm-0.32.0", "chat_wrongmodel"))
    found = result(look(target(vllm)), "chat")
    assert found.status == "fail"
    # not the very name that was asked for
    assert found.hint.startswith("'tiny' is listed under this very name")


def test_white_space_is_content_and_told_as_such(vllm: Fake) -> None:
    vllm.chat(_with_choice("\n\n"))
    found = result(look(target(vllm)), "chat")
    assert (found.status, found.message) == ("pass", "answers with white space (12 tokens, stop)")


def test_a_dated_snapshot_answers_for_its_alias(vllm: Fake) -> None:
    for name in ("tiny-2025-01-31", "tiny-0613"):
        vllm.chat(json_answer(completion(model=name)))
        found = result(look(target(vllm, OPENAI)), "chat")
        assert (found.status, found.notes[0]) == ("pass", f"answered by {name}")
        # no other server does that
        assert result(look(target(vllm)), "chat").status == "fail"


@pytest.mark.parametrize("name", ["tiny-imposter-70b", "tiny-2025", "tiny-20250131", "tiny-2025-01-31-x", "ti", "x"])
def test_no_other_name_answers_for_it(vllm: Fake, name: str) -> None:
    vllm.chat(json_answer(completion(model=name)))
    found = result(look(target(vllm, OPENAI)), "chat")
    expected = ("pass", "answers") if name == "tiny-2025" else ("fail", "asked 'tiny'")
    assert (found.status, found.message.startswith(expected[1])) == (expected[0], True)


def test_an_alias_may_be_answered_under_the_leading_name_where_the_dialect_says_so(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("first", "tiny", "third"))
    leading = replace(VLLM, leading_name=True)
    vllm.chat(json_answer(completion(model="first")))
    found = result(look(target(vllm, leading)), "chat")
    assert (found.status, found.notes[0]) == ("pass", "tiny is an alias of first, under which vllm answers")
    assert result(look(target(vllm, VLLM)), "chat").status == "fail"
    vllm.chat(json_answer(completion(model="third")))
    assert result(look(target(vllm, leading)), "chat").status == "fail"


def test_behind_a_gateway_the_leading_name_need_not_be_listed_first(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("other", "first", "tiny"))
    leading = replace(VLLM, leading_name=True)
    vllm.chat(json_answer(completion(model="first")))
    one = replace(target(vllm, leading), models=("first", "tiny"))
    assert [found.status for found in look(one).results if found.name == "chat"] == ["pass", "pass"]
    vllm.chat(json_answer(completion(model="tiny")))
    assert [found.status for found in look(one).results if found.name == "chat"] == ["fail", "pass"]


def test_a_model_that_only_reasoned_is_a_warning(vllm: Fake) -> None:
    vllm.chat(_with_choice(None, "length", reasoning="hm"))
    found = result(look(target(vllm)), "chat")
    assert (found.status, found.message) == ("warn", "only reasoning, no content")


def test_together_may_end_with_eos(vllm: Fake) -> None:
    vllm.chat(_with_choice(finish="eos"))
    assert result(look(target(vllm, Dialect("together"))), "chat").status == "pass"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, b"", "text/event-stream"), "the stream is empty: status 200 and no event"),
        (Answer(200, b"", "", ()), "the stream is empty: status 200 and no event"),
        (events(done=False), "the stream is empty: status 200 and no event"),
        (json_answer(completion()), "the answer is application/json and not text/event-stream"),
        (Answer(500, b"<html>oops</html>", "text/html"), "HTTP 500 (text/html) instead of a completion"),
        (events(*GOOD_STREAM[:2], {"error": {"message": "EngineDeadError"}}),
         "an error event under status 200: EngineDeadError and 1 more"),
        (events(*GOOD_STREAM, done=False), "the stream was cut: it ends without [DONE]"),
        (events(*GOOD_STREAM[:3], chunk(finish="stop")), "2 finish_reason instead of one (stop, stop)"),
        (events(*[{**one, "model": "other"} for one in GOOD_STREAM]), "asked 'tiny', and 'other' answers"),
    ],
)  # fmt: skip
def test_a_stream_that_does_not_end_properly(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.stream(answer)
    report = look(target(vllm))
    found = result(report, "stream")
    assert (found.status, found.message) == ("fail", message)
    assert found.hint
    assert not report.ok
    assert result(report, "chat").status == "pass"


def test_the_empty_stream_of_fastchat_names_its_cause(fastchat: Fake) -> None:
    fastchat.stream(Answer(200, b"", "text/event-stream", ()))
    assert "pydantic<2" in result(look(target(fastchat, FASTCHAT)), "stream").hint


def test_a_connection_cut_in_the_middle_keeps_what_came_before_as_evidence(vllm: Fake) -> None:
    vllm.stream(events(*GOOD_STREAM[:2], done=False, cut=True))
    found = result(look(target(vllm)), "stream")
    assert found.status == "fail"
    assert found.message.startswith("no finish_reason instead of one and 1 more (127.0.0.1")
    assert "cut: it ends without [DONE]" in found.evidence
    assert "last event" in found.evidence


def test_missing_usage_of_a_stream_is_a_warning(vllm: Fake) -> None:
    vllm.stream(recorded("vllm-0.32.0", "chat_stream_nousage"))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "ends properly, but reports no usage though asked to")


def test_usage_of_a_stream_is_asked_for_only_where_the_dialect_has_it(vllm: Fake, fastchat: Fake) -> None:
    for fake, dialect, asked in ((vllm, VLLM, True), (fastchat, FASTCHAT, False)):
        look(target(fake, dialect))
        bodies = [request.json() for request in fake.seen if request.path == "/v1/chat/completions"]
        streamed = [body for body in bodies if body.get("stream")]
        assert len(streamed) == 1
        assert ("stream_options" in streamed[0]) is asked


def test_speed_is_measured_on_a_slow_stream(vllm: Fake) -> None:
    vllm.stream(slow(events(*GOOD_STREAM), 0.05))
    figures = result(look(target(vllm)), "stream").figures
    # the second piece is the first with content; one more token 0.05 s later
    assert 0.1 <= figures["ttft_seconds"] < 2
    assert 1 < figures["tokens_per_second"] <= 20.5
    assert 0.048 <= figures["inter_token_p50_seconds"] < 1


def test_an_engine_that_dies_of_its_first_request_says_so_where_it_was_asked(vllm: Fake) -> None:
    # as a real vLLM does: 500 to the request that kills it, nothing to any later one
    dead = threading.Event()
    answers = dict(vllm.routes)

    def mortal(request: Request) -> Answer:
        if dead.is_set():
            return Answer(status=502, body=b"")
        if request.method == "POST":
            dead.set()
            return json_answer({"error": {"message": "EngineCore encountered an issue", "code": 500}}, 500)
        answer = answers[request.route]
        return answer(request) if callable(answer) else answer

    vllm.routes = dict.fromkeys(answers, mortal)
    failing = [one for one in look(target(vllm)).results if one.status == "fail"]
    assert failing[0].name == "chat"
    assert "EngineCore encountered an issue" in failing[0].message


def test_targets_are_checked_at_the_same_time_and_reported_in_order(start: Callable[..., Fake]) -> None:
    fakes = [start("vllm") for _ in range(4)]
    barrier = threading.Barrier(4)

    def meet(_: Request) -> Answer:
        # passes only when all four are asked at once
        barrier.wait(5)
        return Answer(200)

    for fake in fakes:
        fake.routes["GET /health"] = meet
    report = check([target(fake) for fake in fakes], dialects=DIALECTS)
    assert [endpoint.base_url for endpoint in report.endpoints] == [fake.url for fake in fakes]
    assert report.ok
    assert report.started.endswith("+00:00")


def test_progress_is_told_for_each_check(vllm: Fake) -> None:
    told: list[tuple[str, str, str]] = []
    check([target(vllm)], on_progress=lambda *words: told.append(words), dialects=DIALECTS)
    assert [(name, layer) for name, layer, _ in told] == [
        ("fake", check.name) for check in CHECKS if check.depth < 2 and check.name not in ("containers", "topology")
    ]
    assert told[1][2].startswith("pass: 127.0.0.1 port ")


def test_waiting_ends_when_the_models_are_there(vllm: Fake) -> None:
    ready_at = time.monotonic() + 0.8

    def loading(_: Request) -> Answer:
        return json_answer(model_list(*(["tiny"] if time.monotonic() > ready_at else [])))

    vllm.routes["GET /v1/models"] = loading
    told: list[str] = []
    report = check([target(vllm)], wait=20, on_progress=lambda *words: told.append(words[2]), dialects=DIALECTS)
    assert report.ok
    assert "waiting: the server lists no model" in told
    assert time.monotonic() < ready_at + 8
    # it looked again a few times, with pauses that grow
    assert 4 <= sum(request.path == "/v1/models" for request in vllm.seen) < 22
    # without waiting the same server is unhealthy
    ready_at = time.monotonic() + 60
    assert not check([target(vllm)], dialects=DIALECTS).ok


def test_an_engine_that_lists_its_models_and_is_not_alive_is_waited_for(vllm: Fake) -> None:
    asked = 0

    def dying(_: Request) -> Answer:
        nonlocal asked
        asked += 1
        return Answer(503 if asked < 4 else 200)

    vllm.routes["GET /health"] = dying
    told: list[str] = []
    report = check([target(vllm)], wait=60, on_progress=lambda *words: told.append(words[2]), dialects=DIALECTS)
    assert report.ok
    assert told.count("waiting: /health answers 503") == 3


def test_waiting_is_bounded_and_ends_early_where_it_can_not_help(vllm: Fake) -> None:
    gone = Target("gone", "http://127.0.0.1:9/v1", KEY, ("tiny",), VLLM)
    started = time.monotonic()
    assert not check([gone], wait=0.6).ok
    assert 0.6 <= time.monotonic() - started < 5
    started = time.monotonic()
    report = look(target(vllm, key="another-key"), wait=30)
    assert time.monotonic() - started < 5
    assert result(report, "auth").message == "the server refuses the key"


@pytest.mark.parametrize(
    "numbers",
    [
        {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"max_models": 0}, {"max_tokens": 0}, {"load": 0},
        {"max_ttft": 0}, {"min_tokens_per_second": -1}, {"workers": 0}, {"profile": "slow"},
    ],
)  # fmt: skip
def test_options_without_sense_are_an_input_error(numbers: dict[str, Any]) -> None:
    with pytest.raises(StackgenError, match=next(iter(numbers)).replace("_", ".")):
        Options(**numbers)


def test_a_negative_waiting_time_is_an_input_error() -> None:
    with pytest.raises(StackgenError):
        check([], wait=-1)


@pytest.mark.parametrize("words", [{"select": ("chta",)}, {"skip": ("chta",)}])
def test_an_unknown_check_is_met_with_the_nearest_one(words: dict[str, Any]) -> None:
    with pytest.raises(StackgenError) as caught:
        check([], Options(**words))
    assert "did you mean 'chat'" in caught.value.hint


def names(report: EndpointReport) -> list[str]:
    return [one.name for one in report.results]


def test_profiles_look_deeper_and_deeper(vllm: Fake) -> None:
    quick = look(target(vllm), profile="quick")
    assert names(quick) == ["resolve", "connect", "tls", "http", "alive", "models", "chat", "auth"]
    # one token is all that a probe of every few seconds may cost
    asked = [request.json().get("max_tokens") for request in vllm.seen if request.method == "POST" and request.json()]
    assert set(asked) == {1}
    assert len(vllm.seen) <= 10
    assert "stream" in names(look(target(vllm)))
    assert [one.name for one in choose(Options(profile="deep"))] == [check.name for check in CHECKS]


def test_a_selected_check_brings_those_that_it_needs(vllm: Fake) -> None:
    assert names(look(target(vllm), select=("stream",))) == ["resolve", "connect", "tls", "http", "models", "stream"]
    assert names(look(target(vllm), select=("stream",), skip=("tls", "models"))) == [
        "resolve", "connect", "http", "stream",
    ]  # fmt: skip
    assert "auth" not in names(look(target(vllm), skip=("auth",)))


def test_limits_turn_figures_into_failures(vllm: Fake) -> None:
    vllm.stream(slow(events(*GOOD_STREAM), 0.05))
    for limits, text in (
        ({"max_ttft": 0.01}, "the first token took"),
        ({"min_tokens_per_second": 1000.0}, "tokens a sec"),
    ):
        found = result(look(target(vllm), **limits), "stream")
        assert found.status == "fail"
        assert text in found.message
        assert found.figures["ttft_seconds"] > 0.05
        assert result(look(replace(target(vllm), **limits)), "stream").status == "fail"
    assert result(look(target(vllm), max_ttft=5.0, min_tokens_per_second=0.1), "stream").status == "pass"


def test_tokens_that_a_proxy_holds_back_are_a_warning(vllm: Fake) -> None:
    text = [chunk(f"w{number} ") for number in range(16)]
    every = events(chunk("", role="assistant"), *text, chunk(finish="stop"), USAGE_CHUNK).pieces or ()
    vllm.stream(Answer(200, b"", "text/event-stream", (b"".join(every[:9]), b"".join(every[9:])), pause=0.2))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "16 chunks came in 2 reads")
    assert "proxy_buffering off" in found.hint


def words(count: int) -> Answer:
    """A stream of so many words, of which each is an event."""
    text = [chunk(f"w{number} ") for number in range(count)]
    usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
    last = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [],
            "usage": usage}  # fmt: skip
    return events(chunk("", role="assistant"), *text, chunk(finish="stop"), last)


def in_one_piece(answer: Answer, after: float) -> Answer:
    return Answer(200, b"", "text/event-stream", (b": wait\n\n", b"".join(answer.pieces or ())), pause=after)


def test_a_short_answer_in_one_piece_makes_the_check_look_at_longer_ones(vllm: Fake) -> None:
    """A proxy with gzip: too few words to tell it from a fast server, so a longer answer decides."""
    vllm.stream(in_one_piece(words(6), 0.03), in_one_piece(words(40), 0.8))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "40 chunks came in 1 read")
    assert "gzip off" in found.hint and found.figures["ttft_seconds"] > 0.7
    asked = [request.json() for request in vllm.seen if request.route == "POST /v1/chat/completions"]
    assert [one["max_tokens"] for one in asked if one.get("stream")] == [32, 64, 64]


def test_longer_answers_that_come_word_by_word_clear_the_short_one(vllm: Fake) -> None:
    vllm.stream(in_one_piece(words(6), 0.03), slow(words(40), 0.01))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message.partition(",")[0]) == ("pass", "6 deltas")


def test_a_stream_that_lost_its_beginning_is_a_warning(vllm: Fake) -> None:
    vllm.chat(_with_choice("The capital is Paris."))
    vllm.stream(events(chunk("", role="assistant"), chunk("is Paris."), chunk(finish="stop"), USAGE_CHUNK))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "the stream lacks the first 12 characters of the answer")


def test_more_tokens_than_were_asked_for_are_a_warning(vllm: Fake) -> None:
    found = result(look(target(vllm), max_tokens=5), "chat")
    assert (found.status, found.message) == ("warn", "12 tokens came, and at most 5 were asked for")


def test_a_full_queue_says_when_to_come_again(vllm: Fake) -> None:
    vllm.chat(Answer(429, b'{"error":{"message":"slow down"}}', headers=(("Retry-After", "7"),)))
    found = result(look(target(vllm)), "chat")
    assert found.status == "fail"
    assert "after 7 (Retry-After)" in found.hint


def test_a_model_that_does_not_answer_is_waited_for_once(vllm: Fake) -> None:
    vllm.routes["POST /v1/chat/completions"] = lambda request: Answer(pieces=(b" ",), pause=2.0)
    started = time.monotonic()
    report = look(target(vllm), timeout=0.4, skip=("auth",))
    assert time.monotonic() - started < 1.5
    assert "was silent for 0.4 s" in result(report, "chat").message
    assert result(report, "stream").message == "needs `chat`, which got no answer in time"


def test_requests_and_responses_are_kept_for_those_who_show_them(vllm: Fake) -> None:
    report = look(target(vllm))
    (exchange,) = result(report, "chat").exchanges
    assert (exchange.method, exchange.status) == ("POST", 200)
    assert "capital of France" in exchange.request
    assert "chat.completion" in exchange.response
    assert "[DONE]" in result(report, "stream").exchanges[0].response
    assert "exchanges" not in json.dumps(Report((report,), "now").to_json())


def test_a_thousand_endpoints_are_checked_and_told_one_by_one(vllm: Fake) -> None:
    told: list[str] = []
    targets = [replace(target(vllm), name=f"e{number}") for number in range(1000)]
    report = check(targets, Options(profile="quick", select=("chat",), timeout=30), dialects=DIALECTS,
                   on_endpoint=lambda one: told.append(one.name))  # fmt: skip
    assert report.ok
    assert [one.name for one in report.endpoints] == [one.name for one in targets]
    assert sorted(told) == sorted(one.name for one in targets)


def test_a_huge_body_is_not_read_to_its_end(vllm: Fake) -> None:
    # 5 MB come at once; the rest would take longer than the time-out
    vllm.chat(Answer(200, pieces=(b"y" * 1_000_000,) * 45, pause=0.05))
    found = result(look(target(vllm), timeout=1.5), "chat")
    assert (found.status, found.message) == (
        "fail",
        "the body is not as documented: application/json instead of JSON",
    )
    assert len(json.dumps(found.evidence)) < 800


def test_a_completion_without_usage_works_and_is_a_warning(vllm: Fake) -> None:
    """The reference calls it optional."""
    for changes in ({"usage": None}, {}):
        body = completion(**changes)
        body.pop("usage", None) if not changes else None
        vllm.chat(json_answer(body))
        found = result(look(target(vllm)), "chat")
        assert found.status == "warn"
        assert found.message.endswith(", but reports no usage")


def test_a_mistake_of_ours_hides_nothing_that_others_found(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_context: object, _model: str) -> Verdict:
        raise KeyError(KEY)

    table = tuple(replace(one, run=broken) if one.name == "alive" else one for one in CHECKS)
    monkeypatch.setattr("stackgen.check.checks.table.CHECKS", table)
    report = look(target(vllm))
    assert result(report, "alive").message == "the check itself failed: KeyError"
    assert result(report, "chat").status == "pass"
    assert KEY not in repr(report)


def test_a_list_that_does_not_come_is_waited_for_once(vllm: Fake) -> None:
    # without a key it is refused at once, with one it hangs
    vllm.routes["GET /v1/models"] = Answer(pieces=(b" ",), pause=3.0)
    started = time.monotonic()
    report = look(target(vllm), timeout=0.5)
    assert time.monotonic() - started < 2.5
    assert result(report, "models").status == "fail"


def _one_token(content: str | None, counted: int | None, **message: str) -> Answer:
    """An answer to a quick check; `counted` tokens in its usage, None: no usage."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "length"}
    usage = {"prompt_tokens": 9, "completion_tokens": counted or 0, "total_tokens": 9 + (counted or 0)}
    return json_answer(completion(choices=[choice], usage=None if counted is None else usage))


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (_one_token("", 0), "fail"),
        (_one_token(None, 0), "fail"),
        (_one_token("", None), "fail"),
        (_one_token("The", 0), "fail"),
        # half a letter, or a mark of reasoning, shows in the count alone
        (_one_token("", 1), "pass"),
        (_one_token(None, 1), "pass"),
        (_one_token("The", 1), "pass"),
        (_one_token(None, 0, reasoning="Hm"), "fail"),
        (_one_token(None, 1, reasoning="Hm"), "pass"),
        (_one_token(None, 1, reasoning_content="Hm"), "pass"),
        (_one_token(None, None, reasoning_content="Hm"), "warn"),
    ],
)
def test_a_quick_check_wants_one_token_that_was_generated(vllm: Fake, answer: Answer, status: str) -> None:
    vllm.chat(answer)
    assert result(look(target(vllm), profile="quick"), "chat").status == status


def test_fastchat_counts_no_token_in_a_quick_check_and_is_healthy(fastchat: Fake) -> None:
    fastchat.chat(_one_token("The", 0))
    found = result(look(target(fastchat, FASTCHAT), profile="quick"), "chat")
    assert (found.status, found.notes) == ("pass", ("fastchat counts one token too few at the limit",))
    fastchat.chat(_one_token("", 0))
    assert result(look(target(fastchat, FASTCHAT), profile="quick"), "chat").status == "fail"


def test_an_answer_cut_long_before_its_limit_is_a_note(vllm: Fake) -> None:
    found = result(look(target(vllm)), "chat")
    assert (found.status, found.notes) == ("pass", ("completion_tokens is 12 at a length limit of 32",))


SENTENCE = ("The", " capital", " of", " France", " is", " the", " city", " of", " Paris", ".")


def _sentence(*pieces: str, usage: int = len(SENTENCE), **how: Any) -> Answer:
    counted = {"prompt_tokens": 9, "completion_tokens": usage, "total_tokens": 9 + usage}
    return events(chunk("", role="assistant"), *map(chunk, pieces), chunk(finish="stop"),
                  USAGE_CHUNK | {"usage": counted}, **how)  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (SENTENCE, ""),
        (SENTENCE[:4] + SENTENCE[5:], "the stream lacks 3 characters in the middle of the answer"),
        (SENTENCE[:-1], "the stream lacks the last 1 characters of the answer"),
        (SENTENCE[1:], "the stream lacks the first 3 characters of the answer"),
        (SENTENCE[:5] + SENTENCE[4:], "the stream repeats 3 characters of the answer"),
        # another answer, as rounding makes it
        (("Paris", " is", " the", " capital", " of", " France", " and", " its", " heart", "!"), ""),
        (("The", " capital", " of", " France", " is", " called", " Paris", ",", " the", " city"), ""),
    ],
)
def test_text_that_a_stream_lost_or_repeated(vllm: Fake, pieces: tuple[str, ...], message: str) -> None:
    counted = {"prompt_tokens": 9, "completion_tokens": len(SENTENCE), "total_tokens": 9 + len(SENTENCE)}
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(SENTENCE)}, "finish_reason": "stop"}
    vllm.chat(json_answer(completion(choices=[choice], usage=counted)))
    vllm.stream(_sentence(*pieces))
    found = result(look(target(vllm)), "stream")
    assert (found.status, message or found.message) == ("warn" if message else "pass", found.message)


def test_more_chunks_than_tokens_are_a_warning(vllm: Fake) -> None:
    vllm.stream(_sentence(*SENTENCE, usage=len(SENTENCE) - 1))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "10 chunks have text, and 9 tokens were generated")


def test_an_event_that_holds_all_tokens_is_a_gathering(vllm: Fake) -> None:
    vllm.stream(slow(_sentence("".join(SENTENCE)), 0.3))
    found = result(look(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "10 tokens came in 1 event")
    # hidden reasoning is counted, and was never meant to be sent
    vllm.stream(slow(_sentence("".join(SENTENCE), usage=200), 0.3))
    assert result(look(target(vllm)), "stream").status == "pass"


def test_a_gathered_stream_is_not_blamed_for_whole_answers(vllm: Fake) -> None:
    """How long one token takes is asked without a stream: that fault is the chat check's."""
    vllm.stream(slow(_sentence("".join(SENTENCE)), 0.3))
    for broken in (Answer(200, b"", pieces=(b"{",), cut=True), json_answer({"error": "no"}, 500)):
        vllm.chat(broken)
        found = result(look(target(vllm), select=("chat", "stream")), "stream")
        assert (found.status, found.message) == ("warn", "10 tokens came in 1 event")


def test_a_limit_brings_the_check_that_measures(vllm: Fake) -> None:
    report = look(target(vllm), profile="quick", max_ttft=0.000001)
    assert not report.ok
    assert "the first token took" in result(report, "stream").message
    assert result(look(replace(target(vllm), max_ttft=0.000001), profile="quick"), "stream").status == "fail"
    assert result(look(target(vllm), select=("chat",), max_ttft=0.000001), "stream").status == "fail"
    # more than the one token of a quick check, which would tell no speed
    look(target(vllm), profile="quick", min_tokens_per_second=0.001)
    assert [body["max_tokens"] for body in (request.json() for request in vllm.seen if request.method == "POST")
            if body.get("stream")][-1] == 32  # fmt: skip


def test_a_stream_that_comes_whole_at_the_end_has_the_speed_of_all_of_it(vllm: Fake) -> None:
    pieces = _sentence(*SENTENCE).pieces or ()
    vllm.stream(Answer(200, b"", "text/event-stream", (b"".join(pieces),), pause=0.5))
    found = result(look(target(vllm), min_tokens_per_second=1000.0), "stream")
    assert found.status == "fail"
    assert "tokens a second, and at least 1000 are wanted" in found.message
    assert result(look(target(vllm), min_tokens_per_second=0.1), "stream").status == "warn"


@pytest.mark.parametrize(
    "words",
    [
        {"select": ("chat",), "skip": ("chat",)}, {"skip": tuple(one.name for one in CHECKS)},
        {"skip": ("stream",), "max_ttft": 1.0},
    ],
)  # fmt: skip
def test_a_selection_that_leaves_nothing_is_an_input_error(words: dict[str, Any]) -> None:
    with pytest.raises(StackgenError, match="skipped"):
        check([], Options(**words))


def test_nothing_checked_is_not_healthy() -> None:
    report = look(Target("it", "http://127.0.0.1:1/v1"), select=("topology",))
    assert [one.status for one in report.results] == ["skip"]
    assert not report.ok
    assert "nothing was checked" in as_text(Report((report,), "now"))


def test_the_dialect_is_recognized_where_http_is_skipped(fastchat: Fake) -> None:
    report = look(target(fastchat, None), skip=("http",), max_tokens=16)
    assert (report.dialect, report.ok) == ("fastchat", True)


@pytest.mark.parametrize("check_name", ["models", "chat"])
def test_a_redirect_that_only_the_key_shows_is_named(vllm: Fake, check_name: str) -> None:
    away = Answer(307, b"", "", headers=(("Location", f"https://elsewhere.example/{KEY}"),))
    vllm.routes["GET /v1/models" if check_name == "models" else "POST /v1/chat/completions"] = away
    found = result(look(target(vllm)), check_name)
    assert found.status == "fail"
    assert "https://elsewhere.example/[key]" in found.message
    assert found.hint == "use the URL that it names"


@pytest.mark.parametrize("timeout", [float("inf"), 1e12])
def test_a_time_out_has_a_bound(timeout: float) -> None:
    with pytest.raises(StackgenError, match="at most 86400 seconds"):
        Options(timeout=timeout)


def test_a_stream_is_silent_however_many_keep_alive_lines_it_sends(vllm: Fake) -> None:
    role = f"data: {json.dumps(chunk('', role='assistant'))}\n\n".encode()
    for pieces in ((b": keep-alive\n\n",) * 100, (role,) * 100):
        vllm.stream(Answer(200, b"", "text/event-stream", pieces, pause=0.1))
        found = result(look(target(vllm), timeout=0.5, skip=("auth",)), "stream")
        assert found.status == "fail"
        assert "no token came for 0.5 s" in f"{found.message} {found.evidence}"
        # of a hundred pieces, which take ten seconds, a few were waited for
        assert found.seconds is not None and found.seconds < 5


def test_a_slow_stream_is_slow_and_not_endless(vllm: Fake) -> None:
    vllm.stream(slow(_sentence(*SENTENCE), 0.3))
    found = result(look(target(vllm), timeout=0.5), "stream")
    assert found.status == "pass"
    assert found.figures["tokens_per_second"] < 5
