"""GuideLLM: its scenario file, its environment variables, and its report.

Source: GuideLLM 0.8.1, `guidellm/schemas/benchmark/entrypoints.py` (scenario), `schemas/backends/openai_http.py`,
`benchmark/schemas/{report,benchmark,metrics}.py` (report, version 2). A stream that ends with the server's error counts
as errored (`_check_streaming_error`), and so does a status that is not 200. The exit code is 0 even then.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stackgen.bench.result import Kind, Level, Percentiles
from stackgen.errors import StackgenError

__all__ = ["NAME", "VERSION", "Plan", "build_scenario", "find_failure", "key_environment", "read_report"]

NAME, VERSION = "guidellm", "0.8.1"
# messages of failed requests that are kept
MAX_ERRORS, MAX_ERROR_LENGTH = 5, 300
# a report has far fewer bytes for each request
MAX_REPORT = 2**30


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall be measured.

    - `root`: URL of the server without `/v1`. `tokenizer`: folder or id on the Hub; "" with `prompts`.
    - `prompts`: a JSON Lines file with the field `prompt`, or None for synthetic prompts of `prompt_tokens` tokens.
    - `loads`: streams or requests per second; each for `seconds`, and for at most `requests` requests if that is set.
    """

    root: str
    model: str
    kind: Kind
    loads: tuple[float, ...]
    seconds: float
    requests: int | None
    tokenizer: str
    prompts: Path | None
    prompt_tokens: int
    output_tokens: int


def build_scenario(plan: Plan, report: Path) -> dict[str, Any]:
    """The content of the file for `guidellm run --config`, which contains no key. GuideLLM writes to `report`."""
    constraints: list[dict[str, Any]] = [{"kind": "max_duration", "seconds": plan.seconds}]
    if plan.requests:
        constraints.append({"kind": "max_requests", "count": plan.requests})
    backend = {
        "kind": "openai_http", "target": plan.root, "model": plan.model,
        # false by default, and then a wrong certificate is accepted
        "verify": True,
        # `GET /health`, which FastChat does not have; a request was answered already
        "validate_backend": False,
        # the same requests for all engines, so that their results can be compared
        "request_format": "/v1/chat/completions",
    }  # fmt: skip
    spec: dict[str, Any] = {
        "backend": backend,
        "profile": {"kind": "concurrent", "streams": [int(one) for one in plan.loads]}
        if plan.kind == "concurrency"
        else {"kind": "poisson", "rate": list(plan.loads)},
        "constraints": constraints,
        # no prompts and answers in the report
        "metrics": {"kind": "generative", "sample_size": 0},
        "outputs": [{"kind": "json", "path": str(report)}],
    }
    if plan.prompts:
        backend["max_tokens"] = plan.output_tokens
        spec["data"] = [{"kind": "json_file", "path": str(plan.prompts)}]
    else:
        spec["tokenizer"] = {"kind": "huggingface_auto", "model": plan.tokenizer}
        spec["data"] = [
            {"kind": "synthetic_text", "prompt_tokens": plan.prompt_tokens, "output_tokens": plan.output_tokens}
        ]
    return {"spec": spec}


def key_environment(key: str | None) -> dict[str, str]:
    """The variable with the key: an option would show it in the process list."""
    return {"GUIDELLM__SPEC__BACKEND__API_KEY": key} if key else {}


def read_report(path: Path) -> tuple[Level, ...]:
    """The levels of a report. Raises StackgenError if the file is missing, or of a version that is not known."""
    try:
        if path.stat().st_size > MAX_REPORT:
            raise ValueError
        data = json.loads(path.read_text("utf-8"))
        return tuple(sorted((_level(one) for one in data["benchmarks"]), key=lambda level: level.load))
    except (OSError, ValueError, KeyError, TypeError):
        raise StackgenError(
            f"{path} is not a report of GuideLLM {VERSION}",
            "GuideLLM's output is in the file guidellm.log next to the report",
        ) from None


def find_failure(log: str) -> str:
    """The line with which GuideLLM says why it ended: the last exception, or the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # `module.ClassName: text` at the end of a traceback, and click's `Error: text`
    named = [line for line in lines if re.match(r"([\w.]+(Error|Exception|Exit)|Error)\b.*: ", line)]
    return (named or lines or ["it printed nothing"])[-1][:MAX_ERROR_LENGTH]


def _level(data: Mapping[str, Any]) -> Level:
    strategy, metrics = data["config"]["strategy"], data["metrics"]
    totals = metrics["request_totals"]
    return Level(
        load=float(strategy["streams"] if "streams" in strategy else strategy["rate"]),
        succeeded=totals["successful"],
        failed=totals["errored"],
        unfinished=totals["incomplete"],
        requests_per_second=_mean(metrics["requests_per_second"]),
        tokens_per_second=_mean(metrics["output_tokens_per_second"]),
        ttft=_percentiles(metrics["time_to_first_token_ms"], 1000),
        itl=_percentiles(metrics["inter_token_latency_ms"], 1000),
        latency=_percentiles(metrics["request_latency"], 1),
        errors=_errors((data.get("requests") or {}).get("errored") or ()),
    )


def _mean(metric: Mapping[str, Any]) -> float:
    found = metric.get("successful")
    return float(found["mean"]) if found else 0.0


def _percentiles(metric: Mapping[str, Any], per_second: float) -> Percentiles | None:
    found = metric.get("successful")
    # a distribution of nothing consists of zeros
    if not found or not found["count"]:
        return None
    values = found["percentiles"]
    return Percentiles(*(round(values[name] / per_second, 6) for name in ("p50", "p95", "p99")))


def _errors(requests: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    texts = (_plain(str((one.get("info") or {}).get("error") or "no message"))[:MAX_ERROR_LENGTH] for one in requests)
    return tuple(Counter(texts).most_common(MAX_ERRORS))


def _plain(error: str) -> str:
    """The message without Python's notation: GuideLLM stores `repr()` of the exception."""
    # httpx: `Server error '503 Service Unavailable' for url …`, and a link that explains the status
    if status := re.match(r"HTTPStatusError\(.*?'(\d{3} [^'\\]+)", error):
        return f"HTTP {status[1]}"
    inside = re.fullmatch(r"""\w+\((["'])(.*)\1\)""", error, re.DOTALL)
    return inside[2].replace(r"\'", "'").replace(r"\n", " ") if inside and inside[2] else error
