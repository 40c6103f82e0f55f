"""What a check found, as plain data; printing it is `stackgen.check.text`'s work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["JSON_SCHEMA", "SCHEMA", "EndpointReport", "Report", "Result", "Status"]

Status = Literal["pass", "warn", "fail", "skip"]
# goes up when a field is renamed, removed or changes its meaning; new fields leave it
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Result:
    """One named check: how it ended, how long it took (None: it didn't run), what it says, what to do.

    `evidence` is what the server sent or how fast it was, redacted and bounded; `model` is the served name for
    checks that run once for each model.
    """

    name: str
    status: Status
    seconds: float | None
    message: str
    hint: str = ""
    evidence: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class EndpointReport:
    """All results of one endpoint; `answer` is the text of the first completion, None when there was none."""

    name: str
    base_url: str
    dialect: str
    results: tuple[Result, ...]
    answer: str | None = None

    @property
    def ok(self) -> bool:
        """No check failed; warnings and skipped checks don't count."""
        return not any(result.status == "fail" for result in self.results)


@dataclass(frozen=True, slots=True)
class Report:
    """All endpoints; `started` is the time in ISO 8601, UTC."""

    endpoints: tuple[EndpointReport, ...]
    started: str

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
            {**asdict(endpoint), "ok": endpoint.ok, "results": [asdict(result) for result in endpoint.results]}
            for endpoint in self.endpoints
        ]
        return {"schema": SCHEMA, "ok": self.ok, "started": self.started, "endpoints": endpoints}


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
            "endpoints": {"type": "array", "items": _ENDPOINT},
        }
    ),
}
