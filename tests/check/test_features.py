"""Features beyond chat: working, missing, ignored and broken ones get different verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check.checks.features import FEATURES
from stackgen.check.checks.table import CHECKS
from stackgen.check.report import Result

from .conftest import FASTCHAT, VLLM, result, run_check, target
from .fake import Answer, Fake, Request, completion, json_answer, model_list, recorded

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


def good_chat(request: Request) -> Answer:
    """A server with every chat feature."""
    body = request.json()
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
    assert (found.status, found.message.partition(":")[0]) == ("skip", f"the server does not offer {name}")
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
    assert (found.status, found.notes) == ("pass", (f"vllm is known to ignore {name}, but supports it here",))


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
    ("completions", comp(usage=COUNTED | {"total_tokens": 11}), "fail", "2 prompt + 8 completion tokens is not 11"),
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
    ("tokenize", json_answer({"tokens": [1, 2], "count": 3}), "fail", "`count` is 3, but the answer has 2 tokens"),
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
        "not a JSON object in a string",
    ),
    (
        "tools",
        said(None, "tool_calls", tool_calls=[call(arguments='"Paris"')]),
        "fail",
        "not a JSON object in a string",
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


def test_skipped_tools_show_how_to_enable_them_in_vllm(good: Fake) -> None:
    spoil(good, "tools", SAID_NO)
    assert "to enable tools, set `tool_call_parser` in the stack file" in ask(good, "tools").message


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
        ("aaab", "pass", "the same seed gives the same text, and another seed gives another text"),
        ("abaa", "warn", "the same seed gave two different texts in three requests"),
        ("abcd", "warn", "vllm ignores seed: the same seed gave three different texts"),
        ("aaaa", "pass", "the text is the same at temperature 0 and with the same seed"),
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
