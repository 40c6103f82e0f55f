"""The results of a check as plain data, as JSON, and the JSON Schema of that JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stackgen.check.report.apis import APIS, STATES, ApiSupport

__all__ = ["JSON_SCHEMA", "SCHEMA", "EndpointReport", "Exchange", "Report", "Result", "Status"]

Status = Literal["pass", "warn", "fail", "skip"]
# incremented when a field is renamed, removed or changes its meaning, but not for new fields
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its response, as redacted excerpts.

    - `status`: the HTTP status code; None if there was no response.
    - `seconds`: from the start of the request until the response was read.
    - `started`: seconds from the start of the endpoint's check to the request.
    """

    method: str
    url: str
    status: int | None
    seconds: float
    started: float = 0.0
    request: str = ""
    response: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check.

    - `seconds`: the duration of the check; None if the check didn't run.
    - `message`: what the check found. `hint`: what to do about the finding.
    - `evidence`: what the server sent, redacted and shortened.
    - `model`: the served model name, for checks that run once per model; else empty.
    - `notes`: known deviations of the dialect and other facts that are no failure.
    - `figures`: measurements by name, times in seconds (`ttft_seconds`, `tokens_per_second`).
    - `samples`: series of measurements in the order they were taken, in seconds (`inter_token_seconds`).
    - `exchanges`: the requests and responses; shown in HTML and with --debug, not part of the JSON.
    """

    name: str
    status: Status
    seconds: float | None
    message: str
    hint: str = ""
    evidence: str = ""
    model: str = ""
    notes: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    exchanges: tuple[Exchange, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointReport:
    """All results of one endpoint.

    - `answer`: text of the first completion; None if there was no completion.
    - `seconds`: duration of all its checks, not counting the wait for readiness.
    - `apis`: what works with the endpoint, by model and API; empty if the check `apis` didn't run.
    """

    name: str
    base_url: str
    dialect: str
    results: tuple[Result, ...]
    answer: str | None = None
    seconds: float = 0.0
    apis: tuple[ApiSupport, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether at least one check ran and none failed."""
        statuses = {result.status for result in self.results}
        # with only skipped checks, nothing was verified
        return "fail" not in statuses and bool(statuses - {"skip"})


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all endpoints; `started` is a UTC time in ISO 8601, `seconds` the total duration."""

    endpoints: tuple[EndpointReport, ...]
    started: str
    profile: str = "default"
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is at least one endpoint and all are ok."""
        # without endpoints, nothing was verified
        return bool(self.endpoints) and all(endpoint.ok for endpoint in self.endpoints)

    @property
    def exit_code(self) -> int:
        """0 if healthy, else 1."""
        return 0 if self.ok else 1

    def to_json(self) -> dict[str, Any]:
        """The report as plain data for `--json`; `JSON_SCHEMA` documents it."""
        # `ok` is a property, and asdict copies only fields
        endpoints = [
            {**asdict(endpoint), "ok": endpoint.ok, "results": [_result_to_json(result) for result in endpoint.results]}
            for endpoint in self.endpoints
        ]
        return {"schema": SCHEMA, "ok": self.ok, "started": self.started, "profile": self.profile,
                "seconds": self.seconds, "endpoints": endpoints}  # fmt: skip


def _result_to_json(result: Result) -> dict[str, Any]:
    data = asdict(result)
    # with requests and responses, the JSON would be ten times as long; --debug and --html show them
    del data["exchanges"]
    return data


# every field is always present, so readers need no defaults, and an unknown field is a bug
def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_RESULT = _object(
    {
        "name": {"type": "string", "description": "Name of the check"},
        "status": {"enum": ["pass", "warn", "fail", "skip"], "description": "Only `fail` makes `ok` false"},
        "seconds": {"type": ["number", "null"], "description": "Duration of the check; null if the check didn't run"},
        "message": {"type": "string", "description": "What the check found"},
        "hint": {"type": "string", "description": "What to do about the finding; may be empty"},
        "evidence": {"type": "string", "description": "Redacted excerpt of a response, or numbers; may be empty"},
        "model": {"type": "string", "description": "Served model name; empty for checks of the whole endpoint"},
        "notes": {
            "type": "array",
            "items": _TEXT,
            "description": "Known deviations of the dialect, and other facts that do not make the check fail",
        },
        "figures": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "Measurements by name; times are in seconds",
        },
        "samples": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "number"}},
            "description": "Series of measurements by name, in the order they were taken; times are in seconds",
        },
    }
)
_API = _object(
    {
        "model": {"type": "string", "description": "Served model name"},
        "api": {"enum": [api.name for api in APIS], "description": "The API, or the form of requests"},
        "state": {"enum": list(STATES), "description": "`works` only if the answer was right"},
        "detail": {"type": "string", "description": "The reason for the state; may be empty if the API works"},
    }
)
_ENDPOINT = _object(
    {
        "name": _TEXT,
        "base_url": _TEXT,
        "dialect": {
            "type": "string",
            "description": "The dialect whose known deviations were allowed; `openai` has no deviations",
        },
        "ok": {"type": "boolean"},
        "results": {"type": "array", "items": _RESULT},
        "answer": {
            "type": ["string", "null"],
            "description": "Text of the first completion; null if there was no completion",
        },
        "seconds": {"type": "number", "description": "Duration of all checks of the endpoint"},
        "apis": {
            "type": "array",
            "items": _API,
            "description": "What works with this endpoint, per model; empty if the check `apis` didn't run",
        },
    }
)
JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of stackgen check",
    **_object(
        {
            "schema": {"const": SCHEMA, "description": "Version of this format"},
            "ok": {"type": "boolean", "description": "True if checks ran on every endpoint and none failed"},
            "started": {"type": "string", "description": "Start time, ISO 8601, UTC"},
            "profile": {"enum": ["quick", "default", "deep"], "description": "The profile, which selects the checks"},
            "seconds": {"type": "number", "description": "Total duration"},
            "endpoints": {"type": "array", "items": _ENDPOINT},
        }
    ),
}
