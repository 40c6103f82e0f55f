"""The documented structure, on recorded bodies and on bodies with one error."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from stackgen.check.transport.openai_schema import Chunk, Completion, ModelList, Usage, parse, usage_problem
from stackgen.check.transport.session import Reply, error_message

from .fake import completion, model_list, recorded


@pytest.mark.parametrize(
    ("engine", "name"),
    [("vllm-0.32.0", "chat_ok"), ("vllm-0.32.0", "invocations_nokey"), ("fastchat-0.2.36", "chat"),
     ("fastchat-0.2.36", "api-v1-chat")],
)  # fmt: skip
def test_recorded_completions_have_the_documented_structure(engine: str, name: str) -> None:
    parsed, problems = parse(Completion, json.loads(recorded(engine, name).body))
    assert problems == ()
    assert parsed is not None
    assert parsed.choices[0].message.content
    assert usage_problem(parsed.usage) == ""


@pytest.mark.parametrize(("engine", "name"), [("vllm-0.32.0", "get_v1_models_key"), ("fastchat-0.2.36", "models")])
def test_recorded_lists_have_the_documented_structure(engine: str, name: str) -> None:
    parsed, problems = parse(ModelList, json.loads(recorded(engine, name).body))
    assert problems == ()
    assert parsed is not None
    assert [card.id for card in parsed.data] == ["tiny"]


MISSING = object()


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("id",), MISSING, "id"), (("id",), "", "id"), (("id",), 7, "id"),
        (("object",), "text_completion", "object"), (("object",), MISSING, "object"),
        (("created",), MISSING, "created"), (("created",), "1795385672", "created"), (("created",), 1.5, "created"),
        (("created",), True, "created"), (("created",), 0, "created"),
        (("model",), None, "model"),
        (("choices",), [], "choices"), (("choices",), {}, "choices"), (("choices",), MISSING, "choices"),
        (("choices", 0, "index"), MISSING, "choices[0].index"), (("choices", 0, "index"), "0", "choices[0].index"),
        (("choices", 0, "index"), -1, "choices[0].index"),
        (("choices", 0, "message"), MISSING, "choices[0].message"),
        (("choices", 0, "message", "role"), "user", "choices[0].message.role"),
        (("choices", 0, "message", "role"), MISSING, "choices[0].message.role"),
        (("choices", 0, "message", "content"), MISSING, "choices[0].message.content"),
        (("choices", 0, "message", "content"), [], "choices[0].message.content"),
        (("choices", 0, "finish_reason"), None, "choices[0].finish_reason"),
        (("choices", 0, "finish_reason"), MISSING, "choices[0].finish_reason"),
        (("usage", "prompt_tokens"), MISSING, "usage.prompt_tokens"),
        (("usage", "completion_tokens"), "12", "usage.completion_tokens"),
        (("usage", "total_tokens"), -1, "usage.total_tokens"),
    ],
)  # fmt: skip
def test_each_documented_field_is_required_and_typed(path: tuple[Any, ...], value: Any, field: str) -> None:
    data: Any = copy.deepcopy(completion())
    place = data
    for part in path[:-1]:
        place = place[part]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    parsed, problems = parse(Completion, data)
    assert parsed is None
    assert [problem.split(":")[0] for problem in problems] == [field]


def test_unknown_fields_are_allowed_but_not_another_object() -> None:
    assert parse(Completion, completion(shiny=1))[1] == ()
    parsed, problems = parse(Completion, json.loads(recorded("vllm-0.32.0", "comp_ok").body))
    assert parsed is None
    assert {problem.split(":")[0] for problem in problems} == {"object", "choices[0].message"}


@pytest.mark.parametrize("body", [None, [], "text", 3, {}])
def test_other_json_is_not_a_completion(body: object) -> None:
    parsed, problems = parse(Completion, body)
    assert parsed is None
    assert problems


def test_problems_do_not_repeat_what_the_server_sent() -> None:
    _, problems = parse(Chunk, {"id": "x", "object": "SECRET-VALUE", "created": "SECRET-VALUE"})
    assert len(problems) == 4
    assert "SECRET-VALUE" not in "".join(problems)


def test_the_usage_must_add_up() -> None:
    assert usage_problem(Usage(prompt_tokens=9, completion_tokens=2, total_tokens=11)) == ""
    assert (
        usage_problem(Usage(prompt_tokens=9, completion_tokens=2, total_tokens=12))
        == "usage: 9 prompt tokens + 2 completion tokens is not the total 12"
    )


def test_a_model_list_needs_its_envelope() -> None:
    assert parse(ModelList, model_list("a"))[1] == ()
    assert parse(ModelList, model_list("a")["data"])[0] is None


@pytest.mark.parametrize(
    ("engine", "name", "message"),
    [
        ("vllm-0.32.0", "chat_wrongmodel", "The model `nope` does not exist. Valid aliases: tiny."),
        ("vllm-0.32.0", "chat_nokey", "Unauthorized"),
        ("vllm-0.32.0", "notfound", "Not Found"),
        ("fastchat-0.2.36", "wrong-model", "Only tiny allowed now, your model nope"),
        ("fastchat-0.2.36", "models-nokey", ""),
    ],
)
def test_messages_of_recorded_errors_are_found(engine: str, name: str, message: str) -> None:
    answer = recorded(engine, name)
    assert error_message(Reply(answer.status, answer.content_type, answer.body)) == message
