"""Features beyond chat: working, missing, ignored and broken ones get different verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check.checks.features import FEATURES
from stackgen.check.checks.table import CHECKS
from stackgen.check.dialects import OPENAI
from stackgen.check.report import Result

from .conftest import FASTCHAT, VLLM, result, run_check, target
from .fake import Answer, Fake, Request, chunk, completion, events, json_answer, model_list, recorded

NAMES = ("completions", "embeddings", "tokenize", "tools", "json-schema", "logprobs", "seed")
TOKENIZER = replace(VLLM, tokenize=("/tokenize", "prompt"))
CLAIMS = replace(TOKENIZER, claims=NAMES)
SAID_NO = json_answer({"error": {"message": "tool_choice requires --tool-call-parser to be set"}}, 400)
ODD = json_answer({"error": {"message": "the moon is full"}}, 400)
BROKEN = Answer(500, b"Internal Server Error", "text/plain")


def said(content: str | None, finish: str = "stop", logprobs: Any = None, **message: Any) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json_answer(completion(choices=[choice | {"logprobs": logprobs}]))


def call(name: str = "get_weather", arguments: Any = '{"city": "Paris"}', **more: Any) -> dict[str, Any]:
    return {"id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def probabilities(*counts: int, **changes: Any) -> dict[str, Any]:
    one = {"token": "Par", "logprob": -0.5, "bytes": [80, 97, 114]}
    return {"content": [one | {"top_logprobs": [one] * count} | changes for count in counts]}


def infinite(answer: Answer) -> Answer:
    """Replaces 0.25 in a body with a number that is valid JSON but not a finite float."""
    return replace(answer, body=answer.body.replace(b"0.25", b"1e999"))


def vector(*numbers: float, index: int = 0) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": list(numbers)}


def embedded(*vectors: dict[str, Any]) -> Answer:
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return json_answer({"object": "list", "data": list(vectors), "model": "tiny", "usage": usage})


def streamed_call(*arguments: str, finish: str = "tool_calls", done: bool = True) -> Answer:
    """A streamed call as vLLM sends it: the name first, then the arguments in pieces."""
    first = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    deltas = [{"tool_calls": [first]}]
    for piece in arguments or ('{"city": ', '"Paris"}'):
        deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    chunks = [chunk("", role="assistant"), *(with_delta(delta) for delta in deltas), chunk(finish=finish)]
    return events(*chunks, done=done)


def with_delta(delta: dict[str, Any]) -> dict[str, Any]:
    return chunk() | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def good_chat(request: Request) -> Answer:
    """A server with every chat feature."""
    body = request.json()
    if body.get("tools") and body.get("stream"):
        return streamed_call()
    if body.get("tools"):
        return said(None, "tool_calls", tool_calls=[call()])
    if body.get("response_format"):
        return said('{"capital": "Paris", "european": true}')
    if body.get("logprobs"):
        return said("Paris.", logprobs=probabilities(2, 2))
    return said(f"text of seed {body['seed']}" if "seed" in body else "Paris.")


def good_tokens(request: Request) -> Answer:
    """A tokenizer whose tokens are bytes."""
    body = request.json()
    if request.path == "/detokenize":
        return json_answer({"prompt": bytes(body["tokens"]).decode()})
    tokens = list(body["prompt"].encode())
    return json_answer({"tokens": tokens, "count": len(tokens), "max_model_len": 512})


@pytest.fixture
def good(vllm: Fake) -> Fake:
    vllm.routes |= {
        "POST /v1/chat/completions": good_chat,
        "POST /v1/completions": recorded("vllm-0.32.0", "comp_ok"),
        "POST /v1/embeddings": embedded(vector(0.5, -1), vector(1, 2, index=1)),
        "POST /tokenize": good_tokens,
        "POST /detokenize": good_tokens,
    }
    return vllm


ROUTES = {"completions": "/v1/completions", "embeddings": "/v1/embeddings", "tokenize": "/tokenize"}


def spoil(fake: Fake, name: str, answer: Answer | Callable[[Request], Answer]) -> None:
    """Answers the requests of one feature with `answer`; all others are unchanged."""
    if name in ROUTES:
        fake.routes[f"POST {ROUTES[name]}"] = answer
        return
    field = {"tools": "tools", "json-schema": "response_format", "logprobs": "logprobs", "seed": "seed"}[name]

    def route(request: Request) -> Answer:
        if field not in request.json():
            return good_chat(request)
        return answer(request) if callable(answer) else answer

    fake.routes["POST /v1/chat/completions"] = route


def ask(fake: Fake, name: str, dialect: Any = TOKENIZER) -> Result:
    return result(run_check(target(fake, dialect), select=(name,)), name)


@pytest.mark.parametrize("dialect", [TOKENIZER, CLAIMS], ids=["unknown", "claimed"])
@pytest.mark.parametrize("name", NAMES)
def test_a_working_feature_passes(good: Fake, name: str, dialect: Any) -> None:
    found = ask(good, name, dialect)
    assert (found.status, found.notes) == ("pass", ()), found.message


def test_features_run_in_order_and_in_deep_only(good: Fake) -> None:
    assert tuple(one.name for one in FEATURES) == NAMES
    assert [one.name for one in CHECKS if one in FEATURES] == list(NAMES)
    for profile, there in (("quick", False), ("default", False), ("deep", True)):
        report = run_check(target(good, TOKENIZER), profile=profile)
        assert {name in [one.name for one in report.results] for name in NAMES} == {there}


def test_features_are_checked_with_the_first_model(good: Fake) -> None:
    good.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))
    # each answers under the requested name, otherwise `chat` fails and nothing else runs
    good.routes["POST /v1/chat/completions"] = lambda request: json_answer(completion(model=request.json()["model"]))
    found = result(run_check(target(good, TOKENIZER, models=("tiny", "other")), select=("completions",)), "completions")
    assert (found.status, found.model) == ("pass", "tiny")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer", [SAID_NO, Answer(404), Answer(405), Answer(501), Answer(403)], ids=lambda a: a.status
)
def test_a_missing_feature_is_skipped_unless_it_is_claimed(good: Fake, name: str, answer: Answer) -> None:
    spoil(good, name, answer)
    found = ask(good, name)
    # tools without a parser can be enabled, so that is a warning
    status = "warn" if (name, answer) == ("tools", SAID_NO) else "skip"
    assert (found.status, found.message.partition(":")[0]) == (status, f"the server does not offer {name}")
    if answer is SAID_NO:
        assert "requires --tool-call-parser" in found.message
    claimed = ask(good, name, CLAIMS)
    # the tokenizer's path is outside of /v1, and a gateway is right to hide it
    hidden = name == "tokenize" and answer.status in (403, 404, 405)
    assert claimed.status == ("skip" if hidden else "fail")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("answer", "status"),
    [(BROKEN, "fail"), (Answer(503), "fail"), (ODD, "warn"), (Answer(400), "warn"), (Answer(429), "warn")],
)
def test_a_crash_fails_and_an_unclear_error_warns(good: Fake, name: str, answer: Answer, status: str) -> None:
    spoil(good, name, answer)
    assert ask(good, name).status == status


IGNORED: dict[str, Answer] = {
    "tools": said("It rains."),
    "json-schema": said("It is Paris."),
    "logprobs": said("Paris."),
}


@pytest.mark.parametrize("name", IGNORED)
def test_an_ignored_feature_warns_and_a_claimed_one_fails(good: Fake, name: str) -> None:
    spoil(good, name, IGNORED[name])
    found = ask(good, name)
    assert (found.status, found.message.startswith(f"vllm ignores {name}: ")) == ("warn", True)
    assert ask(good, name, CLAIMS).status == "fail"


@pytest.mark.parametrize("name", ["tools", "json-schema", "seed"])
def test_a_supported_feature_that_the_dialect_ignores_gets_a_note(good: Fake, name: str) -> None:
    found = ask(good, name, replace(TOKENIZER, ignores=FASTCHAT.ignores))
    assert (found.status, found.notes) == ("pass", (f"vllm normally ignores {name}, but this server supports {name}",))


def test_a_feature_that_the_dialect_lacks_is_not_requested(good: Fake) -> None:
    found = ask(good, "embeddings", replace(TOKENIZER, lacks=("embeddings",)))
    assert (found.status, found.message) == ("skip", "vllm does not support embeddings")
    assert "/v1/embeddings" not in [request.path for request in good.seen]


def comp(**changes: Any) -> Answer:
    body = json.loads(recorded("vllm-0.32.0", "comp_ok").body)
    return json_answer(body | changes)


COUNTED = {"prompt_tokens": 2, "completion_tokens": 8, "total_tokens": 10}
WRONG: list[tuple[str, Answer, str, str]] = [
    ("completions", Answer(200, b"<html>", "text/html"), "fail", "text/html instead of JSON"),
    ("completions", json_answer(completion()), "fail", "object: input should be 'text_completion'"),
    ("completions", comp(usage=None), "pass", "continues the text"),
    ("completions", comp(choices=[]), "fail", "choices: list should have at least 1 item"),
    (
        "completions",
        comp(usage=COUNTED | {"total_tokens": 11}),
        "fail",
        "2 prompt tokens + 8 completion tokens is not the total 11",
    ),
    ("completions", comp(choices=[{"index": 0, "text": "", "finish_reason": "length"}]), "fail", "has no text"),
    ("completions", comp(choices=[{"index": 0, "text": "", "finish_reason": "stop"}]), "pass", "continues"),
    ("completions", comp(usage={"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}), "warn", "9 tokens"),
    ("embeddings", embedded(vector(0.5)), "fail", "1 vectors with the indices [0]"),
    ("embeddings", embedded(vector(0.5), vector(1)), "fail", "the indices [0, 0]"),
    ("embeddings", embedded(vector(0.5), vector(1, 2, index=1)), "fail", "different lengths: 1, 2"),
    ("embeddings", embedded(vector(0.5, 1), vector(0, 0, index=1)), "fail", "zeros"),
    ("embeddings", embedded(vector(0.5, 1), vector(0.5, 1, index=1)), "fail", "the same vector"),
    ("embeddings", embedded(vector(), vector(index=1)), "fail", "data[0].embedding: list should have"),
    ("embeddings", embedded(vector(float("nan")), vector(1, index=1)), "fail", "not valid JSON"),
    ("embeddings", infinite(embedded(vector(0.25), vector(1, index=1))), "fail", "finite number"),
    ("tokenize", json_answer({"tokens": []}), "fail", "tokens: list should have at least 1 item"),
    ("tokenize", json_answer({"tokens": ["Is"]}), "fail", "tokens[0]: input should be a valid integer"),
    (
        "tokenize",
        json_answer({"tokens": [1, 2], "count": 3}),
        "fail",
        "the field `count` is 3, but the field `tokens` has 2 entries",
    ),
    ("tokenize", json_answer({"tokens": [72, 105]}), "warn", "and back into a different text"),
    (
        "tools",
        said(None, "tool_calls", tool_calls=[call("rm")]),
        "fail",
        "the tool call is for 'rm', but the request has no such tool",
    ),
    ("tools", said(None, "tool_calls", tool_calls=[call(arguments={"city": "Paris"})]), "fail", "valid string"),
    (
        "tools",
        said(None, "tool_calls", tool_calls=[call(arguments='{"city": ')]),
        "fail",
        "not a string with a JSON object",
    ),
    (
        "tools",
        said(None, "tool_calls", tool_calls=[call(arguments='"Paris"')]),
        "fail",
        "not a string with a JSON object",
    ),
    ("tools", said(None, "length", tool_calls=[call(arguments='{"city": ')]), "warn", "was cut off after 128"),
    ("tools", said(None, "tool_calls", tool_calls=[call(type="tool")]), "fail", "tool_calls[0].type"),
    ("tools", said(None, "length", reasoning="Let me think"), "warn", "no tool call within 128 tokens"),
    ("json-schema", said('{"capital": "Paris"}'), "warn", "violates the schema: european: field required"),
    ("json-schema", said('{"capital": "Oslo", "european": true}'), "warn", "violates the schema: capital"),
    ("json-schema", said('{"capital": "Rome", "european": true, "x": 1}'), "warn", "violates the schema: x"),
    ("json-schema", said('{"capital": ', "length"), "warn", "cut off after 128 tokens"),
    ("json-schema", said(None, "length"), "warn", "cut off after 128 tokens"),
    ("json-schema", said("Paris, the city of", "length"), "warn", "vllm ignores json-schema"),
    ("json-schema", json_answer({"choices": []}), "fail", "choices: list should have"),
    ("logprobs", said("Paris.", logprobs=probabilities()), "fail", "logprobs.content: list should have"),
    ("logprobs", said("Paris.", logprobs=probabilities(2, logprob=0.5)), "fail", "less than or equal to 0"),
    ("logprobs", infinite(said("Paris.", logprobs=probabilities(2, logprob=-0.25))), "fail", "finite number"),
    (
        "logprobs",
        said("Paris.", logprobs=probabilities(2, token=None)),
        "fail",
        "token: input should be a valid string",
    ),
    ("logprobs", said("Paris.", logprobs=probabilities(2, 0)), "warn", "0 or 2 top_logprobs per token, but 2"),
]


@pytest.mark.parametrize(("name", "answer", "status", "expected"), WRONG)
def test_wrong_answers_are_reported(good: Fake, name: str, answer: Answer, status: str, expected: str) -> None:
    spoil(good, name, answer)
    found = ask(good, name)
    assert (found.status, expected in found.message) == (status, True), found.message


@pytest.mark.parametrize("name", ["json-schema", "logprobs"])
def test_a_claimed_feature_with_a_wrong_answer_fails(good: Fake, name: str) -> None:
    bad = {"json-schema": said('{"capital": "Oslo"}'), "logprobs": said("x", logprobs=probabilities())}
    spoil(good, name, bad[name])
    assert ask(good, name, CLAIMS).status == "fail"


def test_a_tool_that_is_called_only_by_name_passes(good: Fake) -> None:
    spoil(good, "tools", lambda request: SAID_NO if request.json()["tool_choice"] == "required" else good_chat(request))
    assert ask(good, "tools").status == "pass"


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_a_required_call_must_end_with_the_finish_reason_of_a_call(good: Fake, reason: str) -> None:
    spoil(good, "tools", said(None, reason, tool_calls=[call()]))
    found = ask(good, "tools")
    assert (found.status, f"finish_reason is '{reason}' instead of 'tool_calls'" in found.message) == ("warn", True)
    assert "agents that branch on finish_reason never run the tool" in found.hint


def test_a_call_of_a_named_function_may_end_with_stop(good: Fake) -> None:
    """OpenAI itself answers so (vLLM pull 25054)."""

    def by_name(request: Request) -> Answer:
        if request.json()["tool_choice"] == "required":
            return SAID_NO
        stopped = said(None, "stop", tool_calls=[call()])
        return streamed_call(finish="stop") if request.json().get("stream") else stopped

    spoil(good, "tools", by_name)
    assert ask(good, "tools").status == "pass"


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (streamed_call(finish="stop"), "finish_reason is 'stop' instead of 'tool_calls'"),
        (streamed_call('{"city": '), "don't add up to a name and a JSON object"),
        (streamed_call('"Paris"'), "don't add up to a name and a JSON object"),
        (streamed_call(done=False), "the call is cut"),
        (events(chunk("It is sunny.", role="assistant"), chunk(finish="stop")), "there is no tool call"),
        (events(chunk("", role="assistant"), {"error": {"message": "parser died"}}), "an error event: parser died"),
        (said(None, "tool_calls", tool_calls=[call()]), "not text/event-stream"),
        (BROKEN, "HTTP 500"),
    ],
)
def test_a_call_that_is_right_as_a_whole_may_be_wrong_in_a_stream(good: Fake, stream: Answer, problem: str) -> None:
    spoil(good, "tools", lambda request: stream if request.json().get("stream") else good_chat(request))
    found = ask(good, "tools")
    assert (found.status, problem in found.message) == ("warn", True), found.message


def test_skipped_tools_show_how_to_enable_them_in_vllm(good: Fake) -> None:
    spoil(good, "tools", SAID_NO)
    assert "to enable tools, set `tool_call_parser` in the stack file" in ask(good, "tools").message
    assert "the page Tool Calling on docs.vllm.ai" in ask(good, "tools").hint


@pytest.mark.parametrize(
    ("root", "parser"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "hermes"),
        ("/models/meta-llama--Llama-3.1-8B-Instruct", "llama3_json"),
        ("/stackgen/cache/openai/gpt-oss-20b", "openai"),
        # behind a gateway, the list has no root, and the served name is all there is
        (None, ""),
    ],
)
@pytest.mark.parametrize("dialect", [TOKENIZER, OPENAI], ids=["vllm", "behind a gateway"])
def test_a_chat_model_without_a_tool_parser_warns_and_names_the_parser(
    good: Fake, root: str | None, parser: str, dialect: Any
) -> None:
    cards = model_list("tiny")
    cards["data"][0]["root"] = root
    good.routes["GET /v1/models"] = json_answer(cards)
    spoil(good, "tools", SAID_NO)
    found = ask(good, "tools", dialect)
    assert found.status == "warn" and "requires --tool-call-parser" in found.message
    assert found.message.endswith(f"in the stack file to `{parser}`" if parser else "in the stack file")
    assert (f"names `{parser}`" in found.hint) is bool(parser)


def test_the_parser_of_an_adapter_is_that_of_its_base_model(good: Fake) -> None:
    cards = model_list("base", "tiny")
    cards["data"][0]["root"] = "ibm-granite/granite-3.1-8b-instruct"
    cards["data"][1] |= {"root": "/adapters/sql", "parent": "base"}
    good.routes["GET /v1/models"] = json_answer(cards)
    spoil(good, "tools", SAID_NO)
    assert "to `granite`" in ask(good, "tools").message


def test_a_model_without_chat_gets_no_warning_about_tools(good: Fake) -> None:
    good.routes["POST /v1/chat/completions"] = SAID_NO
    found = ask(good, "tools")
    assert (found.status, found.message) == ("skip", "needs `chat`")


def test_an_unknown_tokenizer_is_skipped_and_a_missing_detokenizer_is_a_note(good: Fake) -> None:
    assert ask(good, "tokenize", VLLM).status == "skip"
    del good.routes["POST /detokenize"]
    found = ask(good, "tokenize")
    assert (found.status, found.notes) == ("pass", ("the server can't turn tokens back into text",))
    good.routes["POST /detokenize"] = BROKEN
    assert ask(good, "tokenize").status == "fail"


def in_turn(*texts: str) -> Callable[[Request], Answer]:
    left = list(texts)
    return lambda _: said(left.pop(0))


@pytest.mark.parametrize(
    ("texts", "status", "expected"),
    [
        ("aaab", "pass", "requests with the same seed get the same text, another seed gives another text"),
        ("abaa", "warn", "the same seed gave two different texts in three requests"),
        ("abcd", "warn", "vllm ignores seed: the same seed gave three different texts"),
        (
            "aaaa",
            "pass",
            "requests with the same seed get the same text, and requests at temperature 0 get the same text",
        ),
    ],
)
def test_seeds(good: Fake, texts: str, status: str, expected: str) -> None:
    spoil(good, "seed", in_turn(*texts))
    found = ask(good, "seed")
    assert (found.status, expected in found.message) == (status, True), found.message
    # if no seed makes a difference, little is proved
    assert bool(found.notes) == (texts == "aaaa")


@pytest.mark.parametrize(("texts", "status"), [("abcd", "fail"), ("abaa", "warn"), ("aaab", "pass")])
def test_claimed_seeds(good: Fake, texts: str, status: str) -> None:
    spoil(good, "seed", in_turn(*texts))
    assert ask(good, "seed", CLAIMS).status == status


@pytest.mark.parametrize(("texts", "status"), [("abaa", "warn"), ("aaaa", "warn"), ("aaab", "pass")])
def test_equal_texts_prove_nothing_if_the_dialect_ignores_seeds(good: Fake, texts: str, status: str) -> None:
    spoil(good, "seed", in_turn(*texts))
    assert ask(good, "seed", replace(VLLM, ignores=("seed",))).status == status


def test_two_texts_at_temperature_0_warn(good: Fake) -> None:
    texts = iter("abcdefgh")

    def route(request: Request) -> Answer:
        body = request.json()
        assert body["temperature"] == (1 if "seed" in body else 0)
        return good_chat(request) if "seed" in body else said(next(texts))

    good.routes["POST /v1/chat/completions"] = route
    found = ask(good, "seed", CLAIMS)
    assert (found.status, found.message) == ("warn", "at temperature 0, the same request gave two different texts")
