"""Runs the rows of the gallery: the proxy in front of an engine, the check, and what every report must satisfy."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from jsonschema.validators import validator_for

from stackgen.check import check
from stackgen.check.checks.table import CHECKS
from stackgen.check.options import Options
from stackgen.check.report import JSON_SCHEMA, EndpointReport, Report
from stackgen.check.report.text import as_text
from stackgen.check.target import Target
from stackgen.plan import Dialect
from tests.faults.network import SILENT_NAME, UNKNOWN_NAME, closed_port, full_port, has_ipv6
from tests.faults.proxy import Upstream, serve
from tests.faults.rows import UNCHANGED, Row

__all__ = ["Engine", "Gallery", "parameter", "selected_rows"]

# the checks that the rows are about; features are left out
CORE = ("alive", "models", "chat", "stream", "auth")
MAX_REPORT = 40_000
# what the check may use in addition to the few MiB that the proxy sends; most rows stay far below
MAX_MEMORY = 80 * 1024 * 1024
# an open path is a warning in every row
ALWAYS = frozenset({"auth"})
# `jsonschema.validate` would check the schema itself for each row
VALIDATOR = validator_for(JSON_SCHEMA)(JSON_SCHEMA)
BUFFERED = re.compile(r"\d+ (chunks|tokens) arrived in \d+ (reads?|events?)")


@dataclass(frozen=True)
class Engine:
    """The engine behind the proxy.

    - `timeout` (s): the time-out of rows that wait for it. `patience` (s): the time-out of the other rows, so that a
      busy machine changes no verdict.
    - `slack`: the longest time that a healthy check takes (s).
    - `fast`: the engine generates all tokens within a few milliseconds after a slow start, which looks like a buffering
      proxy.
    """

    port: int
    key: str
    model: str
    dialect: Dialect
    timeout: float = 1.0
    patience: float = 10.0
    slack: float = 3.0
    fast: bool = False


@dataclass(frozen=True)
class Place:
    """Where rows run: the engine, the upstream of all proxies in front of it, and certificates for proxies with TLS."""

    engine: Engine
    upstream: Upstream
    certs: Mapping[str, Path]


class Gallery:
    """Runs `rows` in front of `engine`: at once, `workers` at a time, and beside them the rows that mostly wait.

    A context manager inside `surroundings`. `prove` waits for one row and raises its failure. `running` has the rows of
    all galleries of this process.
    """

    def __init__(
        self,
        engine: Engine,
        certs: Mapping[str, Path],
        rows: Sequence[Row],
        workers: int,
        running: list[Future[None]],
    ) -> None:
        self._place = Place(engine, Upstream(engine.port), certs)
        self._running = running
        # the longest first
        slow = sorted((row for row in rows if row.is_slow), key=lambda row: -row.waits)
        fast = [row for row in rows if not row.is_slow and not row.alone]
        self._pools = (ThreadPoolExecutor(8), ThreadPoolExecutor(workers))
        self._proven: dict[str, Future[None]] = {}
        # answers of the engine itself, so that no row with a short time-out waits for them
        for row in UNCHANGED:
            prove(row, self._place)
        for pool, some in zip(self._pools, (slow, fast), strict=True):
            self._proven |= {row.name: pool.submit(prove, row, self._place) for row in some}
        running += self._proven.values()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def prove(self, row: Row) -> None:
        if row.alone:
            wait(self._running)
            prove(row, self._place)
        else:
            self._proven[row.name].result()


def parameter(row: Row, name: str) -> Any:
    """A case of `pytest.mark.parametrize` with the name of an engine and a row."""
    marks = pytest.mark.xfail(reason=row.pending, strict=True) if row.pending else ()
    return pytest.param(name, row, id=f"{name}-{row.name}", marks=marks)


def selected_rows(request: pytest.FixtureRequest) -> list[tuple[str, Row]]:
    """The names and rows of the cases of a module that this run selects."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    cases = [item.callspec.params for item in items if hasattr(item, "callspec")]
    return [(str(case["name"]), row) for case in cases if isinstance(row := case.get("row"), Row)]


def run_row(row: Row, place: Place) -> tuple[Report, float]:
    """The report on the engine behind the row's fault, and how long the check took (s)."""
    engine = place.engine
    # a body of megabytes takes longer, and several times as long while memory is traced
    timeout = engine.timeout * (10 if row.heavy else row.stretch) if row.waits or row.heavy else engine.patience
    options = Options(row.profile, timeout, max_tokens=16, select=row.select or CORE, load=4)  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        url = _start_row(row, place, stack)
        target = Target("row", url, engine.key, (engine.model,), _dialect(row, engine))
        started = time.monotonic()
        report = check([target], options)
        return report, time.monotonic() - started


def _dialect(row: Row, engine: Engine) -> Dialect:
    """The dialect without most open paths, unless the row's fault can reach them: requests without the key get none."""
    if row.to in ("all", "none"):
        return engine.dialect
    return replace(engine.dialect, open_paths=engine.dialect.open_paths[:2])


def _start_row(row: Row, place: Place, stack: contextlib.ExitStack) -> str:
    """Starts what the row needs, and returns the base URL to check."""
    engine, certs = place.engine, place.certs
    if row.needs in ("closed", "full"):
        port = stack.enter_context(closed_port() if row.needs == "closed" else full_port())
        return f"http://127.0.0.1:{port}/v1"
    if row.needs in ("no-name", "silent-names"):
        return f"http://{UNKNOWN_NAME if row.needs == 'no-name' else SILENT_NAME}:8000/v1"
    words = row.needs.split()
    tls = certs[words[1]] if words[:1] == ["tls"] and words[1] != "http" else certs["good"] if "tls" in words else None
    host = "::1" if row.needs == "ipv6" else "127.0.0.1"
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    proxy = stack.enter_context(serve(place.upstream, row.to, row.script, engine.key, host=host, certificate=tls,
                                      timeout=engine.timeout * row.stretch))  # fmt: skip
    if row.needs == "localhost":
        host = "localhost"
    scheme = "https" if row.needs == "https" or (tls and row.needs != "tls http") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{proxy.port}/v1"


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


def prove(row: Row, place: Place) -> None:
    """Asserts the row's verdict and what holds for all reports: in time, small, valid JSON, without the key."""
    known = {check.name for check in CHECKS}
    # after a rename of a check, its rows must not pass unnoticed
    assert set(row.select) <= known, f"there is no check {set(row.select) - known}"
    grown = 0
    if row.heavy:
        report, took, grown = trace_memory(lambda: run_row(row, place))
    else:
        report, took = run_row(row, place)
    engine, (endpoint,) = place.engine, report.endpoints
    text = "\n" + as_text(report, verbose=True)
    _assert_verdict(row, engine, endpoint, text)
    # tracing makes the check several times slower
    slack = engine.slack * (3 * _slowness() if row.heavy else 1)
    assert took <= row.waits * engine.timeout * row.stretch + slack, f"{took:.1f} s, not {slack:.1f} s{text}"
    assert grown < MAX_MEMORY, f"{grown / 1e6:.0f} MB"
    _assert_sound(report, text, engine.key)


def _slowness() -> float:
    """How much longer than usual this machine needs now to read JSON while memory is traced; at least 1.

    Rows with megabytes of JSON need the processor, so a slow or busy machine needs longer for them.
    """
    text, took = json.dumps([{"id": f"m{number}", "object": "model", "created": 1} for number in range(20_000)]), []
    tracemalloc.start()
    for _ in range(3):
        started = time.perf_counter()
        json.loads(text)
        took.append(time.perf_counter() - started)
    tracemalloc.stop()
    # seconds of a core that does nothing else, rounded up
    return max(1.0, min(took) / 0.1)


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
    VALIDATOR.validate(json.loads(text))
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
