"""Invalid requests: clear errors pass, unclear ones warn, crashes fail, and a server that dies is detected."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen import engines
from stackgen.check.checks import wrong_requests as probes
from stackgen.check.checks.table import CHECKS
from stackgen.check.checks.wrong_requests import LEAK
from stackgen.check.report import Result
from stackgen.plan import Deviation

from .conftest import FASTCHAT, VLLM, result, run_check, target
from .fake import Answer, Fake, Request, completion, json_answer, model_list, recorded

NAMES = (
    "unknown model", "malformed JSON", "messages as a string", "temperature as a string", "negative max_tokens",
    "max_tokens too large", "list-style content", "unsupported role", "prompt too long",
)  # fmt: skip
FINE = json_answer(completion())
CONTEXT = 512


def kind(request: Request) -> str:
    """The name of the probe that a request is; empty for a valid request."""
    try:
        body = request.json()
    except ValueError:
        return "malformed JSON"
    messages, most = body["messages"], body.get("max_tokens", 1)
    if body["model"] not in ("tiny", "other"):
        return "unknown model"
    if isinstance(messages, str):
        return "messages as a string"
    if isinstance(body.get("temperature"), str):
        return "temperature as a string"
    if most < 0 or most > CONTEXT:
        return "negative max_tokens" if most < 0 else "max_tokens too large"
    if isinstance(messages[0]["content"], list):
        return "list-style content"
    if messages[0]["role"] != "user":
        return "unsupported role"
    return "prompt too long" if len(messages[0]["content"].split()) > CONTEXT else ""


def refusal(text: str = "no", status: int = 400) -> Answer:
    return json_answer({"error": {"message": text, "type": "BadRequestError", "code": status}}, status)


class Server:
    """Rejects every invalid request except those in `answers`; `asked` are the received probes in order."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.answers: dict[str, Answer | Callable[[Request], Answer]] = {"list-style content": FINE}
        self.asked: list[str] = []
        self.dead: Answer | None = None
        fake.routes["POST /v1/chat/completions"] = self.route

    def route(self, request: Request) -> Answer:
        name = kind(request)
        if not name:
            return self.dead or FINE
        self.asked.append(name)
        answer = self.answers.get(name, refusal(f"{name} is refused"))
        return answer(request) if callable(answer) else answer


@pytest.fixture
def server(vllm: Fake) -> Server:
    cards = model_list("tiny")
    cards["data"][0]["max_model_len"] = CONTEXT
    vllm.routes["GET /v1/models"] = json_answer(cards)
    return Server(vllm)


def ask(server: Server, dialect: Any = VLLM, **options: Any) -> Result:
    return result(run_check(target(server.fake, dialect), select=("errors",), **options), "errors")


def test_clear_errors_pass(server: Server) -> None:
    found = ask(server)
    assert (found.status, found.message, found.notes) == (
        "pass",
        "the server still answers after 9 invalid requests",
        (),
    )
    assert tuple(server.asked) == NAMES
    assert found.figures["requests"] == 9
    assert kind(server.fake.seen[-1]) == ""


def test_a_server_may_reject_list_style_content(server: Server) -> None:
    del server.answers["list-style content"]
    assert ask(server).status == "pass"
    server.answers["list-style content"] = Answer(400)
    assert ask(server).message.startswith("list-style content: HTTP 400 with application/json instead of JSON")


def test_errors_runs_in_deep_only() -> None:
    assert next(one for one in CHECKS if one.name == "errors").depth == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("answer", "status", "expected"),
    [
        (Answer(500, b"Internal Server Error", "text/plain"), "fail", "HTTP 500 (text/plain)"),
        (Answer(502, b"<html>bad", "text/html"), "fail", "HTTP 502 (text/html)"),
        (Answer(400, b"<html>bad", "text/html"), "warn", "HTTP 400 with text/html instead of JSON"),
        (Answer(400, b"", ""), "warn", "HTTP 400 with nothing instead of JSON"),
        (json_answer({"detail": "no"}, 422), "warn", "HTTP 422 without a message in error.message"),
        (json_answer({"error": {"message": " "}}, 400), "warn", "HTTP 400 without a message in error.message"),
        (json_answer({"error": "no"}, 400), "warn", "HTTP 400 without a message in error.message"),
        (json_answer({"error": {"message": 5}}, 400), "warn", "HTTP 400 without a message in error.message"),
        (refusal("Rate limit", 429), "warn", "HTTP 429, so the result is unknown"),
        (Answer(302, headers=(("Location", "/login"),)), "warn", "HTTP 302"),
        (
            refusal('File "/usr/lib/python3.11/x.py", line 1'),
            "warn",
            "the error exposes server internals: /usr/lib/",
        ),
        (refusal("Traceback (most recent call last):\n"), "warn", "server internals: Traceback"),
        (refusal("at C:\\llm\\server.py"), "warn", "the error exposes server internals: C:\\"),
    ],
    ids=str,
)
def test_each_unclear_error_is_reported(server: Server, name: str, answer: Answer, status: str, expected: str) -> None:
    server.answers[name] = answer
    found = ask(server)
    assert (found.status, found.message.startswith(f"{name}: "), expected in found.message) == (status, True, True)
    assert found.evidence


@pytest.mark.parametrize("name", [name for name in NAMES if name != "list-style content"])
def test_an_answer_to_an_invalid_request_is_a_warning(server: Server, name: str) -> None:
    server.answers[name] = FINE
    found = ask(server)
    assert (found.status, found.message) == ("warn", f"{name}: accepted with 200")


def test_a_leak_in_a_crash_fails_after_the_crash_itself(server: Server) -> None:
    server.answers["unsupported role"] = Answer(500, b"Traceback (most recent call last): x", "text/plain")
    found = ask(server)
    assert found.status == "fail"
    assert "; unsupported role: the error exposes server internals: Traceback" in found.message


def test_the_worst_problem_comes_first_and_the_rest_is_counted(server: Server) -> None:
    for name in NAMES[:4]:
        server.answers[name] = Answer(400)
    server.answers["unsupported role"] = Answer(500)
    found = ask(server)
    assert (found.status, found.message[:26]) == ("fail", "unsupported role: HTTP 500")
    assert found.message.endswith("and 2 more")


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("/opt/venv/lib/python3.11/site-packages/fastchat/serve/api.py", True),
        ("No such file: /home/me/model", True),
        ("see https://example.com/home/page/x and /v1/chat/completions", False),
        ("and/or, 1/2, http://127.0.0.1:8000/docs/usr/", False),
        ("The model `a/b` does not exist", False),
    ],
)
def test_file_paths_are_distinguished_from_urls(text: str, leaks: bool) -> None:
    assert bool(LEAK.search(text)) is leaks


def test_a_documented_deviation_is_a_note(server: Server) -> None:
    server.answers["unsupported role"] = Answer(500, b"Internal Server Error", "text/plain")
    known = replace(VLLM, deviations=(Deviation("errors", r"unsupported role: HTTP 500 .*", "fails at roles"),))
    found = ask(server, known)
    assert (found.status, found.notes) == ("pass", ("vllm fails at roles",))
    # not for another probe
    server.answers["messages as a string"] = Answer(500, b"Internal Server Error", "text/plain")
    assert ask(server, known).status == "fail"


def test_the_message_must_be_where_the_dialect_puts_it(server: Server) -> None:
    for name in NAMES:
        server.answers[name] = json_answer({"object": "error", "message": "no", "code": 40001}, 400)
    assert ask(server, FASTCHAT).status == "pass"
    assert ask(server, VLLM).status == "warn"


# --- servers that die or hang


def test_the_probe_that_kills_the_server_is_named(server: Server) -> None:
    def die(_: Request) -> Answer:
        server.dead = refusal("EngineDeadError", 500)
        return Answer(500)

    server.answers["negative max_tokens"] = die
    found = ask(server)
    assert found.status == "fail"
    assert found.message == (
        "the server stopped answering after the invalid request 'negative max_tokens': "
        "HTTP 500 (application/json): EngineDeadError"
    )
    # no more probes after that
    assert server.asked[-1] == "negative max_tokens"


def test_a_server_that_hangs_after_a_clear_error_fails(server: Server) -> None:
    def wedge(_: Request) -> Answer:
        server.dead = replace(FINE, pause=2)
        return refusal("no")

    server.answers["prompt too long"] = wedge
    found = ask(server, timeout=0.5)
    assert found.status == "fail"
    assert found.message.startswith(
        "the server stopped answering after the invalid requests (last request: 'prompt too long'): "
    )
    assert "sent nothing for 0.5 s" in found.message


def test_a_timeout_of_one_probe_fails_even_if_the_server_lives(server: Server) -> None:
    server.answers["temperature as a string"] = replace(FINE, pause=2)
    found = ask(server, timeout=0.5)
    assert (found.status, found.message.startswith("temperature as a string: ")) == ("fail", True)
    assert tuple(server.asked) == NAMES


def test_a_rate_limit_does_not_count_as_dead(server: Server) -> None:
    def limit(_: Request) -> Answer:
        server.dead = refusal("slow down", 429)
        return refusal("no")

    server.answers["unsupported role"] = limit
    assert ask(server).status == "pass"


# --- the context length


def test_without_a_known_context_the_long_prompt_is_not_sent(server: Server) -> None:
    server.fake.routes["GET /v1/models"] = json_answer(model_list("tiny"))
    found = ask(server)
    assert (found.status, found.message) == ("pass", "the server still answers after 8 invalid requests")
    assert found.notes == ("the check sent no prompt longer than the context, because the context length is unknown",)


@pytest.mark.parametrize(
    "text",
    [
        f"This model's maximum context length is {CONTEXT} tokens. However",
        f"max_tokens=100000000 cannot be greater than max_model_len={CONTEXT}. Please",
    ],
)
def test_the_context_length_is_read_from_an_error(server: Server, text: str) -> None:
    server.fake.routes["GET /v1/models"] = json_answer(model_list("tiny"))
    server.answers["max_tokens too large"] = refusal(text)
    assert ask(server).message == "the server still answers after 9 invalid requests"


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({"max_model_len": 2048}, 2048),
        ({"context_length": 4096}, 4096),
        ({"meta": {"n_ctx": 1024, "n_ctx_train": 8192}}, 1024),
        ({"meta": {"n_ctx_train": 8192}}, 8192),
    ],
)
def test_the_context_length_is_read_from_the_model_list(server: Server, more: dict[str, Any], tokens: int) -> None:
    cards = model_list("other", "tiny")
    cards["data"][0]["max_model_len"] = 16
    cards["data"][1] |= more
    server.fake.routes["GET /v1/models"] = json_answer(cards)
    assert ask(server).status == "pass"
    longest = max(len(re.findall(r"\b[abcd]\b", request.body.decode())) for request in server.fake.seen)
    # a separate letter is one token: a quarter more than the context
    assert tokens * 1.2 < longest < tokens * 1.3 + 80


def test_a_huge_context_is_not_filled(server: Server) -> None:
    cards = model_list("tiny")
    cards["data"][0]["max_model_len"] = 1_000_000
    server.fake.routes["GET /v1/models"] = json_answer(cards)
    found = ask(server)
    assert "prompt too long" not in server.asked
    assert found.notes == (
        "the check sent no prompt longer than the context, because the context has 1000000 tokens, and this "
        "check only tests contexts of up to 200000 tokens",
    )


# --- the probes, and the responses of real servers


def test_no_probe_damages_the_server(server: Server) -> None:
    ask(server)
    sent = [request.body.decode() for request in server.fake.seen]
    # null is valid for most fields of OpenAI's API, so it tests no refusal
    assert not [body for body in sent if "null" in body]
    # an answer of a lenient server must be short
    for body in sent:
        if body.startswith("{") and kind(Request("POST", "/", None, body.encode())) not in ("", "malformed JSON"):
            data = json.loads(body)
            assert data["max_tokens"] <= 1 or data["stop"]


def test_the_probes_have_different_names() -> None:
    names = [one.name for one in probes.probes("tiny")]
    assert (*names, probes.long_prompt("tiny", 8).name) == NAMES


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ("vllm", "unsupported role: accepted with 200"),
        ("llamacpp", "unknown model: accepted with 200"),
        ("llamacpp", "max_tokens too large: accepted with 200"),
        ("fastchat", "list-style content: HTTP 500 (text/plain)"),
        ("fastchat", "unsupported role: HTTP 500 (text/plain)"),
        ("fastchat", "malformed JSON: the error exposes server internals: /opt/venv/"),
    ],
)
def test_the_engines_declare_the_measured_deviations(engine: str, problem: str) -> None:
    known = engines.get(engine).dialect.deviations
    assert [one.note for one in known if one.check == "errors" and re.fullmatch(one.pattern, problem)]


@pytest.mark.parametrize("engine", ["vllm", "llamacpp", "fastchat"])
def test_no_engine_may_crash_on_other_probes(engine: str) -> None:
    known = engines.get(engine).dialect.deviations
    crashes = [
        f"{name}: HTTP 500 (text/plain)" for name in NAMES if name not in ("list-style content", "unsupported role")
    ]
    assert not [one for one in known for text in crashes if one.check == "errors" and re.fullmatch(one.pattern, text)]


def test_recorded_errors_are_clear(server: Server) -> None:
    server.answers["unknown model"] = recorded("vllm-0.32.0", "chat_wrongmodel")
    assert ask(server).status == "pass"


def test_a_dropped_connection_fails(server: Server) -> None:
    def drop(_: Request) -> Answer:
        raise ConnectionAbortedError

    server.answers["malformed JSON"] = drop
    found = ask(server)
    assert (found.status, found.message.startswith("malformed JSON: ")) == ("fail", True)


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("can't open /models/llama/config.json", True),
        ("no file named model.safetensors in /models/hub/models--x/snapshots/1234", True),
        ("/data/weights/tiny.gguf: bad magic", True),
        ("bind mount /stackgen/vllm_health.py", True),
        ("at /stackgen/scripts/ line 3", True),
        ("POST /v1/models/tiny is not allowed", False),
        ("Invalid URL (GET /models/Llama-3.2-1B)", False),
        ("see http://127.0.0.1:8000/models/tiny/config.json", False),
        ("did you mean /data/2?", False),
        ("the model `org/models/tiny` does not exist", False),
    ],
)
def test_paths_on_the_server_are_distinguished_from_urls(text: str, leaks: bool) -> None:
    assert bool(LEAK.search(text)) is leaks


def test_a_model_name_that_is_a_path_is_no_leak(server: Server) -> None:
    name = "/models/hub/snapshots/tiny.gguf"
    server.fake.routes["GET /v1/models"] = json_answer(model_list(name))
    server.fake.routes["POST /v1/chat/completions"] = lambda request: (
        refusal(f"{name} takes no such request") if kind(request) or request.json()["model"] != name
        else json_answer(completion(model=name))
    )  # fmt: skip
    report = run_check(target(server.fake, VLLM, models=(name,)), select=("errors",))
    assert "exposes server internals" not in result(report, "errors").message


def test_fastchats_token_check_gives_the_context_length(fastchat: Fake) -> None:
    asked: list[str] = []

    def chat(request: Request) -> Answer:
        words = request.json()["messages"][0]["content"].split() if kind(request) != "malformed JSON" else []
        asked.append("long" if len(words) > 2048 else kind(request))
        return json_answer({"object": "error", "message": "no", "code": 40001}, 400) if asked[-1] else FINE

    fastchat.routes["POST /v1/chat/completions"] = chat
    run_check(target(fastchat, FASTCHAT), select=("errors",))
    # 2048 tokens, as recorded
    assert "long" in asked


@pytest.mark.parametrize("card", [{"aliases": True}, {"id": {}}, {"max_model_len": True}, {"max_model_len": 10**400}])
def test_an_invalid_entry_of_another_model_is_ignored(server: Server, card: dict[str, Any]) -> None:
    cards = model_list("other", "tiny")
    cards["data"][0] |= card
    cards["data"][1]["max_model_len"] = CONTEXT
    server.fake.routes["GET /v1/models"] = json_answer(cards)
    assert ask(server).status == "pass"
    assert "prompt too long" in server.asked
