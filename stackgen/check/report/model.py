"""What a check found, as plain data; printing it is `stackgen.check.report.text`'s work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["JSON_SCHEMA", "SCHEMA", "EndpointReport", "Exchange", "Report", "Result", "Status"]

Status = Literal["pass", "warn", "fail", "skip"]
# goes up when a field is renamed, removed or changes its meaning; new fields leave it
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what came back, as excerpts without keys. `status` is None where no response came.

    `seconds` is the time until the response was read, `started` the time since the endpoint's check began.
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
    """One named check: how it ended, how long it took (None: it didn't run), what it says, what to do.

    `evidence` is what the server sent, redacted and bounded; `model` is the served name for checks that run once for
    each model. `notes` are known deviations of the dialect and other things to know that fail nobody. `figures` are
    measured numbers by name, times in seconds (`ttft_seconds`, `tokens_per_second`); `samples` single measurements in
    the order they were made (`inter_token_seconds`). `exchanges` are for reports that show them, not for the JSON.
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
    """All results of one endpoint; `answer` is the text of the first completion, None when there was none.

    `seconds` is how long all of its checks took, waiting for readiness left out.
    """

    name: str
    base_url: str
    dialect: str
    results: tuple[Result, ...]
    answer: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """No check failed, and at least one was run: skipped ones prove nothing."""
        found = {result.status for result in self.results}
        return "fail" not in found and bool(found - {"skip"})


@dataclass(frozen=True, slots=True)
class Report:
    """All endpoints; `started` is the time in ISO 8601, UTC, `seconds` how long the whole took."""

    endpoints: tuple[EndpointReport, ...]
    started: str
    profile: str = "default"
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Every endpoint is, and there is at least one: nothing checked is nothing proved."""
        return bool(self.endpoints) and all(endpoint.ok for endpoint in self.endpoints)

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 not."""
        return 0 if self.ok else 1

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`, as `JSON_SCHEMA` documents it."""
        # `ok` is computed, and asdict knows only fields
        endpoints = [
            {**asdict(endpoint), "ok": endpoint.ok, "results": [_plain(result) for result in endpoint.results]}
            for endpoint in self.endpoints
        ]
        return {"schema": SCHEMA, "ok": self.ok, "started": self.started, "profile": self.profile,
                "seconds": self.seconds, "endpoints": endpoints}  # fmt: skip


def _plain(result: Result) -> dict[str, Any]:
    data = asdict(result)
    # requests and responses would make the report ten times as long; --debug and --html show them
    del data["exchanges"]
    return data


# every field is always there, so that a reader needs no defaults, and unknown ones are a mistake of ours
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
        "status": {"enum": ["pass", "warn", "fail", "skip"], "description": "Only `fail` makes the report not ok"},
        "seconds": {"type": ["number", "null"], "description": "How long it took; null: it didn't run"},
        "message": {"type": "string", "description": "What was found"},
        "hint": {"type": "string", "description": "What to do; may be empty"},
        "evidence": {"type": "string", "description": "Excerpt of a response or numbers; redacted; may be empty"},
        "model": {"type": "string", "description": "Served model name, for checks that run once a model; else empty"},
        "notes": {
            "type": "array",
            "items": _TEXT,
            "description": "Known deviations of the dialect, and other things to know that fail nobody",
        },
        "figures": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "Measured numbers by name; times in seconds",
        },
        "samples": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "number"}},
            "description": "Single measurements by name, in the order they were made; times in seconds",
        },
    }
)
_ENDPOINT = _object(
    {
        "name": _TEXT,
        "base_url": _TEXT,
        "dialect": {"type": "string", "description": "Whose deviations were allowed for; `openai` is none"},
        "ok": {"type": "boolean"},
        "results": {"type": "array", "items": _RESULT},
        "answer": {"type": ["string", "null"], "description": "Text of the first completion"},
        "seconds": {"type": "number", "description": "How long all checks of the endpoint took"},
    }
)
JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Report of stackgen check",
    **_object(
        {
            "schema": {"const": SCHEMA, "description": "Version of this format"},
            "ok": {"type": "boolean", "description": "No check failed on any endpoint"},
            "started": {"type": "string", "description": "ISO 8601, UTC"},
            "profile": {"enum": ["quick", "default", "deep"], "description": "How deep the check looked"},
            "seconds": {"type": "number", "description": "How long the whole check took"},
            "endpoints": {"type": "array", "items": _ENDPOINT},
        }
    ),
}
