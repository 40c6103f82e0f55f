"""Reports: verdict, JSON and its schema, text output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stackgen.check.report import JSON_SCHEMA, EndpointReport, Exchange, Report, Result, Status
from stackgen.check.report.text import as_text, change_lines, exchange_lines

GOOD = EndpointReport(
    "good",
    base_url="http://h/v1",
    dialect="vllm",
    results=(
        Result(
            "connect",
            status="pass",
            seconds=0.01,
            message="answers",
            notes=("slow",),
            figures={"a": 1.5},
            samples={"b": (0.1,)},
        ),
    ),
    answer="Paris",
)
BAD = EndpointReport(
    "bad",
    base_url="http://b/v1",
    dialect="openai",
    results=(
        Result("connect", status="pass", seconds=0.01, message="answers", evidence="quiet"),
        Result("alive", status="skip", seconds=None, message="has none"),
        Result("auth", status="warn", seconds=0.02, message="open path", hint="close it", evidence="/metrics"),
        Result(
            "chat",
            status="fail",
            seconds=0.5,
            message="no content",
            hint="look at the log",
            evidence="HTTP 200",
            model="tiny",
        ),
    ),
)
REPORT = Report((GOOD, BAD), "2026-11-23T00:00:00+00:00")


def validate(data: Any, schema: dict[str, Any], path: str = "$") -> list[str]:
    """The errors in `data`, for the few JSON Schema keywords that the report's schema uses; others raise."""
    keywords = "$schema title description type properties required items enum const additionalProperties"
    assert set(schema) <= set(keywords.split())
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float), "null": type(None)}
    allowed = schema.get("type", [])
    allowed = [allowed] if isinstance(allowed, str) else allowed
    if allowed and not any(isinstance(data, kinds[kind]) for kind in allowed):  # type: ignore[arg-type]
        return [f"{path}: {allowed}"]
    if "enum" in schema and data not in schema["enum"]:
        return [f"{path}: {schema['enum']}"]
    if "const" in schema and data != schema["const"]:
        return [f"{path}: {schema['const']}"]
    errors = []
    if isinstance(data, dict):
        known = schema.get("properties", {})
        errors += [f"{path}.{name}: missing" for name in schema.get("required", []) if name not in data]
        errors += [f"{path}.{name}: unknown" for name in data
                  if name not in known and schema.get("additionalProperties") is False]  # fmt: skip
        for name in data:
            inner = known.get(name) or schema["additionalProperties"]
            errors += validate(data[name], inner, f"{path}.{name}") if inner else []
    if isinstance(data, list):
        for index, one in enumerate(data):
            errors += validate(one, schema["items"], f"{path}[{index}]")
    return errors


def test_the_json_matches_its_schema() -> None:
    data = json.loads(json.dumps(REPORT.to_json()))
    assert validate(data, JSON_SCHEMA) == []
    assert data["schema"] == 1
    assert [endpoint["ok"] for endpoint in data["endpoints"]] == [True, False]
    assert data["endpoints"][1]["results"][3]["hint"] == "look at the log"
    # the validator can fail: it reports exactly the changed places
    data["endpoints"][0]["results"][0]["status"] = "great"
    del data["endpoints"][1]["answer"]
    assert [one.split(":")[0] for one in validate(data, JSON_SCHEMA)] == [
        "$.endpoints[0].results[0].status",
        "$.endpoints[1].answer",
    ]


@pytest.mark.parametrize(("status", "ok"), [("pass", True), ("warn", True), ("skip", False), ("fail", False)])
def test_an_endpoint_is_unhealthy_if_a_check_failed_or_none_ran(status: Status, ok: bool) -> None:
    report = Report(
        (
            GOOD,
            EndpointReport(
                "x",
                base_url="http://x/v1",
                dialect="vllm",
                results=(Result("chat", status=status, seconds=0.1, message="m"),),
            ),
        ),
        "now",
    )
    assert (report.ok, report.exit_code) == (ok, 0 if ok else 1)


def test_a_report_without_endpoints_is_not_ok() -> None:
    assert not Report((), "now").ok
    assert as_text(Report((), "now")) == "nothing to check: the stack has no endpoints"


def test_the_text_lists_failures_first_with_their_hints() -> None:
    lines = as_text(REPORT).splitlines()
    assert lines[0] == "FAIL  bad  http://b/v1  (openai)  0.0 s"
    assert lines[1].split() == ["✗", "fail", "chat", "[tiny]", "0.50", "s", "no", "content"]
    assert lines[2].strip() == "→ look at the log"
    assert lines[3].strip() == "evidence: HTTP 200"
    assert [line.split()[0] for line in lines[4:9]] == ["!", "→", "evidence:", "✓", "-"]
    assert "PASS  good  http://h/v1  (vllm)  0.0 s" in lines
    assert "          note: slow" in lines
    assert "  answer: Paris" in lines
    assert lines[-1] == "NOT healthy: 1 of 2 endpoints; checks: 1 fail, 1 warn, 2 pass, 1 skip; 0.0 s"


def test_color_and_evidence_are_opt_in() -> None:
    assert "\x1b" not in as_text(REPORT)
    assert "\x1b[31m✗ fail\x1b[0m" in as_text(REPORT, color=True)
    assert "quiet" not in as_text(REPORT)
    assert "evidence: quiet" in as_text(REPORT, verbose=True)


def test_with_many_endpoints_only_failing_ones_are_printed_in_full() -> None:
    fast = Result(
        "stream", status="pass", seconds=0.1, message="m", figures={"ttft_seconds": 0.031, "tokens_per_second": 45.2}
    )
    some = tuple(
        EndpointReport(f"e{number}", base_url="http://h/v1", dialect="vllm", results=(fast,)) for number in range(8)
    )
    lines = as_text(Report((*some, BAD), "now")).splitlines()
    assert lines[0].startswith("FAIL  bad")
    assert "✓ pass  e3  http://h/v1  TTFT 0.031 s, 45.2 tokens/s" in lines
    many = tuple(
        EndpointReport(f"e{number}", base_url="http://h/v1", dialect="vllm", results=(fast,)) for number in range(999)
    )
    text = as_text(Report((*many, BAD), "now"))
    assert "FAIL  bad" in text
    assert "e500" not in text
    assert "1 of 1000 endpoints" in text
    assert len(text.splitlines()) < 15
    assert "e500" in as_text(Report((*many, BAD), "now"), verbose=True)


def test_watch_prints_only_changes() -> None:
    assert change_lines(None, BAD) == ["✗ fail  bad  http://b/v1  chat [tiny]: no content"]
    assert change_lines(BAD, BAD) == []
    fixed = EndpointReport(
        "bad",
        base_url="http://b/v1",
        dialect="openai",
        results=tuple(
            Result(one.name, status="pass", seconds=0.3, message="well", model=one.model) if one.name == "chat" else one
            for one in BAD.results
        ),
    )
    assert change_lines(BAD, fixed) == ["bad  chat [tiny]: fail → pass  well"]
    assert change_lines(fixed, BAD) == ["bad  chat [tiny]: pass → fail  no content", "    → look at the log"]
    # messages of passed checks contain measurements, which change in every round
    slower = EndpointReport(
        "bad",
        base_url="http://b/v1",
        dialect="openai",
        results=tuple(
            Result(
                one.name,
                status=one.status,
                seconds=9.0,
                message=f"{one.message} slower" if one.status == "pass" else one.message,
                hint=one.hint,
            )
            for one in BAD.results
        ),
    )
    assert change_lines(slower, slower) == []


def test_debug_prints_requests_and_responses() -> None:
    exchange = Exchange(
        "POST",
        url="http://h/v1/chat",
        status=200,
        seconds=0.5,
        started=0.1,
        request='{"model": "tiny"}',
        response="[key]",
    )
    report = Report(
        (
            EndpointReport(
                "e",
                base_url="u",
                dialect="x",
                results=(Result("chat", status="pass", seconds=0.1, message="m", exchanges=(exchange,)),),
            ),
        ),
        "now",
    )
    assert list(exchange_lines(report)) == [
        "[e] chat: POST http://h/v1/chat -> 200 after 0.500 s", '    > {"model": "tiny"}', "    < [key]",
    ]  # fmt: skip


def test_with_many_failing_endpoints_each_gets_one_line() -> None:
    many = tuple(
        EndpointReport(f"e{number}", base_url="http://h/v1", dialect="vllm", results=BAD.results)
        for number in range(500)
    )
    text = as_text(Report(many, "now"))
    assert "✗ fail  e7  http://h/v1  chat [tiny]: no content  → look at the log" in text.splitlines()
    assert len(text.splitlines()) < 510
    assert len(as_text(Report(many, "now"), verbose=True).splitlines()) > 3000
    # a few are printed in full
    assert "evidence: HTTP 200" in as_text(Report(many[:20], "now"))
