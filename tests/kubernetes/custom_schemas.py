"""Small JSON schemas of the custom kinds that stackgen renders: their fields, no others.

Fields: LeaderWorkerSet 0.10.0 (api/leaderworkerset/v1), prometheus-operator (monitoring.coreos.com/v1), KEDA 2
(keda.sh/v1alpha1). Pod templates are checked as Pods, against the schema of Kubernetes itself.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CUSTOM"]

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}
COUNT_OR_PERCENT: Schema = {"anyOf": [COUNT, {"type": "string", "pattern": "^[0-9]+%$"}]}


def mapping(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """An object with exactly these fields."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def listing(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def kind(version: str, name: str, spec: Schema) -> Schema:
    labels: Schema = {"type": "object", "additionalProperties": TEXT}
    metadata = mapping(("name",), name=TEXT, labels=labels)
    return mapping(("apiVersion", "kind", "metadata", "spec"), apiVersion={"const": version}, kind={"const": name},
                   metadata=metadata, spec=spec)  # fmt: skip


MATCH = mapping(("matchLabels",), matchLabels={"type": "object", "additionalProperties": TEXT})
RELABELING = mapping(
    ("targetLabel",), targetLabel=TEXT, replacement=TEXT, sourceLabels=listing(TEXT), action=TEXT, regex=TEXT
)
ENDPOINT = mapping(("port",), port=TEXT, path=TEXT, interval=SECONDS, relabelings=listing(RELABELING))
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
ALERT = mapping(("alert", "expr"), alert=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS, **{"for": SECONDS})
GROUP = mapping(
    ("workerTemplate",), leaderTemplate={"type": "object"}, workerTemplate={"type": "object"},
    size={"type": "integer", "minimum": 1},
    restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
)  # fmt: skip
ROLLOUT = mapping(
    ("type",), type={"const": "RollingUpdate"},
    rollingUpdateConfiguration=mapping(partition=COUNT, maxUnavailable=COUNT_OR_PERCENT, maxSurge=COUNT_OR_PERCENT),
)  # fmt: skip
TRIGGER = mapping(
    ("type", "metadata"), type={"const": "prometheus"},
    metadata=mapping(("serverAddress", "query", "threshold"), serverAddress=TEXT, query=TEXT, threshold=TEXT),
)  # fmt: skip

CUSTOM: dict[str, Schema] = {
    "LeaderWorkerSet": kind("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", mapping(
        ("leaderWorkerTemplate",), replicas=COUNT, startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=ROLLOUT, leaderWorkerTemplate=GROUP,
        networkConfig=mapping(subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
    )),
    "PodMonitor": kind("monitoring.coreos.com/v1", "PodMonitor", mapping(
        ("selector", "podMetricsEndpoints"), selector=MATCH, podMetricsEndpoints=listing(ENDPOINT))),
    "ServiceMonitor": kind("monitoring.coreos.com/v1", "ServiceMonitor", mapping(
        ("selector", "endpoints"), selector=MATCH, endpoints=listing(ENDPOINT))),
    "PrometheusRule": kind("monitoring.coreos.com/v1", "PrometheusRule", mapping(
        ("groups",), groups=listing(mapping(("name", "rules"), name=TEXT, rules=listing(ALERT))))),
    "ScaledObject": kind("keda.sh/v1alpha1", "ScaledObject", mapping(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=mapping(("name",), apiVersion=TEXT, kind=TEXT, name=TEXT),
        minReplicaCount=COUNT, maxReplicaCount=COUNT, pollingInterval=COUNT, cooldownPeriod=COUNT,
        initialCooldownPeriod=COUNT, fallback=mapping(("failureThreshold", "replicas"), failureThreshold=COUNT,
                                                      replicas=COUNT),
        triggers=listing(TRIGGER),
    )),
}  # fmt: skip
