"""A report as JUnit XML for CI systems: one test suite per endpoint, one test case per check."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from stackgen.check.report import EndpointReport, Report, Result

__all__ = ["as_junit"]

# characters that XML 1.0 can't contain, not even escaped (https://www.w3.org/TR/xml/#charsets)
INVALID_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_junit(report: Report) -> str:
    """Returns the report as an XML document. A check with a warning passes, and `system-out` contains the warning.

    Format: the Ant schema as read by Jenkins, GitLab and GitHub's reporters (testsuites, testsuite, testcase with
    failure or skipped). Times are in seconds.
    """
    root = ElementTree.Element("testsuites", _counts([one for each in report.endpoints for one in each.results]))
    root.set("name", "stackgen check")
    root.set("time", f"{report.seconds:.3f}")
    for endpoint in report.endpoints:
        root.append(_suite(endpoint, report.started))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(endpoint: EndpointReport, started: str) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", _counts(endpoint.results))
    suite.set("name", _text(endpoint.name))
    suite.set("time", f"{endpoint.seconds:.3f}")
    suite.set("timestamp", started)
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("base_url", endpoint.base_url), ("dialect", endpoint.dialect)):
        ElementTree.SubElement(properties, "property", {"name": name, "value": _text(value)})
    for result in endpoint.results:
        suite.append(_case(result, endpoint.name))
    return suite


def _case(result: Result, endpoint: str) -> ElementTree.Element:
    name = f"{result.name} [{result.model}]" if result.model else result.name
    # CI systems split a class name at its dots into packages, and an endpoint's name may contain dots (an IP address)
    attributes = {"classname": _text(f"stackgen.{endpoint.replace('.', '_')}"), "name": _text(name)}
    case = ElementTree.Element("testcase", attributes | {"time": f"{result.seconds or 0:.3f}"})
    if result.status == "fail":
        failure = ElementTree.SubElement(case, "failure", {"message": _text(result.message), "type": result.name})
        failure.text = _text("\n".join(line for line in (result.hint, result.evidence) if line))
    elif result.status == "skip":
        ElementTree.SubElement(case, "skipped", {"message": _text(result.message)})
    # a warning is written to system-out, because JUnit has no status for warnings
    output = [f"warning: {result.message}", f"hint: {result.hint}"] if result.status == "warn" else []
    output += [result.evidence] if result.status == "warn" and result.evidence else []
    output += [f"note: {one}" for one in result.notes] + [f"{key}: {value:g}" for key, value in result.figures.items()]
    if output:
        ElementTree.SubElement(case, "system-out").text = _text("\n".join(output))
    return case


def _counts(results: list[Result] | tuple[Result, ...]) -> dict[str, str]:
    return {
        "tests": str(len(results)),
        "failures": str(sum(one.status == "fail" for one in results)),
        # JUnit's errors are tests that crashed; a check that crashes is a failed check here
        "errors": "0",
        "skipped": str(sum(one.status == "skip" for one in results)),
    }


def _text(text: str) -> str:
    # servers can send any character, and one invalid character would make the whole file unreadable
    return INVALID_XML.sub("\ufffd", text)
