"""Features besides chat: what works, what is missing, what is ignored and what is broken are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check.checks.features import FEATURES
from stackgen.check.checks.table import CHECKS
from stackgen.check.report import Result

from .conftest import FASTCHAT, VLLM, look, result, target
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
    """Every 0.25 of a body as a number that is JSON and no float."""
    return replace(answer, body=answer.body.replace(b"0.25", b"1e999"))


def vector(*numbers: float, index: int = 0) -> dict[str, Any]:
    return {"object": "embedding", "index": index, "embedding": list(numbers)}


def embedded(*vectors: dict[str, Any]) -> Answer:
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return json_answer({"object": "list", "data": list(vectors), "model": "tiny", "usage": usage})


def good_chat(request: Request) -> Answer:
    """A server that has every feature of chat."""
    body = request.json()
    if body.get("tools"):
        return said(None, "tool_calls", tool_calls=[call()])
    if body.get("response_format"):
        return said('{"capital": "Paris", "european": true}')
    if body.get("logprobs"):
        return said("Paris.", logprobs=probabilities(2, 2))
    return said(f"text of seed {body['seed']}" if "seed" in body else "Paris.")


def good_tokens(request: Request) -> Answer:
    """A tokenizer whose tokens are the bytes."""
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
    """Gives `answer` to the requests of one feature, and leaves all others."""
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
    return result(look(target(fake, dialect), select=(name,)), name)


@pytest.mark.parametrize("dialect", [TOKENIZER, CLAIMS], ids=["unknown", "claimed"])
@pytest.mark.parametrize("name", NAMES)
def test_what_works_passes(good: Fake, name: str, dialect: Any) -> None:
    found = ask(good, name, dialect)
    assert (found.status, found.notes) == ("pass", ()), found.message


def test_the_table_has_them_in_order_and_deep_only(good: Fake) -> None:
    assert tuple(one.name for one in FEATURES) == NAMES
    assert [one.name for one in CHECKS if one in FEATURES] == list(NAMES)
    for profile, there in (("quick", False), ("default", False), ("deep", True)):
        report = look(target(good, TOKENIZER), profile=profile)
        assert {name in [one.name for one in report.results] for name in NAMES} == {there}


def test_the_first_model_stands_for_all(good: Fake) -> None:
    good.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))
    # each answers under the name it was asked for, or `chat` fails and nothing is run
    good.routes["POST /v1/chat/completions"] = lambda request: json_answer(completion(model=request.json()["model"]))
    found = result(look(target(good, TOKENIZER, models=("tiny", "other")), select=("completions",)), "completions")
    assert (found.status, found.model) == ("pass", "tiny")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "answer", [SAID_NO, Answer(404), Answer(405), Answer(501), Answer(403)], ids=lambda a: a.status
)
def test_what_is_not_there_is_skipped_unless_it_is_claimed(good: Fake, name: str, answer: Answer) -> None:
    spoil(good, name, answer)
    found = ask(good, name)
    assert (found.status, found.message[:12]) == ("skip", "not offered:")
    if answer is SAID_NO:
        assert "requires --tool-call-parser" in found.message
    claimed = ask(good, name, CLAIMS)
    # the tokenizer's path is outside /v1, and a gateway that hides it does right
    hidden = name == "tokenize" and answer.status in (403, 404, 405)
    assert claimed.status == ("skip" if hidden else "fail")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("answer", "status"),
    [(BROKEN, "fail"), (Answer(503), "fail"), (ODD, "warn"), (Answer(400), "warn"), (Answer(429), "warn")],
)
def test_a_crash_fails_and_an_unclear_refusal_warns(good: Fake, name: str, answer: Answer, status: str) -> None:
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
def test_what_a_dialect_ignores_and_does_passes_with_a_note(good: Fake, name: str) -> None:
    found = ask(good, name, replace(TOKENIZER, ignores=FASTCHAT.ignores))
    assert (found.status, found.notes) == ("pass", (f"vllm was known to ignore {name}, and does it here",))


def test_what_a_dialect_lacks_is_not_asked(good: Fake) -> None:
    found = ask(good, "embeddings", replace(TOKENIZER, lacks=("embeddings",)))
    assert (found.status, found.message) == ("skip", "vllm has none")
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
    ("completions", comp(usage=COUNTED | {"total_tokens": 11}), "fail", "2 + 8 is not 11"),
    ("completions", comp(choices=[{"index": 0, "text": "", "finish_reason": "length"}]), "fail", "has no text"),
    ("completions", comp(choices=[{"index": 0, "text": "", "finish_reason": "stop"}]), "pass", "continues"),
    ("completions", comp(usage={"prompt_tokens": 2, "completion_tokens": 9, "total_tokens": 11}), "warn", "9 tokens"),
    ("embeddings", embedded(vector(0.5)), "fail", "1 vectors with the indices [0]"),
    ("embeddings", embedded(vector(0.5), vector(1)), "fail", "the indices [0, 0]"),
    ("embeddings", embedded(vector(0.5), vector(1, 2, index=1)), "fail", "different lengths: 1, 2"),
    ("embeddings", embedded(vector(0.5, 1), vector(0, 0, index=1)), "fail", "zeros"),
    ("embeddings", embedded(vector(0.5, 1), vector(0.5, 1, index=1)), "fail", "the same vector"),
    ("embeddings", embedded(vector(), vector(index=1)), "fail", "data[0].embedding: list should have"),
    ("embeddings", embedded(vector(float("nan")), vector(1, index=1)), "fail", "no valid JSON"),
    ("embeddings", infinite(embedded(vector(0.25), vector(1, index=1))), "fail", "finite number"),
    ("tokenize", json_answer({"tokens": []}), "fail", "tokens: list should have at least 1 item"),
    ("tokenize", json_answer({"tokens": ["Is"]}), "fail", "tokens[0]: input should be a valid integer"),
    ("tokenize", json_answer({"tokens": [1, 2], "count": 3}), "fail", "count is 3 for 2 tokens"),
    ("tokenize", json_answer({"tokens": [72, 105]}), "warn", "back they are another text"),
    ("tools", said(None, "tool_calls", tool_calls=[call("rm")]), "fail", "no tool of the request"),
    ("tools", said(None, "tool_calls", tool_calls=[call(arguments={"city": "Paris"})]), "fail", "valid string"),
    ("tools", said(None, "tool_calls", tool_calls=[call(arguments='{"city": ')]), "fail", "not the JSON text"),
    ("tools", said(None, "tool_calls", tool_calls=[call(arguments='"Paris"')]), "fail", "not the JSON text"),
    ("tools", said(None, "length", tool_calls=[call(arguments='{"city": ')]), "warn", "was cut after 128"),
    ("tools", said(None, "tool_calls", tool_calls=[call(type="tool")]), "fail", "tool_calls[0].type"),
    ("tools", said(None, "length", reasoning="Let me think"), "warn", "no call came within 128 tokens"),
    ("json-schema", said('{"capital": "Paris"}'), "warn", "breaks the schema: european: field required"),
    ("json-schema", said('{"capital": "Oslo", "european": true}'), "warn", "breaks the schema: capital"),
    ("json-schema", said('{"capital": "Rome", "european": true, "x": 1}'), "warn", "breaks the schema: x"),
    ("json-schema", said('{"capital": ', "length"), "warn", "cut after 128 tokens"),
    ("json-schema", said(None, "length"), "warn", "cut after 128 tokens"),
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
    ("logprobs", said("Paris.", logprobs=probabilities(2, 0)), "warn", "0 or 2 top_logprobs a token, and 2"),
]


@pytest.mark.parametrize(("name", "answer", "status", "told"), WRONG)
def test_wrong_answers_are_told(good: Fake, name: str, answer: Answer, status: str, told: str) -> None:
    spoil(good, name, answer)
    found = ask(good, name)
    assert (found.status, told in found.message) == (status, True), found.message


@pytest.mark.parametrize("name", ["json-schema", "logprobs"])
def test_a_claimed_feature_that_is_done_wrong_fails(good: Fake, name: str) -> None:
    bad = {"json-schema": said('{"capital": "Oslo"}'), "logprobs": said("x", logprobs=probabilities())}
    spoil(good, name, bad[name])
    assert ask(good, name, CLAIMS).status == "fail"


def test_a_tool_that_only_a_named_choice_calls_passes(good: Fake) -> None:
    spoil(good, "tools", lambda request: SAID_NO if request.json()["tool_choice"] == "required" else good_chat(request))
    assert ask(good, "tools").status == "pass"


def test_a_skipped_tool_says_how_vllm_gets_it(good: Fake) -> None:
    spoil(good, "tools", SAID_NO)
    assert "`tool_call_parser` in the stack file turns it on" in ask(good, "tools").message


def test_no_known_tokenizer_is_skipped_and_no_way_back_is_a_note(good: Fake) -> None:
    assert ask(good, "tokenize", VLLM).status == "skip"
    del good.routes["POST /detokenize"]
    found = ask(good, "tokenize")
    assert (found.status, found.notes) == ("pass", ("there is no way back from tokens to text",))
    good.routes["POST /detokenize"] = BROKEN
    assert ask(good, "tokenize").status == "fail"


def in_turn(*texts: str) -> Callable[[Request], Answer]:
    left = list(texts)
    return lambda _: said(left.pop(0))


@pytest.mark.parametrize(
    ("texts", "status", "told"),
    [
        ("aaab", "pass", "one seed gives one text, another one another"),
        ("abaa", "warn", "one seed gave two texts in three requests"),
        ("abcd", "warn", "vllm ignores seed: one seed gave three texts"),
        ("aaaa", "pass", "the same text at temperature 0 and with one seed"),
    ],
)
def test_seeds(good: Fake, texts: str, status: str, told: str) -> None:
    spoil(good, "seed", in_turn(*texts))
    found = ask(good, "seed")
    assert (found.status, told in found.message) == (status, True), found.message
    # where no seed makes a difference, little is proved
    assert bool(found.notes) == (texts == "aaaa")


@pytest.mark.parametrize(("texts", "status"), [("abcd", "fail"), ("abaa", "warn"), ("aaab", "pass")])
def test_claimed_seeds(good: Fake, texts: str, status: str) -> None:
    spoil(good, "seed", in_turn(*texts))
    assert ask(good, "seed", CLAIMS).status == status


@pytest.mark.parametrize(("texts", "status"), [("abaa", "warn"), ("aaaa", "warn"), ("aaab", "pass")])
def test_where_seeds_are_known_to_be_ignored_chance_proves_nothing(good: Fake, texts: str, status: str) -> None:
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
    assert (found.status, found.message) == ("warn", "at temperature 0 the same request gave two texts")
