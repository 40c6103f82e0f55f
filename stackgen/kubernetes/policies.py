"""The NetworkPolicies of a stack, which block all traffic that the stack does not need.

Source: Kubernetes 1.37, "Network Policies": the connections of all policies for a pod add up, and a cluster's network
may ignore them. Probes come from the pod's own node, which most networks always allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from stackgen.kubernetes.model import Peer, Policy
from stackgen.kubernetes.names import ADMIN_PORT
from stackgen.kubernetes.probes import port_of
from stackgen.plan import Bind, Plan
from stackgen.resolve.addons.backends import Gateway
from stackgen.resolve.addons.monitoring_targets import EXPORTER, EXPORTER_PORT, WATCH_PORT
from stackgen.spec import KubernetesSpec

__all__ = ["GROUP_LABEL", "policies"]

GROUP_LABEL = "stackgen-group"
FASTCHAT = ("controller", "worker", "api")
GATEWAY_PORTS = (8000, 8001)
WEB_PORTS = (80, 443)


def policies(plan: Plan, settings: KubernetesSpec) -> Iterator[Policy]:
    """Yields the policies of `plan`."""
    roles = {service.role for service in plan.services}
    monitored = any(service.name == EXPORTER for service in plan.services)
    monitoring = Peer(namespace=settings.monitoring_namespace, ports=(ADMIN_PORT,))
    engines = tuple(sorted({port_of(one) for one in plan.services if one.role in ("engine", "api")} - {0}))
    yield Policy("deny-all", "Refuses all connections that no other policy allows", ingress=(), egress=())
    yield Policy("allow-dns", "All pods may look up names", egress=(Peer(dns=True),))
    has_plain = any(isinstance(one, Bind) and one.target.startswith("/tls/") for one in plan.service("gateway").mounts)
    internal = Peer(components=("monitoring",), ports=(GATEWAY_PORTS[has_plain],))
    fallbacks = _fallback_ports(plan)
    yield Policy(
        "gateway",
        "Everybody may connect to the gateway, which checks keys; Prometheus reads its metrics",
        components=("gateway",),
        ingress=(
            Peer(ports=GATEWAY_PORTS[:1]),
            *((internal, monitoring) if monitored else ()),
        ),
        egress=(
            Peer(components=("engine", "api"), ports=engines),
            *((Peer(ports=fallbacks),) if fallbacks else ()),
        ),
    )
    ports = (*engines, *((WATCH_PORT,) if monitored else ()))
    yield Policy(
        "engines",
        "Only the gateway sends requests to engines",
        components=("engine", "api"),
        ingress=(
            Peer(components=("gateway",), ports=engines),
            *((Peer(namespace=settings.monitoring_namespace, ports=ports),) if monitored else ()),
        ),
    )
    if "controller" in roles:
        among = Peer(components=FASTCHAT)
        comment = "FastChat's programs reach each other, and nobody else: controller and workers check no keys"
        yield Policy("fastchat", comment, components=FASTCHAT, ingress=(among,), egress=(among,))
    if any(service.group for service in plan.services):
        among = Peer(group=GROUP_LABEL)
        # NCCL and Gloo choose their ports themselves
        comment = "The nodes of one replica reach each other at all ports"
        yield Policy("groups", comment, group=GROUP_LABEL, ingress=(among,), egress=(among,))
    if "download" in roles:
        outside_web = Peer(ports=_download_ports(plan))
        yield Policy(
            "download",
            "Only the download connects to addresses outside the cluster",
            components=("download",),
            egress=(outside_web,),
        )
    if monitored:
        yield Policy(
            "exporter",
            "The exporter sends requests to the gateway, and Prometheus reads the exporter's metrics",
            components=("monitoring",),
            ingress=(Peer(namespace=settings.monitoring_namespace, ports=(EXPORTER_PORT,)),),
            egress=(Peer(components=("gateway",), ports=(GATEWAY_PORTS[has_plain],)),),
        )


def _fallback_ports(plan: Plan) -> tuple[int, ...]:
    """Ports of the servers that answer if no replica is up. The gateway connects to them without a proxy."""
    gateways = (one.data for one in plan.documents if isinstance(one.data, Gateway))
    return tuple(sorted({int(one.address.rpartition(":")[2]) for data in gateways for one in data.fallbacks}))


def _download_ports(plan: Plan) -> tuple[int, ...]:
    """Ports of the Hub, or of the proxy and the mirror that the stack file names."""
    found = list(WEB_PORTS)
    for name, value in plan.service("download").environment:
        text = getattr(value, "default", value)
        if name in ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY") and isinstance(text, str):
            found.append(urlsplit(text).port or 443)
    return tuple(sorted(set(found)))
