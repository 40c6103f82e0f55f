"""What a load generator measured at each level of load, as stackgen stores it in `result.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stackgen.errors import StackgenError

__all__ = ["Kind", "Level", "Percentiles", "Run", "find_result", "read_run"]

# streams that are always busy, or requests per second that arrive whether or not earlier ones are answered
Kind = Literal["concurrency", "rate"]
RESULT = "result.json"
FOLDER = "bench"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles over the successful requests, in seconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Level:
    """One level of load.

    - `load`: streams, or requests per second: see `Run.kind`.
    - `succeeded`, `failed`, `unfinished`: requests. Unfinished ones were cut off when the time of the level was over.
    - `requests_per_second`, `tokens_per_second`: of successful requests; tokens are those of the answers.
    - `ttft`, `itl`, `latency`: time to first token, mean time between the tokens of a request, and the whole request.
      None if no request succeeded, or if its answers are too short.
    - `errors`: messages of failed requests, with their numbers, the most frequent one first.
    """

    load: float
    succeeded: int
    failed: int
    unfinished: int
    requests_per_second: float
    tokens_per_second: float
    ttft: Percentiles | None
    itl: Percentiles | None
    latency: Percentiles | None
    errors: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The load without superfluous zeros."""
        return f"{self.load:g}"


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one model of a stack. `started` is ISO 8601 in UTC; `seconds` is the time of each level."""

    stack: str
    model: str
    engine: str
    tool: str
    started: str
    kind: Kind
    prompt_tokens: int | None
    output_tokens: int
    seconds: float
    levels: tuple[Level, ...]

    @property
    def title(self) -> str:
        """How tables and charts name the run."""
        return f"{self.stack} {self.model} {self.started[:16].replace('T', ' ')}"

    @property
    def unit(self) -> str:
        """What `Level.load` counts."""
        return "streams" if self.kind == "concurrency" else "requests/s"

    def describe_load(self, level: Level) -> str:
        """`1 stream`, `4 streams` or `0.5 requests/s`."""
        return "1 stream" if self.kind == "concurrency" and level.load == 1 else f"{level.name} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        return {"schema": SCHEMA, **asdict(self)}


def read_run(path: Path) -> Run:
    """Reads a `result.json`. Raises StackgenError if the file is missing or is none."""
    try:
        data = json.loads(path.read_text("utf-8"))
        levels = tuple(_level(one) for one in data["levels"])
        return Run(**{name: value for name, value in data.items() if name != "schema"} | {"levels": levels})
    except OSError as error:
        raise StackgenError(
            f"{path} can't be read: {error.strerror or error}", "run `stackgen bench`, which writes this file"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StackgenError(
            f"{path} was not written by this version of `stackgen bench`", "run `stackgen bench` again"
        ) from None


def find_result(place: str) -> Path:
    """The `result.json` of a run's folder or of the newest run of a stack; a file is returned itself.

    Raises StackgenError if there is no result.
    """
    path = Path(place)
    if path.suffix in (".yaml", ".yml"):
        path = path.parent
    if path.is_file() or (path / RESULT).is_file():
        return path if path.is_file() else path / RESULT
    # the names of the folders are times
    found = sorted((path / FOLDER).glob(f"*/{RESULT}"))
    if not found:
        raise StackgenError(f"{place} has no result of a measurement", f"run `stackgen bench {place}` first")
    return found[-1]


def _level(data: Mapping[str, Any]) -> Level:
    percentiles = {name: Percentiles(**data[name]) if data[name] else None for name in ("ttft", "itl", "latency")}
    errors = tuple((str(text), int(count)) for text, count in data["errors"])
    return Level(**{**data, **percentiles, "errors": errors})
