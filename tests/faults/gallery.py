"""Runs one row of the gallery: the proxy in front of an engine, the check, and what every report must satisfy."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stackgen.check import check
from stackgen.check.checks.table import CHECKS
from stackgen.check.options import Options
from stackgen.check.report import JSON_SCHEMA, EndpointReport, Report
from stackgen.check.report.text import as_text
from stackgen.check.target import Target
from stackgen.plan import Dialect
from tests.faults.proxy import serve
from tests.faults.rows import Row

__all__ = ["Engine", "certificates", "prove", "run_row"]

# the checks that the rows are about; features are left out
CORE = ("alive", "models", "chat", "stream", "auth")
MAX_REPORT = 40_000
# what the check may use in addition to the few MiB that the proxy sends; most rows stay far below
MAX_MEMORY = 80 * 1024 * 1024
# an open path is a warning in every row
ALWAYS = frozenset({"auth"})
BUFFERED = re.compile(r"\d+ (chunks|tokens) arrived in \d+ (reads?|events?)")


@dataclass(frozen=True)
class Engine:
    """The engine behind the proxy; `slack` is the longest time that a healthy check takes (s).

    `fast`: it generates all tokens within a few milliseconds after a slow start, which looks like a buffering proxy.
    """

    port: int
    key: str
    model: str
    dialect: Dialect
    timeout: float = 1.0
    slack: float = 3.0
    fast: bool = False


def certificates(folder: Path) -> dict[str, Path]:
    """Certificates with their keys; each is trusted if it is the only CA."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program is missing (it makes the certificates)")
    kinds = {
        "good": ("IP:127.0.0.1", "20200101000000Z", "20991231000000Z"),
        "selfsigned": ("IP:127.0.0.1", "20200101000000Z", "20991231000000Z"),
        "expired": ("IP:127.0.0.1", "20200101000000Z", "20200201000000Z"),
        "wronghost": ("DNS:elsewhere.example", "20200101000000Z", "20991231000000Z"),
        "soon": ("IP:127.0.0.1", "20200101000000Z", time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + 5e5))),
    }
    (folder / "index").touch()
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndir={folder}\ndatabase=$dir/index\nnew_certs_dir=$dir\nrand_serial=yes\n"
        "default_md=sha256\npolicy=any\nunique_subject=no\nx509_extensions=ext\n[any]\ncommonName=supplied\n"
        "[ext]\nbasicConstraints=CA:TRUE\nsubjectAltName=$ENV::SAN\n"
    )
    made = {}
    for kind, (name, start, end) in kinds.items():
        key, request, both = (folder / f"{kind}.{ending}" for ending in ("key", "csr", "pem"))
        arguments = f"req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={kind}"
        run = partial(subprocess.run, check=True, capture_output=True, text=True, env={"SAN": name, "PATH": "/usr/bin"})
        run(["openssl", *arguments.split(), "-keyout", str(key), "-out", str(request)])
        signed = run(["openssl", "ca", "-batch", "-selfsign", "-notext", "-config", str(folder / "ca.cnf"), "-keyfile",
                      str(key), "-in", str(request), "-startdate", start, "-enddate", end])  # fmt: skip
        both.write_text(key.read_text() + signed.stdout)
        made[kind] = both
    return made


def run_row(row: Row, engine: Engine, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[Report, float]:
    """The report on the engine behind the row's fault, and how long the check took (s)."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with contextlib.ExitStack() as stack:
        target = Target("row", _start_row(row, engine, certs, stack, monkeypatch), engine.key, (engine.model,),
                        engine.dialect)  # fmt: skip
        # a body of megabytes takes longer, and several times as long while memory is traced
        timeout = engine.timeout * (10 if row.heavy else 1)
        options = Options(row.profile, timeout, max_tokens=16, select=row.select or CORE, load=4)  # type: ignore[arg-type]
        started = time.monotonic()
        report = check([target], options)
        return report, time.monotonic() - started


def _start_row(
    row: Row, engine: Engine, certs: dict[str, Path], stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Starts what the row needs, and returns the base URL to check."""
    if row.needs == "closed":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    if row.needs == "full":
        return f"http://127.0.0.1:{stack.enter_context(full_port())}/v1"
    if row.needs == "no-name":
        monkeypatch.setattr(socket, "getaddrinfo", _unknown)
        return "http://engine.invalid:8000/v1"
    if row.needs == "silent-names":
        ended = threading.Event()
        stack.callback(ended.set)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(30) and [])
        return "http://engine.example:8000/v1"
    words = row.needs.split()
    tls = certs[words[1]] if words[:1] == ["tls"] and words[1] != "http" else certs["good"] if "tls" in words else None
    host = "::1" if row.needs == "ipv6" else "127.0.0.1"
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    proxy = stack.enter_context(serve(engine.port, row.to, row.script, engine.key, timeout=engine.timeout, host=host,
                                      certificate=tls))  # fmt: skip
    if tls and row.needs != "tls selfsigned":
        monkeypatch.setenv("SSL_CERT_FILE", str(tls))
    if row.needs == "localhost":
        monkeypatch.setattr(socket, "getaddrinfo", _both_families)
        host = "localhost"
    scheme = "https" if row.needs == "https" or (tls and row.needs != "tls http") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{proxy.port}/v1"


def _unknown(*_: Any, **__: Any) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def _both_families(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
    """`localhost` as most machines resolve it."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    if host == "localhost":
        found.insert(0, (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)))
    return found


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """A port with a full accept queue: it looks like a firewall that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


def trace_memory(work: Callable[[], tuple[Report, float]]) -> tuple[Report, float, int]:
    """The result of `work`, and the peak growth of memory in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        report, took = work()
        return report, took, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def prove(row: Row, engine: Engine, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asserts the row's verdict and what holds for all reports: in time, small, valid JSON, without the key."""
    known = {check.name for check in CHECKS}
    # after a rename of a check, its rows must not pass unnoticed
    assert set(row.select) <= known, f"there is no check {set(row.select) - known}"
    grown = 0
    if row.heavy:
        report, took, grown = trace_memory(lambda: run_row(row, engine, certs, monkeypatch))
    else:
        report, took = run_row(row, engine, certs, monkeypatch)
    (endpoint,) = report.endpoints
    text = "\n" + as_text(report, verbose=True)
    _assert_verdict(row, engine, endpoint, text)
    # tracing makes the check several times slower
    assert took <= row.waits * engine.timeout + engine.slack * (3 if row.heavy else 1), f"{took:.1f} s{text}"
    assert grown < MAX_MEMORY, f"{grown / 1e6:.0f} MB"
    _assert_sound(report, text, engine.key)


def prove_together(
    rows: Iterable[Row], engine: Engine, certs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Runs slow rows concurrently; returns the names and failures of those that don't hold."""
    slow = [row for row in rows if row.is_slow]

    def one(row: Row) -> str:
        try:
            prove(row, engine, certs, monkeypatch)
        except AssertionError as error:
            return f"{row.name}: {error}"
        return ""

    with ThreadPoolExecutor(8) as pool:
        return [failure for failure in pool.map(one, slow) if failure]


def _assert_verdict(row: Row, engine: Engine, endpoint: EndpointReport, text: str) -> None:
    status = {one.name: one for one in reversed(endpoint.results)}
    failing = [name for name in status if any(one.status == "fail" and one.name == name for one in endpoint.results)]
    failing.sort(key=[one.name for one in endpoint.results].index)
    warning = [one.name for one in endpoint.results if one.status == "warn" and one.name not in ALWAYS
               and not (engine.fast and BUFFERED.search(one.message) and row.warns != "stream")]  # fmt: skip
    assert endpoint.ok is not bool(row.fails), text
    if row.fails:
        # the first failure is the one that users read
        assert failing[0] in row.fails.split("|"), text
        assert set(failing[1:]) <= set(row.also), text
        found = next(one for one in endpoint.results if one.name == failing[0] and one.status == "fail")
        assert found.hint, text
        assert re.search(row.says, found.message), text
        # the checks that need it are skipped
        if failing[0] in ("resolve", "connect", "tls", "http"):
            place = endpoint.results.index(found)
            assert {one.status for one in endpoint.results[place + 1 :]} <= {"skip"}, text
        return
    assert warning == ([row.warns] if row.warns else []), text
    messages = [message for one in endpoint.results if not row.warns or one.name == row.warns
             for message in (one.message, *one.notes)]  # fmt: skip
    assert not row.says or any(re.search(row.says, message) for message in messages), text
    # healthy requires completions
    assert {"chat", "stream"} <= {one.name for one in endpoint.results if one.status in ("pass", "warn")}, text
    assert endpoint.answer is not None or row.warns == "chat", text


def _assert_sound(report: Report, printed: str, key: str) -> None:
    """What every report must satisfy, whatever a server sends."""
    plain = report.to_json()
    text = json.dumps(plain, allow_nan=False)
    jsonschema.validate(json.loads(text), JSON_SCHEMA)
    assert len(text) < MAX_REPORT, len(text)
    # every terminal and file can encode it
    printed.encode()
    for word in (text, printed, repr(report)):
        assert key not in word
        assert "Traceback" not in word
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", printed)
    for one in report.endpoints[0].results:
        assert len(one.message) < 2000, one.message[:200]
        assert all(value >= 0 for value in one.figures.values()), one.figures
        assert all(value >= 0 for values in one.samples.values() for value in values), one.samples
        assert sum(len(exchange.request) + len(exchange.response) for exchange in one.exchanges) < 200_000
