"""Reports: verdict, JSON and its schema, text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stackgen.check.report import JSON_SCHEMA, EndpointReport, Exchange, Report, Result, Status
from stackgen.check.report.text import as_exchanges, as_text, change_lines

GOOD = EndpointReport(
    "good",
    "http://h/v1",
    "vllm",
    (Result("connect", "pass", 0.01, "answers", notes=("slow",), figures={"a": 1.5}, samples={"b": (0.1,)}),),
    "Paris",
)
BAD = EndpointReport(
    "bad",
    "http://b/v1",
    "openai",
    (
        Result("connect", "pass", 0.01, "answers", evidence="quiet"),
        Result("alive", "skip", None, "has none"),
        Result("auth", "warn", 0.02, "open path", "close it", "/metrics"),
        Result("chat", "fail", 0.5, "no content", "look at the log", "HTTP 200", "tiny"),
    ),
)
REPORT = Report((GOOD, BAD), "2026-11-23T00:00:00+00:00")


def validate(data: Any, schema: dict[str, Any], path: str = "$") -> list[str]:
    """The mistakes of `data`, for the few words of JSON Schema that the report's schema uses; others raise."""
    words = "$schema title description type properties required items enum const additionalProperties"
    assert set(schema) <= set(words.split())
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float), "null": type(None)}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(isinstance(data, kinds[kind]) for kind in wanted):  # type: ignore[arg-type]
        return [f"{path}: {wanted}"]
    if "enum" in schema and data not in schema["enum"]:
        return [f"{path}: {schema['enum']}"]
    if "const" in schema and data != schema["const"]:
        return [f"{path}: {schema['const']}"]
    found = []
    if isinstance(data, dict):
        known = schema.get("properties", {})
        found += [f"{path}.{name}: missing" for name in schema.get("required", []) if name not in data]
        found += [f"{path}.{name}: unknown" for name in data
                  if name not in known and schema.get("additionalProperties") is False]  # fmt: skip
        for name in data:
            inner = known.get(name) or schema["additionalProperties"]
            found += validate(data[name], inner, f"{path}.{name}") if inner else []
    if isinstance(data, list):
        for index, one in enumerate(data):
            found += validate(one, schema["items"], f"{path}[{index}]")
    return found


def test_the_json_is_as_its_schema_says() -> None:
    data = json.loads(json.dumps(REPORT.to_json()))
    assert validate(data, JSON_SCHEMA) == []
    assert data["schema"] == 1
    assert [endpoint["ok"] for endpoint in data["endpoints"]] == [True, False]
    assert data["endpoints"][1]["results"][3]["hint"] == "look at the log"
    # the validator can fail: a changed body has exactly the changed place as its mistake
    data["endpoints"][0]["results"][0]["status"] = "great"
    del data["endpoints"][1]["answer"]
    assert [one.split(":")[0] for one in validate(data, JSON_SCHEMA)] == [
        "$.endpoints[0].results[0].status",
        "$.endpoints[1].answer",
    ]


@pytest.mark.parametrize(("status", "ok"), [("pass", True), ("warn", True), ("skip", False), ("fail", False)])
def test_a_failure_makes_an_endpoint_unhealthy_and_so_does_nothing_but_skips(status: Status, ok: bool) -> None:
    report = Report((GOOD, EndpointReport("x", "http://x/v1", "vllm", (Result("chat", status, 0.1, "m"),))), "now")
    assert (report.ok, report.exit_code) == (ok, 0 if ok else 1)


def test_nothing_checked_is_nothing_proved() -> None:
    assert not Report((), "now").ok
    assert as_text(Report((), "now")) == "nothing to check: the stack has no endpoint"


def test_the_text_names_failures_first_with_their_hints() -> None:
    lines = as_text(REPORT).splitlines()
    assert lines[0] == "FAIL  bad  http://b/v1  (openai)  0.0 s"
    assert lines[1].split() == ["✗", "fail", "chat", "[tiny]", "0.50", "s", "no", "content"]
    assert lines[2].strip() == "→ look at the log"
    assert lines[3].strip() == "seen: HTTP 200"
    assert [line.split()[0] for line in lines[4:9]] == ["!", "→", "seen:", "✓", "-"]
    assert "PASS  good  http://h/v1  (vllm)  0.0 s" in lines
    assert "          note: slow" in lines
    assert "  answer: Paris" in lines
    assert lines[-1] == "NOT healthy: 1 of 2 endpoints; checks: 1 fail, 1 warn, 2 pass, 1 skip; 0.0 s"


def test_colour_and_evidence_come_only_when_told() -> None:
    assert "\x1b" not in as_text(REPORT)
    assert "\x1b[31m✗ fail\x1b[0m" in as_text(REPORT, color=True)
    assert "quiet" not in as_text(REPORT)
    assert "seen: quiet" in as_text(REPORT, verbose=True)


def test_of_many_endpoints_only_what_needs_work_is_told_whole() -> None:
    fast = Result("stream", "pass", 0.1, "m", figures={"ttft_seconds": 0.031, "tokens_per_second": 45.2})
    some = tuple(EndpointReport(f"e{number}", "http://h/v1", "vllm", (fast,)) for number in range(8))
    lines = as_text(Report((*some, BAD), "now")).splitlines()
    assert lines[0].startswith("FAIL  bad")
    assert "✓ pass  e3  http://h/v1  TTFT 0.031 s, 45.2 tokens/s" in lines
    many = tuple(EndpointReport(f"e{number}", "http://h/v1", "vllm", (fast,)) for number in range(999))
    text = as_text(Report((*many, BAD), "now"))
    assert "FAIL  bad" in text
    assert "e500" not in text
    assert "1 of 1000 endpoints" in text
    assert len(text.splitlines()) < 15
    assert "e500" in as_text(Report((*many, BAD), "now"), verbose=True)


def test_a_watch_prints_changes_only() -> None:
    assert change_lines(None, BAD) == ["✗ fail  bad  http://b/v1  chat [tiny]: no content"]
    assert change_lines(BAD, BAD) == []
    healed = EndpointReport("bad", "http://b/v1", "openai", tuple(
        Result(one.name, "pass", 0.3, "well", model=one.model) if one.name == "chat" else one for one in BAD.results
    ))  # fmt: skip
    assert change_lines(BAD, healed) == ["bad  chat [tiny]: fail → pass  well"]
    assert change_lines(healed, BAD) == ["bad  chat [tiny]: pass → fail  no content", "    → look at the log"]
    # figures in the words of a pass change every time
    slower = EndpointReport("bad", "http://b/v1", "openai", tuple(
        Result(one.name, one.status, 9.0, f"{one.message} slower" if one.status == "pass" else one.message, one.hint)
        for one in BAD.results
    ))  # fmt: skip
    assert change_lines(slower, slower) == []


def test_requests_are_shown_for_debugging() -> None:
    exchange = Exchange("POST", "http://h/v1/chat", 200, 0.5, 0.1, '{"model": "tiny"}', "[key]")
    report = Report((EndpointReport("e", "u", "x", (Result("chat", "pass", 0.1, "m", exchanges=(exchange,)),)),), "now")
    assert list(as_exchanges(report)) == [
        "[e] chat: POST http://h/v1/chat -> 200 after 0.500 s", '    > {"model": "tiny"}', "    < [key]",
    ]  # fmt: skip


def test_of_many_failing_endpoints_each_is_a_line() -> None:
    many = tuple(EndpointReport(f"e{number}", "http://h/v1", "vllm", BAD.results) for number in range(500))
    text = as_text(Report(many, "now"))
    assert "✗ fail  e7  http://h/v1  chat [tiny]: no content  → look at the log" in text.splitlines()
    assert len(text.splitlines()) < 510
    assert len(as_text(Report(many, "now"), verbose=True).splitlines()) > 3000
    # a few are told whole
    assert "seen: HTTP 200" in as_text(Report(many[:20], "now"))
