"""The gateway: HAProxy in front of all engines, with keys, an allow-list of paths, load balancing, failover and TLS.

Settings: measured on HAProxy 3.2 (reasons: docs/decisions/gateway.md). Directives: HAProxy's configuration manual 3.2.
The engines have a key of their own that no client knows, and publish no ports.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from stackgen import engines
from stackgen.engines.base import API_KEY, DRAIN_SECONDS, SCRIPTS, served_names
from stackgen.errors import Mistake
from stackgen.images.tags import unpinned_warnings
from stackgen.plan import (
    Asset,
    Bind,
    Endpoint,
    EnvRef,
    HealthCheck,
    Logging,
    Mount,
    Network,
    Plan,
    Port,
    Service,
    Site,
    Tmpfs,
)
from stackgen.resolve.addons import fallback, router
from stackgen.resolve.addons.backends import Backend, Gateway, Server, backend_name, documents, make_backend
from stackgen.resolve.addons.backends import redirection as find_redirection
from stackgen.resolve.addons.concurrency import concurrency_warnings
from stackgen.resolve.addons.gateway_keys import assets as key_assets
from stackgen.resolve.addons.gateway_keys import key_mistakes, key_rules, key_warnings, pod_warnings
from stackgen.spec import GatewaySpec, StackSpec

__all__ = [
    "DEFAULT_KEY", "ENGINE_KEY", "PAGE", "PAGE_PORT", "SERVICE", "extend", "is_enabled", "mistakes", "serves_page",
]  # fmt: skip

SERVICE = "gateway"
IMAGE = "haproxy:3.2.26"
# the user of the official image; any uid without privileges works
USER = "99:99"
PORT, REDIRECT_PORT = 8000, 8080
FOLDER = "/gateway"
# mounted into the container, so that the official image stays unchanged
FILES = (
    ("start.sh", "scripts/gateway_start.sh"), ("health.sh", "scripts/gateway_health.sh"),
    ("limit.lua", "gateway/limit.lua"), ("model.lua", "gateway/model.lua"),
    ("form.lua", "gateway/form.lua"), ("models.lua", "gateway/models.lua"),
    ("drains.lua", "gateway/drains.lua"),
)  # fmt: skip
# the chat page, and the port of HAProxy's frontend for it
PAGE, PAGE_PORT, PAGE_FRONTEND = "open-webui", 8080, 8010
# the name of the key from .env
DEFAULT_KEY = "default"
ENGINE_KEY = EnvRef("STACKGEN_ENGINE_KEY", "the gateway's key for the engines: `stackgen up` writes it into .env")


def is_enabled(stack: StackSpec, site: Site) -> bool:
    """Whether the stack has a gateway: as the stack file sets, else if it has several replicas or an open address."""
    if not site.uses_containers:
        return False
    # every pod of a cluster can connect to the others
    if site.is_cluster:
        return True
    # a machine that only computes for another one answers no requests
    if stack.hosts:
        return not stack.is_behind_front or not all(map(stack.is_follower, stack.models))
    if stack.gateway is not None:
        return stack.gateway.enabled
    # several engines need one address, and an open address needs the allow-list of paths
    return sum(model.replicas for model in stack.models) > 1 or stack.exposed or serves_page(stack)


def serves_page(stack: StackSpec) -> bool:
    """Whether the gateway serves the chat page: other machines must be able to reach the page."""
    return stack.ui is not None and stack.ui.exposed


def mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """Finds ambiguous or unroutable served names, ports without effect, and duplicate keys."""
    if not is_enabled(stack, site):
        return [
            Mistake(f"models[{index}].fallback", "needs the gateway", hint="set gateway: true")
            for index, model in enumerate(stack.models)
            if model.fallback and site.uses_containers
        ] + (router.mistakes(stack, False) if site.uses_containers else [])
    found = []
    owners: dict[str, int] = {}
    port_hint = "only the gateway publishes a port: remove `port`, or set `gateway: false`"
    for index, model in enumerate(stack.models):
        path = f"models[{index}]"
        if model.port:
            found.append(Mistake(f"{path}.port", "has no effect behind the gateway", hint=port_hint))
        for name in served_names(model):
            first = owners.setdefault(name, index)
            # name_services reports equal names within one engine
            if first != index and stack.models[first].engine != model.engine:
                found.append(
                    Mistake(f"{path}.served_names", f"{name!r} is already served by models[{first}]",
                            hint="give each model its own name, because the gateway routes by name")
                )  # fmt: skip
            if not name.isascii():
                found.append(
                    Mistake(f"{path}.served_names", f"{name!r} is not ASCII, so the gateway can't route by this name",
                            hint="choose an ASCII name, because clients encode other characters in different ways")
                )  # fmt: skip
        # the gateway reserves one concurrent request per model for its health check, which would leave none for clients
        if model.engine == "fastchat" and model.worker_concurrency * model.replicas < 2:
            found.append(
                Mistake(f"{path}.worker_concurrency",
                        "is too low: the gateway's health check can't run during a client's request",
                        hint="set 2 or more, or add replicas: the health check of FastChat is itself a request")
            )  # fmt: skip
    adapters = [one.name for model in stack.models for one in getattr(model, "lora_adapters", ())]
    found += key_mistakes(_spec(stack), [*owners, *adapters])
    tls = _spec(stack).tls
    if tls and tls.redirect_port == stack.port:
        found.append(
            Mistake("gateway.tls.redirect_port", f"is the gateway's own port {stack.port}", hint="choose another port")
        )
    if _spec(stack).routing == "prefix":
        found += [
            Mistake(f"models[{index}].cache_aware", "can't be combined with `gateway.routing: prefix`",
                    hint="remove one of the two, because both choose a replica by the prefix of a prompt")
            for index, model in enumerate(stack.models) if getattr(model, "cache_aware", False)
        ]  # fmt: skip
    return found + fallback.mistakes(stack) + router.mistakes(stack, True)


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """Returns the plan with a gateway in front of the engines. Without a gateway, only warnings are added."""
    if not is_enabled(stack, site):
        return replace(plan, warnings=(*plan.warnings, *_warnings(stack, site, plan)))
    spec = _spec(stack)
    # the allow-list: engines have more paths, and answer many of them without a key
    paths = tuple(dict.fromkeys(path for name in engines.names() for path in engines.get(name).dialect.api_paths))
    backends = router.add_routers(stack, _backends(site, plan, set(paths) - set(spec.allow)))
    data = Gateway(
        backends=backends,
        post_paths=tuple(dict.fromkeys((*paths, *spec.allow))),
        keys=tuple(dict.fromkeys((DEFAULT_KEY, *(key.name for key in spec.keys)))),
        tls=bool(spec.tls),
        redirect_to=find_redirection(stack)[1] if spec.tls and spec.tls.redirect_port else 0,
        max_body=int(spec.max_body[:-1]) * 2**20,
        timeout=spec.timeout,
        max_queue=spec.max_queue,
        queue_timeout=spec.queue_timeout,
        fallbacks=fallback.fallbacks(
            stack, backends, site.local_path(stack.ca_certificates) if stack.ca_certificates else ""
        ),
        cors=spec.cors,
        prefix_bytes=spec.prefix_bytes if spec.routing == "prefix" else 0,
        rules=key_rules(spec),
        tells_models=stack.is_behind_front,
        page=Server(PAGE, PAGE_PORT) if serves_page(stack) else None,
        nameserver=site.nameserver,
    )
    scheme = "https" if spec.tls else "http"
    url = site.public_url(stack.bind, stack.port).replace("http", scheme, 1)
    return replace(
        plan,
        services=(*(router.join_router_network(_move_behind_gateway(one, site), backends) for one in plan.services),
                  *router.services(stack, backends), _service(stack, site, spec, router.networks(backends))),
        endpoints=tuple(_endpoint(plan, backend, url) for backend in backends),
        assets=(*plan.assets, *(Asset(f"gateway/{name}", path) for name, path in FILES), *key_assets(spec),
                *_prefix_assets(data), *fallback.assets(stack), *router.assets(backends)),
        networks=(*plan.networks, *router.networks(backends)),
        documents=(*plan.documents, *documents(data, spec)),
        warnings=(*plan.warnings, *fallback.warnings(stack, site, backends), *key_warnings(spec),
                  *unpinned_warnings(spec.image), *concurrency_warnings(stack, spec, backends),
                  *pod_warnings(spec, stack.cluster.gateway_replicas if site.is_cluster else 1)),
    )  # fmt: skip


def _prefix_assets(data: Gateway) -> tuple[Asset, ...]:
    return (Asset("gateway/prefix.lua", "gateway/prefix.lua"),) if data.prefix_backends else ()


def _spec(stack: StackSpec) -> GatewaySpec:
    return stack.gateway or GatewaySpec()


def _backends(site: Site, plan: Plan, paths: set[str]) -> tuple[Backend, ...]:
    """Returns one backend per model. `paths`: those that some engine serves."""
    # replicas of a model are endpoints with equal names; FastChat has one endpoint with a group of names per model
    found: dict[tuple[str, tuple[str, ...]], Backend] = {}
    taken: set[str] = set()
    for endpoint in plan.endpoints:
        if remote := endpoint.remote:
            engine, server = remote.engine, Server(remote.host, remote.port, remote.address, 0, remote.replicas, True)
        else:
            service = plan.service(endpoint.service)
            engine, server = service.engine, _server(site, service)
        for names in endpoint.groups or (endpoint.models,):
            key = (engine, names)
            if key in found:
                found[key] = replace(found[key], servers=(*found[key].servers, server))
            else:
                found[key] = make_backend(backend_name(engine, names[0], taken), endpoint, engine, names, server)
                served = endpoint.dialect.api_paths
                found[key] = replace(found[key], api_paths=served, missing_paths=tuple(sorted(paths - set(served))))
    return tuple(found.values())


def _server(site: Site, service: Service) -> Server:
    port = service.ports[0].container if service.ports else service.internal_port
    host = service.host_address or urlsplit(site.url(service.name, port)).hostname or service.name
    # in a cluster, one name has the addresses of all replicas
    slots = max(service.replicas, service.max_replicas) if site.is_cluster else 0
    return Server(service.name, port, host, slots)


def _move_behind_gateway(service: Service, site: Site) -> Service:
    """Makes an engine reachable for the gateway only: no published ports, and a key that no client has."""
    environment = tuple((name, ENGINE_KEY if value == API_KEY else value) for name, value in service.environment)
    # a cluster does not stop the gateway together with the engines
    # and a service in its machine's network can't find the gateway by its name
    if service.role in ("engine", "api") and not site.is_cluster and not service.host_address:
        # supervise.sh stops the engine after the gateway
        environment += (("STACKGEN_GATEWAY", SERVICE),)
    # Prometheus still needs the port, because it scrapes the engines and not the gateway
    port = service.ports[0].container if service.ports else service.internal_port
    return replace(service, environment=environment, ports=(), internal_port=port)


def _endpoint(plan: Plan, backend: Backend, url: str) -> Endpoint:
    first = next(
        one for one in plan.endpoints
        if one.service == backend.servers[0].name and backend.names in (one.groups or (one.models,))
    )  # fmt: skip
    # the gateway answers these paths itself for every engine
    dialect = replace(
        first.dialect,
        liveness_path="/health",
        auth_statuses=(401,),
        unknown_model=(404, "model_not_found"),
        private_ports=(),
    )
    return Endpoint(
        backend.name, service=SERVICE, base_url=url, models=backend.names, dialect=dialect,
        workers=first.workers, exposed=first.exposed,
        replicas=tuple(server.name for server in backend.servers if not server.is_remote),
        remote=first.remote,
    )  # fmt: skip


def _service(stack: StackSpec, site: Site, spec: GatewaySpec, networks: tuple[Network, ...]) -> Service:
    ports = [Port(stack.bind, stack.port, PORT)]
    mounts: list[Mount] = [Bind("./scripts", SCRIPTS), Bind("./gateway", FOLDER), Tmpfs("/tmp", "mode=1777")]
    if spec.tls and spec.tls.redirect_port:
        ports.append(Port(find_redirection(stack)[0], spec.tls.redirect_port, REDIRECT_PORT))
    if stack.ui and serves_page(stack):
        ports.append(Port(stack.ui.bind, stack.ui.port, PAGE_FRONTEND))
    if spec.tls:
        mounts.insert(-1, Bind(site.host_path(spec.tls.certificate or "./gateway/tls/site.crt"), "/tls/site.crt"))
        mounts.insert(-1, Bind(site.host_path(spec.tls.key or "./gateway/tls/site.key"), "/tls/site.crt.key"))
    return Service(
        name=SERVICE, role="gateway",
        comment="The only published service: checks API keys and paths, balances load, and never logs keys or prompts",
        image=spec.image or IMAGE,
        entrypoint=("/bin/bash", site.script("gateway_start.sh")),
        command=(),
        environment=(("STACKGEN_API_KEY", API_KEY), ("STACKGEN_ENGINE_KEY", ENGINE_KEY), *fallback.keys(stack)),
        mounts=tuple(mounts),
        ports=tuple(ports),
        networks=("default", *(network.name for network in networks)) if networks else (),
        health=HealthCheck(("/bin/bash", site.script("gateway_health.sh")), interval=10, timeout=5, start_period=20,
                           start_interval=1),
        restart="unless-stopped",
        # root reads a private key of mode 0600; without KILL, the master can't stop workers that still accept old keys
        # a cluster gives the file to the group of the gateway
        user="0:0" if spec.tls and not site.is_cluster else USER,
        cap_add=("DAC_READ_SEARCH", "KILL", "SETGID", "SETUID") if spec.tls and not site.is_cluster else (),
        # HAProxy's signal for a graceful stop
        stop_signal="SIGUSR1",
        # while the gateway finishes running requests, it accepts no new requests
        stop_grace_period=DRAIN_SECONDS,
        logging=Logging(stack.logging.max_size, stack.logging.max_file),
    )  # fmt: skip


def _warnings(stack: StackSpec, site: Site, plan: Plan) -> list[str]:
    if not site.uses_containers:
        is_on = stack.gateway is not None and stack.gateway.enabled
        is_requested = is_on or router.is_requested(stack) or fallback.is_requested(stack)
        return ["local processes run without the gateway: each engine has its own port"] if is_requested else []
    if stack.gateway is None or stack.gateway.enabled:
        return []
    paths = ", ".join(dict.fromkeys(path for endpoint in plan.endpoints for path in endpoint.open_paths))
    return [f"with `gateway: false`, these paths answer without a key: {paths}"] if paths else []
