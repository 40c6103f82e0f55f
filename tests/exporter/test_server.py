"""The exporter: routes, headers, access, rounds that don't overlap, prompt shutdown."""

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
from stackgen.exporter import Exporter, monitoring_options, rounds, serve
from tests.check.fake import KEY, USAGE_CHUNK, Answer, Fake, Request, chunk, events, free_port, recorded, slow

from .conftest import all_checked, get, target, wait_until


def test_api_status_describes_each_endpoint(export: Callable[..., Exporter], fake: Fake) -> None:
    unreachable = Target("unreachable", f"http://127.0.0.1:{free_port()}/v1")
    exporter = export([target(fake), unreachable], interval=0.2)
    wait_until(lambda: all(one.runs >= 2 for one in exporter.state.snapshot()))
    response = get(exporter, "/api/status")
    assert response.headers["Content-Type"] == "application/json"
    data = json.loads(response.body)
    assert (data["schema"], data["in_time"], data["state"], data["up"], data["down"]) == (1, True, "down", 1, 1)
    assert data["verdict"] == "1 of 2 endpoints is down"
    up, down = data["endpoints"]
    assert (up["name"], up["state"], up["base_url"], up["dialect"]) == ("fake", "up", fake.url, "vllm")
    assert 0 < up["ttft_seconds"] < 5 and len(up["history"]["up"]) == len(up["history"]["ttft_seconds"]) >= 2
    assert down["state"] == "down" and set(down["history"]["up"]) == {0}
    assert down["problem"]["check"] == "connect" and down["problem"]["hint"]
    assert up["checked"].endswith("+00:00")


def test_api_status_returns_304_until_something_changes(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)], interval=60)
    wait_until(lambda: all_checked(exporter))
    tag = get(exporter, "/api/status").headers["ETag"]
    again = get(exporter, "/api/status", If_None_Match=tag)
    assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)


@pytest.mark.parametrize("name", ["gpu box", "a/b?c#d", "127.0.0.1:8000", "<b>", "ü"])
def test_reports_are_served_under_any_endpoint_name(export: Callable[..., Exporter], fake: Fake, name: str) -> None:
    exporter = export([target(fake, name)])
    wait_until(lambda: all_checked(exporter))
    href = json.loads(get(exporter, "/api/status").body)["endpoints"][0]["href"]
    assert href == f"endpoint/{quote(name, safe='')}"
    response = get(exporter, f"/{href}")
    assert response.status == 200 and "Healthy: 1 endpoint" in response.text and 'href="../"' in response.text


def test_endpoints_with_the_same_name_get_unique_names(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake), target(fake), target(fake, "fake-2")])
    assert [one.name for one in exporter.state.snapshot()] == ["fake", "fake-2", "fake-2-2"]


def test_a_report_is_503_until_the_first_check_and_404_if_unknown(export: Callable[..., Exporter], fake: Fake) -> None:
    fake.routes["GET /v1/models"] = slow(recorded("vllm-0.32.0", "get_v1_models_key"), 1.0)
    exporter = export([target(fake)])
    assert get(exporter, "/endpoint/fake").status == 503
    assert get(exporter, "/endpoint/other").status == 404
    assert json.loads(get(exporter, "/api/status").body)["state"] == "pending"


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/status", "/-/healthy", "/endpoint/fake", "/nothing"])
def test_every_response_has_security_headers_and_head_has_no_body(
    export: Callable[..., Exporter], fake: Fake, path: str
) -> None:
    exporter = export([target(fake)], interval=60)
    wait_until(lambda: all_checked(exporter))
    whole, head = get(exporter, path), get(exporter, path, "HEAD")
    for response in (whole, head):
        assert response.status == (404 if path == "/nothing" else 200)
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert head.body == b"" and head.headers["Content-Length"] == str(len(whole.body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_other_methods_get_405(export: Callable[..., Exporter], fake: Fake, method: str) -> None:
    response = get(export([target(fake)]), "/", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


def test_errors_are_html_for_browsers_and_repeat_no_input(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)])
    response = get(exporter, "/%3Cscript%3Ealert(1)", Accept="text/html,*/*")
    assert response.status == 404 and response.headers["Content-Type"].startswith("text/html")
    assert "alert" not in response.text
    assert json.loads(get(exporter, "/nothing").body)["error"]


def test_malformed_http_gets_400_and_repeats_no_input(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)])
    with socket.create_connection(("127.0.0.1", exporter.port), 5) as connection:
        connection.sendall(b"GET /<script>alert(1)</script> NOT-HTTP\r\n\r\n")
        response = connection.makefile("rb").read()
    assert b" 400 " in response and b"alert" not in response


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:9464", 200), ("evil.example", 421), ("127.0.0.1.evil.org", 421),
     ("10.0.0.1", 421), ("[", 421), ("", 421)],
)  # fmt: skip
def test_dns_rebinding_is_refused(export: Callable[..., Exporter], fake: Fake, host: str, status: int) -> None:
    exporter = export([target(fake)])
    for path in ("/", "/api/status", "/metrics"):
        assert get(exporter, path, Host=host).status == status


def test_remote_access_needs_allow_remote(fake: Fake) -> None:
    with pytest.raises(StackgenError, match=r"other machines can reach 0\.0\.0\.0:0") as caught:
        Exporter([target(fake)], listen="0.0.0.0:0")
    assert "--allow-remote" in caught.value.hint
    with Exporter([target(fake)], listen="0.0.0.0:0", allow_remote=True) as exporter:
        assert get(exporter, "/-/healthy", Host="gpu.example.org").status == 200


@pytest.mark.parametrize("listen", ["", "9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "[::1:1"])
def test_an_invalid_listen_address_raises(fake: Fake, listen: str) -> None:
    with pytest.raises(StackgenError, match="is not of the form host:port") as caught:
        Exporter([target(fake)], listen=listen)
    assert caught.value.exit_code == 2


def test_a_taken_port_raises(fake: Fake) -> None:
    with pytest.raises(MachineError, match="can't listen on"):
        Exporter([target(fake)], listen=f"127.0.0.1:{fake.port}")


def test_ipv6_is_served(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)], listen="[::1]:0")
    assert exporter.url == f"http://[::1]:{exporter.port}/"
    with socket.create_connection(("::1", exporter.port), 5) as connection:
        connection.sendall(b"GET /-/healthy HTTP/1.0\r\nHost: [::1]\r\n\r\n")
        assert b" 200 " in connection.recv(100)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 1e300])
def test_an_invalid_interval_raises(fake: Fake, interval: float) -> None:
    with pytest.raises(StackgenError, match="interval"):
        Exporter([target(fake)], listen="127.0.0.1:0", interval=interval)


def test_no_endpoints_and_unknown_checks_raise(fake: Fake) -> None:
    with pytest.raises(StackgenError, match="no endpoint"):
        Exporter([])
    with pytest.raises(StackgenError, match="unknown check"):
        Exporter([target(fake)], Options(select=("chatt",)), listen="127.0.0.1:0")


def test_rounds_of_an_endpoint_never_overlap_and_a_slow_one_delays_no_other(
    export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    running: dict[str, int] = {}
    most: dict[str, int] = {}
    lock, run_check = threading.Lock(), rounds.run_check

    def counting_check(targets: list[Target], options: Options) -> object:
        (name,) = [one.name for one in targets]
        with lock:
            running[name] = running.get(name, 0) + 1
            most[name] = max(most.get(name, 0), running[name])
        time.sleep(1.0 if name == "slow" else 0.0)
        report = run_check(targets, options)
        with lock:
            running[name] -= 1
        return report

    monkeypatch.setattr(rounds, "run_check", counting_check)
    port = free_port()
    exporter = export([Target(name, f"http://127.0.0.1:{port}/v1") for name in ("slow", "fast")], interval=0.1)
    wait_until(lambda: (exporter.state.get("slow") or exporter.state.snapshot()[0]).runs >= 2)
    runs = {one.name: one.runs for one in exporter.state.snapshot()}
    assert most == {"slow": 1, "fast": 1}
    assert runs["fast"] >= 4 * runs["slow"]


def test_a_crashing_check_is_a_failure_without_the_exceptions_message(
    export: Callable[..., Exporter], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError(f"Bearer {KEY}")

    monkeypatch.setattr(rounds, "run_check", crash)
    exporter = export([target(fake)], interval=0.1)
    wait_until(lambda: exporter.state.snapshot()[0].runs >= 2)
    text = get(exporter, "/api/status").text
    assert "the check itself crashed: RuntimeError" in text and KEY not in text
    assert get(exporter, "/-/healthy").status == 200


def test_no_response_contains_the_key(export: Callable[..., Exporter], fake: Fake) -> None:
    fake.routes["GET /v1/models"] = Answer(500, f"you sent {KEY}".encode())
    exporter = export([target(fake)])
    wait_until(lambda: all_checked(exporter))
    for path in ("/", "/metrics", "/api/status", "/endpoint/fake"):
        response = get(exporter, path)
        assert KEY not in response.text
        assert KEY not in str(response.headers)
    # the server's text is shown, so there was something to redact
    assert "you sent [key]" in get(exporter, "/endpoint/fake").text


def test_health_fails_when_a_round_is_overdue_or_a_thread_has_stopped(
    export: Callable[..., Exporter], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = export([target(fake)], Options(profile="quick", timeout=5.0))
    wait_until(lambda: all_checked(exporter))
    assert get(exporter, "/-/healthy").status == 200
    release = threading.Event()
    monkeypatch.setattr(rounds, "run_check", lambda *_: release.wait(30))
    monkeypatch.setattr(rounds, "OVERDUE_TIMEOUTS", 0.0)
    response = wait_until(lambda: one if (one := get(exporter, "/-/healthy")).status == 503 else None)
    trouble = "checks are overdue by more than 0 s for endpoint fake"
    assert json.loads(response.body) == {"healthy": False, "trouble": trouble}
    assert "Checks are behind schedule, so this page may be out of date: checks are overdue" in get(exporter, "/").text
    assert json.loads(get(exporter, "/api/status").body)["in_time"] is False
    release.set()
    exporter.checker.stop(5.0)
    assert json.loads(get(exporter, "/-/healthy").body)["trouble"] == "a checker thread has stopped"


def test_serve_runs_until_stopped_and_frees_its_port(fake: Fake) -> None:
    stop, ready = threading.Event(), threading.Event()
    urls: list[str] = []
    results: list[bool] = []

    def on_ready(url: str) -> None:
        urls.append(url)
        ready.set()

    thread = threading.Thread(
        target=lambda: results.append(
            serve([target(fake)], monitoring_options(5.0), listen="127.0.0.1:0", on_ready=on_ready, stop=stop)
        )
    )
    thread.start()
    assert ready.wait(10)
    stop.set()
    thread.join(10)
    assert results == [True]
    port = int(urls[0].rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 2)


# the command without the rest of the CLI: its own parser and its own function
COMMAND = """
import argparse, sys
from stackgen.cli.commands.exporter import exporter
from stackgen.cli.parsers.base import Subcommands
from stackgen.cli.parsers.exporter import add_exporter
parser = argparse.ArgumentParser()
add_exporter(Subcommands(parser.add_subparsers(dest="command")))
raise SystemExit(exporter(parser.parse_args(["exporter", *sys.argv[1:]])))
"""


def command(fake: Fake, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--base-url", fake.url, "--api-key", KEY, *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("silent", [False, True])
def test_the_command_shuts_down_promptly_on_a_signal(fake: Fake, signum: signal.Signals, silent: bool) -> None:
    if silent:
        # a check that waits for a response must not delay the shutdown until its timeout, a minute
        fake.routes["GET /v1/models"] = Answer(pause=20.0, body=b"x")
    with command(fake, "--listen", "127.0.0.1:0", "--interval", "1") as process:
        assert process.stderr
        line = process.stderr.readline()
        assert "http://127.0.0.1:" in line
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signum)
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()
        assert time.monotonic() - started < 8
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 1)])
def test_once_prints_metrics_and_exits_with_the_verdict(fake: Fake, healthy: bool, code: int) -> None:
    if not healthy:
        fake.routes["POST /v1/chat/completions"] = Answer(500, b"{}")
    out, _ = (process := command(fake, "--once")).communicate(timeout=60)
    assert process.returncode == code
    assert f'stackgen_endpoint_up{{base_url="{fake.url}"' in out
    assert ("stackgen_ttft_seconds{" in out) is healthy


def test_once_with_json_prints_the_status(fake: Fake) -> None:
    out, _ = (process := command(fake, "--once", "--json")).communicate(timeout=60)
    assert process.returncode == 0
    data = json.loads(out)
    assert (data["schema"], data["state"], data["profile"], data["interval_seconds"]) == (1, "up", "quick", 30.0)
    (one,) = data["endpoints"]
    assert (one["base_url"], one["state"], one["runs"], one["history"]["up"]) == (fake.url, "up", 1, [1])
    assert 0 < one["ttft_seconds"] < 5


def test_json_prints_the_served_url(fake: Fake) -> None:
    with command(fake, "--listen", "127.0.0.1:0", "--json") as process:
        assert process.stdout and process.stderr
        try:
            url = json.loads(process.stdout.readline())["url"]
            with urlopen(f"{url}-/healthy", timeout=10) as response:
                assert response.status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
        finally:
            process.kill()
        assert process.stderr.read() == ""


def test_a_buffering_proxy_is_detected(export: Callable[..., Exporter], fake: Fake) -> None:
    """The proxy holds the whole stream back; the server sends one chunk per token."""

    def buffered(request: Request) -> Answer:
        body = request.json()
        if not body.get("stream"):
            return recorded("vllm-0.32.0", "chat_ok")
        # the last token has no text: an engine may hold back half a character
        texts = [chunk("x") for _ in range(body["max_tokens"] - 1)]
        whole = events(chunk("", role="assistant"), *texts, chunk(finish="length"), USAGE_CHUNK)
        assert whole.pieces
        return replace(whole, pieces=(b"".join(whole.pieces),), pause=0.4)

    fake.routes["POST /v1/chat/completions"] = buffered
    exporter = export([target(fake)], interval=60)
    wait_until(lambda: all_checked(exporter))
    (one,) = json.loads(get(exporter, "/api/status").body)["endpoints"]
    assert one["problem"] and one["problem"]["check"] == "stream", one["problem"]
    assert one["problem"]["message"] == "the stream is buffered: 15 chunks arrived in 1 read"


def test_targets_are_checked_unchanged(fake: Fake) -> None:
    one = replace(target(fake), max_ttft=0.1)
    with Exporter([one], listen="127.0.0.1:0") as exporter:
        assert exporter.checker._targets == [one]
