"""What works with an endpoint: each API of each model is works, refused, ignored, not served, fails, or not checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from stackgen.check.report import APIS, JSON_SCHEMA, ApiSupport, EndpointReport, Report
from stackgen.check.report.page import as_html
from stackgen.check.report.text import as_text

from .conftest import VLLM, result, run_check, target
from .fake import KEY, Answer, Fake, Request, chunk, completion, events, json_answer, model_list, recorded

NAMES = tuple(api.name for api in APIS)
COUNTED = {"prompt_tokens": 37, "completion_tokens": 5, "total_tokens": 42}
REFUSED = json_answer({"error": {"message": "the moon is full"}}, 400)


def response(text: str = "Paris.", tokens: int = 3, **changes: Any) -> Answer:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    output = [{"type": "message", "role": "assistant", "id": "msg-1", "status": "completed", "content": content}]
    usage = {"input_tokens": 37, "output_tokens": tokens, "total_tokens": 37 + tokens}
    return json_answer({"id": "resp-1", "object": "response", "status": "completed", "output": output, "usage": usage}
                       | changes)  # fmt: skip


def message(text: str = "Paris.", tokens: int = 3, **changes: Any) -> Answer:
    content = [{"type": "text", "text": text}]
    usage = {"input_tokens": 37, "output_tokens": tokens}
    return json_answer({"id": "msg-1", "type": "message", "role": "assistant", "content": content, "usage": usage}
                       | changes)  # fmt: skip


def streamed(tokens: int, finish: str = "length", usage: bool = True) -> Answer:
    pieces = [chunk("one ", role="assistant"), *(chunk("more ") for _ in range(tokens - 1))]
    last = [chunk() | {"choices": [], "usage": COUNTED | {"completion_tokens": tokens, "total_tokens": 37 + tokens}}]
    return events(*pieces, chunk(finish=finish), *(last if usage else []))


def said(text: str, prompt_tokens: int = 37) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "total_tokens": prompt_tokens + 2}
    return json_answer(completion(choices=[choice], usage=usage))


def good_chat(request: Request) -> Answer:
    """A server on which every form of requests works; tools and schemas have their own tests."""
    body = request.json()
    if not body.get("stream"):
        return said("Paris.")
    # without `max_tokens`, only the other field limits the answer
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or 200
    return streamed(limit, usage=bool(body.get("stream_options", {}).get("include_usage")))


@pytest.fixture
def good(vllm: Fake) -> Fake:
    vllm.routes |= {
        "POST /v1/chat/completions": good_chat,
        "POST /v1/responses": response(),
        "POST /v1/messages": message(),
        "POST /v1/completions": recorded("vllm-0.32.0", "comp_ok"),
    }
    return vllm


def probe(fake: Fake, dialect: Any = VLLM, **options: Any) -> EndpointReport:
    return run_check(target(fake, dialect), select=("apis",), **options)


def states(report: EndpointReport, model: str = "tiny") -> dict[str, ApiSupport]:
    cells = {one.api: one for one in report.apis if one.model == model}
    assert tuple(cells) == NAMES
    return cells


def spoil(fake: Fake, applies: Callable[[dict[str, Any]], bool], answer: Answer) -> None:
    """Answers the chat requests that `applies` accepts with `answer`."""
    fake.routes["POST /v1/chat/completions"] = lambda request: answer if applies(request.json()) else good_chat(request)


def test_what_was_seen_to_work_works(good: Fake) -> None:
    report = probe(good)
    cells = states(report)
    works = {"chat", "responses", "messages", "completions", "list_content", "max_completion_tokens", "stream_usage"}
    assert {name for name, cell in cells.items() if cell.state == "works"} == works
    assert cells["max_completion_tokens"].detail == "5 tokens for a limit of 5"
    # the recorded server answers with text, whatever the request asks for
    assert {cells["tools"].state, cells["structured_output"].state} == {"ignored"}
    assert (cells["embeddings"].state, result(report, "apis").status) == ("not served", "pass")
    assert result(report, "apis").message.startswith("works: chat, responses, messages, completions, list content")


def is_list(body: dict[str, Any]) -> bool:
    return isinstance(body["messages"][0]["content"], list)


def is_limited(body: dict[str, Any]) -> bool:
    return "max_completion_tokens" in body


def wants_usage(body: dict[str, Any]) -> bool:
    return bool(body.get("stream")) and not is_limited(body)


FORMS: list[tuple[str, Callable[[dict[str, Any]], bool], Answer, str, str]] = [
    ("list_content", is_list, said("It is Paris."), "works", "37 prompt tokens, as for plain content"),
    ("list_content", is_list, said("Paris.", 61), "works", "same answer as for plain content"),
    ("list_content", is_list, said("A list.", 61), "fails", "61 prompt tokens instead of 37"),
    ("list_content", is_list, REFUSED, "refused", "the moon is full"),
    ("list_content", is_list, Answer(500, b"Internal Server Error", "text/plain"), "fails", "HTTP 500"),
    ("list_content", is_list, json_answer({"choices": []}), "fails", "not as documented"),
    ("max_completion_tokens", is_limited, streamed(6), "ignored", "5 tokens were requested, and 6 tokens arrived"),
    ("max_completion_tokens", is_limited, streamed(200), "ignored", "5 tokens were requested, and at least"),
    ("max_completion_tokens", is_limited, streamed(6, usage=False), "ignored", "at least 6 pieces of text arrived"),
    ("max_completion_tokens", is_limited, streamed(3, "stop"), "not checked", "ended by itself after 3 tokens"),
    ("max_completion_tokens", is_limited, REFUSED, "refused", "the moon is full"),
    ("max_completion_tokens", is_limited, Answer(429), "not checked", "HTTP 429"),
    ("max_completion_tokens", is_limited, events({"error": {"message": "out of memory"}}), "fails", "out of memory"),
    ("max_completion_tokens", is_limited, said("one two three"), "fails", "not text/event-stream"),
    ("stream_usage", wants_usage, streamed(5, usage=False), "ignored", "the stream has no usage"),
    ("stream_usage", wants_usage, REFUSED, "refused", "the moon is full"),
    ("stream_usage", wants_usage, Answer(200, b"", "text/event-stream", ()), "fails", "the stream is empty"),
]


@pytest.mark.parametrize(("name", "applies", "answer", "state", "detail"), FORMS)
def test_forms_of_chat_requests(
    good: Fake, name: str, applies: Callable[[dict[str, Any]], bool], answer: Answer, state: str, detail: str
) -> None:
    spoil(good, applies, answer)
    report = probe(good)
    cell = states(report)[name]
    assert (cell.state, detail in cell.detail) == (state, True), cell
    # such a table never makes an endpoint unhealthy
    assert result(report, "apis").status == ("warn" if state in ("ignored", "fails") else "pass")
    assert {one.state for key, one in states(report).items() if key in ("chat", "responses", "messages")} == {"works"}


BODIES: list[tuple[str, Answer, str, str]] = [
    ("responses", Answer(404, b'{"detail":"Not Found"}'), "not served", "Not Found"),
    ("responses", Answer(405), "not served", "HTTP 405"),
    ("responses", Answer(501), "not served", "HTTP 501"),
    ("responses", Answer(401), "refused", "HTTP 401"),
    ("responses", REFUSED, "refused", "the moon is full"),
    ("responses", Answer(500), "fails", "HTTP 500"),
    ("responses", json_answer(completion()), "fails", "object: input should be 'response'"),
    ("responses", response(tokens=99), "fails", "99 tokens were generated, but at most 16 were requested"),
    ("responses", response(output=[{"type": "reasoning", "id": "r"}]), "not checked", "no text within 16 tokens"),
    ("messages", Answer(404), "not served", "HTTP 404"),
    ("messages", Answer(401), "refused", "HTTP 401"),
    ("messages", json_answer(completion()), "fails", "type: field required"),
    ("messages", message(tokens=99), "fails", "99 tokens were generated"),
    ("messages", message(content=[{"type": "thinking", "thinking": "Hm"}]), "not checked", "no text"),
]


@pytest.mark.parametrize(("name", "answer", "state", "detail"), BODIES)
def test_apis_with_their_own_paths(good: Fake, name: str, answer: Answer, state: str, detail: str) -> None:
    good.routes[f"POST /v1/{name}"] = answer
    cell = states(probe(good))[name]
    assert (cell.state, detail in cell.detail) == (state, True), cell


CUT = "but reports the answer as completed although it was cut off at the limit of 16 tokens"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (response("one, two", tokens=16), True),  # as llama.cpp b11669 answers
        (response("one, two", 16, status="incomplete", incomplete_details={"reason": "max_output_tokens"}), False),
        (response("I won't.", tokens=4), False),
    ],
)
def test_a_response_that_was_cut_must_not_be_called_completed(good: Fake, answer: Answer, told: bool) -> None:
    good.routes["POST /v1/responses"] = answer
    cell = states(probe(good))["responses"]
    assert (cell.state, CUT in cell.detail) == ("works", told), cell


def test_a_path_that_the_engine_does_not_have_is_probed_and_named(good: Fake) -> None:
    without = replace(VLLM, name="fastchat", api_paths=("/v1/chat/completions",))
    assert states(probe(good, without))["responses"].state == "works"
    del good.routes["POST /v1/responses"]
    assert states(probe(good, without))["responses"].detail.endswith("; fastchat has no /v1/responses")
    # a gateway that names the path needs no addition
    good.routes["POST /v1/responses"] = json_answer({"error": {"message": "fastchat does not have /v1/responses"}}, 404)
    assert states(probe(good, without))["responses"].detail.endswith(": fastchat does not have /v1/responses")


def test_the_table_takes_what_other_checks_found_and_asks_only_for_the_rest(good: Fake) -> None:
    deep = run_check(target(good), profile="deep", skip=("errors", "load", "seed", "auth", "logprobs"))
    paths = [request.path for request in good.seen]
    for path in ("/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"):
        assert paths.count(path) == 1, path
    with_tools = [request for request in good.seen if b'"tools"' in request.body]
    assert len(with_tools) == 1
    assert {one.state for one in states(deep).values()} == {"works", "ignored", "not served"}
    assert [one for one in run_check(target(good)).results if one.name == "apis"] == []
    assert run_check(target(good), profile="quick").apis == ()


def test_each_model_has_its_own_column(good: Fake) -> None:
    good.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))

    def by_model(request: Request) -> Answer:
        answer = good_chat(request)
        if request.json()["model"] == "other" and is_list(request.json()):
            return REFUSED
        return replace(answer, body=answer.body.replace(b'"model": "tiny"', b'"model": "other"')) \
            if request.json()["model"] == "other" else answer  # fmt: skip

    good.routes["POST /v1/chat/completions"] = by_model
    report = run_check(target(good, models=("tiny", "other")), select=("apis",))
    assert states(report)["list_content"].state == "works"
    assert states(report, "other")["list_content"].state == "refused"
    text = as_text(Report((report,), "now"))
    assert "list content           ✓ works        [tiny]  " in text and "- refused      [other]  HTTP 400" in text
    assert "    chat                   ✓ works\n" in text


def test_a_model_without_chat_still_shows_its_other_apis(good: Fake) -> None:
    error = {"error": {"message": "The model does not support Chat Completions API"}}
    good.routes["POST /v1/chat/completions"] = json_answer(error, 400)
    vectors = [{"object": "embedding", "index": index, "embedding": [index, 1.5]} for index in (0, 1)]
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    good.routes["POST /v1/embeddings"] = json_answer(
        {"object": "list", "data": vectors, "model": "tiny", "usage": usage}
    )
    cells = states(probe(good))
    assert (cells["chat"].state, cells["embeddings"].state) == ("fails", "works")
    assert "does not support Chat" in cells["chat"].detail
    for name in ("tools", "list_content", "stream_usage"):
        assert (cells[name].state, cells[name].detail) == ("not checked", "chat does not work")


def test_a_silent_path_costs_one_timeout_and_the_rest_is_not_checked(good: Fake) -> None:
    good.routes["POST /v1/messages"] = replace(message(), pause=3.0)
    report = probe(good, timeout=0.3)
    cells = states(report)
    assert (cells["responses"].state, cells["messages"].state) == ("works", "fails")
    assert (cells["stream_usage"].state, cells["stream_usage"].detail) == (
        "not checked", "the request for messages got no answer")  # fmt: skip
    assert report.seconds < 2.5


def test_a_server_that_ignores_the_limit_is_left_early(good: Fake) -> None:
    spoil(good, is_limited, replace(streamed(200), pause=0.02))
    cell = states(probe(good))["max_completion_tokens"]
    assert cell.state == "ignored"
    # the whole stream has 200
    arrived = re.fullmatch(r"5 tokens were requested, and at least (\d+) pieces of text arrived", cell.detail)
    assert arrived and int(arrived[1]) <= 30, cell.detail


def test_reports_show_the_table_and_no_key(good: Fake) -> None:
    good.routes["POST /v1/messages"] = json_answer({"error": {"message": f"wrong key {KEY} <b>"}}, 403)
    report = Report((probe(good),), "2026-11-28T10:00:00+00:00")
    data = report.to_json()
    jsonschema.validate(json.loads(json.dumps(data)), JSON_SCHEMA)
    assert {one["api"] for one in data["endpoints"][0]["apis"]} == set(NAMES)
    text, page = as_text(report), as_html(report)
    assert "  what works with this endpoint:\n" in text
    assert "What works with this endpoint" in page and ">max_completion_tokens</th>" in page
    for output in (text, page, json.dumps(data)):
        assert KEY not in output and "wrong key" in output
    assert "<b>" not in page
