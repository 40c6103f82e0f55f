"""What Prometheus scrapes and what stackgen's exporter asks, as seen from inside the stack's network.

Ports: vLLM 0.32 answers `/metrics` on its API port, without a key; HAProxy's built-in exporter and the counts by key
are on the gateway's admin port; DCGM exporter 4.5.3-4.8.2 listens on 9400.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stackgen.engines.base import API_KEY
from stackgen.plan import Endpoint, Plan, Service, Site
from stackgen.resolve.addons.gateway import SERVICE as GATEWAY
from stackgen.spec import StackSpec

__all__ = [
    "DCGM", "DCGM_PORT", "EXPORTER", "EXPORTER_PORT", "GATEWAY_ADMIN_PORT", "Job", "Probe", "Target", "gateway_url",
    "has_gateway", "jobs", "metrics_of", "nvidia", "planned_gpus", "probes",
]  # fmt: skip

EXPORTER, EXPORTER_PORT = "exporter", 9464
DCGM, DCGM_PORT = "dcgm-exporter", 9400
GATEWAY_PORT, GATEWAY_PLAIN_PORT, GATEWAY_ADMIN_PORT = 8000, 8001, 8405


@dataclass(frozen=True, slots=True)
class Target:
    """One address that is scraped, with the labels that its series get."""

    address: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Targets of one kind, scraped every `interval` seconds."""

    name: str
    path: str
    interval: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """An endpoint that stackgen's exporter checks, as one that speaks `dialect`."""

    name: str
    base_url: str
    api_key_env: str
    models: tuple[str, ...]
    dialect: str


def has_gateway(plan: Plan) -> bool:
    """Whether a gateway stands before the engines."""
    return any(service.name == GATEWAY for service in plan.services)


def gateway_url(stack: StackSpec, site: Site) -> str:
    """The gateway's base URL inside the network, where it speaks plain HTTP also if clients have to use TLS."""
    # the certificate is made for the names that clients use, and none of them is the service's
    tls = stack.gateway is not None and stack.gateway.tls is not None
    return site.url(GATEWAY, GATEWAY_PLAIN_PORT if tls else GATEWAY_PORT) + "/v1"


def metrics_of(plan: Plan) -> tuple[Service, ...]:
    """The services that tell metrics of their own: the replicas of vLLM."""
    return tuple(service for service in plan.services if service.engine == "vllm" and service.role == "engine")


def nvidia(plan: Plan) -> tuple[Service, ...]:
    """The services with NVIDIA GPUs."""
    return tuple(service for service in plan.services if service.gpus and service.gpus.driver != "amd")


def planned_gpus(plan: Plan) -> int:
    """How many GPUs the stack asked for; 0 where it asked for all."""
    requests = [service.gpus for service in nvidia(plan) if service.gpus]
    if any(one.count == -1 or "nvidia.com/gpu=all" in one.ids for one in requests):
        return 0
    return len({id for one in requests for id in one.ids}) + sum(one.count for one in requests)


def jobs(plan: Plan, site: Site) -> tuple[Job, ...]:
    """All that Prometheus scrapes."""
    models = dict(_models(plan))
    replicas = tuple(
        Target(_address(site, one.name, _port(one)), (("model", models.get(one.name, "")), ("replica", one.name)))
        for one in metrics_of(plan)
    )
    admin = (Target(_address(site, GATEWAY, GATEWAY_ADMIN_PORT)),)
    found = [Job("prometheus", "/metrics", 30, (Target("localhost:9090"),))]
    if replicas:
        found.append(Job("vllm", "/metrics", 15, replicas))
    if has_gateway(plan):
        found += [Job("gateway", "/metrics", 15, admin), Job("gateway-keys", "/keys", 15, admin)]
    found.append(Job("stackgen", "/metrics", 30, (Target(_address(site, EXPORTER, EXPORTER_PORT)),)))
    if nvidia(plan):
        found.append(Job("dcgm", "/metrics", 15, (Target(_address(site, DCGM, DCGM_PORT)),)))
    return tuple(found)


def probes(stack: StackSpec, site: Site, plan: Plan) -> tuple[Probe, ...]:
    """The stack's endpoints under their names inside the network."""
    found = []
    for endpoint in plan.endpoints:
        behind = endpoint.service == GATEWAY
        service = plan.service(endpoint.service)
        url = gateway_url(stack, site) if behind else site.url(service.name, _port(service)) + "/v1"
        # behind the gateway too: names, usage and what a model can do are the engine's own
        found.append(Probe(endpoint.name, url, API_KEY.name, endpoint.models, endpoint.dialect.name))
    return tuple(found)


def _models(plan: Plan) -> Iterator[tuple[str, str]]:
    """Service and leading served name, for each replica."""
    for endpoint in plan.endpoints:
        for service in _replicas(endpoint):
            yield service, endpoint.models[0]


def _replicas(endpoint: Endpoint) -> tuple[str, ...]:
    return endpoint.replicas or (endpoint.service,)


def _port(service: Service) -> int:
    return service.ports[0].container if service.ports else service.listens


def _address(site: Site, service: str, port: int) -> str:
    return site.url(service, port).removeprefix("http://")
