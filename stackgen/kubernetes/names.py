"""Names, labels and numbers that several manifests share."""

from __future__ import annotations

from stackgen.plan import Service

__all__ = [
    "ADMIN_PORT", "COMPONENT", "DRAIN_SECONDS", "ENGINE_SECRET", "FS_GROUP", "GATEWAY_CONFIG", "HTTP", "INSTANCE",
    "KEYS_SECRET", "LWS_INDEX", "LWS_NAME", "LWS_SUFFIX", "MANAGER", "NAME", "PACKED", "SLACK_SECONDS",
    "TLS_SECRET", "TOKEN_SECRET", "labels", "leader_selector", "object_name", "selector",
]  # fmt: skip

# kubernetes.io, "Recommended Labels"
NAME, INSTANCE, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/part-of", "app.kubernetes.io/component"
MANAGER = "app.kubernetes.io/managed-by"
# LeaderWorkerSet 0.10.0, api/leaderworkerset/v1
LWS_NAME, LWS_INDEX = "leaderworkerset.sigs.k8s.io/name", "leaderworkerset.sigs.k8s.io/worker-index"
# the LWS controller makes a Service with the name of the set, and clients use the Service without the suffix
LWS_SUFFIX = "-nodes"
# seconds until the last client has learned that a pod is going, and seconds that the kubelet may need itself
DRAIN_SECONDS, SLACK_SECONDS = 15, 5
# group of the files on the claims, for all pods: a pod with another group would change the owner of all weights again
FS_GROUP = 2000
HTTP, ADMIN_PORT = "http", 8405
# engines read the first, clients' keys are in the second, which changes without a restart
ENGINE_SECRET, KEYS_SECRET, TOKEN_SECRET, TLS_SECRET = "engine-key", "gateway-keys", "hf-token", "gateway-tls"
GATEWAY_CONFIG = "gateway"
# of pods that prefer each other's nodes
PACKED = ("stackgen-packed", "true")


def labels(stack: str, service: Service) -> tuple[tuple[str, str], ...]:
    """The labels of everything that belongs to `service`."""
    return ((NAME, service.name), (INSTANCE, stack), (COMPONENT, service.role), (MANAGER, "stackgen"))


def selector(stack: str, service: Service) -> tuple[tuple[str, str], ...]:
    """The labels that select the pods of `service`; the selector of a workload never changes."""
    return ((NAME, service.name), (INSTANCE, stack))


def leader_selector(service: Service) -> tuple[tuple[str, str], ...]:
    """The labels that select the first nodes of a LeaderWorkerSet, which answer the requests."""
    return ((LWS_NAME, object_name(service)), (LWS_INDEX, "0"))


def object_name(service: Service) -> str:
    """The name of the workload of `service`."""
    return f"{service.name}{LWS_SUFFIX}" if service.group else service.name
