"""The gateway: HAProxy before all engines, with keys, an allow-list of paths, balancing, failover and TLS.

Settings as measured on HAProxy 3.2 (docs/gateway.md says which and why); directives: its configuration manual 3.2.
The engines keep a key of their own that no client knows, and publish no port.
"""

from __future__ import annotations

from dataclasses import replace

from stackgen.engines.base import API_KEY, SCRIPTS, served_names
from stackgen.errors import Mistake
from stackgen.images.tags import unpinned
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
from stackgen.resolve.addons.backends import Backend, Gateway, Server, backend_name, backend_of, documents
from stackgen.spec import GatewaySpec, StackSpec

__all__ = ["DEFAULT_KEY", "ENGINE_KEY", "SERVICE", "extend", "mistakes", "wanted"]

SERVICE = "gateway"
IMAGE = "haproxy:3.2.26"
# any number without rights will do; it is that of the official image's own user
USER = "99:99"
PORT, REDIRECT_PORT = 8000, 8080
FOLDER = "/gateway"
FILES = (
    ("start.sh", "scripts/gateway_start.sh"), ("health.sh", "scripts/gateway_health.sh"),
    ("model.lua", "gateway/model.lua"),
)  # fmt: skip
# The key named so is that of .env
DEFAULT_KEY = "default"
ENGINE_KEY = EnvRef("STACKGEN_ENGINE_KEY", "the key between gateway and engines: `stackgen up` writes one into .env")
POSTS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/rerank", "/v1/score",
)  # fmt: skip


def wanted(stack: StackSpec, site: Site) -> bool:
    """Whether the stack gets a gateway: where the user says so, else for several replicas or an open address."""
    if not site.containers:
        return False
    if stack.gateway is not None:
        return stack.gateway.enabled
    return sum(model.replicas for model in stack.models) > 1 or stack.exposed


def mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """Names that can't be told apart or carried, ports that have no meaning, keys given twice."""
    if not wanted(stack, site):
        return [
            Mistake(f"models[{index}].fallback", "needs the gateway", "set gateway: true")
            for index, model in enumerate(stack.models)
            if model.fallback and site.containers
        ] + (router.mistakes(stack, False) if site.containers else [])
    found = []
    owners: dict[str, int] = {}
    off = "the gateway's is the only one; take it out, or set gateway: false"
    for index, model in enumerate(stack.models):
        path = f"models[{index}]"
        if model.port:
            found.append(Mistake(f"{path}.port", "has no meaning behind the gateway", off))
        for name in served_names(model):
            first = owners.setdefault(name, index)
            if first != index and stack.models[first].engine != model.engine:
                found.append(
                    Mistake(f"{path}.served_names", f"{name!r} is served by models[{first}] already",
                            "the gateway routes by name: give each model its own")
                )  # fmt: skip
            if not name.isascii():
                found.append(
                    Mistake(f"{path}.served_names", f"{name!r} is not all ASCII, which the gateway can't route by",
                            "give the model another name: clients send such letters in several spellings")
                )  # fmt: skip
        if model.engine == "fastchat" and model.worker_concurrency * model.replicas < 2:
            found.append(
                Mistake(f"{path}.worker_concurrency", "leaves the gateway's health check no turn beside an answer",
                        "set it to 2 or more, or replicas: FastChat proves that it is well by an answer only")
            )  # fmt: skip
    names = [key.name for key in _spec(stack).keys]
    found += [
        Mistake("gateway.keys", f"{name!r} stands twice") for name in sorted({n for n in names if names.count(n) > 1})
    ]
    tls = _spec(stack).tls
    if tls and tls.redirect_port == stack.port:
        found.append(Mistake("gateway.tls.redirect_port", f"is the gateway's own port {stack.port}"))
    return found + fallback.mistakes(stack) + router.mistakes(stack, True)


def extend(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """The plan with the gateway before its engines; only its warnings where the user wants none."""
    if not wanted(stack, site):
        return replace(plan, warnings=(*plan.warnings, *_warnings(stack, site, plan)))
    spec = _spec(stack)
    backends = router.routed(stack, _backends(stack, plan))
    data = Gateway(
        backends=backends,
        posts=tuple(dict.fromkeys((*POSTS, *spec.allow))),
        keys=tuple(dict.fromkeys((DEFAULT_KEY, *(key.name for key in spec.keys)))),
        tls=bool(spec.tls),
        redirect_to=stack.port if spec.tls and spec.tls.redirect_port else 0,
        max_body=int(spec.max_body[:-1]) * 2**20,
        timeout=spec.timeout,
        max_queue=spec.max_queue,
        queue_timeout=spec.queue_timeout,
        fallbacks=fallback.fallbacks(stack, backends),
    )
    scheme = "https" if spec.tls else "http"
    url = site.public_url(stack.bind, stack.port).replace("http", scheme, 1)
    return replace(
        plan,
        services=(*(router.joined(_behind(service), backends) for service in plan.services),
                  *router.services(stack, backends), _service(stack, site, spec, router.networks(backends))),
        endpoints=tuple(_endpoint(plan, backend, url) for backend in backends),
        assets=(*plan.assets, *(Asset(f"gateway/{name}", path) for name, path in FILES), *fallback.assets(stack),
                *router.assets(backends)),
        networks=(*plan.networks, *router.networks(backends)),
        documents=(*plan.documents, *documents(data, spec)),
        warnings=(*plan.warnings, *fallback.warnings(stack), *unpinned(spec.image)),
    )  # fmt: skip


def _spec(stack: StackSpec) -> GatewaySpec:
    return stack.gateway or GatewaySpec()


def _backends(stack: StackSpec, plan: Plan) -> tuple[Backend, ...]:
    """One for each model. Replicas of one model are endpoints of the same names; FastChat serves all by one."""
    found: dict[tuple[str, tuple[str, ...]], Backend] = {}
    taken: set[str] = set()
    for endpoint in plan.endpoints:
        service = plan.service(endpoint.service)
        server = Server(endpoint.service, service.ports[0].container)
        for names in endpoint.groups or (endpoint.models,):
            key = (service.engine, names)
            if key in found:
                found[key] = replace(found[key], servers=(*found[key].servers, server))
            else:
                found[key] = backend_of(
                    backend_name(service.engine, names[0], taken), endpoint, service.engine, names, server
                )
    return tuple(found.values())


def _behind(service: Service) -> Service:
    """An engine that only the gateway reaches: no port on this machine, and a key that no client has."""
    environment = tuple((name, ENGINE_KEY if value == API_KEY else value) for name, value in service.environment)
    listens = service.ports[0].container if service.ports else 0
    return replace(service, environment=environment, ports=(), listens=listens)


def _endpoint(plan: Plan, backend: Backend, url: str) -> Endpoint:
    first = next(one for one in plan.endpoints if one.service == backend.servers[0].name)
    dialect = replace(
        first.dialect,
        alive_path="/health",
        auth_statuses=(401,),
        unknown_model=(404, "model_not_found"),
        private_ports=(),
    )
    return Endpoint(
        backend.name, SERVICE, url, backend.names, dialect, workers=first.workers, exposed=first.exposed,
        replicas=tuple(server.name for server in backend.servers),
    )  # fmt: skip


def _service(stack: StackSpec, site: Site, spec: GatewaySpec, networks: tuple[Network, ...]) -> Service:
    ports = [Port(stack.bind, stack.port, PORT)]
    mounts: list[Mount] = [Bind("./scripts", SCRIPTS), Bind("./gateway", FOLDER), Tmpfs("/tmp", "mode=1777")]
    if spec.tls and spec.tls.redirect_port:
        ports.append(Port(stack.bind, spec.tls.redirect_port, REDIRECT_PORT))
    if spec.tls:
        certificate, key = spec.tls.certificate, spec.tls.key
        mounts.insert(-1, Bind(site.host_path(certificate or "./gateway/tls/site.crt"), "/tls/site.crt"))
        mounts.insert(-1, Bind(site.host_path(key or "./gateway/tls/site.key"), "/tls/site.crt.key"))
    return Service(
        name=SERVICE, role="gateway",
        comment="The only way in: keys, an allow-list of paths, and the replicas shared out; logs no key and no text",
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
        # a private key of mode 0600 can be read by root only, who then becomes somebody without rights, whom the master
        # can tell to end only with KILL: without it, workers with old keys would go on after a reload
        user="0:0" if spec.tls else USER,
        cap_add=("DAC_READ_SEARCH", "KILL", "SETGID", "SETUID") if spec.tls else (),
        stop_signal="SIGUSR1",
        # while it ends what it has begun, nothing new is taken
        stop_grace_period=30,
        logging=Logging(stack.logging.max_size, stack.logging.max_file),
    )  # fmt: skip


def _warnings(stack: StackSpec, site: Site, plan: Plan) -> list[str]:
    if not site.containers:
        asked = (stack.gateway is not None and stack.gateway.enabled) or router.asked(stack) or fallback.asked(stack)
        return ["local processes run without the gateway: each engine has a port of its own"] if asked else []
    if stack.gateway is None or stack.gateway.enabled:
        return []
    paths = ", ".join(dict.fromkeys(path for endpoint in plan.endpoints for path in endpoint.dialect.open_paths))
    return [f"gateway: false leaves paths open that ask for no key: {paths}"] if paths else []
