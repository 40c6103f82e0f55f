"""`check --timeout` is one time limit for all checks of an endpoint, whatever the server does with each request."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from stackgen.check.topology import ProbeResult, ServiceView
from stackgen.cli import main as cli

from .conftest import result, run_check, target
from .fake import KEY, Answer, Fake, Request, raw_server, serve, slow

LIMIT = 0.4
# a check that ignores the limit is abandoned half a second later; a busy machine needs some time too
LATEST = LIMIT + 1.2
CHUNK = json.dumps({"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "tiny",
                    "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]})  # fmt: skip


@contextmanager
def faked(change: Callable[[Fake], None]) -> Iterator[str]:
    with serve("vllm") as fake:
        change(fake)
        yield fake.url


def every_answer_is_slow(fake: Fake) -> None:
    answer = fake.answer
    # each request alone is well within the limit
    fake.answer = lambda request: slow(answer(request), 0.15)  # type: ignore[method-assign]


def nothing_after_the_models(fake: Fake) -> None:
    fake.chat(Answer(pieces=(b" ",), pause=3.0))
    fake.stream(Answer(pieces=(b" ",), pause=3.0))


def a_body_without_end(fake: Fake) -> None:
    fake.routes["GET /v1/models"] = Answer(pieces=(b" ",) * 100, pause=0.05)


def a_stream_without_end(fake: Fake) -> None:
    fake.stream(Answer(200, b"", "text/event-stream", (f"data: {CHUNK}\n\n".encode(),) * 100, pause=0.05))


@contextmanager
def raw(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    with raw_server(behave) as port:
        yield f"http://127.0.0.1:{port}/v1"


def silent(connection: socket.socket) -> None:
    connection.settimeout(3)
    while connection.recv(65536):
        pass


def headers_without_end(connection: socket.socket) -> None:
    if not connection.recv(65536):
        return
    for byte in b"HTTP/1.1 200 OK\r\n" + b"x-header: " + b"x" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


SERVERS = {
    "every answer is slow": lambda: faked(every_answer_is_slow),
    "no completion": lambda: faked(nothing_after_the_models),
    "a body without end": lambda: faked(a_body_without_end),
    "a stream without end": lambda: faked(a_stream_without_end),
    "silent": lambda: raw(silent),
    "headers without end": lambda: raw(headers_without_end),
}


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("profile", ["--quick", "--deep"])
def test_the_time_limit_holds_for_all_checks_together(
    server: str, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with SERVERS[server]() as url:
        arguments = ["--base-url", url, "--api-key", KEY, "--model", "tiny", "--timeout", str(LIMIT), "--json"]
        started = time.monotonic()
        code = cli.main(["check", profile, *arguments])
        took = time.monotonic() - started
    (endpoint,) = json.loads(capsys.readouterr().out)["endpoints"]
    assert took < LATEST and endpoint["seconds"] < LATEST
    statuses = [one["status"] for one in endpoint["results"]]
    # the quick profile does not stream
    if (server, profile) != ("a stream without end", "--quick"):
        assert (code, endpoint["ok"]) == (1, False), endpoint["results"]
        assert "fail" in statuses
        # nothing passes after the first failure: the time was over
        assert "pass" not in statuses[statuses.index("fail") :]


def test_checks_that_were_not_reached_are_reported_as_not_checked_and_never_ok(
    vllm: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    every_answer_is_slow(vllm)
    arguments = ["check", "--base-url", vllm.url, "--api-key", KEY, "--timeout", str(LIMIT)]
    assert cli.main([*arguments, "--json"]) == 1
    (endpoint,) = json.loads(capsys.readouterr().out)["endpoints"]
    unreached = [one for one in endpoint["results"] if "expired before this check started" in one["message"]]
    assert unreached and {one["status"] for one in unreached} <= {"fail", "skip"}
    failed = [one for one in endpoint["results"] if one["status"] == "fail"]
    # one failure is enough: the other checks only follow from it
    assert len(failed) == 1 and "raise --timeout" in failed[0]["hint"]
    assert cli.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "NOT healthy" in shown and "the time limit of 0.4 s expired" in shown
    assert "not checked, because the time limit expired" in shown


def test_without_a_time_limit_each_request_has_its_own(vllm: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    answer, limit, started = vllm.answer, 2, time.monotonic()
    # far below the limit, because a busy machine is slow, too
    vllm.answer = lambda request: slow(answer(request), 0.6)  # type: ignore[method-assign]
    arguments = ["--base-url", vllm.url, "--api-key", KEY, "--request-timeout", str(limit), "--quick"]
    assert cli.main(["check", *arguments]) == 0, capsys.readouterr().out
    assert time.monotonic() - started > limit


class Hanging:
    """An observer whose Docker engine accepts the connection and then says nothing."""

    def services(self) -> tuple[ServiceView, ...]:
        time.sleep(5)
        return ()

    def run_probes(self, timeout: float) -> tuple[ProbeResult, ...]:
        return ()


def test_a_check_that_ignores_the_limit_is_abandoned(vllm: Fake) -> None:
    started = time.monotonic()
    report = run_check(replace(target(vllm), observer=Hanging()), time_limit=0.2)
    assert time.monotonic() - started < 1.5
    assert not report.ok
    found = result(report, "containers")
    assert (found.status, found.message) == ("fail", "the time limit of 0.2 s expired before this check ended")


def test_the_wait_for_readiness_does_not_count(vllm: Fake) -> None:
    started = time.monotonic()
    before = vllm.routes["GET /v1/models"]

    def later(request: Request) -> Any:
        loaded = time.monotonic() - started > 0.6
        return (before(request) if callable(before) else before) if loaded else Answer(503, b"loading", "text/plain")

    vllm.routes["GET /v1/models"] = later
    report = run_check(target(vllm), wait=5.0, time_limit=3.0, profile="quick")
    assert report.ok, report.results
