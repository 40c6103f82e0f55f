"""JUnit XML: what CI systems count, and text that XML can't contain."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackgen.check.report import EndpointReport, Report, Result
from stackgen.check.report.junit import as_junit

RESULTS = (
    Result(
        "chat",
        status="fail",
        seconds=0.5,
        message="no content",
        hint="look at the log",
        evidence="HTTP 200",
        model="tiny",
    ),
    Result("auth", status="warn", seconds=0.02, message="open path", hint="close it", evidence="/metrics"),
    Result("tls", status="skip", seconds=None, message="plain HTTP"),
    Result("stream", status="pass", seconds=0.2, message="well", notes=("no usage",), figures={"ttft_seconds": 0.1}),
)
REPORT = Report(
    (EndpointReport("a.b", base_url="http://h/v1", dialect="vllm", results=RESULTS, answer=None, seconds=0.8),),
    "2026-11-23T00:00:00+00:00",
)


def test_failures_and_skips_are_counted_and_described() -> None:
    root = ElementTree.fromstring(as_junit(REPORT))
    assert {name: root.get(name) for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "4", "failures": "1", "skipped": "1", "errors": "0",
    }  # fmt: skip
    (suite,) = root.findall("testsuite")
    assert (suite.get("name"), suite.get("time"), suite.get("failures")) == ("a.b", "0.800", "1")
    failed, warned, skipped, passed = suite.findall("testcase")
    assert (failed.get("name"), failed.get("classname"), failed.get("time")) == ("chat [tiny]", "stackgen.a_b", "0.500")
    failure = failed.find("failure")
    assert failure is not None and (failure.get("message"), failure.text) == ("no content", "look at the log\nHTTP 200")
    assert skipped.find("skipped") is not None
    assert warned.findtext("system-out") == "warning: open path\nhint: close it\n/metrics"
    assert passed.findtext("system-out") == "note: no usage\nttft_seconds: 0.1"
    assert warned.find("failure") is None


@given(st.text())
def test_any_server_text_makes_valid_xml(text: str) -> None:
    result = Result("chat", status="fail", seconds=0.1, message=text, hint=text, evidence=text, model=text)
    root = ElementTree.fromstring(
        as_junit(Report((EndpointReport(text, base_url=text, dialect="x", results=(result,)),), "now"))
    )
    assert len(root.findall("testsuite/testcase/failure")) == 1


@pytest.mark.parametrize("text", ["]]>", "<!--", "&amp;", "\x00\ud800\uffff", "\"'<>"])
def test_markup_is_escaped(text: str) -> None:
    result = Result("chat", status="fail", seconds=0.1, message=text)
    message = ElementTree.fromstring(
        as_junit(Report((EndpointReport("e", base_url="u", dialect="x", results=(result,)),), "now"))
    ).find(".//failure")
    assert message is not None
    assert message.get("message") == text.replace("\x00", "�").replace("\ud800", "�").replace("\uffff", "�")
