"""Monitoring: Prometheus, Grafana with dashboards of our own, stackgen's exporter, and DCGM's for NVIDIA GPUs.

Prometheus 3.5 (LTS): command line and configuration as of 3.5.3, its image is that of `prom/prometheus`. Grafana
12.4: variables are `GF_SECTION_KEY` of its "Configure Grafana"; its Alpine image holds curl since pull request 65547.
DCGM exporter: tag and its `/health` as of github.com/NVIDIA/dcgm-exporter 4.5.3-4.8.2. Everything is on loopback.

cAdvisor is left out: it wants the machine's root folder, Docker's socket and more rights than all others together;
the processes' own figures (`process_*`) tell CPU and memory where an engine has them.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from stackgen.engines.base import API_KEY
from stackgen.errors import Mistake
from stackgen.images.tags import VERSIONS, context_assets, own_tag, unpinned
from stackgen.plan import (
    Asset,
    Bind,
    Build,
    Document,
    EnvRef,
    GpuRequest,
    HealthCheck,
    Logging,
    Plan,
    Port,
    Service,
    Site,
    Tmpfs,
    Volume,
)
from stackgen.resolve.addons import monitoring_targets as targets
from stackgen.resolve.addons.monitoring_rules import groups
from stackgen.spec import MonitoringSpec, StackSpec

__all__ = ["GRAFANA_PASSWORD", "extend", "mistakes", "ports", "wanted"]

PROMETHEUS_IMAGE = "prom/prometheus:v3.5.3"
GRAFANA_IMAGE = "grafana/grafana:12.4.10"
DCGM_IMAGE = "nvcr.io/nvidia/k8s/dcgm-exporter:4.5.3-4.8.2-distroless"
PROMETHEUS, PROMETHEUS_PORT = "prometheus", 9090
GRAFANA, GRAFANA_PORT = "grafana", 3000
FOLDER = "/etc/stackgen"
LOOPBACK = "127.0.0.1"
GRAFANA_PASSWORD = EnvRef("GRAFANA_PASSWORD", "Grafana's password: `stackgen up` writes one into .env")
PROVISIONING = "/etc/grafana/provisioning"
GRAFANA_SETTINGS = (
    ("GF_AUTH_ANONYMOUS_ENABLED", "false"),
    ("GF_USERS_ALLOW_SIGN_UP", "false"),
    ("GF_ANALYTICS_REPORTING_ENABLED", "false"),
    ("GF_ANALYTICS_CHECK_FOR_UPDATES", "false"),
    ("GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES", "false"),
    ("GF_ANALYTICS_FEEDBACK_LINKS_ENABLED", "false"),
    ("GF_NEWS_NEWS_FEED_ENABLED", "false"),
    ("GF_SECURITY_DISABLE_GRAVATAR", "true"),
    ("GF_SNAPSHOTS_EXTERNAL_ENABLED", "false"),
    # what it fetches at its first start otherwise
    ("GF_PLUGINS_PREINSTALL_DISABLED", "true"),
    ("GF_PLUGINS_PLUGIN_ADMIN_ENABLED", "false"),
    # files beside it could not be written
    ("GF_LOG_MODE", "console"),
    ("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH", f"{PROVISIONING}/dashboards/overview.json"),
)
# The image has no program that fetches a page, and bash opens connections by itself
DCGM_HEALTH = (
    "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 "
    '&& [ "$status" = 200 ]'
)
EXPORTER_HEALTH = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/-/healthy', timeout=5)"


def wanted(stack: StackSpec, site: Site) -> bool:
    """Whether the stack gets monitoring."""
    return stack.monitoring is not None and stack.monitoring.enabled and site.containers


def ports(stack: StackSpec, site: Site) -> dict[str, int]:
    """The ports on this machine, by where the stack file sets them."""
    if not wanted(stack, site):
        return {}
    spec = _spec(stack)
    return {"monitoring.grafana_port": spec.grafana_port, "monitoring.prometheus_port": spec.prometheus_port}


def mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """Ports that two services want."""
    return clashes(stack, ports(stack, site), {})


def clashes(stack: StackSpec, mine: dict[str, int], others: dict[str, int]) -> list[Mistake]:
    """Those of `mine` that are also the stack's, a model's, one of `others`, or another of `mine`."""
    taken = {"port": stack.port} | {
        f"models[{index}].port": model.port for index, model in enumerate(stack.models) if model.port
    }
    if stack.gateway and stack.gateway.tls and stack.gateway.tls.redirect_port:
        taken["gateway.tls.redirect_port"] = stack.gateway.tls.redirect_port
    found = []
    known = {port: path for path, port in (*others.items(), *taken.items())}
    for path, port in mine.items():
        if port in known:
            found.append(Mistake(path, f"{port} is that of {known[port]} as well", "choose another port"))
        known[port] = path
    return found


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """The plan with everything that watches it."""
    spec = stack.monitoring
    if spec is None or not wanted(stack, site):
        asked = spec is not None and spec.enabled
        told = ("monitoring needs containers: local processes run without it",) if asked else ()
        return replace(plan, warnings=(*plan.warnings, *told))
    log = Logging(stack.logging.max_size, stack.logging.max_file)
    probes = targets.probes(stack, site, plan)
    services = [_prometheus(spec), _grafana(spec), _exporter(spec, probes)]
    gpus = _all_gpus(plan)
    if gpus:
        services.append(_dcgm(spec, gpus))
    images = (spec.prometheus_image, spec.grafana_image, spec.exporter_image, spec.dcgm_image)
    documents = (
        Document("monitoring/prometheus.yml.j2", "monitoring/prometheus.yml", "yaml", targets.jobs(plan, site)),
        Document("monitoring/rules.yml.j2", "monitoring/rules.yml", "yaml", groups(plan, spec)),
        Document("monitoring/endpoints.yaml.j2", "monitoring/endpoints.yaml", "yaml", probes),
    )
    assets = [*_grafana_files(plan), *(() if spec.exporter_image else context_assets("exporter"))]
    return replace(
        plan,
        services=(*plan.services, *(replace(service, logging=log) for service in services)),
        volumes=(*plan.volumes, (PROMETHEUS, f"{stack.name}-prometheus"), (GRAFANA, f"{stack.name}-grafana")),
        assets=(*plan.assets, *assets),
        documents=(*plan.documents, *documents),
        warnings=(*plan.warnings, *unpinned(*images)),
    )


def _spec(stack: StackSpec) -> MonitoringSpec:
    return stack.monitoring or MonitoringSpec()


def _prometheus(spec: MonitoringSpec) -> Service:
    return Service(
        name=PROMETHEUS, role="monitoring",
        comment="Gathers what all services tell of themselves, and watches it for alerts",
        image=spec.prometheus_image or PROMETHEUS_IMAGE,
        entrypoint=("prometheus",),
        command=(
            f"--config.file={FOLDER}/prometheus.yml", "--storage.tsdb.path=/prometheus",
            f"--storage.tsdb.retention.time={spec.retention}",
            # a changed stack is scraped half a minute later, and nobody has to tell
            "--enable-feature=auto-reload-config", "--config.auto-reload-interval=30s",
        ),
        mounts=(Bind("./monitoring", FOLDER), Volume(PROMETHEUS, "/prometheus")),
        ports=(Port(LOOPBACK, spec.prometheus_port, PROMETHEUS_PORT),),
        # promtool is in every build of it, wget is not
        health=HealthCheck(("promtool", "check", "ready", f"--url=http://127.0.0.1:{PROMETHEUS_PORT}"),
                           timeout=10, start_period=120),
        restart="unless-stopped",
        stop_grace_period=60,
    )  # fmt: skip


def _grafana(spec: MonitoringSpec) -> Service:
    return Service(
        name=GRAFANA, role="monitoring",
        comment="Dashboards of what Prometheus has gathered; user admin, password in .env",
        image=spec.grafana_image or GRAFANA_IMAGE,
        command=(),
        environment=(("GF_SECURITY_ADMIN_PASSWORD", GRAFANA_PASSWORD), *GRAFANA_SETTINGS),
        mounts=(
            Bind("./monitoring/datasources", f"{PROVISIONING}/datasources"),
            Bind("./monitoring/dashboards", f"{PROVISIONING}/dashboards"),
            Volume(GRAFANA, "/var/lib/grafana"),
            Tmpfs("/tmp", "mode=1777"),
        ),
        ports=(Port(LOOPBACK, spec.grafana_port, GRAFANA_PORT),),
        health=HealthCheck(("curl", "-fsS", "-o", "/dev/null", f"http://127.0.0.1:{GRAFANA_PORT}/api/health"),
                           timeout=10, start_period=180),
        restart="unless-stopped",
    )  # fmt: skip


def _exporter(spec: MonitoringSpec, probes: tuple[targets.Probe, ...]) -> Service:
    return Service(
        name=targets.EXPORTER, role="monitoring",
        comment="Asks every model for a few tokens each half minute, and tells Prometheus how that went",
        image=spec.exporter_image or own_tag("exporter"),
        build=None if spec.exporter_image else Build("./exporter", (("STACKGEN_VERSION", VERSIONS["exporter"]),)),
        entrypoint=("stackgen", "exporter"),
        # the checks of keys send wrong ones, which the gateway counts as refused
        command=(f"{FOLDER}/endpoints.yaml", "--listen", f"0.0.0.0:{targets.EXPORTER_PORT}", "--allow-remote",
                 "--skip", "auth"),
        environment=(
            (API_KEY.name, API_KEY),
            ("HOME", "/tmp"),
            # another value makes another container: the file is read once, at the start
            ("STACKGEN_ENDPOINTS", hashlib.sha256(repr(probes).encode()).hexdigest()[:12]),
        ),
        mounts=(Bind("./monitoring", FOLDER), Tmpfs("/tmp", "mode=1777")),
        health=HealthCheck(("python3", "-c", EXPORTER_HEALTH.format(port=targets.EXPORTER_PORT)),
                           timeout=10, start_period=60),
        restart="unless-stopped",
    )  # fmt: skip


def _all_gpus(plan: Plan) -> GpuRequest | None:
    """One request for all NVIDIA GPUs that the stack's services have."""
    requests = [service.gpus for service in targets.nvidia(plan) if service.gpus]
    if not requests:
        return None
    ids = tuple(dict.fromkeys(id for one in requests for id in one.ids))
    count = -1 if any(one.count == -1 for one in requests) else sum(one.count for one in requests)
    return GpuRequest(requests[0].driver, count=0 if ids else count, ids=ids)


def _dcgm(spec: MonitoringSpec, gpus: GpuRequest) -> Service:
    return Service(
        name=targets.DCGM, role="monitoring",
        comment="Figures of the stack's GPUs; shares them with the engines, and computes nothing on them",
        image=spec.dcgm_image or DCGM_IMAGE,
        command=(),
        gpus=gpus,
        mounts=(Tmpfs("/tmp", "mode=1777"), Tmpfs("/run", "mode=1777"), Tmpfs("/var/log", "mode=1777")),
        health=HealthCheck(("bash", "-c", DCGM_HEALTH.format(port=targets.DCGM_PORT)), timeout=10, start_period=120),
        restart="unless-stopped",
        # upstream's user for all but profiling metrics, which want CAP_SYS_ADMIN and which no dashboard of ours shows
        user="1000:1000",
    )  # fmt: skip


def _grafana_files(plan: Plan) -> tuple[Asset, ...]:
    names = ["overview", "models"] if targets.metrics_of(plan) else ["overview"]
    names += ["gateway"] if targets.has_gateway(plan) else []
    names += ["probes"]
    names += ["gpus"] if targets.nvidia(plan) else []
    return (
        Asset("monitoring/datasource.yaml", "monitoring/datasources/stackgen.yaml"),
        Asset("monitoring/dashboards.yaml", "monitoring/dashboards/stackgen.yaml"),
        *(Asset(f"monitoring/dashboards/{name}.json", f"monitoring/dashboards/{name}.json") for name in names),
    )
