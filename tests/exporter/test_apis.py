"""What works with each endpoint: the exporter probes rarely, and shows it as metrics, in the status and on the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stackgen.check.options import Options
from stackgen.check.report import ApiSupport, EndpointReport, Report, Result
from stackgen.exporter import Exporter, apis, monitoring_options, render_metrics, report_status
from stackgen.exporter.apis import ApiRounds
from tests.check.fake import Answer, Fake

from .conftest import get, target, wait_until

PASSED = Result("chat", status="pass", seconds=0.1, message="answers", model="tiny")
FAILED = Result("chat", status="fail", seconds=0.1, message="no answer", model="tiny")
CELLS = (
    ApiSupport("tiny", "chat", "works"),
    ApiSupport("big", "chat", "works"),
    ApiSupport("tiny", "tools", "refused", "no parser"),
    ApiSupport("big", "tools", "works"),
    ApiSupport("tiny", "list_content", "not checked", "timeout"),
)


def report(result: Result = PASSED, cells: tuple[ApiSupport, ...] = ()) -> EndpointReport:
    return EndpointReport("gpu", base_url="http://h/v1", dialect="vllm", results=(result,), apis=cells)


def probes(fake: Fake) -> int:
    return sum(request.path == "/v1/responses" for request in fake.seen)


def test_the_exporter_probes_once_and_keeps_the_result(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)], interval=0.05)

    def shown() -> Any:
        (one,) = exporter.state.snapshot()
        return one.report and one.report.apis and one.runs >= 4 and one.report

    found = wait_until(shown)
    assert probes(fake) == 1
    # a probe takes a bounded number of requests
    assert {cell.api for cell in found.apis} >= {"chat", "responses", "messages", "stream_usage"}
    metrics = get(exporter, "/metrics").text
    assert 'stackgen_api_works{api="chat",endpoint="fake",model="tiny"} 1.0' in metrics
    assert 'stackgen_api_works{api="responses",endpoint="fake",model="tiny"} 0.0' in metrics
    (row,) = json.loads(get(exporter, "/api/status").text)["endpoints"]
    assert row["apis_text"].startswith("Works: chat") and "Not served: responses, messages" in row["apis_text"]
    assert row["apis_text"] in get(exporter, "/").text
    assert "What works with this endpoint" in get(exporter, "/endpoint/fake").text


def test_the_first_report_does_not_wait_for_the_probe(export: Callable[..., Exporter], fake: Fake) -> None:
    fake.routes["POST /v1/responses"] = Answer(404, pause=0.4)
    started = time.monotonic()
    exporter = export([target(fake)], interval=5)
    wait_until(lambda: exporter.state.snapshot()[0].report)
    first = time.monotonic() - started
    wait_until(lambda: probes(fake))
    assert first < time.monotonic() - started


def test_a_probe_is_repeated_after_its_interval_or_a_failure_and_never_more_often(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("stackgen.exporter.apis.time.monotonic", lambda: clock[0])
    asked: list[Any] = []

    class Answered:
        endpoints = (report(cells=CELLS),)

    def answer(_: Any, options: Options) -> type[Answered]:
        asked.append(options)
        return Answered

    monkeypatch.setattr(apis, "run_check", answer)
    rounds = ApiRounds(1, monitoring_options(5.0))

    def go(result: Result, seconds: float) -> tuple[ApiSupport, ...]:
        clock[0] += seconds
        rounds.probe(0, target(fake), report(result))
        return rounds.latest(0, report(result))

    assert go(PASSED, 0) == CELLS and len(asked) == 1
    assert go(PASSED, apis.INTERVAL - 1) == CELLS and len(asked) == 1
    assert go(PASSED, 1) == CELLS and len(asked) == 2
    # nothing works on an endpoint that is down, and what worked before is forgotten
    assert go(FAILED, 30) == () and len(asked) == 2
    assert go(PASSED, 30) == () and len(asked) == 2
    assert go(PASSED, apis.MIN_INTERVAL) == CELLS and len(asked) == 3
    assert {one.is_light for one in asked} == {True} and {one.max_models for one in asked} == {apis.MAX_MODELS}


def test_a_profile_with_its_own_table_or_a_skipped_one_is_not_probed(fake: Fake) -> None:
    for options in (Options(profile="deep"), Options(skip=("apis",))):
        rounds = ApiRounds(1, options)
        rounds.probe(0, target(fake), report(FAILED))
        rounds.probe(0, target(fake), report())
    assert fake.seen == []


def test_a_probe_that_crashes_leaves_no_table(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(apis, "run_check", crash)
    rounds = ApiRounds(1, monitoring_options(5.0))
    rounds.probe(0, target(fake), report())
    assert rounds.latest(0, report()) == ()


def test_metrics_and_status_show_each_state() -> None:
    whole = Report((report(cells=CELLS),), "now")
    found = {
        (sample.labels["model"], sample.labels["api"]): sample.value
        for family in text_string_to_metric_families(render_metrics(whole))
        for sample in family.samples
        if family.name == "stackgen_api_works"
    }
    assert found == {("tiny", "chat"): 1, ("big", "chat"): 1, ("tiny", "tools"): 0, ("big", "tools"): 1}
    (row,) = report_status(whole, interval=30, profile="deep")["endpoints"]
    assert row["apis_text"] == "Works: chat, tools (big). Refused: tools (tiny). Not checked: list content"
    assert row["apis"][2] == {"model": "tiny", "api": "tools", "state": "refused", "detail": "no parser"}


def test_two_long_names_with_the_same_start_give_one_series() -> None:
    cells = tuple(ApiSupport("x" * 300 + end, "chat", "works") for end in "ab")
    assert render_metrics(Report((report(cells=cells),), "now")).count("stackgen_api_works{") == 1
