"""The results of a check as plain data, and their formats: text, HTML, JUnit XML."""

from __future__ import annotations

from stackgen.check.report.model import JSON_SCHEMA, SCHEMA, EndpointReport, Exchange, Report, Result, Status

__all__ = ["JSON_SCHEMA", "SCHEMA", "EndpointReport", "Exchange", "Report", "Result", "Status"]
