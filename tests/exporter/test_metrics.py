"""The metrics, parsed with Prometheus' own parsers, for normal reports and for odd names sent by servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text
from prometheus_client.samples import Sample

from stackgen import __version__
from stackgen.check.report import EndpointReport, Report, Result
from stackgen.exporter import Exporter, render_metrics
from tests.check.fake import Answer, Fake

from .conftest import all_checked, get, target, wait_until

REPORT = EndpointReport(
    "gpu",
    base_url="https://gpu.example.org/v1",
    dialect="vllm",
    results=(
        Result("connect", status="pass", seconds=0.01, message="answers"),
        Result(
            "tls", status="warn", seconds=0.02, message="ends soon", hint="renew it", figures={"certificate_days": 9.5}
        ),
        Result("alive", status="skip", seconds=None, message="has none"),
        Result("chat", status="fail", seconds=0.5, message="no content", hint="look at the log", model="big"),
        Result(
            "stream",
            status="pass",
            seconds=0.4,
            message="ends",
            model="tiny",
            figures={
                "ttft_seconds": 0.031,
                "inter_token_p50_seconds": 0.01,
                "inter_token_p99_seconds": 0.04,
                "tokens_per_second": 81.5,
            },
        ),
        Result(
            "load",
            status="pass",
            seconds=1.0,
            message="4 at once",
            model="tiny",
            figures={"p50_seconds": 0.4, "p99_seconds": 1.25, "tokens_per_second": 300.0},
        ),
    ),
    answer=None,
    seconds=2.5,
)


def samples(text: str, parser: Callable[[str], Iterable[object]] = plain_text) -> dict[tuple[str, ...], float]:
    """Value by name and labels; fails on a duplicate series, for which Prometheus rejects the scrape."""
    found: list[Sample] = [sample for family in parser(text) for sample in family.samples]  # type: ignore[attr-defined]
    values = {
        (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items()))): one.value for one in found
    }
    assert len(values) == len(found)
    return values


def test_a_report_becomes_metrics() -> None:
    values = samples(render_metrics(Report((REPORT,), "2026-11-23T00:00:00+00:00")))
    when = values.pop(("stackgen_last_check_timestamp_seconds", "endpoint=gpu"))
    assert when > 1.7e9

    def check(name: str, check: str, model: str = "") -> tuple[str, ...]:
        return (f"stackgen_check_{name}", f"check={check}", "endpoint=gpu", f"model={model}")

    assert values == {
        ("stackgen_build_info", f"version={__version__}"): 1,
        ("stackgen_endpoint_up", "base_url=https://gpu.example.org/v1", "dialect=vllm", "endpoint=gpu"): 0,
        ("stackgen_check_runs_total", "endpoint=gpu"): 1,
        ("stackgen_check_round_duration_seconds", "endpoint=gpu"): 2.5,
        **{check("status", name, model): value
           for name, model, value in (("connect", "", 1), ("tls", "", 1), ("chat", "big", 0), ("stream", "tiny", 1),
                                      ("load", "tiny", 1))},
        **{check("warning", name, model): value
           for name, model, value in (("connect", "", 0), ("tls", "", 1), ("chat", "big", 0), ("stream", "tiny", 0),
                                      ("load", "tiny", 0))},
        **{check("duration_seconds", name, model): value
           for name, model, value in (("connect", "", 0.01), ("tls", "", 0.02), ("chat", "big", 0.5),
                                      ("stream", "tiny", 0.4), ("load", "tiny", 1.0))},
        ("stackgen_ttft_seconds", "endpoint=gpu", "model=tiny"): 0.031,
        ("stackgen_inter_token_seconds", "endpoint=gpu", "model=tiny", "quantile=0.5"): 0.01,
        ("stackgen_inter_token_seconds", "endpoint=gpu", "model=tiny", "quantile=0.99"): 0.04,
        ("stackgen_tokens_per_second", "endpoint=gpu", "model=tiny"): 81.5,
        ("stackgen_load_latency_seconds", "endpoint=gpu", "model=tiny", "quantile=0.5"): 0.4,
        ("stackgen_load_latency_seconds", "endpoint=gpu", "model=tiny", "quantile=0.99"): 1.25,
        ("stackgen_load_tokens_per_second", "endpoint=gpu", "model=tiny"): 300,
        ("stackgen_certificate_days", "endpoint=gpu"): 9.5,
    }  # fmt: skip


def test_of_results_with_the_same_labels_the_worse_one_is_exported() -> None:
    more = (
        Result("connect", status="fail", seconds=3.0, message="gone"),
        Result("stream", status="pass", seconds=0.1, message="x", model="tiny", figures={"ttft_seconds": 9.0}),
    )
    twice = replace(REPORT, results=(*REPORT.results, *more))
    values = samples(render_metrics(Report((twice,), "now")))
    assert values["stackgen_check_status", "check=connect", "endpoint=gpu", "model="] == 0
    assert values["stackgen_ttft_seconds", "endpoint=gpu", "model=tiny"] == 0.031


@pytest.mark.parametrize("model", ['a"b\\c\nd', "{}=,# HELP x", "ü€𝄞", "m" * 5000])
def test_odd_model_names_are_escaped_and_truncated(model: str) -> None:
    odd = replace(REPORT, results=(Result("chat", status="pass", seconds=0.1, message="x", model=model),))
    values = samples(render_metrics(Report((odd,), "now")))
    (name,) = [labels[3] for labels in values if labels[0] == "stackgen_check_status"]
    assert name == f"model={model if len(model) <= 200 else 'm' * 199 + '…'}"


def test_a_scrape_contains_only_the_latest_round(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)])
    wait_until(lambda: all_checked(exporter))
    up = ("stackgen_endpoint_up", f"base_url={fake.url}", "dialect=vllm", "endpoint=fake")
    values = samples(get(exporter, "/metrics").text)
    assert values[up] == 1
    assert ("stackgen_ttft_seconds", "endpoint=fake", "model=tiny") in values
    fake.routes["POST /v1/chat/completions"] = Answer(503, b"{}")
    wait_until(lambda: samples(get(exporter, "/metrics").text)[up] == 0)
    values = samples(get(exporter, "/metrics").text)
    # no stale series of a measurement that is missing in the latest round
    assert not [labels for labels in values if labels[0] == "stackgen_ttft_seconds"]
    assert values["stackgen_check_runs_total", "endpoint=fake"] >= 2


def test_before_the_first_round_an_endpoint_is_neither_up_nor_down(export: Callable[..., Exporter], fake: Fake) -> None:
    fake.routes["GET /v1/models"] = Answer(200, b"{}", pause=1.5)
    values = samples(get(export([target(fake)]), "/metrics").text)
    assert values["stackgen_check_runs_total", "endpoint=fake"] == 0
    assert not [labels for labels in values if labels[0] == "stackgen_endpoint_up"]


def test_the_scraper_negotiates_format_and_compression(export: Callable[..., Exporter], fake: Fake) -> None:
    exporter = export([target(fake)])
    wait_until(lambda: all_checked(exporter))
    response = get(exporter, "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    # the Accept header of Prometheus 3
    response = get(exporter, "/metrics", Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert response.text.endswith("# EOF\n")
    values = samples(response.text, open_metrics)
    assert values["stackgen_check_runs_total", "endpoint=fake"] >= 1
    compressed = get(exporter, "/metrics", Accept_Encoding="gzip")
    assert compressed.headers["Content-Encoding"] == "gzip" and compressed.body[:2] == b"\x1f\x8b"
