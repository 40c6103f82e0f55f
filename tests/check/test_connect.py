"""Each way to get no response has its own message and hint; loopback uses no proxy."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from stackgen.check.report import Result
from stackgen.check.target import Target
from stackgen.check.transport.faults import classify

from .conftest import VLLM, result, run_check, target
from .fake import KEY, Answer, Fake, events, free_port, raw_server, reset

LAYERS = ("resolve", "connect", "tls", "http")


def connect(url: str, timeout: float = 5.0) -> Result:
    """The first failed network layer, else `http`. Asserts that all later checks were skipped because of it."""
    report = run_check(Target("it", url, KEY, ("tiny",), VLLM), timeout=timeout)
    assert tuple(one.name for one in report.results[:4]) == LAYERS
    failed = [one for one in report.results[:4] if one.status == "fail"]
    if not failed:
        return report.results[3]
    (first,) = failed
    others = report.results[report.results.index(first) + 1 :]
    assert {other.status for other in others} == {"skip"}
    assert {other.message for other in others if other.name not in LAYERS} <= {"needs `http`"}
    assert {other.seconds for other in others} == {None}
    assert not report.ok
    assert report.answer is None
    assert first.hint
    return first


def test_a_refused_connection() -> None:
    port = free_port()
    found = connect(f"http://127.0.0.1:{port}")
    assert found.name == "connect"
    assert (found.status, found.message) == ("fail", f"nothing listens on 127.0.0.1:{port}")
    assert "docker compose ps" in found.hint
    assert "--wait" in found.hint


def test_a_reset_connection_is_what_a_loading_container_looks_like() -> None:
    with raw_server(reset) as port:
        found = connect(f"http://127.0.0.1:{port}")
    assert (found.status, found.message) == ("fail", f"127.0.0.1:{port} accepted the connection and dropped it")
    assert "--wait" in found.hint


def test_a_closed_connection_and_another_protocol_are_distinguished() -> None:
    def ssh(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    for behave, what in (
        (lambda connection: connection.recv(65536), "accepted the connection and dropped it"),
        (ssh, "does not speak HTTP"),
    ):
        with raw_server(behave) as port:
            found = connect(f"http://127.0.0.1:{port}")
        assert (found.name, found.status, found.message) == ("http", "fail", f"127.0.0.1:{port} {what}")


@pytest.mark.parametrize("closes", [True, False])
def test_a_server_with_a_banner_does_not_speak_http(closes: bool) -> None:
    """Mail and SSH servers send first. After an unknown line, some close the connection and some wait for more."""

    def mail(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        if connection.recv(65536):
            connection.sendall(b"502 5.5.2 Error: command not recognized\r\n")
            if not closes:
                connection.recv(65536)

    with raw_server(mail) as port:
        found = connect(f"http://127.0.0.1:{port}", timeout=0.5)
    assert (found.name, found.status) == ("http", "fail")
    assert found.message == f"127.0.0.1:{port} does not speak HTTP: it sent '220 mail.example.org ESMTP'"


def test_silence_ends_at_the_timeout() -> None:
    held: list[socket.socket] = []

    def silent(connection: socket.socket) -> None:
        if connection.recv(65536):
            # the copy keeps the connection open while the server accepts others
            held.append(connection.dup())

    with raw_server(silent) as port:
        started = time.monotonic()
        found = connect(f"http://127.0.0.1:{port}", timeout=0.3)
        took = time.monotonic() - started
    for connection in held:
        connection.close()
    assert (found.status, found.message) == (
        "fail",
        f"127.0.0.1:{port} accepted the request, but sent nothing for 0.3 s",
    )
    assert "--timeout" in found.hint
    # one timeout, no retry; the server would be silent forever
    assert len(held) == 1 and took < 10


def test_a_dripping_body_ends_at_the_timeout(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = Answer(pieces=(b" ",) * 40, pause=0.05)
    found = result(run_check(target(vllm), timeout=0.4), "models")
    assert (found.status, found.message) == ("fail", "the body was not complete after 0.4 s")


def test_a_name_that_does_not_resolve() -> None:
    found = connect("http://no-such-host.invalid:8000/v1")
    assert (found.status, found.message) == ("fail", "the name 'no-such-host.invalid' can't be resolved")
    assert "127.0.0.1" in found.hint


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx2.ConnectTimeout("timed out"), "connect-timeout"),
        (httpx2.ProxyError("407"), "proxy"),
        (httpx2.DecodingError("bad gzip"), "encoding"),
        (httpx2.UnsupportedProtocol("x"), "other"),
    ],
)
def test_faults_that_no_local_server_can_produce_are_classified(error: Exception, kind: str) -> None:
    found = classify(error, Target.from_url(f"http://127.0.0.1:{free_port()}", None), 1.0)
    assert found.kind == kind
    assert found.hint


def test_no_route_to_the_host() -> None:
    error = httpx2.ConnectError("unreachable")
    error.__cause__ = OSError(113, "No route to host")
    assert classify(error, Target.from_url("http://10.0.0.1", None), 1.0).kind == "unreachable"


def test_https_on_a_plain_port(vllm: Fake) -> None:
    found = connect(f"https://127.0.0.1:{vllm.port}/v1")
    assert (found.status, found.message) == ("fail", f"127.0.0.1:{vllm.port} speaks plain HTTP, but the URL says https")
    assert found.hint == f"use http://127.0.0.1:{vllm.port}/v1"
    # the probe of the port sent no key
    assert all(request.authorization is None for request in vllm.seen)


def test_https_on_a_port_with_another_protocol() -> None:
    with raw_server(lambda connection: connection.sendall(b"220 smtp ready\r\n")) as port:
        found = connect(f"https://127.0.0.1:{port}/v1")
    assert (found.status, found.message) == ("fail", f"the TLS handshake with 127.0.0.1:{port} failed")


def test_http_on_a_tls_port(start: Callable[..., Fake], certificate: Path) -> None:
    fake = start("vllm", KEY, certificate)
    found = connect(f"http://127.0.0.1:{fake.port}/v1")
    assert (found.status, found.message) == ("fail", f"127.0.0.1:{fake.port} speaks TLS, but the URL says http")
    assert found.hint == f"use https://127.0.0.1:{fake.port}/v1"


def test_http_on_a_tls_port_that_answers_with_a_400_page(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def nginx(connection: socket.socket) -> None:
        if connection.recv(1, socket.MSG_PEEK) == b"\x16":
            context.wrap_socket(connection, server_side=True).close()
            return
        connection.recv(65536)
        page = b"The plain HTTP request was sent to HTTPS port"
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page))

    with raw_server(nginx) as port:
        found = connect(f"http://127.0.0.1:{port}/v1")
    assert (found.status, found.message) == ("fail", "the port speaks TLS, but the URL says http")
    assert found.hint == f"use https://127.0.0.1:{port}/v1"


def test_a_400_page_on_a_plain_port_is_not_mistaken_for_tls(vllm: Fake) -> None:
    vllm.routes["GET /v1/models"] = Answer(400, b"<h1>Bad Request</h1>", "text/html")
    vllm.key = None
    assert connect(vllm.url).status == "pass"


def test_an_untrusted_certificate(start: Callable[..., Fake], certificate: Path) -> None:
    found = connect(start("vllm", KEY, certificate).url)
    assert found.status == "fail"
    assert "is not trusted" in found.message
    assert "SSL_CERT_FILE" in found.hint


def test_a_local_ca_is_taken_from_the_environment(
    start: Callable[..., Fake], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.parent / "cert.pem"))
    report = run_check(target(start("vllm", KEY, certificate)))
    assert report.ok, report
    assert result(report, "chat").status == "pass"


def test_a_redirect_is_shown_and_not_followed(vllm: Fake) -> None:
    vllm.key = None
    vllm.routes["GET /v1/models"] = Answer(308, headers=(("Location", "https://elsewhere.example/v1/models"),))
    found = connect(vllm.url)
    assert (found.status, found.message) == ("fail", "the server redirects")
    assert "https://elsewhere.example/v1/models" in found.hint


def test_no_proxy_is_used_for_loopback(vllm: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert connect(vllm.url).status == "pass"
    # for another machine the same variables apply: the dead proxy refuses the connection
    assert connect("http://10.255.255.1:9/v1").status == "fail"


def test_a_stream_that_breaks_before_its_first_event_is_reported(vllm: Fake) -> None:
    vllm.stream(Answer(content_type="text/event-stream", pieces=(), cut=True))
    found = result(run_check(target(vllm)), "stream")
    assert (found.status, found.message) == (
        "fail",
        f"127.0.0.1:{vllm.port} closed the connection in the middle of its response",
    )


def test_a_stalled_stream_ends_at_the_timeout(vllm: Fake) -> None:
    vllm.stream(events("{}", pause=1.0))
    found = result(run_check(target(vllm), timeout=0.3), "stream")
    assert (found.status, found.message) == (
        "fail",
        f"127.0.0.1:{vllm.port} accepted the request, but sent nothing for 0.3 s",
    )


@pytest.mark.parametrize("percent", ["%25", "%"])
def test_an_ipv6_address_with_a_zone_is_an_address(percent: str) -> None:
    """Only link-local addresses have a zone. No test may rely on a real one, so a failed connection must do."""
    report = run_check(Target.from_url(f"http://[fe80::1{percent}lo]:{free_port()}", KEY, ("tiny",)))
    assert result(report, "resolve").status == "pass"
    assert result(report, "connect").status == "fail"
