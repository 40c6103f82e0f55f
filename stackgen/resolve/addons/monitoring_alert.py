"""The class of an alert rule, and the alerts of SGLang (metrics: `observability/metrics_collector.py` of 0.5.23)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Alert", "Group", "sglang_alerts"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: fires if `expr` holds for `for_seconds`. `summary` may use Prometheus templates.

    `severity` is critical, warning or info; `action` is what the operator should do.
    """

    name: str
    expr: str
    for_seconds: int
    severity: str
    summary: str
    action: str


@dataclass(frozen=True, slots=True)
class Group:
    """Alerts that Prometheus evaluates together."""

    name: str
    alerts: tuple[Alert, ...]


def sglang_alerts(target: float) -> tuple[Alert, ...]:
    """Alerts on SGLang's queue, KV cache and time to first token, whose target is `target` seconds."""
    ttft = "sum by (model, replica, le) (rate(sglang:time_to_first_token_seconds_bucket[5m]))"
    waiting = "sum by (model) (avg_over_time(sglang:num_queue_reqs[5m]))"
    growing = "sum by (model) (deriv(sglang:num_queue_reqs[10m]))"
    return (
        Alert(
            "SglangQueueGrowing",
            expr=f"{waiting} > 8 and {growing} > 0",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.model }}: {{ $value | humanize }} requests are waiting, and the queue is growing",
            action="add a replica (`stackgen scale`), or lower the concurrency limits of the keys",
        ),
        Alert(
            "SglangKvCacheFull",
            expr="avg_over_time(sglang:token_usage[5m]) > 0.95",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.replica }}: the KV cache is {{ $value | humanizePercentage }} full",
            action="lower max_num_seqs or max_model_len, or add a replica; otherwise requests wait or are retracted",
        ),
        # SGLang takes a running request out of the batch and computes it again later
        Alert(
            "SglangRetractions",
            expr="increase(sglang:num_retracted_requests_total[10m]) > 10",
            for_seconds=0,
            severity="warning",
            summary="{{ $labels.replica }}: {{ $value | humanize }} requests were retracted in 10 minutes",
            action="lower max_num_seqs, or raise mem_fraction_static; retracted requests are recomputed",
        ),
        Alert(
            "SglangFirstTokenSlow",
            expr=f"histogram_quantile(0.95, {ttft}) > {target:g}",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.replica }} of {{ $labels.model }}: the 95th percentile of the time to first token is "
            f"{{{{ $value | humanizeDuration }}}}; the target is {target:g} s",
            action="check the queue and the length of prompts",
        ),
    )
