"""Scrape targets of Prometheus and endpoints of stackgen's exporter, as seen from inside the stack's network.

Ports: vLLM 0.32 serves `/metrics` on its API port, without a key. HAProxy's built-in exporter and the counters by key
are on the gateway's admin port. DCGM exporter 4.5.3-4.8.2 listens on 9400.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stackgen.engines.base import API_KEY
from stackgen.plan import Endpoint, Plan, Service, Site
from stackgen.resolve.addons.gateway import SERVICE as GATEWAY
from stackgen.spec import MonitoringSpec, StackSpec
from stackgen.spec.alerting import AlertmanagerUrl, parse_alertmanager

__all__ = [
    "DCGM",
    "DCGM_PORT",
    "EXPORTER",
    "EXPORTER_PORT",
    "GATEWAY_ADMIN_PORT",
    "WATCH_PORT",
    "Job",
    "Probe",
    "Scraping",
    "Target",
    "authorities",
    "count_planned_gpus",
    "gateway_url",
    "has_gateway",
    "nvidia_services",
    "probes",
    "scrape_jobs",
    "scraping",
    "services_with_metrics",
    "watched_services",
]  # fmt: skip

EXPORTER, EXPORTER_PORT = "exporter", 9464
# not published; no engine uses it
WATCH_PORT = 9465
DCGM, DCGM_PORT = "dcgm-exporter", 9400
GATEWAY_PORT, GATEWAY_PLAIN_PORT, GATEWAY_ADMIN_PORT = 8000, 8001, 8405
# engines whose own web server has /metrics, which need no key; the name is also the name of the scrape job
METRIC_ENGINES = ("vllm", "sglang")


@dataclass(frozen=True, slots=True)
class Target:
    """One scraped address, with the labels of its series."""

    address: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A scrape job: targets of one kind, scraped every `interval` seconds."""

    name: str
    path: str
    interval: int
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Scraping:
    """All data of Prometheus's configuration. `interval` and `reload_interval` are in seconds.

    `labels` are added to each alert that is sent to `alertmanagers`, whose certificates `ca_file` verifies.
    """

    interval: int
    reload_interval: int
    jobs: tuple[Job, ...]
    labels: tuple[tuple[str, str], ...] = ()
    alertmanagers: tuple[AlertmanagerUrl, ...] = ()
    ca_file: str = ""


# its repr is hashed into the exporter's environment: a renamed field would recreate every exporter
@dataclass(frozen=True, slots=True)
class Probe:
    """An endpoint that stackgen's exporter checks, with the API dialect called `dialect`."""

    name: str
    base_url: str
    api_key_env: str
    models: tuple[str, ...]
    dialect: str


def has_gateway(plan: Plan) -> bool:
    """Whether a gateway is in front of the engines."""
    return any(service.name == GATEWAY for service in plan.services)


def gateway_url(stack: StackSpec, site: Site) -> str:
    """The gateway's base URL inside the network: plain HTTP, even if clients must use TLS."""
    # the certificate is valid for the names that clients use, not for the service's name
    tls = stack.gateway is not None and stack.gateway.tls is not None
    return site.url(GATEWAY, GATEWAY_PLAIN_PORT if tls else GATEWAY_PORT) + "/v1"


def services_with_metrics(plan: Plan, engine: str = "") -> tuple[Service, ...]:
    """The services with their own Prometheus metrics: replicas of vLLM and SGLang, or of `engine` only."""
    # FastChat exports no metrics, and llama-server exports them only with --metrics, which stackgen doesn't set
    wanted = (engine,) if engine else METRIC_ENGINES
    return tuple(one for one in plan.services if one.engine in wanted and one.role == "engine" and not one.follows)


def watched_services(plan: Plan) -> tuple[Service, ...]:
    """The services whose watch for hangs has metrics: replicas of vLLM and SGLang, unless `restart_hung` is false."""
    # the networks of FastChat's workers don't reach Prometheus, and the watch of llama.cpp is a shell script
    # and in a machine's own network, anybody could read them
    return tuple(
        one for one in services_with_metrics(plan)
        if "STACKGEN_WATCH" in dict(one.environment) and not one.host_address
    )  # fmt: skip


def nvidia_services(plan: Plan) -> tuple[Service, ...]:
    """The services with NVIDIA GPUs."""
    # DCGM knows only NVIDIA GPUs
    return tuple(service for service in plan.services if service.gpus and service.gpus.driver != "amd")


def count_planned_gpus(plan: Plan) -> int:
    """Number of GPUs that the stack reserves; 0 if it reserves all."""
    requests = [service.gpus for service in nvidia_services(plan) if service.gpus]
    # the number of all GPUs is known only when the engines start
    if any(one.count == -1 or "nvidia.com/gpu=all" in one.ids for one in requests):
        return 0
    return len({id for one in requests for id in one.ids}) + sum(one.count for one in requests)


def scrape_jobs(plan: Plan, site: Site, interval: int) -> tuple[Job, ...]:
    """All scrape jobs of Prometheus. Engines and the gateway are scraped every `interval` seconds."""
    models = dict(_models(plan))
    admin = (Target(_address(site, GATEWAY, GATEWAY_ADMIN_PORT)),)
    found = [Job("prometheus", "/metrics", 2 * interval, (Target("localhost:9090"),))]
    for engine in METRIC_ENGINES:
        replicas = tuple(
            Target(_engine_address(site, one), (("model", models.get(one.name, "")), ("replica", one.name)))
            for one in services_with_metrics(plan, engine)
        )
        found += [Job(engine, "/metrics", interval, replicas)] if replicas else []
    if watched := watched_services(plan):
        found.append(Job("watch", "/metrics", interval, tuple(
            Target(_address(site, one.name, WATCH_PORT), (("model", models.get(one.name, "")), ("replica", one.name)))
            for one in watched
        )))  # fmt: skip
    if has_gateway(plan):
        found += [Job("gateway", "/metrics", interval, admin), Job("gateway-keys", "/keys", interval, admin)]
    found.append(Job("stackgen", "/metrics", 2 * interval, (Target(_address(site, EXPORTER, EXPORTER_PORT)),)))
    if nvidia_services(plan):
        found.append(Job("dcgm", "/metrics", interval, (Target(_address(site, DCGM, DCGM_PORT)),)))
    return tuple(found)


def scraping(stack: StackSpec, spec: MonitoringSpec, site: Site, plan: Plan) -> Scraping:
    """All data of Prometheus's configuration."""
    jobs, file = scrape_jobs(plan, site, spec.scrape_interval), authorities(stack, spec)
    if not spec.alertmanager:
        return Scraping(spec.scrape_interval, spec.reload_interval, jobs)
    # other stacks may send equal alerts to the same Alertmanager
    labels = [("stack", stack.name), *([("host", stack.host)] if stack.host else [])]
    urls = tuple(map(parse_alertmanager, dict.fromkeys(spec.alertmanager)))
    ca_file = site.local_path(file) if file else ""
    return Scraping(spec.scrape_interval, spec.reload_interval, jobs, tuple(labels), urls, ca_file)


def authorities(stack: StackSpec, spec: MonitoringSpec) -> str:
    """The file of `ca_certificates` if an Alertmanager's certificate is verified, else ""."""
    verified = any(parse_alertmanager(url).scheme == "https" for url in spec.alertmanager)
    return stack.ca_certificates or "" if verified else ""


def probes(stack: StackSpec, site: Site, plan: Plan) -> tuple[Probe, ...]:
    """The stack's endpoints, with their URLs inside the network."""
    found = []
    for endpoint in plan.endpoints:
        behind_gateway = endpoint.service == GATEWAY
        service = plan.service(endpoint.service)
        url = gateway_url(stack, site) if behind_gateway else site.url(service.name, _port(service)) + "/v1"
        # the engine's dialect also behind the gateway, because the gateway changes neither names nor usage nor features
        found.append(Probe(endpoint.name, url, API_KEY.name, endpoint.models, endpoint.dialect.name))
    return tuple(found)


def _models(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields service and first served name of each replica."""
    for endpoint in plan.endpoints:
        for service in _replicas(endpoint):
            yield service, endpoint.models[0]


def _replicas(endpoint: Endpoint) -> tuple[str, ...]:
    return endpoint.replicas or (endpoint.service,)


def _port(service: Service) -> int:
    # behind the gateway, a service publishes no port
    return service.ports[0].container if service.ports else service.internal_port


def _engine_address(site: Site, service: Service) -> str:
    # a service in its machine's network has no name in the stack's network
    if host := service.host_address:
        return f"[{host}]:{_port(service)}" if ":" in host else f"{host}:{_port(service)}"
    return _address(site, service.name, _port(service))


def _address(site: Site, service: str, port: int) -> str:
    # Prometheus expects HOST:PORT
    return site.url(service, port).removeprefix("http://")
