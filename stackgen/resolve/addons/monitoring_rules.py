"""Prometheus' alert rules, with their thresholds, durations and texts.

All metric names were recorded from real exporters.

Sources: vLLM 0.32.0, HAProxy 3.2.26 and the watch for hangs (recordings), `stackgen/exporter/metrics.py`,
`observability/metrics_collector.py` of SGLang 0.5.23, and `etc/default-counters.csv` of DCGM exporter 4.5.3-4.8.2. A
test compares every name with them.
"""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.plan import Plan
from stackgen.resolve.addons.monitoring_alert import Alert, Group, sglang_alerts
from stackgen.resolve.addons.monitoring_targets import (
    count_planned_gpus,
    has_gateway,
    nvidia_services,
    services_with_metrics,
    watched_services,
)
from stackgen.spec import MonitoringSpec

__all__ = ["Alert", "Group", "alert_groups"]


def alert_groups(plan: Plan, spec: MonitoringSpec) -> tuple[Group, ...]:
    """Returns the alerts whose metrics exist in this stack. Times and `ttft_target` are in seconds."""
    found = {
        "replicas": _replicas() if services_with_metrics(plan) else (),
        "vllm": _vllm(spec.ttft_target) if services_with_metrics(plan, "vllm") else (),
        "sglang": sglang_alerts(spec.ttft_target) if services_with_metrics(plan, "sglang") else (),
        "hangs": _hangs() if watched_services(plan) else (),
        "gateway": _gateway() if has_gateway(plan) else (),
        "gpus": _gpus(count_planned_gpus(plan)) if nvidia_services(plan) else (),
        "probes": _probes(spec.ttft_target),
        "monitoring": _monitoring(),
    }
    return tuple(Group(name, tuple(alerts)) for name, alerts in found.items() if alerts)


def _replicas() -> tuple[Alert, ...]:
    return (
        # only replicas that were up: a start may take long, because it loads the weights
        Alert(
            "ReplicaDown",
            expr='up{job=~"vllm|sglang"} == 0 and max_over_time(up{job=~"vllm|sglang"}[1h]) == 1',
            for_seconds=120,
            severity="critical",
            summary="{{ $labels.replica }} of {{ $labels.model }} is down",
            action="run `stackgen diagnose`; meanwhile the gateway sends requests to the other replicas",
        ),
        # also replicas that were never up: half an hour, because a start may take long
        Alert(
            "ReplicaNotUp",
            expr='up{job=~"vllm|sglang"} == 0',
            for_seconds=1800,
            severity="critical",
            summary="{{ $labels.replica }} of {{ $labels.model }} has not been up for 30 minutes",
            action="run `stackgen diagnose`",
        ),
    )


def _vllm(target: float) -> tuple[Alert, ...]:
    ttft = "sum by (model, replica, le) (rate(vllm:time_to_first_token_seconds_bucket[5m]))"
    waiting = "sum by (model) (avg_over_time(vllm:num_requests_waiting[5m]))"
    growing = "sum by (model) (deriv(vllm:num_requests_waiting[10m]))"
    return (
        # both conditions, because a long queue that shrinks is recovering
        Alert(
            "QueueGrowing",
            expr=f"{waiting} > 8 and {growing} > 0",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.model }}: {{ $value | humanize }} requests are waiting, and the queue is growing",
            action="add a replica (`stackgen scale`), or lower the concurrency limits of the keys",
        ),
        Alert(
            "KvCacheFull",
            expr="avg_over_time(vllm:kv_cache_usage_perc[5m]) > 0.95",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.replica }}: the KV cache is {{ $value | humanizePercentage }} full",
            action="lower max_num_seqs or max_model_len, or add a replica; otherwise requests wait or are preempted",
        ),
        Alert(
            "Preemptions",
            expr="increase(vllm:num_preemptions_total[10m]) > 10",
            for_seconds=0,
            severity="warning",
            summary="{{ $labels.replica }}: {{ $value | humanize }} requests were preempted in 10 minutes",
            action="lower max_num_seqs, or give the KV cache more memory; preempted requests are recomputed",
        ),
        Alert(
            "FirstTokenSlow",
            expr=f"histogram_quantile(0.95, {ttft}) > {target:g}",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.replica }} of {{ $labels.model }}: the 95th percentile of the time to first token is "
            f"{{{{ $value | humanizeDuration }}}}; the target is {target:g} s",
            action="check the queue and the length of prompts",
        ),
    )


def _hangs() -> Iterator[Alert]:
    # the counter has series for all reasons from the start, so that the first hang is an increase
    yield Alert(
        "ReplicaHung",
        expr="increase(stackgen_replica_hangs_total[1h]) > 0",
        for_seconds=0,
        severity="warning",
        summary="{{ $labels.replica }} of {{ $labels.model }} hung ({{ $labels.reason }}) and was restarted",
        action="run `stackgen diagnose`: it shows the reason; the third hang within an hour ends the container",
    )


def _gateway() -> tuple[Alert, ...]:
    # not fallbacks, whose hosts may not resolve before they are needed; requests to `large` count for the model already
    up = 'state="UP",proxy!~"fallback-.*|large"'
    errors, requests = "stackgen_gateway_key_errors_total", "stackgen_gateway_key_requests_total"
    drained, lease = "stackgen_gateway_drained", "stackgen_gateway_drain_lease_timestamp_seconds"
    failed = 'increase(haproxy_backend_http_responses_total{proxy!="large",code="5xx"}[10m])'
    rejected = 'increase(haproxy_frontend_http_responses_total{proxy="api",code="4xx"}[10m])'
    return (
        # HAProxy reports a replica without an address as in maintenance; drained replicas are back within 10 minutes
        Alert(
            "GatewayReplicaDown",
            expr=f"haproxy_server_status{{{up}}} == 0",
            for_seconds=600,
            severity="warning",
            summary="{{ $labels.server }} of {{ $labels.proxy }} gets no requests",
            action="run `stackgen diagnose`; if the replica is still starting, the alert resolves itself",
        ),
        Alert(
            "GatewayModelDown",
            expr=f"sum by (proxy) (haproxy_server_status{{{up}}}) == 0",
            for_seconds=60,
            severity="critical",
            summary="{{ $labels.proxy }}: no replica is up, so requests fail with 503",
            action="run `stackgen diagnose`",
        ),
        # while a command drains a replica, it renews the lease; the gateway ends the drain itself after the lease
        Alert(
            "GatewayReplicaLeftDrained",
            expr=f"{drained}_since_timestamp_seconds > 0 and {lease} < time()",
            for_seconds=120,
            severity="warning",
            summary="{{ $labels.replica }} has been drained since {{ $value | humanizeTimestamp }}, and no stackgen "
            "command holds the drain",
            action="`stackgen status` shows which command drained the replica; if somebody drained it by hand, "
            "`stackgen update` enables it again",
        ),
        Alert(
            "GatewayQueueGrowing",
            expr="avg_over_time(haproxy_backend_current_queue[5m]) > 8",
            for_seconds=120,
            severity="warning",
            summary="{{ $labels.proxy }}: {{ $value | humanize }} requests are queued at the gateway",
            action="add a replica (`stackgen scale`), or lower the concurrency limits of the keys",
        ),
        Alert(
            "GatewayFailures",
            expr=f"{failed} > 10",
            for_seconds=0,
            severity="warning",
            summary="{{ $labels.proxy }}: {{ $value | humanize }} requests failed in 10 minutes",
            action="`docker compose logs gateway` shows which replicas failed",
        ),
        # both conditions: a busy key may have many errors that are a small share of its requests
        Alert(
            "KeyRefusedOften",
            expr=f"increase({errors}[10m]) > 50 and increase({errors}[10m]) > 0.5 * increase({requests}[10m])",
            for_seconds=0,
            severity="warning",
            summary="most requests with the key {{ $labels.key }} are rejected: {{ $value | humanize }} in 10 minutes",
            action="`docker compose logs gateway` shows whether the key reached a limit or sends invalid requests",
        ),
        Alert(
            "RequestsRefused",
            expr=f"{rejected} > 200",
            for_seconds=0,
            severity="info",
            summary="{{ $value | humanize }} requests were rejected in 10 minutes, including those without a valid key",
            action="`docker compose logs gateway` shows the addresses of the clients",
        ),
    )


def _gpus(planned: int) -> Iterator[Alert]:
    # count() of nothing has no value; the second term replaces it by 0 as long as the exporter answers
    seen = '(count(DCGM_FI_DEV_GPU_TEMP) or 0 * sum(up{job="dcgm"} == 1))'
    # with `all`, the number is unknown: compare with the maximum of the last day
    expected = str(planned) if planned else f"max_over_time({seen}[1d:5m])"
    yield Alert(
        "GpuLost",
        expr=f"{seen} < {expected}",
        for_seconds=120,
        severity="critical",
        summary="DCGM reports only {{ $value }} of " + (f"{planned} GPUs" if planned else "this machine's GPUs"),
        action="check `nvidia-smi` and `dmesg` (Xid); the machine may need a restart",
    )
    # the metric keeps the last code, which must not fire forever. Since DCGM exporter 3.3.6, the code is also a label
    # (`err_code`), and 4.5.3 exports nothing before the first error: a new code is a new series, without a change
    yield Alert(
        "GpuError",
        expr="DCGM_FI_DEV_XID_ERRORS > 0 unless DCGM_FI_DEV_XID_ERRORS offset 15m",
        for_seconds=0,
        severity="warning",
        summary="GPU {{ $labels.gpu }} reported Xid error {{ $value }}",
        action="look up the number of the Xid error in NVIDIA's list of Xid errors",
    )


def _probes(target: float) -> tuple[Alert, ...]:
    return (
        Alert(
            "ProbeFailing",
            expr="stackgen_endpoint_up == 0",
            for_seconds=180,
            severity="critical",
            summary="{{ $labels.endpoint }} fails its checks",
            action="run `stackgen check`: its report shows the failed check and suggests a fix",
        ),
        Alert(
            "ProbeOld",
            expr="time() - stackgen_last_check_timestamp_seconds > 600",
            for_seconds=0,
            severity="warning",
            summary="{{ $labels.endpoint }} was last checked {{ $value | humanizeDuration }} ago",
            action="run `docker compose restart exporter`",
        ),
        # the minimum, because one slow probe in 5 minutes is no incident
        Alert(
            "ProbeFirstTokenSlow",
            expr=f"min_over_time(stackgen_ttft_seconds[5m]) > {target:g}",
            for_seconds=300,
            severity="warning",
            summary="{{ $labels.model }}: a short request got its first token after {{ $value | humanizeDuration }}",
            action="check the queue and the length of prompts",
        ),
    )


def _monitoring() -> tuple[Alert, ...]:
    return (
        # replicas with metrics, and the watch in the same container, have alerts of their own
        Alert(
            "MonitoringTargetMissing",
            expr='up{job!~"vllm|sglang|watch"} == 0',
            for_seconds=300,
            severity="warning",
            summary="Prometheus can't scrape {{ $labels.instance }} ({{ $labels.job }})",
            action="check the state (`docker compose ps`) and the log of that service",
        ),
        Alert(
            "MonitoringConfigWrong",
            expr="prometheus_config_last_reload_successful == 0",
            for_seconds=120,
            severity="warning",
            summary="Prometheus rejected its changed configuration and still uses the old one",
            action="`docker compose logs prometheus` shows the invalid line",
        ),
    )
