"""The server: routes, headers, who may ask, rounds that don't overlap, an end that comes at once."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from stackgen.check.options import Options
from stackgen.check.target import Target
from stackgen.errors import MachineError, StackgenError
from stackgen.exporter import Exporter, monitoring, rounds, serve
from tests.check.fake import KEY, USAGE_CHUNK, Answer, Fake, Request, chunk, events, free_port, recorded, slow

from .conftest import checked, get, target, until


def test_the_json_tells_each_endpoint(export: Callable[..., Exporter], fake: Fake) -> None:
    away = Target("away", f"http://127.0.0.1:{free_port()}/v1")
    exporter = export([target(fake), away], interval=0.2)
    until(lambda: all(one.runs >= 2 for one in exporter.state.snapshot()))
    answer = get(exporter, "/api/status")
    assert answer.headers["Content-Type"] == "application/json"
    data = json.loads(answer.body)
    assert (data["schema"], data["in_time"], data["state"], data["up"], data["down"]) == (1, True, "down", 1, 1)
    assert data["verdict"] == "1 of 2 endpoints down"
    up, down = data["endpoints"]
    assert (up["name"], up["state"], up["base_url"], up["dialect"]) == ("fake", "up", fake.url, "vllm")
    assert 0 < up["ttft_seconds"] < 5 and len(up["history"]["up"]) == len(up["history"]["ttft_seconds"]) >= 2
    assert down["state"] == "down" and set(down["history"]["up"]) == {0}
    assert down["problem"]["check"] == "connect" and down["problem"]["hint"]
    assert up["checked"].endswith("+00:00")


def test_who_has_seen_the_latest_gets_nothing_again(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)], interval=60)
    until(lambda: checked(exporter))
    tag = get(exporter, "/api/status").headers["ETag"]
    again = get(exporter, "/api/status", If_None_Match=tag)
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)


@pytest.mark.parametrize("name", ["gpu box", "a/b?c#d", "127.0.0.1:8000", "<b>", "ü"])
def test_a_report_is_found_by_its_name(export: Callable[..., Exporter], fake: Fake, name: str) -> None:
    exporter = export([target(fake, name)])
    until(lambda: checked(exporter))
    href = json.loads(get(exporter, "/api/status").body)["endpoints"][0]["href"]
    assert href == f"endpoint/{quote(name, safe='')}"
    answer = get(exporter, f"/{href}")
    assert answer.status == 200 and "Healthy: 1 endpoint" in answer.text and 'href="../"' in answer.text


def test_endpoints_of_one_name_are_told_apart(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake), target(fake), target(fake, "fake-2")])
    assert [one.name for one in exporter.state.snapshot()] == ["fake", "fake-2", "fake-2-2"]


def test_a_report_that_is_not_there_yet_says_so(export: Callable[..., Exporter], fake: Fake) -> None:
    fake.routes["GET /v1/models"] = slow(recorded("vllm-0.32.0", "get_v1_models_key"), 1.0)
    exporter = export([target(fake)])
    assert get(exporter, "/endpoint/fake").status == 503
    assert get(exporter, "/endpoint/other").status == 404
    assert json.loads(get(exporter, "/api/status").body)["state"] == "pending"


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/status", "/-/healthy", "/endpoint/fake", "/nothing"])
def test_every_answer_has_its_headers_and_head_is_get_without_a_body(
    export: Callable[..., Exporter], fake: Fake, path: str
) -> None:
    exporter = export([target(fake)], interval=60)
    until(lambda: checked(exporter))
    whole, head = get(exporter, path), get(exporter, path, "HEAD")
    for answer in (whole, head):
        assert answer.status == (404 if path == "/nothing" else 200)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert head.body == b"" and head.headers["Content-Length"] == str(len(whole.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_nothing_but_reading(export: Callable[..., Exporter], fake: Fake, method: str) -> None:
    answer = get(export([target(fake)]), "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_errors_are_pages_for_browsers_and_repeat_nothing(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)])
    answer = get(exporter, "/%3Cscript%3Ealert(1)", Accept="text/html,*/*")
    assert answer.status == 404 and answer.headers["Content-Type"].startswith("text/html")
    assert "alert" not in answer.text
    assert json.loads(get(exporter, "/nothing").body)["error"]


def test_what_is_no_http_is_refused(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)])
    with socket.create_connection(("127.0.0.1", exporter.port), 5) as connection:
        connection.sendall(b"GET /<script>alert(1)</script> NOT-HTTP\r\n\r\n")
        said = connection.makefile("rb").read()
    assert b" 400 " in said and b"alert" not in said


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:9464", 200), ("evil.example", 421), ("127.0.0.1.evil.org", 421),
     ("10.0.0.1", 421), ("[", 421), ("", 421)],
)  # fmt: skip
def test_a_name_that_was_rebound_reads_nothing(
    export: Callable[..., Exporter], fake: Fake, host: str, status: int
) -> None:
    exporter = export([target(fake)])
    for path in ("/", "/api/status", "/metrics"):
        assert get(exporter, path, Host=host).status == status


def test_others_are_let_in_only_when_told(fake: Fake) -> None:
    with pytest.raises(StackgenError, match="can be reached by others") as caught:
        Exporter([target(fake)], listen="0.0.0.0:0")
    assert "--allow-remote" in caught.value.hint
    with Exporter([target(fake)], listen="0.0.0.0:0", allow_remote=True) as exporter:
        assert get(exporter, "/-/healthy", Host="gpu.example.org").status == 200


@pytest.mark.parametrize("listen", ["", "9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "[::1:1"])
def test_a_listen_address_that_is_none(fake: Fake, listen: str) -> None:
    with pytest.raises(StackgenError, match="no host:port") as caught:
        Exporter([target(fake)], listen=listen)
    assert caught.value.exit_code == 2


def test_a_port_that_is_taken(fake: Fake) -> None:
    with pytest.raises(MachineError, match="can't listen on"):
        Exporter([target(fake)], listen=f"127.0.0.1:{fake.port}")


def test_ipv6(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)], listen="[::1]:0")
    assert exporter.url == f"http://[::1]:{exporter.port}/"
    with socket.create_connection(("::1", exporter.port), 5) as connection:
        connection.sendall(b"GET /-/healthy HTTP/1.0\r\nHost: [::1]\r\n\r\n")
        assert b" 200 " in connection.recv(100)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 1e300])
def test_an_interval_that_makes_no_sense(fake: Fake, interval: float) -> None:
    with pytest.raises(StackgenError, match="interval"):
        Exporter([target(fake)], listen="127.0.0.1:0", interval=interval)


def test_nothing_to_watch_and_options_that_make_no_sense(fake: Fake) -> None:
    with pytest.raises(StackgenError, match="no endpoint"):
        Exporter([])
    with pytest.raises(StackgenError, match="unknown check"):
        Exporter([target(fake)], Options(select=("chatt",)), listen="127.0.0.1:0")


def test_looks_at_one_endpoint_never_overlap_and_a_slow_one_holds_nobody_up(
    export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    lock, look = threading.Lock(), rounds.run_check

    def counted(targets: list[Target], options: Options) -> object:
        (name,) = [one.name for one in targets]
        with lock:
            running[name] = running.get(name, 0) + 1
            most[name] = max(most.get(name, 0), running[name])
        time.sleep(1.0 if name == "slow" else 0.0)
        report = look(targets, options)
        with lock:
            running[name] -= 1
        return report

    monkeypatch.setattr(rounds, "run_check", counted)
    port = free_port()
    exporter = export([Target(name, f"http://127.0.0.1:{port}/v1") for name in ("slow", "fast")], interval=0.1)
    until(lambda: (exporter.state.get("slow") or exporter.state.snapshot()[0]).runs >= 2)
    runs = {one.name: one.runs for one in exporter.state.snapshot()}
    assert most == {"slow": 1, "fast": 1}
    assert runs["fast"] >= 4 * runs["slow"]


def test_a_check_that_breaks_is_a_failure_and_tells_no_secret(
    export: Callable[..., Exporter], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"Bearer {KEY}")

    monkeypatch.setattr(rounds, "run_check", broken)
    exporter = export([target(fake)], interval=0.1)
    until(lambda: exporter.state.snapshot()[0].runs >= 2)
    text = get(exporter, "/api/status").text
    assert "the check itself broke: RuntimeError" in text and KEY not in text
    assert get(exporter, "/-/healthy").status == 200


def test_the_key_is_nowhere(export: Callable[..., Exporter], fake: Fake) -> None:
    fake.routes["GET /v1/models"] = Answer(500, f"you sent {KEY}".encode())
    exporter = export([target(fake)])
    until(lambda: checked(exporter))
    for path in ("/", "/metrics", "/api/status", "/endpoint/fake"):
        answer = get(exporter, path)
        assert KEY not in answer.text
        assert KEY not in str(answer.headers)
    # what the server said is there, so something was there to be taken out
    assert "you sent [key]" in get(exporter, "/endpoint/fake").text


def test_health_fails_when_a_round_is_stuck_or_a_thread_has_died(
    export: Callable[..., Exporter], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = export([target(fake)], Options(profile="quick", timeout=5.0))
    until(lambda: checked(exporter))
    assert get(exporter, "/-/healthy").status == 200
    release = threading.Event()
    monkeypatch.setattr(rounds, "run_check", lambda *_: release.wait(30))
    monkeypatch.setattr(rounds, "PATIENCE", 0.0)
    answer = until(lambda: one if (one := get(exporter, "/-/healthy")).status == 503 else None)
    assert json.loads(answer.body) == {"healthy": False, "trouble": "fake due for over 0 s"}
    assert "this may be old" in get(exporter, "/").text
    assert json.loads(get(exporter, "/api/status").body)["in_time"] is False
    release.set()
    exporter.checker.stop(5.0)
    assert json.loads(get(exporter, "/-/healthy").body)["trouble"] == "a checker thread has ended"


def test_serve_runs_until_told_and_frees_its_port(fake: Fake) -> None:
    stop, ready = threading.Event(), threading.Event()
    urls: list[str] = []
    answers: list[bool] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    thread = threading.Thread(
        target=lambda: answers.append(
            serve([target(fake)], monitoring(5.0), listen="127.0.0.1:0", on_ready=on_ready, stop=stop)
        )
    )
    thread.start()
    assert ready.wait(10)
    stop.set()
    thread.join(10)
    assert answers == [True]
    port = int(urls[0].rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 2)


# the command, as it will be wired: its words by the parser, its work by the function
COMMAND = """
import argparse, sys
from stackgen.cli.commands.exporter import exporter
from stackgen.cli.parsers.base import Adder
from stackgen.cli.parsers.exporter import add_exporter
parser = argparse.ArgumentParser()
add_exporter(Adder(parser.add_subparsers(dest="command")))
raise SystemExit(exporter(parser.parse_args(["exporter", *sys.argv[1:]])))
"""


def command(fake: Fake, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--base-url", fake.url, "--api-key", KEY, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("silent", [False, True])
def test_the_command_ends_cleanly(fake: Fake, how: signal.Signals, silent: bool) -> None:
    if silent:
        # a check that waits for its answer must not hold the end up for its minute
        fake.routes["GET /v1/models"] = Answer(pause=20.0, body=b"x")
    with command(fake, "--listen", "127.0.0.1:0", "--interval", "1") as process:
        assert process.stderr
        line = process.stderr.readline()
        assert "http://127.0.0.1:" in line
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(how)
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()
        assert time.monotonic() - started < 8
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 1)])
def test_once_prints_the_metrics(fake: Fake, healthy: bool, code: int) -> None:
    if not healthy:
        fake.routes["POST /v1/chat/completions"] = Answer(500, b"{}")
    out, _ = (process := command(fake, "--once")).communicate(timeout=60)
    assert process.returncode == code
    assert f'stackgen_endpoint_up{{base_url="{fake.url}"' in out
    assert ("stackgen_ttft_seconds{" in out) is healthy


def test_once_prints_the_state_as_json(fake: Fake) -> None:
    out, _ = (process := command(fake, "--once", "--json")).communicate(timeout=60)
    assert process.returncode == 0
    data = json.loads(out)
    assert (data["schema"], data["state"], data["profile"], data["interval_seconds"]) == (1, "up", "quick", 30.0)
    (one,) = data["endpoints"]
    assert (one["base_url"], one["state"], one["runs"], one["history"]["up"]) == (fake.url, "up", 1, [1])
    assert 0 < one["ttft_seconds"] < 5


def test_a_server_tells_its_address_as_json(fake: Fake) -> None:
    with command(fake, "--listen", "127.0.0.1:0", "--json") as process:
        assert process.stdout and process.stderr
        try:
            url = json.loads(process.stdout.readline())["url"]
            with urlopen(f"{url}-/healthy", timeout=10) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_what_gathers_tokens_is_seen(export: Callable[..., Exporter], fake: Fake) -> None:
    """A proxy that holds the whole stream back; the server sends as many chunks as were asked for."""

    def gathered(request: Request) -> Answer:
        asked = request.json()
        if not asked.get("stream"):
            return recorded("vllm-0.32.0", "chat_ok")
        # of the last token's chunk only the finish is left: an engine may hold back half a character
        texts = [chunk("x") for _ in range(asked["max_tokens"] - 1)]
        whole = events(chunk("", role="assistant"), *texts, chunk(finish="length"), USAGE_CHUNK)
        assert whole.pieces
        return replace(whole, pieces=(b"".join(whole.pieces),), pause=0.4)

    fake.routes["POST /v1/chat/completions"] = gathered
    exporter = export([target(fake)], interval=60)
    until(lambda: checked(exporter))
    (one,) = json.loads(get(exporter, "/api/status").body)["endpoints"]
    assert one["problem"] and one["problem"]["check"] == "stream", one["problem"]
    assert one["problem"]["message"] == "15 chunks came in 1 read"


def test_targets_keep_what_they_have(fake: Fake) -> None:
    one = replace(target(fake), max_ttft=0.1)
    with Exporter([one], listen="127.0.0.1:0") as exporter:
        assert exporter.checker._targets == [one]
