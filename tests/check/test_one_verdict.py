"""`check`, `ask`, `ask --stream` and the exporter agree on every answer; small token limits raise no false alarm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from stackgen.check import check
from stackgen.check.options import Options
from stackgen.cli.main import main
from stackgen.exporter import monitoring_options

from .conftest import DIALECTS, VLLM, result, run_check, target
from .fake import KEY, Answer, Fake, Request, chunk, completion, events, json_answer, model_list

CALL = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
COUNTED = {"prompt_tokens": 9, "completion_tokens": 16, "total_tokens": 25}
HIDDEN = COUNTED | {"completion_tokens_details": {"reasoning_tokens": 16}}


@dataclass(frozen=True)
class Said:
    """One answer, which a server sends as a whole or as a stream. `parts` are the fields of a message."""

    parts: dict[str, Any]
    finish: str
    verdict: str
    usage: dict[str, Any] | None = None

    def whole(self) -> Answer:
        message = {"role": "assistant", "content": None, **self.parts}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return json_answer(completion(choices=[choice], usage=self.usage or COUNTED))

    def stream(self) -> Answer:
        # every server starts a stream with a role and an empty text
        deltas = [{"role": "assistant", "content": ""}, self.parts]
        chunks = [chunk() | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        last = chunk() | {"choices": [], "usage": self.usage or COUNTED}
        return events(*chunks, chunk(finish=self.finish), last)


ANSWERS = {
    "text": Said({"content": "Paris."}, "stop", "pass"),
    "white space": Said({"content": "\n"}, "stop", "pass"),
    "text after reasoning": Said({"reasoning": "hm", "content": "Paris."}, "stop", "pass"),
    # vLLM with gpt-oss: content and reasoning are null, although tokens are counted (vLLM issue 41902)
    "null": Said({"content": None, "reasoning": None, "tool_calls": []}, "stop", "fail"),
    "null at the limit": Said({"content": None, "reasoning": None}, "length", "fail"),
    "empty": Said({"content": ""}, "stop", "fail"),
    "empty at the limit": Said({"content": ""}, "length", "warn"),
    "vLLM's reasoning, cut": Said({"reasoning": "hm", "tool_calls": []}, "length", "warn"),
    "llama.cpp's reasoning, cut": Said({"content": "", "reasoning_content": "hm"}, "length", "warn"),
    "OpenAI's hidden reasoning, cut": Said({"content": ""}, "length", "warn", HIDDEN),
    "reasoning without an answer": Said({"reasoning": "hm"}, "stop", "warn"),
    "a refusal": Said({"refusal": "no"}, "stop", "warn"),
    "a call that nobody requested": Said({"tool_calls": [CALL]}, "stop", "warn"),
}


def ask_verdict(fake: Fake, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    code = main(
        ["ask", "hi", "--base-url", fake.url, "--api-key", KEY, "--model", "tiny", "--max-tokens", "16", *flags]
    )
    printed = capsys.readouterr()
    assert code in (0, 1), printed.err
    return "fail" if code else "warn" if "note: " in printed.err else "pass"


@pytest.mark.parametrize("name", ANSWERS)
def test_all_doors_agree_on_an_answer(vllm: Fake, capsys: pytest.CaptureFixture[str], name: str) -> None:
    said = ANSWERS[name]
    vllm.chat(said.whole())
    vllm.stream(said.stream())
    found: dict[str, str] = {}
    for door, options in {"check": Options(timeout=5.0), "exporter": monitoring_options(5.0)}.items():
        report = check([target(vllm)], options, dialects=DIALECTS).endpoints[0]
        found |= {f"{door}: {one}": result(report, one).status for one in ("chat", "stream")}
    found |= {"ask": ask_verdict(vllm, capsys), "ask --stream": ask_verdict(vllm, capsys, "--stream")}
    assert found == dict.fromkeys(found, said.verdict)


@pytest.mark.parametrize(
    ("parts", "finish", "status", "says"),
    [
        ({"content": "The"}, "length", "pass", "the model answers 'The'"),
        ({"content": " "}, "length", "pass", "white space"),
        ({"content": None}, "length", "pass", "contains no text"),
        ({"content": ""}, "length", "pass", "contains no text"),
        ({"reasoning": "The"}, "length", "pass", "the first one is reasoning"),
        ({"content": None, "reasoning": None}, "stop", "warn", "possibly a control token"),
        ({"content": ""}, "stop", "warn", "possibly a control token"),
    ],
)
def test_a_quick_check_names_what_its_one_token_was(
    vllm: Fake, parts: dict[str, Any], finish: str, status: str, says: str
) -> None:
    one = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    vllm.chat(Said(parts, finish, status, one).whole())
    found = result(run_check(target(vllm), profile="quick"), "chat")
    assert (found.status, says in found.message) == (status, True), found.message


def error(message: str, status: int = 400) -> Answer:
    return json_answer({"error": {"message": message, "type": "invalid_request_error"}}, status)


# a condition on the request, and how real models refuse it
REFUSALS: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "OpenAI, few tokens": (lambda body: body["max_tokens"] < 300, "Could not finish the message because max_tokens or "
                           "model output limit was reached. Please try again with higher max_tokens."),
    "OpenAI, a minimum": (lambda body: body["max_tokens"] < 100, "Invalid 'max_output_tokens': integer below minimum "
                          "value. Expected a value >= 16, but got 1 instead."),
    "Anthropic, a budget": (lambda body: body["max_tokens"] <= 1024, "`max_tokens` must be greater than "
                            "`thinking.budget_tokens`."),
    "OpenAI, another field": (lambda body: "max_tokens" in body, "Unsupported parameter: 'max_tokens' is not supported "
                              "with this model. Use 'max_completion_tokens' instead."),
    "OpenAI, temperature": (lambda body: "temperature" in body, "Unsupported value: 'temperature' does not support 0 "
                            "with this model. Only the default (1) value is supported."),
}  # fmt: skip


def paris(body: dict[str, Any]) -> Answer:
    """A good answer within the requested limit."""
    counted = min(body.get("max_tokens") or body["max_completion_tokens"], 2)
    usage = {"prompt_tokens": 9, "completion_tokens": counted, "total_tokens": 9 + counted}
    said = Said({"content": "Paris."}, "stop", "pass", usage)
    return said.stream() if body.get("stream") else said.whole()


def refuse(fake: Fake, name: str) -> None:
    condition, message = REFUSALS[name]

    def route(request: Request) -> Answer:
        body = request.json()
        if condition(body):
            return error(message)
        return paris(body)

    fake.routes["POST /v1/chat/completions"] = fake.routes["POST /invocations"] = route


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("profile", ["quick", "default"])
def test_a_model_that_refuses_the_form_of_a_request_is_healthy(vllm: Fake, name: str, profile: Any) -> None:
    refuse(vllm, name)
    report = run_check(target(vllm, replace(VLLM, open_paths=())), profile=profile)
    assert report.ok
    assert {one.status for one in report.results} <= {"pass", "skip"}, report
    assert result(report, "chat").notes[-1].startswith("this model needs ")


@pytest.mark.parametrize("name", REFUSALS)
def test_the_stream_alone_learns_the_form_too(vllm: Fake, name: str) -> None:
    refuse(vllm, name)
    assert result(run_check(target(vllm), select=("stream",)), "stream").status == "pass"


def test_a_keyless_server_is_not_taken_for_a_protected_one(vllm: Fake) -> None:
    refuse(vllm, "OpenAI, few tokens")
    vllm.key = None
    assert "accepts requests without a key" in result(run_check(target(vllm)), "auth").message
    found = result(run_check(target(vllm, key=None), select=("auth",)), "auth")
    assert (found.status, found.message.startswith("the server has no key")) == ("warn", True)


def test_endless_refusals_end_in_a_warning(vllm: Fake) -> None:
    vllm.routes["POST /v1/chat/completions"] = error(REFUSALS["OpenAI, few tokens"][1])
    found = result(run_check(target(vllm)), "chat")
    assert (found.status, "--max-tokens" in found.hint) == ("warn", True)
    assert "with a limit of 4096 tokens" in found.message


@pytest.mark.parametrize("message", ["max_tokens is too large: 512", "the maximum context length is 16 tokens",
                                     "max_tokens must be at least 1, got -5"])  # fmt: skip
def test_other_errors_about_tokens_are_failures(vllm: Fake, message: str) -> None:
    vllm.routes["POST /v1/chat/completions"] = error(message)
    found = result(run_check(target(vllm)), "chat")
    assert (found.status, found.message) == ("fail", f"HTTP 400 (application/json) instead of a completion: {message}")


def test_ask_suggests_more_tokens_if_the_model_refuses_few(vllm: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(vllm, "OpenAI, few tokens")
    flags = ["ask", "hi", "--base-url", vllm.url, "--api-key", KEY, "--model", "tiny"]
    assert main(flags) == 2
    assert "raise --max-tokens" in capsys.readouterr().err
    assert main([*flags, "--max-tokens", "400"]) == 0


def thinks(fake: Fake, needed: int) -> None:
    """A model that needs `needed` tokens before its answer."""

    def route(request: Request) -> Answer:
        body = request.json()
        counted = min(body["max_tokens"], needed + 4)
        usage = {"prompt_tokens": 9, "completion_tokens": counted, "total_tokens": 9 + counted}
        cut = Said({"reasoning": "hm"}, "length", "warn", usage)
        said = cut if body["max_tokens"] < needed else Said({"reasoning": "hm", "content": "Paris."}, "stop", "", usage)
        return said.stream() if body.get("stream") else said.whole()

    fake.routes["POST /v1/chat/completions"] = route


def test_an_answer_that_is_cut_in_its_reasoning_is_repeated_with_more_tokens(vllm: Fake) -> None:
    thinks(vllm, 300)
    report = run_check(target(vllm), select=("chat", "stream"))
    assert [result(report, one).status for one in ("chat", "stream")] == ["pass", "pass"]
    assert (report.answer, result(report, "chat").notes[-1]) == (
        "Paris.", "this model needs answers of at least 512 tokens",
    )  # fmt: skip
    limits = [request.json()["max_tokens"] for request in vllm.seen if request.method == "POST"]
    assert limits[:3] == [32, 512, 512]


def test_a_stream_of_reasoning_keeps_its_figures_and_its_limits(vllm: Fake) -> None:
    vllm.stream(ANSWERS["vLLM's reasoning, cut"].stream())
    found = result(run_check(target(vllm), select=("stream",)), "stream")
    assert (found.status, "ttft_seconds" in found.figures) == ("warn", True)
    assert result(run_check(target(vllm), select=("stream",), max_ttft=1e-6), "stream").status == "fail"


def test_a_monitor_and_a_quick_check_never_repeat_a_long_answer(vllm: Fake) -> None:
    thinks(vllm, 300)
    check([target(vllm)], monitoring_options(5.0), dialects=DIALECTS)
    run_check(target(vllm), profile="quick")
    assert max(request.json().get("max_tokens", 0) for request in vllm.seen if request.method == "POST") <= 16


def test_max_tokens_of_check_reaches_the_server(vllm: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    thinks(vllm, 700)
    main(
        [
            "check",
            "--base-url",
            vllm.url,
            "--api-key",
            KEY,
            "--model",
            "tiny",
            "--select",
            "chat",
            "--max-tokens",
            "800",
        ]
    )
    assert "pass  chat" in capsys.readouterr().out.replace("✓ ", "")
    assert {request.json()["max_tokens"] for request in vllm.seen if request.method == "POST"} == {800}


def route_models(fake: Fake, states: dict[str, str], owner: str = "llamacpp") -> list[str]:
    """A router as llama.cpp's: a chat request loads its model. Returns the models that it had to load."""
    loaded: list[str] = []
    listed = model_list(*states, owner=owner)
    for card in listed["data"] if owner == "llamacpp" else ():
        card["status"] = {"value": states[card["id"]]}
    running = [{"model": name, "state": "ready"} for name, state in states.items() if state == "loaded"]
    fake.routes |= {"GET /v1/models": json_answer(listed), "GET /running": json_answer({"running": running})}

    def chat(request: Request) -> Answer:
        body = request.json()
        if body["model"] not in states:
            return error("model not found", 404)
        if states[body["model"]] != "loaded":
            loaded.append(body["model"])
        data = paris(body | {"max_tokens": body.get("max_tokens", 100)})
        named = data.body.replace(b'"tiny"', f'"{body["model"]}"'.encode())
        pieces = tuple(one.replace(b'"tiny"', f'"{body["model"]}"'.encode()) for one in data.pieces or ())
        return replace(data, body=named, pieces=pieces if data.pieces else None)

    fake.routes["POST /v1/chat/completions"] = fake.routes["POST /invocations"] = chat
    return loaded


LIGHT = {"quick": Options(profile="quick", timeout=5.0), "exporter": monitoring_options(5.0)}


@pytest.mark.parametrize("owner", ["llamacpp", "llama-swap"])
@pytest.mark.parametrize("state", ["unloaded", "loading", "sleeping", "downloaded"])
@pytest.mark.parametrize("door", LIGHT)
def test_a_repeated_check_loads_no_model(vllm: Fake, owner: str, state: str, door: str) -> None:
    loaded = route_models(vllm, {"a": state, "b": "loaded", "c": state}, owner)
    for models in ((), ("a",), ("a", "b")):
        report = check([target(vllm, None, models=models)], LIGHT[door], dialects=DIALECTS).endpoints[0]
        chats = {one.model: one.status for one in report.results if one.name == "chat"}
        assert chats.get("b", "pass") == "pass" and chats.get("a", "skip") == "skip" and chats
        assert not [one for one in report.results if one.status == "fail"]
    assert loaded == []


@pytest.mark.parametrize("door", LIGHT)
@pytest.mark.parametrize("key", [KEY, None])
def test_a_repeated_check_loads_no_model_if_none_is_loaded(vllm: Fake, door: str, key: str | None) -> None:
    vllm.key = key
    loaded = route_models(vllm, {"a": "unloaded", "b": "sleeping"})
    report = check([target(vllm, None, models=(), key=key)], LIGHT[door], dialects=DIALECTS).endpoints[0]
    found = result(report, "chat")
    assert (found.status, "loads no model" in found.message) == ("skip", True)
    assert result(report, "auth").status != "fail"
    assert loaded == []


def test_a_check_and_ask_prefer_a_loaded_model(vllm: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = route_models(vllm, {"a": "unloaded", "b": "loaded"})
    report = run_check(target(vllm, None, models=()))
    assert [one.model for one in report.results if one.name in ("chat", "stream")] == ["b", "b"]
    assert main(["ask", "hi", "--base-url", vllm.url, "--api-key", KEY]) == 0
    assert loaded == []
    # a model that the user names is checked, even if it must be loaded first
    assert result(run_check(target(vllm, None, models=("a",)), select=("chat",)), "chat").status == "pass"
    assert loaded == ["a"]
