"""Monitoring: Prometheus, Grafana with stackgen's dashboards, stackgen's exporter, and DCGM exporter for NVIDIA GPUs.

- Prometheus 3.5 (LTS): command line and configuration of 3.5.3, image `prom/prometheus`.
- Grafana 12.4: variables `GF_SECTION_KEY` of its "Configure Grafana". Its Alpine image has curl since PR 65547.
- DCGM exporter: tag and `/health` from github.com/NVIDIA/dcgm-exporter 4.5.3-4.8.2.

All ports are published on loopback only.

cAdvisor isn't included: it needs the host's root folder, Docker's socket and more privileges than all other services
together. For engines that export them, `process_*` metrics show CPU and memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from stackgen.engines.base import API_KEY
from stackgen.errors import Mistake
from stackgen.images.tags import VERSIONS, context_assets, cpu_image_tag, unpinned_warnings
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
from stackgen.resolve.addons.monitoring_rules import alert_groups
from stackgen.spec import MonitoringSpec, StackSpec

__all__ = ["GRAFANA_PASSWORD", "extend", "find_port_conflicts", "is_enabled", "mistakes", "ports"]

PROMETHEUS_IMAGE = "prom/prometheus:v3.5.3"
GRAFANA_IMAGE = "grafana/grafana:12.4.10"
DCGM_IMAGE = "nvcr.io/nvidia/k8s/dcgm-exporter:4.5.3-4.8.2-distroless"
PROMETHEUS, PROMETHEUS_PORT = "prometheus", 9090
GRAFANA, GRAFANA_PORT = "grafana", 3000
FOLDER = "/etc/stackgen"
LOOPBACK = "127.0.0.1"  # Prometheus has no authentication
GRAFANA_PASSWORD = EnvRef("GRAFANA_PASSWORD", "Grafana's password: `stackgen up` writes a new password into .env")
PROVISIONING = "/etc/grafana/provisioning"
# no sign-up, and no requests to other hosts
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
    # otherwise Grafana downloads plugins at its first start
    ("GF_PLUGINS_PREINSTALL_DISABLED", "true"),
    ("GF_PLUGINS_PLUGIN_ADMIN_ENABLED", "false"),
    # the container is read-only, so no log files
    ("GF_LOG_MODE", "console"),
    ("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH", f"{PROVISIONING}/dashboards/overview.json"),
)
# the image has no HTTP client, but bash can open connections
DCGM_HEALTH = (
    "exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 "
    '&& [ "$status" = 200 ]'
)
EXPORTER_HEALTH = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/-/healthy', timeout=5)"


def is_enabled(stack: StackSpec, site: Site) -> bool:
    """Whether the stack has monitoring."""
    return stack.monitoring is not None and stack.monitoring.enabled and site.uses_containers


def ports(stack: StackSpec, site: Site) -> dict[str, int]:
    """Published ports, by their path in the stack file."""
    if not is_enabled(stack, site):
        return {}
    spec = _spec(stack)
    return {"monitoring.grafana_port": spec.grafana_port, "monitoring.prometheus_port": spec.prometheus_port}


def mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """Finds ports that two services use."""
    return find_port_conflicts(stack, ports(stack, site), {})


def find_port_conflicts(stack: StackSpec, mine: dict[str, int], others: dict[str, int]) -> list[Mistake]:
    """Finds ports of `mine` that the stack, a model, `others` or another entry of `mine` also uses.

    `mine` and `others` map paths in the stack file to ports.
    """
    taken = {"port": stack.port} | {
        f"models[{index}].port": model.port for index, model in enumerate(stack.models) if model.port
    }
    if stack.gateway and stack.gateway.tls and stack.gateway.tls.redirect_port:
        taken["gateway.tls.redirect_port"] = stack.gateway.tls.redirect_port
    found = []
    # checked here, because Docker detects the conflict only when it starts the containers
    known = {port: path for path, port in (*others.items(), *taken.items())}
    for path, port in mine.items():
        if port in known:
            found.append(Mistake(path, f"port {port} is also used by `{known[port]}`", hint="choose another port"))
        known[port] = path
    return found


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """Returns the plan with the monitoring services."""
    spec = stack.monitoring
    if spec is None or not is_enabled(stack, site):
        requested = spec is not None and spec.enabled
        warnings = ("monitoring needs containers: local processes run without monitoring",) if requested else ()
        return replace(plan, warnings=(*plan.warnings, *warnings))
    log = Logging(stack.logging.max_size, stack.logging.max_file)
    plan = _with_watch_metrics(plan)
    probes = targets.probes(stack, site, plan)
    # a cluster has its own Prometheus and Grafana
    services = (
        [_exporter(spec, probes)]
        if site.is_cluster
        else [_prometheus(stack, spec, site), _grafana(spec), _exporter(spec, probes)]
    )
    gpus = _all_gpus(plan)
    if gpus and not site.is_cluster:
        services.append(_dcgm(spec, gpus))
    # the default images are pinned to a version; images from the stack file may not be
    images = (spec.prometheus_image, spec.grafana_image, spec.exporter_image, spec.dcgm_image)
    scraping = targets.scraping(stack, spec, site, plan)
    documents = (
        Document("monitoring/prometheus.yml.j2", "monitoring/prometheus.yml", "yaml", scraping),
        # Grafana's shortest range for rates
        Document("monitoring/datasource.yaml.j2", "monitoring/datasources/stackgen.yaml", "yaml", spec.scrape_interval),
        Document("monitoring/rules.yml.j2", "monitoring/rules.yml", "yaml", alert_groups(plan, spec)),
        Document("monitoring/endpoints.yaml.j2", "monitoring/endpoints.yaml", "yaml", probes),
    )
    own = ((PROMETHEUS, f"{stack.name}-prometheus"), (GRAFANA, f"{stack.name}-grafana"))
    assets = [*_grafana_files(plan), *(() if spec.exporter_image else context_assets("exporter"))]
    return replace(
        plan,
        services=(*plan.services, *(replace(service, logging=log) for service in services)),
        # metrics and accounts belong to one stack, unlike the shared model storage
        volumes=(*plan.volumes, *(() if site.is_cluster else own)),
        assets=(*plan.assets, *assets),
        documents=(*plan.documents, *documents),
        warnings=(*plan.warnings, *unpinned_warnings(*images)),
    )


def _with_watch_metrics(plan: Plan) -> Plan:
    """The plan in which each watch for hangs that can serve metrics does so."""
    port = ("STACKGEN_WATCH_PORT", str(targets.WATCH_PORT))
    watched = {service.name for service in targets.watched_services(plan)}
    services = tuple(
        replace(one, environment=(*one.environment, port)) if one.name in watched else one for one in plan.services
    )
    return replace(plan, services=services)


def _spec(stack: StackSpec) -> MonitoringSpec:
    return stack.monitoring or MonitoringSpec()


def _prometheus(stack: StackSpec, spec: MonitoringSpec, site: Site) -> Service:
    authorities = targets.authorities(stack, spec)
    return Service(
        name=PROMETHEUS, role="monitoring",
        comment="Collects metrics of all services and evaluates alerts",
        image=spec.prometheus_image or PROMETHEUS_IMAGE,
        entrypoint=("prometheus",),
        command=(
            f"--config.file={FOLDER}/prometheus.yml", "--storage.tsdb.path=/prometheus",
            f"--storage.tsdb.retention.time={spec.retention}",
            # a changed stack is scraped without a restart
            "--enable-feature=auto-reload-config", f"--config.auto-reload-interval={spec.reload_interval}s",
        ),
        mounts=(Bind("./monitoring", FOLDER), Volume(PROMETHEUS, "/prometheus"),
                *((Bind(site.host_path(authorities), site.local_path(authorities)),) if authorities else ())),
        ports=(Port(LOOPBACK, spec.prometheus_port, PROMETHEUS_PORT),),
        # every build of the image has promtool, but not every one has wget
        health=HealthCheck(("promtool", "check", "ready", f"--url=http://127.0.0.1:{PROMETHEUS_PORT}"),
                           timeout=10, start_period=120),
        restart="unless-stopped",
        stop_grace_period=60,
    )  # fmt: skip


def _grafana(spec: MonitoringSpec) -> Service:
    return Service(
        name=GRAFANA, role="monitoring",
        comment="Shows dashboards. Log in as `admin`, with the password in .env",
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
        comment=f"Requests a few tokens from every model every {spec.check_interval} s, and exports the results to "
        "Prometheus",
        image=spec.exporter_image or cpu_image_tag("exporter"),
        build=None if spec.exporter_image else Build("./exporter", (("STACKGEN_VERSION", VERSIONS["exporter"]),)),
        entrypoint=("stackgen", "exporter"),
        # the auth checks send wrong keys, which the gateway would count as rejected requests
        command=(f"{FOLDER}/endpoints.yaml", "--listen", f"0.0.0.0:{targets.EXPORTER_PORT}", "--allow-remote",
                 "--skip", "auth", "--interval", str(spec.check_interval)),
        environment=(
            (API_KEY.name, API_KEY),
            ("HOME", "/tmp"),
            # a changed value recreates the container, because the exporter reads endpoints.yaml only at its start
            ("STACKGEN_ENDPOINTS", hashlib.sha256(repr(probes).encode()).hexdigest()[:12]),
        ),
        mounts=(Bind("./monitoring", FOLDER), Tmpfs("/tmp", "mode=1777")),
        internal_port=targets.EXPORTER_PORT,
        health=HealthCheck(("python3", "-c", EXPORTER_HEALTH.format(port=targets.EXPORTER_PORT)),
                           timeout=10, start_period=60),
        restart="unless-stopped",
    )  # fmt: skip


def _all_gpus(plan: Plan) -> GpuRequest | None:
    """Returns one request for all NVIDIA GPUs of the stack's services, or None if there are none."""
    requests = [service.gpus for service in targets.nvidia_services(plan) if service.gpus]
    if not requests:
        return None
    ids = tuple(dict.fromkeys(id for one in requests for id in one.ids))
    count = -1 if any(one.count == -1 for one in requests) else sum(one.count for one in requests)
    # Compose accepts either ids or a count, not both
    return GpuRequest(requests[0].driver, count=0 if ids else count, ids=ids)


def _dcgm(spec: MonitoringSpec, gpus: GpuRequest) -> Service:
    return Service(
        name=targets.DCGM, role="monitoring",
        comment="Exports metrics of the stack's GPUs. Shares the GPUs with the engines, but runs no work on the GPUs",
        image=spec.dcgm_image or DCGM_IMAGE,
        command=(),
        gpus=gpus,
        mounts=(Tmpfs("/tmp", "mode=1777"), Tmpfs("/run", "mode=1777"), Tmpfs("/var/log", "mode=1777")),
        health=HealthCheck(("bash", "-c", DCGM_HEALTH.format(port=targets.DCGM_PORT)), timeout=10, start_period=120),
        restart="unless-stopped",
        # root and CAP_SYS_ADMIN are needed only for profiling metrics, which no dashboard here shows
        user="1000:1000",
        # as for engines with GPUs: hooks of the NVIDIA Container Toolkit write to the root file system. One writes
        # /etc/ld.so.cache, which this image lacks, and without which the exporter exits (dcgm-exporter issue 612)
        read_only=False,
    )  # fmt: skip


def _grafana_files(plan: Plan) -> tuple[Asset, ...]:
    # a dashboard without its metrics would be empty
    names = ["overview"]
    names += ["models"] if targets.services_with_metrics(plan, "vllm") else []
    names += ["sglang"] if targets.services_with_metrics(plan, "sglang") else []
    names += ["gateway"] if targets.has_gateway(plan) else []
    names += ["probes"]
    names += ["gpus"] if targets.nvidia_services(plan) else []
    return (
        Asset("monitoring/dashboards.yaml", "monitoring/dashboards/stackgen.yaml"),
        *(Asset(f"monitoring/dashboards/{name}.json", f"monitoring/dashboards/{name}.json") for name in names),
    )
