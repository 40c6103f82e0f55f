"""`cache_aware: true`: vllm-router between gateway and replicas, which sends equal beginnings to the same replica.

Flags as of vllm-router 0.1.17 (`vllm-router --help`); behaviour measured on it: it passes a client's key on for chat
and completions only, its /health fails as soon as one replica does (/readiness when all do), and anybody who reaches
it can add replicas. So it stands on a network of its own with replicas and gateway, gets no other path, knows no key,
and the replicas stay behind it as the gateway's second choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stackgen.engines.base import flags
from stackgen.errors import Mistake
from stackgen.images.tags import context_assets, own_tag
from stackgen.plan import Asset, Build, HealthCheck, Logging, Network, Service, Tmpfs
from stackgen.resolve.addons.backends import Backend, Server, backend_for
from stackgen.spec import StackSpec

__all__ = ["NETWORK", "asked", "assets", "joined", "mistakes", "networks", "routed", "services"]

FOLDER, PORT, NETWORK = "vllm-router", 30000, "routing"
# of the image's own user
USER = "1000:1000"
# longer than the router keeps an idle connection to a replica: vLLM 0.32 closes one after 5 s (vllm/envs.py), and a
# request that the router sends on it in that moment is a 500
KEEP_ALIVE = ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "120")
ALIVE = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/liveness', timeout=4)"


def asked(stack: StackSpec) -> bool:
    """Whether any model wants one."""
    return any(map(_wanted, stack.models))


def mistakes(stack: StackSpec, gateway: bool) -> list[Mistake]:
    """Models whose requests have nothing to be shared out over, or nobody who does it."""
    found = []
    for index, model in enumerate(stack.models):
        if not _wanted(model):
            continue
        path = f"models[{index}].cache_aware"
        if model.replicas < 2:
            found.append(Mistake(path, "needs two replicas or more to choose from", "set replicas, or take it out"))
        if not gateway:
            found.append(Mistake(path, "needs the gateway", "set gateway: true"))
    return found


def routed(stack: StackSpec, backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """The backends, those of cache-aware models with their router."""
    cached = {backend_for(model, backends).name for model in stack.models if _wanted(model)}
    return tuple(
        replace(one, router=Server(f"router-{one.name.removeprefix('vllm-')}", PORT)) if one.name in cached else one
        for one in backends
    )


def joined(service: Service, backends: Sequence[Backend]) -> Service:
    """The service, on the router's network too where it is a replica behind one, and patient with its connections."""
    if not any(server.name == service.name for one in backends if one.router for server in one.servers):
        return service
    environment = dict((KEEP_ALIVE, *service.environment))
    return replace(
        service, networks=(*(service.networks or ("default",)), NETWORK), environment=tuple(environment.items())
    )


def services(stack: StackSpec, backends: Sequence[Backend]) -> tuple[Service, ...]:
    """A router for each cache-aware model; the first one's image serves all."""
    found = [_service(stack, one, one.router) for one in backends if one.router]
    return tuple(service if service is found[0] else replace(service, build=None) for service in found)


def networks(backends: Sequence[Backend]) -> tuple[Network, ...]:
    """The routers' network, where there is one."""
    return (Network(NETWORK, internal=True),) if any(one.router for one in backends) else ()


def assets(backends: Sequence[Backend]) -> tuple[Asset, ...]:
    """What the router's image is built from."""
    return context_assets(FOLDER) if any(one.router for one in backends) else ()


def _wanted(model: Any) -> bool:
    # a field of vLLM's own
    return bool(getattr(model, "cache_aware", False))


def _service(stack: StackSpec, backend: Backend, router: Server) -> Service:
    return Service(
        name=router.name, role="router",
        comment=f"Sends requests of {backend.names[0]} that begin alike to the same replica; asks for no key, so on an "
        "internal network only",
        image=own_tag(FOLDER), build=Build(f"./{FOLDER}"), pull=False,
        command=(
            # its default is loopback; Prometheus' port stays there
            *flags((("--host", "0.0.0.0"), ("--port", PORT))),
            "--worker-urls", *(f"http://{server.name}:{server.port}" for server in backend.servers),
            *flags((
                ("--policy", "cache_aware"),
                # it waits for the first replica, and would end after ten minutes; the gateway goes past it meanwhile
                ("--worker-startup-timeout-secs", 86400),
                ("--worker-startup-check-interval", 2),
                ("--health-check-interval-secs", 2),
                ("--health-check-timeout-secs", 5),
                ("--health-failure-threshold", 2),
                ("--health-success-threshold", 1),
                # it tries the same replica again, and then leaves it out for a minute, also when it is well again: the
                # gateway goes to the replicas directly instead
                ("--disable-retries", True),
                ("--disable-circuit-breaker", True),
                # of a whole answer; the gateway minds silence
                ("--request-timeout-secs", 86400),
                ("--log-level", "warning"),
            )),
        ),
        mounts=(Tmpfs("/tmp", "mode=1777"),),
        networks=(NETWORK,),
        health=HealthCheck(("python3", "-c", ALIVE), interval=10, timeout=5, start_period=3600, start_interval=2),
        restart="unless-stopped",
        user=USER,
        stop_grace_period=60,
        logging=Logging(stack.logging.max_size, stack.logging.max_file),
    )  # fmt: skip
