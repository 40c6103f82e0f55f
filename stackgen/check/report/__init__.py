"""What a check found, as plain data; and its forms: text, HTML page, JUnit XML."""

from __future__ import annotations

from stackgen.check.report.model import JSON_SCHEMA, SCHEMA, EndpointReport, Exchange, Report, Result, Status

__all__ = ["JSON_SCHEMA", "SCHEMA", "EndpointReport", "Exchange", "Report", "Result", "Status"]
