"""PodMonitors, ServiceMonitors and PrometheusRules in a cluster, from the plan's scrape jobs and alert rules.

Fields: prometheus-operator, `monitoring.coreos.com/v1` (PodMonitor, ServiceMonitor, PrometheusRule). In a relabeling's
`replacement`, `$` begins a reference and `$$` is a dollar. Metrics of kube-state-metrics: `kube_deployment_*`.
By default, kube-prometheus-stack selects monitors and rules by the label `release`, and dashboards by
`grafana_dashboard: "1"` (prometheus-community/helm-charts at 001f3a6, values.yaml of the chart:
`podMonitorSelectorNilUsesHelmValues: true`, `sidecar.dashboards`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from stackgen.kubernetes.model import Pairs
from stackgen.kubernetes.names import HTTP, INSTANCE, NAME, leader_selector, selector
from stackgen.plan import Plan
from stackgen.resolve.addons.monitoring_rules import Alert, Group
from stackgen.resolve.addons.monitoring_targets import EXPORTER, services_with_metrics, watched_services
from stackgen.targets.commands import for_cluster

__all__ = ["Monitoring", "monitoring", "scope"]

# metrics of the stack; a cluster has other stacks, whose series must not raise this stack's alerts
METRIC = re.compile(r"(?<![\w:\"])((?:vllm:|haproxy_|stackgen_|kube_)\w+|up)(?![\w:(\"])(\{)?")
# groups that need services which the cluster has, or has not
OTHER_GROUPS = ("gpus",)
OTHER_ALERTS = ("MonitoringConfigWrong", "GatewayReplicaDown")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A named port with metrics. `model` labels the series; "" adds no label. `interval` is in seconds."""

    port: str
    path: str
    interval: int
    job: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class PodMonitor:
    """A PodMonitor for the pods that `selector` selects."""

    name: str
    comment: str
    selector: Pairs
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class ServiceMonitor:
    """A ServiceMonitor for the Service that `selector` selects."""

    name: str
    selector: Pairs
    port: str
    interval: int


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Everything for the operator of Prometheus."""

    labels: Pairs
    monitors: tuple[PodMonitor, ...]
    service_monitor: ServiceMonitor | None
    groups: tuple[Group, ...]


def monitoring(plan: Plan, namespace: str, labels: Pairs) -> Monitoring | None:
    """Returns what Prometheus needs to know about `plan`; None if the stack has no monitoring."""
    rules: Any = next((one.data for one in plan.documents if one.path == "monitoring/rules.yml"), None)
    scraping: Any = next((one.data for one in plan.documents if one.path == "monitoring/prometheus.yml"), None)
    if rules is None or scraping is None:
        return None
    models = {name: one.models[0] for one in plan.endpoints for name in (*one.replicas, one.service)}
    watched = {one.name for one in watched_services(plan)}
    monitors = [
        PodMonitor(
            "gateway", "Requests, errors and queues by key and model", selector(plan.name, plan.service("gateway")),
            (Endpoint("admin", "/metrics", scraping.interval, "gateway"),
             Endpoint("admin", "/keys", scraping.interval, "gateway-keys")),
        )
    ]  # fmt: skip
    for service in services_with_metrics(plan):
        model = models.get(service.name, "").replace("$", "$$")
        endpoints = [Endpoint(HTTP, "/metrics", scraping.interval, "vllm", model)]
        if service.name in watched:
            endpoints.append(Endpoint("watch", "/metrics", scraping.interval, "watch", model))
        # the other nodes of a group serve nothing
        pods = leader_selector(service) if service.group else selector(plan.name, service)
        monitors.append(PodMonitor(service.name, service.comment, pods, tuple(endpoints)))
    exporter = ServiceMonitor(EXPORTER, ((NAME, EXPORTER), (INSTANCE, plan.name)), HTTP, 2 * scraping.interval)
    has_exporter = any(one.name == EXPORTER for one in plan.services)
    return Monitoring(labels, tuple(monitors), exporter if has_exporter else None, _groups(rules, namespace))


def scope(expression: str, namespace: str) -> str:
    """Restricts each metric in a PromQL expression to `namespace`."""
    return METRIC.sub(lambda found: f'{found[1]}{{namespace="{namespace}"' + ("," if found[2] else "}"), expression)


def _groups(groups: tuple[Group, ...], namespace: str) -> tuple[Group, ...]:
    found = []
    for group in groups:
        if group.name in OTHER_GROUPS:
            continue
        alerts = tuple(_alert(one, namespace) for one in group.alerts if one.name not in OTHER_ALERTS)
        if alerts:
            found.append(replace(group, alerts=alerts))
    missing = Alert(
        "ReplicasMissing",
        expr=scope("kube_deployment_status_replicas_available < kube_deployment_spec_replicas", namespace),
        for_seconds=1800,
        severity="warning",
        summary="{{ $labels.deployment }} lacks replicas: only {{ $value }} available",
        action=f"run `kubectl -n {namespace} get pods`, and `kubectl describe pod` for one that is not ready",
    )
    return (*found, Group("kubernetes", (missing,)))


def _alert(alert: Alert, namespace: str) -> Alert:
    return replace(alert, expr=scope(alert.expr, namespace), action=for_cluster(alert.action, namespace))
