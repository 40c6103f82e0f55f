"""The checks end to end, on recorded servers and on faults."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check import check
from stackgen.check.checks.table import CHECKS, select_checks
from stackgen.check.checks.verdict import Verdict
from stackgen.check.dialects import OPENAI
from stackgen.check.options import Options
from stackgen.check.report import EndpointReport, Report
from stackgen.check.report.text import as_text
from stackgen.check.target import Target
from stackgen.errors import StackgenError
from stackgen.plan import Dialect

from .conftest import DIALECTS, FASTCHAT, VLLM, result, run_check, target
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


def test_a_recorded_vllm_is_healthy_except_for_its_open_paths(vllm: Fake) -> None:
    report = run_check(target(vllm))
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


def test_known_deviations_of_a_recorded_fastchat_are_noted_once(fastchat: Fake) -> None:
    report = run_check(target(fastchat, FASTCHAT), max_tokens=16)
    assert {one.name: one.status for one in report.results if one.status != "pass"} == {
        "tls": "skip", "alive": "skip", "auth": "warn",
    }  # fmt: skip
    assert result(report, "chat").notes == ("fastchat counts one token too few at the limit",)
    assert result(report, "stream").notes == (
        "fastchat sends object and created in the last chunk only",
        "fastchat reports no usage in streams",
    )


def test_the_same_deviations_fail_without_the_dialect(fastchat: Fake) -> None:
    report = run_check(target(fastchat, Dialect("openai")))
    assert result(report, "stream").status == "fail"
    assert "object: field required" in result(report, "stream").message


@pytest.mark.parametrize(("engine", "dialect"), [("vllm", "vllm"), ("fastchat", "fastchat")])
def test_the_dialect_is_detected(start: Callable[..., Fake], engine: str, dialect: str) -> None:
    assert run_check(target(start(engine), None)).dialect == dialect


def test_vllm_is_detected_by_its_version_path(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", owner="somebody"))
    assert run_check(target(vllm, None)).dialect == "vllm"
    del vllm.routes["GET /version"]
    assert run_check(target(vllm, None)).dialect == "openai"


BARE_ARRAY = "the server lists tiny, but the model list is a JSON array, not an object with `object` and `data`"


def test_a_bare_array_is_valid_for_together_only(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer([{"id": "tiny", "object": "model"}])
    report = run_check(target(vllm, None))
    assert (report.dialect, result(report, "models").status, report.ok) == ("together", "pass", True)
    found = result(run_check(target(vllm, VLLM)), "models")
    assert (found.status, found.message) == ("warn", BARE_ARRAY)


def test_a_wrong_model_name_gets_a_suggestion(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("meta-llama/Llama-3.2-1B-Instruct"))
    report = run_check(target(vllm, models=("meta-llama/llama-3-2-1b-instruct",)))
    found = result(report, "models")
    assert (found.status, found.message) == ("fail", "the server does not list meta-llama/llama-3-2-1b-instruct")
    assert "did you mean 'meta-llama/Llama-3.2-1B-Instruct'?" in found.hint
    assert found.evidence == "listed: meta-llama/Llama-3.2-1B-Instruct"
    assert [(one.name, one.status, one.message) for one in report.results if one.name in ("chat", "stream")] == [
        ("chat", "skip", "there is no served model to check"), ("stream", "skip", "there is no served model to check"),
    ]  # fmt: skip


def test_other_models_are_checked_if_one_is_missing(vllm: Fake) -> None:
    report = run_check(target(vllm, models=("tiny", "gone")))
    assert result(report, "models").status == "fail"
    assert (result(report, "chat").model, result(report, "chat").status) == ("tiny", "pass")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (json_answer({"object": "list", "data": []}), "the server lists no models"),
        (Answer(500, b"<html>oops</html>", "text/html"), "expected a list of models, got HTTP 500 (text/html)"),
        (Answer(200, b"<html>hello</html>", "text/html"), "expected a list of models, got HTTP 200 (text/html)"),
        (Answer(404, b'{"detail":"Not Found"}'), "/models is not found"),
        (json_answer({"error": {"message": "Loading model"}}, 503),
         "expected a list of models, got HTTP 503 (application/json): Loading model"),
    ],
)  # fmt: skip
def test_a_server_without_models_fails(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.routes["GET /v1/models"] = answer
    report = run_check(target(vllm, models=()))
    assert (result(report, "models").status, result(report, "models").message) == ("fail", message)
    assert result(report, "models").hint
    assert not report.ok


def test_an_undocumented_model_list_is_a_warning(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer({"data": [{"id": "tiny"}, {"id": 3}, 4]})
    found = result(run_check(target(vllm)), "models")
    assert (found.status, found.message) == ("warn", "the server lists tiny, but object: field required")


def test_without_expected_models_the_first_listed_one_is_checked(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))
    report = run_check(target(vllm, models=()))
    assert result(report, "models").message == "the server lists tiny, other"
    assert result(report, "chat").model == "tiny"


def test_expected_models_are_checked_up_to_the_limit(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("a", "b", "c", "d"))

    def chat(request: Request) -> Answer:
        data = request.json()
        if data.get("stream"):
            return events(*[{**one, "model": data["model"]} for one in GOOD_STREAM])
        return json_answer(completion(model=data["model"]))

    vllm.routes["POST /v1/chat/completions"] = chat
    report = run_check(target(vllm, models=("a", "b", "c")), max_models=2)
    assert [(one.name, one.model, one.status) for one in report.results if one.name in ("chat", "stream")] == [
        ("chat", "a", "pass"), ("chat", "b", "pass"), ("chat", "", "skip"),
        ("stream", "a", "pass"), ("stream", "b", "pass"), ("stream", "", "skip"),
    ]  # fmt: skip
    assert (
        next(one for one in report.results if one.status == "skip" and one.name == "chat").message
        == "models that were not checked: 1, because the limit is 2"
    )
    assert result(report, "models").message == "the server lists a, b, c (4 models in total)"


@pytest.mark.parametrize(
    ("status", "expected"), [(200, "pass"), (404, "warn"), (401, "warn"), (503, "fail"), (500, "fail")]
)
def test_the_liveness_status_is_independent_of_chat(vllm: Fake, status: int, expected: str) -> None:
    vllm.routes["GET /health"] = Answer(status)
    report = run_check(target(vllm))
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
        (Answer(200, b"<html>login</html>", "text/html"),
         "the response body is not as documented: text/html instead of JSON"),
        (Answer(200, b"", ""), "the response body is not as documented: an empty body instead of JSON"),
        (json_answer(completion(object="text_completion")),
         "the response body is not as documented: object: input should be 'chat.completion'"),
        (_with_usage(9, 2, 12), "usage: 9 prompt tokens + 2 completion tokens is not the total 12"),
        (_with_choice(""), "the answer has no content"),
        (_with_choice(None), "the answer has no content"),
        (_with_choice(finish="eos"), "finish_reason 'eos' is not documented"),
        (_with_choice(finish="tool_calls"), "finish_reason 'tool_calls' is wrong for a text answer"),
        (_with_choice(finish="function_call"), "finish_reason 'function_call' is wrong for a text answer"),
        (_with_choice(finish="content_filter"), "finish_reason 'content_filter' is wrong for a text answer"),
        (_with_usage(9, 0, 9), "`usage` counts no completion tokens, but the answer has text"),
        (_with_choices({"index": 5}), "the only choice has the index 5 instead of 0"),
        (_with_choices({}, {"index": 1}, {"index": 2}), "the answer has 3 choices, but one was requested"),
        (json_answer(completion(model="other")), "the model 'tiny' was requested, but 'other' answered"),
        (recorded("fastchat-0.2.36", "wrong-model"),
         "HTTP 400 (application/json) instead of a completion: Only tiny allowed now, your model nope"),
    ],
)  # fmt: skip
def test_an_undocumented_completion_fails(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.chat(answer)
    report = run_check(target(vllm))
    found = result(report, "chat")
    assert (found.status, found.message) == ("fail", message)
    assert found.hint
    assert found.evidence
    assert (report.ok, report.answer) == (False, None)
    assert result(report, "stream").status == "pass"


def test_a_listed_model_that_the_server_denies_gets_a_hint(vllm: Fake) -> None:
    vllm.chat(recorded("vllm-0.32.0", "chat_wrongmodel"))
    found = result(run_check(target(vllm)), "chat")
    assert found.status == "fail"
    # the hint does not suggest the name that was requested
    assert found.hint.startswith("the server lists 'tiny', but the model may not support chat")


def test_white_space_counts_as_content(vllm: Fake) -> None:
    vllm.chat(_with_choice("\n\n"))
    found = result(run_check(target(vllm)), "chat")
    assert (found.status, found.message) == (
        "pass",
        "the model answers with white space (12 tokens, finish_reason stop)",
    )


def test_a_dated_snapshot_answers_for_its_alias(vllm: Fake) -> None:
    for name in ("tiny-2025-01-31", "tiny-0613"):
        vllm.chat(json_answer(completion(model=name)))
        found = result(run_check(target(vllm, OPENAI)), "chat")
        assert (found.status, found.notes[0]) == ("pass", f"the model that answered is {name}")
        # no other server uses snapshots
        assert result(run_check(target(vllm)), "chat").status == "fail"


@pytest.mark.parametrize("name", ["tiny-imposter-70b", "tiny-2025", "tiny-20250131", "tiny-2025-01-31-x", "ti", "x"])
def test_another_model_name_in_the_answer_fails(vllm: Fake, name: str) -> None:
    vllm.chat(json_answer(completion(model=name)))
    found = result(run_check(target(vllm, OPENAI)), "chat")
    expected = ("pass", "the model answers") if name == "tiny-2025" else ("fail", "the model 'tiny' was requested")
    assert (found.status, found.message.startswith(expected[1])) == (expected[0], True)


def test_an_alias_may_be_answered_under_the_first_name(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("first", "tiny", "third"))
    leading = replace(VLLM, reports_first_name=True)
    vllm.chat(json_answer(completion(model="first")))
    found = result(run_check(target(vllm, leading)), "chat")
    assert (found.status, found.notes[0]) == ("pass", "tiny is an alias: vllm reports the name first in its answers")
    assert result(run_check(target(vllm, VLLM)), "chat").status == "fail"
    vllm.chat(json_answer(completion(model="third")))
    assert result(run_check(target(vllm, leading)), "chat").status == "fail"


def test_behind_a_gateway_the_first_name_need_not_be_listed_first(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("other", "first", "tiny"))
    leading = replace(VLLM, reports_first_name=True)
    vllm.chat(json_answer(completion(model="first")))
    one = replace(target(vllm, leading), models=("first", "tiny"))
    assert [found.status for found in run_check(one).results if found.name == "chat"] == ["pass", "pass"]
    vllm.chat(json_answer(completion(model="tiny")))
    assert [found.status for found in run_check(one).results if found.name == "chat"] == ["fail", "pass"]


def test_an_answer_with_only_reasoning_is_a_warning(vllm: Fake) -> None:
    vllm.chat(_with_choice(None, "length", reasoning="hm"))
    found = result(run_check(target(vllm)), "chat")
    assert (found.status, found.message) == ("warn", "the answer has only reasoning and no content")


def test_together_may_end_with_eos(vllm: Fake) -> None:
    vllm.chat(_with_choice(finish="eos"))
    assert result(run_check(target(vllm, Dialect("together"))), "chat").status == "pass"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(200, b"", "text/event-stream"), "the stream is empty: the server sent status 200, but no events"),
        (Answer(200, b"", "", ()), "the stream is empty: the server sent status 200, but no events"),
        (events(done=False), "the stream is empty: the server sent status 200, but no events"),
        (json_answer(completion()), "the content type of the response is application/json, not text/event-stream"),
        (Answer(500, b"<html>oops</html>", "text/html"), "HTTP 500 (text/html) instead of a completion"),
        (events(*GOOD_STREAM[:2], {"error": {"message": "EngineDeadError"}}),
         "the stream has an error event despite status 200: EngineDeadError (and 1 more problem)"),
        (events(*GOOD_STREAM, done=False), "the stream was cut: it ends without [DONE]"),
        (events(*GOOD_STREAM[:3], chunk(finish="stop")), "the stream has 2 finish reasons instead of one (stop, stop)"),
        (events(*[{**one, "model": "other"} for one in GOOD_STREAM]),
         "the model 'tiny' was requested, but 'other' answered"),
    ],
)  # fmt: skip
def test_an_incomplete_stream_fails(vllm: Fake, answer: Answer, message: str) -> None:
    vllm.stream(answer)
    report = run_check(target(vllm))
    found = result(report, "stream")
    assert (found.status, found.message) == ("fail", message)
    assert found.hint
    assert not report.ok
    assert result(report, "chat").status == "pass"


def test_the_empty_stream_of_fastchat_names_its_cause(fastchat: Fake) -> None:
    fastchat.stream(Answer(200, b"", "text/event-stream", ()))
    assert "pydantic<2" in result(run_check(target(fastchat, FASTCHAT)), "stream").hint


def test_a_cut_stream_keeps_its_events_as_evidence(vllm: Fake) -> None:
    vllm.stream(events(*GOOD_STREAM[:2], done=False, cut=True))
    found = result(run_check(target(vllm)), "stream")
    assert found.status == "fail"
    assert found.message.startswith("the stream has no finish_reason (and 1 more problem) (127.0.0.1")
    assert "cut: it ends without [DONE]" in found.evidence
    assert "last event" in found.evidence


def test_missing_usage_in_a_stream_is_a_warning(vllm: Fake) -> None:
    vllm.stream(recorded("vllm-0.32.0", "chat_stream_nousage"))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == (
        "warn",
        "the stream is complete, but reports no usage, although usage was requested",
    )


def test_stream_usage_is_requested_only_if_the_dialect_supports_it(vllm: Fake, fastchat: Fake) -> None:
    for fake, dialect, asked in ((vllm, VLLM, True), (fastchat, FASTCHAT, False)):
        run_check(target(fake, dialect))
        bodies = [request.json() for request in fake.seen if request.path == "/v1/chat/completions"]
        streamed = [body for body in bodies if body.get("stream")]
        assert len(streamed) == 1
        assert ("stream_options" in streamed[0]) is asked


def test_speed_is_measured_on_a_slow_stream(vllm: Fake) -> None:
    vllm.stream(slow(events(*GOOD_STREAM), 0.5))
    figures = result(run_check(target(vllm)), "stream").figures
    # the second piece is the first one with content; one more token follows 0.5 s later
    assert 1 <= figures["ttft_seconds"] < 3
    assert 0.5 < figures["tokens_per_second"] <= 2.05
    assert 0.48 <= figures["inter_token_p50_seconds"] < 2


def test_an_engine_that_dies_of_its_first_request_fails_in_chat(vllm: Fake) -> None:
    # like a real vLLM: a 500 for the request that kills it, no answer to any later one
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
    failing = [one for one in run_check(target(vllm)).results if one.status == "fail"]
    assert failing[0].name == "chat"
    assert "EngineCore encountered an issue" in failing[0].message


def test_targets_are_checked_concurrently_and_reported_in_order(start: Callable[..., Fake]) -> None:
    fakes = [start("vllm") for _ in range(4)]
    barrier = threading.Barrier(4)

    def meet(_: Request) -> Answer:
        # passes only if all four are requested concurrently
        barrier.wait(5)
        return Answer(200)

    for fake in fakes:
        fake.routes["GET /health"] = meet
    report = check([target(fake) for fake in fakes], dialects=DIALECTS)
    assert [endpoint.base_url for endpoint in report.endpoints] == [fake.url for fake in fakes]
    assert report.ok
    assert report.started.endswith("+00:00")


def test_progress_is_reported_for_each_check(vllm: Fake) -> None:
    updates: list[tuple[str, str, str]] = []
    check([target(vllm)], on_progress=lambda *update: updates.append(update), dialects=DIALECTS)
    assert [(name, layer) for name, layer, _ in updates] == [
        ("fake", check.name) for check in CHECKS if check.depth < 2 and check.name not in ("containers", "topology")
    ]
    assert updates[1][2].startswith("pass: 127.0.0.1 port ")


def test_waiting_ends_when_the_models_are_listed(vllm: Fake) -> None:
    listed: list[float] = []
    loads = 0.8

    def loading(_: Request) -> Answer:
        listed.append(time.monotonic())
        # from the first request on, which may come late on a busy machine
        ready = listed[-1] > listed[0] + loads and len(listed) >= 4
        return json_answer(model_list(*(["tiny"] if ready else [])))

    vllm.routes["GET /v1/models"] = loading
    updates: list[str] = []
    report = check([target(vllm)], wait=20, on_progress=lambda *update: updates.append(update[2]), dialects=DIALECTS)
    assert report.ok
    assert "waiting: the server lists no models" in updates
    assert time.monotonic() < listed[0] + loads + 8
    # a few more attempts, with growing pauses
    assert 4 <= sum(request.path == "/v1/models" for request in vllm.seen) < 22
    # without waiting the same server is unhealthy
    loads = 60
    assert not check([target(vllm)], dialects=DIALECTS).ok


def test_waiting_continues_until_the_liveness_path_answers(vllm: Fake) -> None:
    asked = 0

    def dying(_: Request) -> Answer:
        nonlocal asked
        asked += 1
        return Answer(503 if asked < 4 else 200)

    vllm.routes["GET /health"] = dying
    updates: list[str] = []
    report = check([target(vllm)], wait=60, on_progress=lambda *update: updates.append(update[2]), dialects=DIALECTS)
    assert report.ok
    assert updates.count("waiting: /health answers 503") == 3


def test_waiting_is_bounded_and_ends_early_if_it_can_not_help(vllm: Fake) -> None:
    gone = Target("gone", "http://127.0.0.1:9/v1", KEY, ("tiny",), VLLM)
    started = time.monotonic()
    assert not check([gone], wait=0.6).ok
    assert 0.6 <= time.monotonic() - started < 5
    started = time.monotonic()
    report = run_check(target(vllm, key="another-key"), wait=30)
    assert time.monotonic() - started < 5
    assert result(report, "auth").message == "the server refuses the key"


@pytest.mark.parametrize(
    "numbers",
    [
        {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"max_models": 0}, {"max_tokens": 0}, {"load": 0},
        {"max_ttft": 0}, {"min_tokens_per_second": -1}, {"workers": 0}, {"profile": "slow"},
    ],
)  # fmt: skip
def test_invalid_options_are_an_input_error(numbers: dict[str, Any]) -> None:
    with pytest.raises(StackgenError, match=next(iter(numbers)).replace("_", ".")):
        Options(**numbers)


def test_a_negative_wait_is_an_input_error() -> None:
    with pytest.raises(StackgenError):
        check([], wait=-1)


@pytest.mark.parametrize("options", [{"select": ("chta",)}, {"skip": ("chta",)}])
def test_an_unknown_check_gets_a_suggestion(options: dict[str, Any]) -> None:
    with pytest.raises(StackgenError) as caught:
        check([], Options(**options))
    assert "did you mean 'chat'" in caught.value.hint


def names(report: EndpointReport) -> list[str]:
    return [one.name for one in report.results]


def test_deeper_profiles_run_more_checks(vllm: Fake) -> None:
    quick = run_check(target(vllm), profile="quick")
    assert names(quick) == ["resolve", "connect", "tls", "http", "alive", "models", "chat", "auth"]
    # a probe every few seconds may cost one token only
    asked = [request.json().get("max_tokens") for request in vllm.seen if request.method == "POST" and request.json()]
    assert set(asked) == {1}
    assert len(vllm.seen) <= 10
    assert "stream" in names(run_check(target(vllm)))
    assert [one.name for one in select_checks(Options(profile="deep"))] == [check.name for check in CHECKS]


def test_a_selected_check_also_runs_the_checks_it_needs(vllm: Fake) -> None:
    assert names(run_check(target(vllm), select=("stream",))) == [
        "resolve",
        "connect",
        "tls",
        "http",
        "models",
        "stream",
    ]
    assert names(run_check(target(vllm), select=("stream",), skip=("tls", "models"))) == [
        "resolve", "connect", "http", "stream",
    ]  # fmt: skip
    assert "auth" not in names(run_check(target(vllm), skip=("auth",)))


def test_limits_turn_figures_into_failures(vllm: Fake) -> None:
    vllm.stream(slow(events(*GOOD_STREAM), 0.5))
    for limits, text in (
        ({"max_ttft": 0.01}, "the first token took"),
        ({"min_tokens_per_second": 1000.0}, "tokens/s, below the limit of 1000 tokens/s"),
    ):
        found = result(run_check(target(vllm), **limits), "stream")
        assert found.status == "fail"
        assert text in found.message
        assert found.figures["ttft_seconds"] > 0.05
        assert result(run_check(replace(target(vllm), **limits)), "stream").status == "fail"
    assert result(run_check(target(vllm), max_ttft=5.0, min_tokens_per_second=0.1), "stream").status == "pass"


def test_tokens_buffered_by_a_proxy_are_a_warning(vllm: Fake) -> None:
    text = [chunk(f"w{number} ") for number in range(16)]
    every = events(chunk("", role="assistant"), *text, chunk(finish="stop"), USAGE_CHUNK).pieces or ()
    vllm.stream(Answer(200, b"", "text/event-stream", (b"".join(every[:9]), b"".join(every[9:])), pause=0.2))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "the stream is buffered: 16 chunks arrived in 2 reads")
    assert "proxy_buffering off" in found.hint


def word_stream(count: int) -> Answer:
    """A stream of `count` words, each in its own event."""
    text = [chunk(f"w{number} ") for number in range(count)]
    usage = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
    last = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [],
            "usage": usage}  # fmt: skip
    return events(chunk("", role="assistant"), *text, chunk(finish="stop"), last)


def in_one_piece(answer: Answer, after: float) -> Answer:
    return Answer(200, b"", "text/event-stream", (b": wait\n\n", b"".join(answer.pieces or ())), pause=after)


def test_a_short_buffered_answer_makes_the_check_request_longer_ones(vllm: Fake) -> None:
    """A proxy with gzip: with few words it looks like a fast server, so a longer answer decides."""
    vllm.stream(in_one_piece(word_stream(6), 0.03), in_one_piece(word_stream(40), 0.8))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "the stream is buffered: 40 chunks arrived in 1 read")
    assert "gzip off" in found.hint and found.figures["ttft_seconds"] > 0.7
    asked = [request.json() for request in vllm.seen if request.route == "POST /v1/chat/completions"]
    assert [one["max_tokens"] for one in asked if one.get("stream")] == [32, 64, 64]


def test_longer_unbuffered_answers_clear_the_short_one(vllm: Fake) -> None:
    vllm.stream(in_one_piece(word_stream(6), 0.03), slow(word_stream(40), 0.01))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message.partition(",")[0]) == ("pass", "the stream is complete: 6 deltas")


def test_a_stream_without_its_first_words_is_a_warning(vllm: Fake) -> None:
    vllm.chat(_with_choice("The capital is Paris."))
    vllm.stream(events(chunk("", role="assistant"), chunk("is Paris."), chunk(finish="stop"), USAGE_CHUNK))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == (
        "warn",
        "the first 12 characters of the answer are missing from the stream",
    )


def test_more_tokens_than_requested_are_a_warning(vllm: Fake) -> None:
    found = result(run_check(target(vllm), max_tokens=5), "chat")
    assert (found.status, found.message) == ("warn", "12 tokens were generated, but at most 5 were requested")


def test_a_rate_limit_shows_when_to_retry(vllm: Fake) -> None:
    vllm.chat(Answer(429, b'{"error":{"message":"slow down"}}', headers=(("Retry-After", "7"),)))
    found = result(run_check(target(vllm)), "chat")
    assert found.status == "fail"
    assert "after 7 (Retry-After)" in found.hint


def test_a_model_that_does_not_answer_costs_one_timeout(vllm: Fake) -> None:
    vllm.routes["POST /v1/chat/completions"] = lambda request: Answer(pieces=(b" ",), pause=2.0)
    started = time.monotonic()
    report = run_check(target(vllm), timeout=0.4, skip=("auth",))
    assert time.monotonic() - started < 1.5
    assert "sent nothing for 0.4 s" in result(report, "chat").message
    assert result(report, "stream").message == "needs `chat`, but `chat` timed out"


def test_requests_and_responses_are_kept_but_not_in_the_json(vllm: Fake) -> None:
    report = run_check(target(vllm))
    (exchange,) = result(report, "chat").exchanges
    assert (exchange.method, exchange.status) == ("POST", 200)
    assert "capital of France" in exchange.request
    assert "chat.completion" in exchange.response
    assert "[DONE]" in result(report, "stream").exchanges[0].response
    assert "exchanges" not in json.dumps(Report((report,), "now").to_json())


def test_a_thousand_endpoints_are_checked_and_reported_one_by_one(vllm: Fake) -> None:
    reported: list[str] = []
    targets = [replace(target(vllm), name=f"e{number}") for number in range(1000)]
    report = check(targets, Options(profile="quick", select=("chat",), timeout=30), dialects=DIALECTS,
                   on_endpoint=lambda one: reported.append(one.name))  # fmt: skip
    assert report.ok
    assert [one.name for one in report.endpoints] == [one.name for one in targets]
    assert sorted(reported) == sorted(one.name for one in targets)


def test_a_huge_body_is_not_read_to_its_end(vllm: Fake) -> None:
    # 5 MB arrive at once; the rest would take longer than the timeout
    vllm.chat(Answer(200, pieces=(b"y" * 1_000_000,) * 45, pause=0.05))
    found = result(run_check(target(vllm), timeout=1.5), "chat")
    assert (found.status, found.message) == (
        "fail",
        "the response body is not as documented: application/json instead of JSON",
    )
    assert len(json.dumps(found.evidence)) < 800


def test_a_completion_without_usage_is_a_warning(vllm: Fake) -> None:
    """The API reference calls usage optional."""
    for changes in ({"usage": None}, {}):
        body = completion(**changes)
        body.pop("usage", None) if not changes else None
        vllm.chat(json_answer(body))
        found = result(run_check(target(vllm)), "chat")
        assert found.status == "warn"
        assert found.message.endswith(", but the server reports no usage")


def test_a_bug_in_one_check_does_not_hide_the_others(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_context: object, _model: str) -> Verdict:
        raise KeyError(KEY)

    table = tuple(replace(one, run=broken) if one.name == "alive" else one for one in CHECKS)
    monkeypatch.setattr("stackgen.check.checks.table.CHECKS", table)
    report = run_check(target(vllm))
    assert result(report, "alive").message == "the check itself failed: KeyError"
    assert result(report, "chat").status == "pass"
    assert KEY not in repr(report)


def test_a_model_list_that_hangs_costs_one_timeout(vllm: Fake) -> None:
    # refused at once without a key; with the key, it hangs
    vllm.routes["GET /v1/models"] = Answer(pieces=(b" ",), pause=3.0)
    started = time.monotonic()
    report = run_check(target(vllm), timeout=0.5)
    assert time.monotonic() - started < 2.5
    assert result(report, "models").status == "fail"


def _one_token(content: str | None, counted: int | None, **message: str) -> Answer:
    """An answer to a quick check with `counted` tokens in its usage; None: no usage."""
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
        # half a letter, or a mark of reasoning, shows only in the count
        (_one_token("", 1), "pass"),
        (_one_token(None, 1), "pass"),
        (_one_token("The", 1), "pass"),
        (_one_token(None, 0, reasoning="Hm"), "fail"),
        (_one_token(None, 1, reasoning="Hm"), "pass"),
        (_one_token(None, 1, reasoning_content="Hm"), "pass"),
        (_one_token(None, None, reasoning_content="Hm"), "warn"),
    ],
)
def test_a_quick_check_requires_one_generated_token(vllm: Fake, answer: Answer, status: str) -> None:
    vllm.chat(answer)
    assert result(run_check(target(vllm), profile="quick"), "chat").status == status


def test_a_quick_check_accepts_fastchats_count_of_zero_tokens(fastchat: Fake) -> None:
    fastchat.chat(_one_token("The", 0))
    found = result(run_check(target(fastchat, FASTCHAT), profile="quick"), "chat")
    assert (found.status, found.notes) == ("pass", ("fastchat counts one token too few at the limit",))
    fastchat.chat(_one_token("", 0))
    assert result(run_check(target(fastchat, FASTCHAT), profile="quick"), "chat").status == "fail"


def test_an_answer_far_below_its_token_limit_gets_a_note(vllm: Fake) -> None:
    found = result(run_check(target(vllm)), "chat")
    assert (found.status, found.notes) == (
        "pass",
        ("completion_tokens is 12, but the answer reached its limit of 32 tokens",),
    )


SENTENCE = ("The", " capital", " of", " France", " is", " the", " city", " of", " Paris", ".")


def _sentence(*pieces: str, usage: int = len(SENTENCE), **how: Any) -> Answer:
    counted = {"prompt_tokens": 9, "completion_tokens": usage, "total_tokens": 9 + usage}
    return events(chunk("", role="assistant"), *map(chunk, pieces), chunk(finish="stop"),
                  USAGE_CHUNK | {"usage": counted}, **how)  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (SENTENCE, ""),
        (SENTENCE[:4] + SENTENCE[5:], "3 characters in the middle of the answer are missing from the stream"),
        (SENTENCE[:-1], "the last 1 characters of the answer are missing from the stream"),
        (SENTENCE[1:], "the first 3 characters of the answer are missing from the stream"),
        (SENTENCE[:5] + SENTENCE[4:], "the stream repeats 3 characters of the answer"),
        # another answer, as caused by rounding
        (("Paris", " is", " the", " capital", " of", " France", " and", " its", " heart", "!"), ""),
        (("The", " capital", " of", " France", " is", " called", " Paris", ",", " the", " city"), ""),
    ],
)
def test_lost_or_repeated_text_in_a_stream_is_a_warning(vllm: Fake, pieces: tuple[str, ...], message: str) -> None:
    counted = {"prompt_tokens": 9, "completion_tokens": len(SENTENCE), "total_tokens": 9 + len(SENTENCE)}
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(SENTENCE)}, "finish_reason": "stop"}
    vllm.chat(json_answer(completion(choices=[choice], usage=counted)))
    vllm.stream(_sentence(*pieces))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, message or found.message) == ("warn" if message else "pass", found.message)


def test_more_chunks_than_tokens_are_a_warning(vllm: Fake) -> None:
    vllm.stream(_sentence(*SENTENCE, usage=len(SENTENCE) - 1))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "10 chunks have text, but only 9 tokens were generated")


def test_one_event_with_all_tokens_counts_as_buffered(vllm: Fake) -> None:
    vllm.stream(slow(_sentence("".join(SENTENCE)), 0.3))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == ("warn", "the stream is buffered: 10 tokens arrived in 1 event")
    # hidden reasoning is counted but never sent
    vllm.stream(slow(_sentence("".join(SENTENCE), usage=200), 0.3))
    assert result(run_check(target(vllm)), "stream").status == "pass"


def test_a_buffered_stream_is_reported_even_if_chat_fails(vllm: Fake) -> None:
    """The time for one token is measured without a stream; its failure is for the check `chat` to report."""
    vllm.stream(slow(_sentence("".join(SENTENCE)), 0.3))
    for broken in (Answer(200, b"", pieces=(b"{",), cut=True), json_answer({"error": "no"}, 500)):
        vllm.chat(broken)
        found = result(run_check(target(vllm), select=("chat", "stream")), "stream")
        assert (found.status, found.message) == ("warn", "the stream is buffered: 10 tokens arrived in 1 event")


def test_a_speed_limit_adds_the_stream_check(vllm: Fake) -> None:
    report = run_check(target(vllm), profile="quick", max_ttft=0.000001)
    assert not report.ok
    assert "the first token took" in result(report, "stream").message
    assert result(run_check(replace(target(vllm), max_ttft=0.000001), profile="quick"), "stream").status == "fail"
    assert result(run_check(target(vllm), select=("chat",), max_ttft=0.000001), "stream").status == "fail"
    # more than the one token of a quick check, which would show no speed; a longer one follows if it looks buffered
    vllm.seen.clear()
    run_check(target(vllm), profile="quick", min_tokens_per_second=0.001)
    sent = (request.json() for request in vllm.seen if request.method == "POST")
    assert next(body["max_tokens"] for body in sent if body.get("stream")) == 32


def test_the_speed_of_a_buffered_stream_counts_from_the_request(vllm: Fake) -> None:
    pieces = _sentence(*SENTENCE).pieces or ()
    vllm.stream(Answer(200, b"", "text/event-stream", (b"".join(pieces),), pause=0.5))
    found = result(run_check(target(vllm), min_tokens_per_second=1000.0), "stream")
    assert found.status == "fail"
    assert "tokens/s, below the limit of 1000 tokens/s" in found.message
    assert result(run_check(target(vllm), min_tokens_per_second=0.1), "stream").status == "warn"


@pytest.mark.parametrize(
    "options",
    [
        {"select": ("chat",), "skip": ("chat",)}, {"skip": tuple(one.name for one in CHECKS)},
        {"skip": ("stream",), "max_ttft": 1.0},
    ],
)  # fmt: skip
def test_skipping_all_selected_checks_is_an_input_error(options: dict[str, Any]) -> None:
    with pytest.raises(StackgenError, match="skipped"):
        check([], Options(**options))


def test_nothing_checked_is_not_healthy() -> None:
    report = run_check(Target("it", "http://127.0.0.1:1/v1"), select=("topology",))
    assert [one.status for one in report.results] == ["skip"]
    assert not report.ok
    assert "nothing was checked" in as_text(Report((report,), "now"))


def test_the_dialect_is_detected_even_if_http_is_skipped(fastchat: Fake) -> None:
    report = run_check(target(fastchat, None), skip=("http",), max_tokens=16)
    assert (report.dialect, report.ok) == ("fastchat", True)


@pytest.mark.parametrize("check_name", ["models", "chat"])
def test_a_redirect_for_authenticated_requests_is_reported(vllm: Fake, check_name: str) -> None:
    away = Answer(307, b"", "", headers=(("Location", f"https://elsewhere.example/{KEY}"),))
    vllm.routes["GET /v1/models" if check_name == "models" else "POST /v1/chat/completions"] = away
    found = result(run_check(target(vllm)), check_name)
    assert found.status == "fail"
    assert "https://elsewhere.example/[key]" in found.message
    assert found.hint == "use the URL that the server redirects to"


@pytest.mark.parametrize("timeout", [float("inf"), 1e12])
def test_the_timeout_has_a_maximum(timeout: float) -> None:
    with pytest.raises(StackgenError, match="at most 86400 seconds"):
        Options(timeout=timeout)


def test_keep_alive_comments_do_not_extend_the_timeout(vllm: Fake) -> None:
    role = f"data: {json.dumps(chunk('', role='assistant'))}\n\n".encode()
    for pieces in ((b": keep-alive\n\n",) * 100, (role,) * 100):
        vllm.stream(Answer(200, b"", "text/event-stream", pieces, pause=0.1))
        found = result(run_check(target(vllm), timeout=0.5, skip=("auth",)), "stream")
        assert found.status == "fail"
        assert "no token arrived for 0.5 s" in f"{found.message} {found.evidence}"
        # not all of the hundred pieces, which would take ten seconds
        assert found.seconds is not None and found.seconds < 5


def test_a_slow_stream_passes_if_each_token_is_in_time(vllm: Fake) -> None:
    # the whole stream takes longer than the timeout
    vllm.stream(slow(_sentence(*SENTENCE), 0.6))
    found = result(run_check(target(vllm), timeout=1.2), "stream")
    assert found.status == "pass"
    assert found.figures["tokens_per_second"] < 2.5


def test_an_answer_of_an_overflow_is_no_answer_of_the_model(vllm: Fake) -> None:
    served_by = ("x-stackgen-served-by", "overflow/together:org/tiny")
    vllm.chat(replace(json_answer(completion()), headers=(served_by,)))
    found = result(run_check(target(vllm)), "chat")
    expected = "all replicas of tiny are busy, and its queue is full: the fallback together:org/tiny answered"
    assert (found.status, found.message) == ("fail", expected)
    assert "repeat the check" in found.hint and "diagnose" not in found.hint


@pytest.mark.parametrize(
    ("answer", "what"),
    [(json_answer(completion()), "answered"), (json_answer({"error": {"message": "no"}}, 401), "returned HTTP 401")],
)
def test_an_answer_of_a_fallback_is_no_answer_of_the_model(vllm: Fake, answer: Answer, what: str) -> None:
    served_by = ("x-stackgen-served-by", "fallback/together:org/tiny")
    vllm.chat(replace(answer, headers=(served_by,)))
    found = result(run_check(target(vllm)), "chat")
    assert found.status == "fail"
    assert found.message.startswith(f"no replica of tiny is up: the fallback together:org/tiny {what}")
    assert "stackgen diagnose" in found.hint
    vllm.chat(replace(answer, headers=(("x-stackgen-served-by", "vllm-tiny/vllm-tiny-0"),)))
    assert "fallback" not in result(run_check(target(vllm)), "chat").message
