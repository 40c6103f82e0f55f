"""The results of a check as plain data, and their formats: text, HTML, JUnit XML."""

from __future__ import annotations

from stackgen.check.report.apis import APIS, STATE_MEANINGS, STATES, Api, ApiState, ApiSupport, group_support
from stackgen.check.report.model import JSON_SCHEMA, SCHEMA, EndpointReport, Exchange, Report, Result, Status

__all__ = [
    "APIS", "JSON_SCHEMA", "SCHEMA", "STATES", "STATE_MEANINGS", "Api", "ApiState", "ApiSupport", "EndpointReport",
    "Exchange", "Report", "Result", "Status", "group_support",
]  # fmt: skip
