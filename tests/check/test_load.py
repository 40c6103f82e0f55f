"""Concurrent requests: all answered, none mixed up, by whatever markers a server returns."""

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
from .conftest import FASTCHAT, VLLM, result, run_check, target
from .fake import Answer, Fake, Request, completion, json_answer, model_list

BOTH = ("the request ID in the response ID", "the number of prompt tokens")


class Server:
    """A server with every marker. `marks` are those that it returns; `faults` replace answers by request number.

    The calibration sends number 0 and the longest: the numbers in between are sent under load only.
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
        # the request of `chat`, which runs before
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
        # one token per word, and more tokens for some nonces than for others
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
        """The answer to request `other`, which must be in flight at the same time."""

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
        return result(run_check(target(vllm, dialect), select=("load",), **options), "load")

    return run


Ask = Callable[..., Result]


def test_answered_requests_pass_with_figures(server: Server, ask: Ask) -> None:
    # request 2 is answered only after 3 and 4 have arrived, so they must be concurrent
    def together(asked: dict[str, Any]) -> Answer:
        assert server.seen[2].wait(5)
        assert server.seen[3].wait(5)
        return server.answer(**asked)

    server.faults[1] = together
    found = ask()
    assert (found.status, found.message[:39]) == ("pass", "4 concurrent requests were answered in ")
    assert set(found.figures) == {
        "requests", "answered", "seconds", "p50_seconds", "p99_seconds", "tokens_per_second",
    }  # fmt: skip
    assert (found.figures["requests"], found.figures["answered"]) == (4, 4)
    assert 0 < found.figures["p50_seconds"] <= found.figures["p99_seconds"] <= found.figures["seconds"]
    assert found.figures["tokens_per_second"] == pytest.approx(12 / found.figures["seconds"], rel=0.01)
    assert len(found.samples["latency_seconds"]) == 4


def test_the_requested_number_of_requests_is_in_flight(server: Server, ask: Ask) -> None:
    waiting = threading.Barrier(LENGTHS - 2, timeout=5)

    def wait_for_all(asked: dict[str, Any]) -> Answer:
        waiting.wait()
        return server.answer(**asked)

    server.faults = dict.fromkeys(range(1, LENGTHS - 1), wait_for_all)
    assert ask(load=LENGTHS - 1).figures["answered"] == LENGTHS - 1
    assert server.most >= LENGTHS - 2


def test_load_runs_in_deep_only_and_before_topology() -> None:
    names = [one.name for one in CHECKS]
    one = CHECKS[names.index("load")]
    assert (one.depth, one.per_model, one.exhaustive, names[-3:]) == (2, True, False, ["errors", "load", "topology"])


@pytest.mark.parametrize(
    ("marks", "expected", "path"),
    [
        (
            {"echo", "length"},
            "answers are identified by: the echoed prompt, the number of prompt tokens",
            "/v1/completions",
        ),
        ({"repeat"}, "answers are identified by: a word repeated by the model", "/v1/chat/completions"),
        ({"length"}, "answers are identified by: the number of prompt tokens", "/v1/chat/completions"),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else "",
)
def test_the_markers_that_come_back_are_used(
    server: Server, ask: Ask, marks: set[str], expected: str, path: str
) -> None:
    server.marks = marks
    found = ask()
    assert (found.status, found.evidence) == ("pass", expected)
    assert server.paths[-4:] == [path] * 4


@pytest.mark.parametrize("marks", ["echo", "repeat", "length", "echo repeat length"])
def test_each_marker_detects_a_mix_up(server: Server, ask: Ask, marks: str) -> None:
    server.marks = set(marks.split())
    server.faults[1] = server.as_other(3)
    found = ask()
    assert found.status == "fail"
    if marks == "length":
        assert found.message.startswith("answers are mixed up: request 2 got the answer to another prompt, which has ")
    else:
        assert found.message == "answers are mixed up: request 2 got the answer to request 4"


def test_an_answer_without_a_marker_fails(server: Server, ask: Ask) -> None:
    server.marks = {"echo"}
    server.faults[1] = lambda asked: server.answer("stranger", "another prompt", asked["echo"])
    assert ask().message == "answers are mixed up: request 2 got an answer without the marker of this request"


def test_a_repeated_word_is_not_mistaken_for_an_echo(server: Server, ask: Ask) -> None:
    """The next answer may lack the word, and that is no mix-up."""
    server.marks = {"says", "length"}
    server.faults[1] = lambda asked: server.answer("stranger", asked["prompt"], asked["echo"])
    assert ask().status == "pass"


def test_a_word_that_is_not_repeated_gets_a_note(server: Server, ask: Ask) -> None:
    server.marks = {"repeat"}
    server.faults[1] = lambda asked: server.answer("stranger", asked["prompt"], asked["echo"])
    found = ask()
    assert (found.status, found.notes) == ("pass", ("1 of 4 answers do not repeat the word from their prompt",))


def test_without_markers_it_warns(server: Server, ask: Ask) -> None:
    server.marks = set()
    found = ask()
    assert (found.status, found.message.endswith("but mixed-up answers can't be detected")) == ("warn", True)
    assert found.figures["answered"] == 4


@pytest.mark.parametrize("status", [429, 503])
def test_a_full_server_warns_if_some_requests_are_answered(server: Server, ask: Ask, status: int) -> None:
    full = json_answer({"error": {"message": "queue full"}}, status)
    server.faults = {1: lambda _: full, 3: lambda _: full}
    found = ask()
    assert (found.status, "answers 2 of 4 concurrent requests and refuses the others" in found.message) == (
        "warn",
        True,
    )
    assert (found.figures["answered"], len(found.samples["latency_seconds"])) == (2, 2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(500, b"boom", "text/plain"), "HTTP 500 (text/plain) boom"),
        (Answer(200, b"{}"), "the response body is not as documented: id: field required"),
        (Answer(404), "HTTP 404"),
    ],
    ids=str,
)
def test_other_failures_under_load_fail(server: Server, ask: Ask, answer: Answer, expected: str) -> None:
    server.faults[1] = lambda _: answer
    found = ask()
    assert found.status == "fail"
    assert found.message.startswith(f"1 of 4 concurrent requests were not answered: {expected}")
    assert "request 2: " in found.evidence


@pytest.mark.parametrize(("dialect", "hint"), [(VLLM, "raise --timeout"), (FASTCHAT, "restart the FastChat worker")])
def test_a_timeout_fails_and_names_fastchats_hang(server: Server, ask: Ask, dialect: Dialect, hint: str) -> None:
    server.faults[3] = lambda asked: replace(server.answer(**asked), pause=1.5)
    found = ask(dialect, timeout=0.5)
    assert (found.status, hint in found.hint) == ("fail", True)
    assert found.message.startswith("1 of 4 concurrent requests were not answered: ")


def test_a_failed_single_request_is_reported_as_such(server: Server, ask: Ask) -> None:
    server.faults[0] = lambda _: Answer(500)
    found = ask()
    assert (found.status, found.message[:37]) == ("fail", "a single request gets no answer: HTTP")
    server.faults[0] = lambda _: Answer(429)
    assert ask().status == "warn"


def test_different_token_counts_of_nonces_are_no_mix_up(server: Server, ask: Ask) -> None:
    server.marks = {"length"}
    server.noise = 6
    for _ in range(5):
        found = ask(load=30)
        assert (found.status, found.evidence) == ("pass", "answers are identified by: the number of prompt tokens")


def test_usage_is_optional(server: Server, ask: Ask) -> None:
    server.marks = {"id"}
    server.count = False
    found = ask()
    assert (found.status, found.evidence) == ("pass", "answers are identified by: the request ID in the response ID")
    assert "tokens_per_second" not in found.figures


def test_more_requests_than_lengths_still_pass(server: Server, ask: Ask) -> None:
    found = ask(load=20)
    assert (found.status, found.figures["answered"]) == ("pass", 20)


def test_load_uses_the_first_model(server: Server, vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = json_answer(model_list("tiny", "other"))
    found = result(run_check(target(vllm, models=("tiny",)), select=("load",)), "load")
    assert (found.model, found.status) == ("tiny", "pass")


# --- the marker in a header


def test_the_request_id_is_a_marker(server: Server, ask: Ask) -> None:
    found = ask()
    assert found.evidence == "answers are identified by: " + ", ".join(
        (BOTH[0], "a word repeated by the model", BOTH[1])
    )
    # then only chat requests are sent
    assert set(server.paths) == {"/v1/chat/completions"}


def test_a_wrong_id_fails(server: Server, ask: Ask) -> None:
    server.marks = {"id"}
    server.faults[1] = server.as_other(3)
    assert ask().message == "answers are mixed up: request 2 got the answer to request 4"


def test_the_nonce_goes_out_as_x_request_id(server: Server, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    before = fakes._Handler.do_GET

    def note(handler: Any) -> None:
        sent.append(handler.headers.get("X-Request-Id") or "")
        before(handler)

    monkeypatch.setattr(fakes._Handler, "do_POST", note)
    ask()
    assert set(server.nonces.values()) <= set(sent)


def test_a_cached_answer_to_an_earlier_request_is_a_mix_up(server: Server, ask: Ask) -> None:
    """The words of the calibration count too: it sent number 0 and the longest before the load."""
    server.marks = {"repeat"}
    cache: dict[int, str] = {}

    def cached(asked: dict[str, Any]) -> Answer:
        cache.setdefault(0, server.first)
        return server.answer(cache[0], asked["prompt"], asked["echo"])

    server.faults = {1: cached, 2: cached}
    found = ask()
    assert (found.status, found.message) == (
        "fail", "answers are mixed up: request 2 got the answer to an earlier request",
    )  # fmt: skip
