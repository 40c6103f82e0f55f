"""Requests at once: all answered, none mixed up, by whatever marks a server gives back."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check.checks.load import LENGTHS, STEP
from stackgen.check.checks.table import CHECKS
from stackgen.check.report import Result
from stackgen.plan import Dialect

from . import fake as fakes
from .conftest import FASTCHAT, VLLM, look, result, target
from .fake import Answer, Fake, Request, completion, json_answer, model_list

BOTH = ("the request's id in the response's", "the number of prompt tokens")


class Server:
    """Answers as an engine that has every mark; `marks` are those it gives back, `faults` replace answers by number.

    The calibration asks 0 and the longest: the numbers between are sent under load only.
    """

    def __init__(self, fake: Fake) -> None:
        self.marks = {"id", "echo", "repeat", "length"}
        self.faults: dict[int, Callable[[dict[str, Any]], Answer]] = {}
        self.nonces: dict[int, str] = {}
        self.paths: list[str] = []
        self.first = ""
        self.most = self.now = 0
        self.noise, self.count = 1, True
        self.lock = threading.Lock()
        self.seen: dict[int, threading.Event] = {number: threading.Event() for number in range(64)}
        fake.routes["POST /v1/chat/completions"] = self.route
        fake.routes["POST /v1/completions"] = self.route

    def route(self, request: Request) -> Answer:
        body = request.json()
        echo = request.path == "/v1/completions"
        prompt = body["prompt"] if echo else body["messages"][0]["content"]
        found = re.search(r"nothing else: (\w+)$", prompt)
        # what `chat` asks before it
        if not found:
            return json_answer(completion())
        number = prompt.count(" one") // STEP
        with self.lock:
            self.first = self.first or found[1]
            self.paths.append(request.path)
            self.nonces[number] = found[1]
            self.now += 1
            self.most = max(self.most, self.now)
        self.seen[number].set()
        try:
            if number in self.faults:
                return self.faults[number]({"nonce": found[1], "prompt": prompt, "echo": echo})
            return self.answer(found[1], prompt, echo)
        finally:
            with self.lock:
                self.now -= 1

    def answer(self, nonce: str, prompt: str, echo: bool) -> Answer:
        # words, and more tokens for some nonces than for others
        count = len(prompt.split()) + sum(nonce.encode()) % self.noise if "length" in self.marks else 7
        body: dict[str, Any] = completion(
            id=f"chatcmpl-{nonce}" if "id" in self.marks else "chatcmpl-1",
            usage={"prompt_tokens": count, "completion_tokens": 3, "total_tokens": count + 3},
        )
        if not self.count:
            del body["usage"]
        if echo:
            text = prompt if "echo" in self.marks else f"It is {nonce}." if "says" in self.marks else "x"
            choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "stop"}
            return json_answer(body | {"object": "text_completion", "choices": [choice]})
        text = f'"{nonce}"' if "repeat" in self.marks else "I can't."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return json_answer(body | {"choices": [choice]})

    def as_other(self, other: int) -> Callable[[dict[str, Any]], Answer]:
        """The answer that belongs to request `other`, which has to come at the same time."""

        def fault(asked: dict[str, Any]) -> Answer:
            assert self.seen[other].wait(5)
            nonce = self.nonces[other]
            prompt = f"Do not read this:{' one' * (STEP * other)}. Repeat this word and nothing else: {nonce}"
            return self.answer(nonce, prompt, asked["echo"])

        return fault


@pytest.fixture
def server(vllm: Fake) -> Server:
    return Server(vllm)


@pytest.fixture
def ask(vllm: Fake) -> Callable[..., Result]:
    def run(dialect: Dialect = VLLM, **options: Any) -> Result:
        return result(look(target(vllm, dialect), select=("load",), **options), "load")

    return run


Ask = Callable[..., Result]


def test_all_answered_passes_with_figures(server: Server, ask: Ask) -> None:
    # request 2 is answered when 3 and 4 have come: they do come at once
    def together(asked: dict[str, Any]) -> Answer:
        assert server.seen[2].wait(5)
        assert server.seen[3].wait(5)
        return server.answer(**asked)

    server.faults[1] = together
    found = ask()
    assert (found.status, found.message[:10]) == ("pass", "4 at once ")
    assert set(found.figures) == {
        "requests", "answered", "seconds", "p50_seconds", "p99_seconds", "tokens_per_second",
    }  # fmt: skip
    assert (found.figures["requests"], found.figures["answered"]) == (4, 4)
    assert 0 < found.figures["p50_seconds"] <= found.figures["p99_seconds"] <= found.figures["seconds"]
    assert found.figures["tokens_per_second"] == pytest.approx(12 / found.figures["seconds"], rel=0.01)
    assert len(found.samples["latency_seconds"]) == 4


def test_as_many_as_asked_for_run_at_once(server: Server, ask: Ask) -> None:
    waiting = threading.Barrier(LENGTHS - 2, timeout=5)

    def gather(asked: dict[str, Any]) -> Answer:
        waiting.wait()
        return server.answer(**asked)

    server.faults = dict.fromkeys(range(1, LENGTHS - 1), gather)
    assert ask(load=LENGTHS - 1).figures["answered"] == LENGTHS - 1
    assert server.most >= LENGTHS - 2


def test_it_runs_in_deep_only_and_last_but_topology() -> None:
    names = [one.name for one in CHECKS]
    one = CHECKS[names.index("load")]
    assert (one.depth, one.per_model, one.exhaustive, names[-3:]) == (2, True, False, ["errors", "load", "topology"])


@pytest.mark.parametrize(
    ("marks", "told", "path"),
    [
        ({"echo", "length"}, "told apart by: the prompt echoed, the number of prompt tokens", "/v1/completions"),
        ({"repeat"}, "told apart by: a word repeated by the model", "/v1/chat/completions"),
        ({"length"}, "told apart by: the number of prompt tokens", "/v1/chat/completions"),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else "",
)
def test_the_marks_that_come_back_are_used(server: Server, ask: Ask, marks: set[str], told: str, path: str) -> None:
    server.marks = marks
    found = ask()
    assert (found.status, found.evidence) == ("pass", told)
    assert server.paths[-4:] == [path] * 4


@pytest.mark.parametrize("marks", ["echo", "repeat", "length", "echo repeat length"])
def test_a_mix_up_fails_by_each_mark(server: Server, ask: Ask, marks: str) -> None:
    server.marks = set(marks.split())
    server.faults[1] = server.as_other(3)
    found = ask()
    assert found.status == "fail"
    if marks == "length":
        assert found.message.startswith("answers are mixed up: request 2 got an answer to a prompt of ")
    else:
        assert found.message == "answers are mixed up: request 2 got the answer of request 4"


def test_answers_of_nobody_fail_where_marks_are_demanded(server: Server, ask: Ask) -> None:
    server.marks = {"echo"}
    server.faults[1] = lambda asked: server.answer("stranger", "another prompt", asked["echo"])
    assert ask().message == "answers are mixed up: request 2 got an answer without its mark"


def test_a_model_that_repeats_the_word_by_itself_echoes_nothing(server: Server, ask: Ask) -> None:
    """Then the next answer need not hold it, and nothing is mixed up."""
    server.marks = {"says", "length"}
    server.faults[1] = lambda asked: server.answer("stranger", asked["prompt"], asked["echo"])
    assert ask().status == "pass"


def test_a_word_that_is_not_repeated_is_a_note(server: Server, ask: Ask) -> None:
    server.marks = {"repeat"}
    server.faults[1] = lambda asked: server.answer("stranger", asked["prompt"], asked["echo"])
    found = ask()
    assert (found.status, found.notes) == ("pass", ("1 of 4 answers do not repeat their word",))


def test_without_any_mark_it_warns(server: Server, ask: Ask) -> None:
    server.marks = set()
    found = ask()
    assert (found.status, found.message.endswith("but mix-ups can't be told")) == ("warn", True)
    assert found.figures["answered"] == 4


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_warns_as_long_as_some_are_answered(server: Server, ask: Ask, status: int) -> None:
    full = json_answer({"error": {"message": "queue full"}}, status)
    server.faults = {1: lambda _: full, 3: lambda _: full}
    found = ask()
    assert (found.status, "refuses beyond 2 of 4 requests at once" in found.message) == ("warn", True)
    assert (found.figures["answered"], len(found.samples["latency_seconds"])) == (2, 2)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(500, b"boom", "text/plain"), "HTTP 500 (text/plain) boom"),
        (Answer(200, b"{}"), "a body that is not as documented: id: field required"),
        (Answer(404), "HTTP 404"),
    ],
    ids=str,
)
def test_other_failures_under_load_fail(server: Server, ask: Ask, answer: Answer, told: str) -> None:
    server.faults[1] = lambda _: answer
    found = ask()
    assert found.status == "fail"
    assert found.message.startswith(f"1 of 4 requests at once not answered: {told}")
    assert "request 2: " in found.evidence


@pytest.mark.parametrize(("dialect", "hint"), [(VLLM, "allow more by --timeout"), (FASTCHAT, "restart the worker")])
def test_a_silence_fails_and_names_the_wedge_of_fastchat(server: Server, ask: Ask, dialect: Dialect, hint: str) -> None:
    server.faults[3] = lambda asked: replace(server.answer(**asked), pause=1.5)
    found = ask(dialect, timeout=0.5)
    assert (found.status, hint in found.hint) == ("fail", True)
    assert found.message.startswith("1 of 4 requests at once not answered: ")


def test_a_single_request_that_fails_is_told_as_such(server: Server, ask: Ask) -> None:
    server.faults[0] = lambda _: Answer(500)
    found = ask()
    assert (found.status, found.message[:37]) == ("fail", "a single request gets no answer: HTTP")
    server.faults[0] = lambda _: Answer(429)
    assert ask().status == "warn"


def test_what_nonces_differ_by_is_no_mix_up(server: Server, ask: Ask) -> None:
    server.marks = {"length"}
    server.noise = 6
    for _ in range(5):
        found = ask(load=30)
        assert (found.status, found.evidence) == ("pass", "told apart by: the number of prompt tokens")


def test_usage_is_optional(server: Server, ask: Ask) -> None:
    server.marks = {"id"}
    server.count = False
    found = ask()
    assert (found.status, found.evidence) == ("pass", "told apart by: the request's id in the response's")
    assert "tokens_per_second" not in found.figures


def test_more_requests_than_lengths_still_pass(server: Server, ask: Ask) -> None:
    found = ask(load=20)
    assert (found.status, found.figures["answered"]) == ("pass", 20)


def test_the_first_model_is_asked(server: Server, vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))
    found = result(look(target(vllm, models=("tiny",)), select=("load",)), "load")
    assert (found.model, found.status) == ("tiny", "pass")


# --- the mark that stands in a header


def test_the_id_of_the_request_is_a_mark(server: Server, ask: Ask) -> None:
    found = ask()
    assert found.evidence == "told apart by: " + ", ".join((BOTH[0], "a word repeated by the model", BOTH[1]))
    # nothing but chats are sent then
    assert set(server.paths) == {"/v1/chat/completions"}


def test_a_wrong_id_fails(server: Server, ask: Ask) -> None:
    server.marks = {"id"}
    server.faults[1] = server.as_other(3)
    assert ask().message == "answers are mixed up: request 2 got the answer of request 4"


def test_the_nonce_goes_out_as_x_request_id(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    before = fakes._Handler.do_GET

    def note(handler: Any) -> None:
        sent.append(handler.headers.get("X-Request-Id") or "")
        before(handler)

    monkeypatch.setattr(fakes._Handler, "do_POST", note)
    ask()
    assert set(server.nonces.values()) <= set(sent)


def test_a_cache_that_gives_the_word_of_an_earlier_request_is_a_mix_up(server: Server, ask: Ask) -> None:
    """The calibration's words are known too: before the load it asked 0 and the longest."""
    server.marks = {"repeat"}
    words: dict[int, str] = {}

    def cached(asked: dict[str, Any]) -> Answer:
        words.setdefault(0, server.first)
        return server.answer(words[0], asked["prompt"], asked["echo"])

    server.faults = {1: cached, 2: cached}
    found = ask()
    assert (found.status, found.message) == (
        "fail", "answers are mixed up: request 2 got the answer of an earlier request",
    )  # fmt: skip
