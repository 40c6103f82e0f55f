"""The alert rules, as PromQL over names that were read from real exporters.

Recorded from vLLM 0.32.0 and HAProxy 3.2.26; stackgen's own from `stackgen/exporter/metrics.py`; DCGM's from
`etc/default-counters.csv` of DCGM exporter 4.5.3-4.8.2. A test holds each name to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stackgen.plan import Plan
from stackgen.resolve.addons.monitoring_targets import has_gateway, metrics_of, nvidia, planned_gpus
from stackgen.spec import MonitoringSpec

__all__ = ["Alert", "Group", "groups"]


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule: `expr` has to hold for `patience` seconds. `summary` may use Prometheus' own templates."""

    name: str
    expr: str
    patience: int
    severity: str
    summary: str
    action: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together."""

    name: str
    alerts: tuple[Alert, ...]


def groups(plan: Plan, spec: MonitoringSpec) -> tuple[Group, ...]:
    """The rules that mean something in this stack."""
    found = {
        "vllm": _vllm(spec.ttft_target) if metrics_of(plan) else (),
        "gateway": _gateway() if has_gateway(plan) else (),
        "gpus": _gpus(planned_gpus(plan)) if nvidia(plan) else (),
        "probes": _probes(spec.ttft_target),
        "monitoring": _monitoring(),
    }
    return tuple(Group(name, tuple(alerts)) for name, alerts in found.items() if alerts)


def _vllm(target: float) -> tuple[Alert, ...]:
    first = "sum by (model, replica, le) (rate(vllm:time_to_first_token_seconds_bucket[5m]))"
    waiting = "sum by (model) (avg_over_time(vllm:num_requests_waiting[5m]))"
    growing = "sum by (model) (deriv(vllm:num_requests_waiting[10m]))"
    return (
        # a start takes as long as the weights need: only what was up can go down
        Alert("ReplicaDown", 'up{job="vllm"} == 0 and max_over_time(up{job="vllm"}[1h]) == 1', 120, "critical",
              "{{ $labels.replica }} of {{ $labels.model }} answers no more",
              "stackgen diagnose says why; the gateway sends requests to the other replicas"),
        Alert("ReplicaNotUp", 'up{job="vllm"} == 0', 1800, "critical",
              "{{ $labels.replica }} of {{ $labels.model }} has not answered for half an hour",
              "stackgen diagnose says why"),
        Alert("QueueGrowing", f"{waiting} > 8 and {growing} > 0", 300, "warning",
              "{{ $labels.model }}: {{ $value | humanize }} requests wait, and they get more",
              "one more replica (stackgen scale), or fewer requests at once for each key"),
        Alert("KvCacheFull", "avg_over_time(vllm:kv_cache_usage_perc[5m]) > 0.95", 300, "warning",
              "{{ $labels.replica }}: the KV cache is {{ $value | humanizePercentage }} full",
              "requests will wait or be preempted: lower max_num_seqs or max_model_len, or add a replica"),
        Alert("Preemptions", "increase(vllm:num_preemptions_total[10m]) > 10", 0, "warning",
              "{{ $labels.replica }}: {{ $value | humanize }} requests were preempted in ten minutes",
              "each is computed again: lower max_num_seqs, or give the KV cache more memory"),
        Alert("FirstTokenSlow", f"histogram_quantile(0.95, {first}) > {target:g}", 300, "warning",
              "{{ $labels.replica }} of {{ $labels.model }}: "
              f"95 % get their first token within {{{{ $value | humanizeDuration }}}}, and {target:g} s is the target",
              "look at the queue and at the length of prompts"),
    )  # fmt: skip


def _gateway() -> tuple[Alert, ...]:
    # a fallback is nobody's replica, and may have no address for as long as nobody needs it; `large` is the gateway's
    # own second process, by which requests come that are counted with their model
    up = 'state="UP",proxy!~"fallback-.*|large"'
    errors, requests = "stackgen_gateway_key_errors_total", "stackgen_gateway_key_requests_total"
    failed = 'increase(haproxy_backend_http_responses_total{proxy!="large",code="5xx"}[10m])'
    refused = 'increase(haproxy_frontend_http_responses_total{proxy="api",code="4xx"}[10m])'
    return (
        # a replica without an address is in maintenance, not down; one that is drained on purpose is back by then
        Alert("GatewayReplicaDown", f"haproxy_server_status{{{up}}} == 0", 600, "warning",
              "{{ $labels.server }} of {{ $labels.proxy }} gets no requests",
              "stackgen diagnose says why; a start that is still under way ends this"),
        Alert("GatewayModelDown", f"sum by (proxy) (haproxy_server_status{{{up}}}) == 0", 60, "critical",
              "{{ $labels.proxy }} has no replica that is up: its requests get a 503",
              "stackgen diagnose says why"),
        Alert("GatewayQueueGrowing", "avg_over_time(haproxy_backend_current_queue[5m]) > 8", 120, "warning",
              "{{ $labels.proxy }}: {{ $value | humanize }} requests wait at the gateway for a replica",
              "one more replica (stackgen scale), or fewer requests at once for each key"),
        Alert("GatewayFailures", f"{failed} > 10", 0, "warning",
              "{{ $labels.proxy }}: {{ $value | humanize }} requests failed in ten minutes",
              "docker compose logs gateway names the replicas"),
        Alert("KeyRefusedOften", f"increase({errors}[10m]) > 50 and increase({errors}[10m]) > "
              f"0.5 * increase({requests}[10m])", 0, "warning",
              "most requests of the key {{ $labels.key }} are refused: {{ $value | humanize }} in ten minutes",
              "it has reached its limit, or its requests are wrong: docker compose logs gateway"),
        Alert("RequestsRefused", f"{refused} > 200", 0, "info",
              "{{ $value | humanize }} requests were refused in ten minutes, those without a known key among them",
              "docker compose logs gateway tells from where they came"),
    )  # fmt: skip


def _gpus(planned: int) -> Iterator[Alert]:
    # none at all is a number too, unless nobody counts
    seen = '(count(DCGM_FI_DEV_GPU_TEMP) or 0 * sum(up{job="dcgm"} == 1))'
    wanted = str(planned) if planned else f"max_over_time({seen}[1d:5m])"
    yield Alert("GpuLost", f"{seen} < {wanted}", 120, "critical",
                "{{ $value }} GPUs are left" + (f" of {planned}" if planned else ""),
                "nvidia-smi and dmesg tell more (Xid); the machine may need a restart")  # fmt: skip
    yield Alert("GpuError", "changes(DCGM_FI_DEV_XID_ERRORS[15m]) > 0 and DCGM_FI_DEV_XID_ERRORS > 0", 0, "warning",
                "GPU {{ $labels.gpu }} reported an error: Xid {{ $value }}",
                "NVIDIA's list of Xid errors says what it means")  # fmt: skip


def _probes(target: float) -> tuple[Alert, ...]:
    return (
        Alert("ProbeFailing", "stackgen_endpoint_up == 0", 180, "critical",
              "{{ $labels.endpoint }} fails its checks",
              "stackgen check tells which, and what mends it"),
        Alert("ProbeOld", "time() - stackgen_last_check_timestamp_seconds > 600", 0, "warning",
              "{{ $labels.endpoint }} was looked at {{ $value | humanizeDuration }} ago",
              "docker compose restart exporter"),
        Alert("ProbeFirstTokenSlow", f"min_over_time(stackgen_ttft_seconds[5m]) > {target:g}", 300, "warning",
              "{{ $labels.model }}: a short question got its first token after {{ $value | humanizeDuration }}",
              "look at the queue and at the length of prompts"),
    )  # fmt: skip


def _monitoring() -> tuple[Alert, ...]:
    return (
        Alert("MonitoringTargetMissing", 'up{job!="vllm"} == 0', 300, "warning",
              "{{ $labels.instance }} ({{ $labels.job }}) tells no metrics",
              "docker compose ps, and the log of that service"),
        Alert("MonitoringConfigWrong", "prometheus_config_last_reload_successful == 0", 120, "warning",
              "Prometheus could not read its changed configuration and works with the old one",
              "docker compose logs prometheus names the line"),
    )  # fmt: skip
