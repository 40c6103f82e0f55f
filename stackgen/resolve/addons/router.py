"""`cache_aware: true`: vllm-router between gateway and replicas sends equal prefixes to the same replica.

Flags: vllm-router 0.1.17 (`vllm-router --help`). Measured on that version: the router forwards a client's key for chat
and completions only. Its /health fails if one replica fails; its /readiness fails if all replicas fail. Anybody who can
reach the router can add replicas. So the router is on its own network with the replicas and the gateway, gets requests
for these two paths only, and knows no key. If the router is down, the gateway sends requests to the replicas directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stackgen.engines.base import format_flags
from stackgen.errors import Mistake
from stackgen.images.tags import context_assets, cpu_image_tag
from stackgen.plan import Asset, Build, HealthCheck, Logging, Network, Service, Tmpfs
from stackgen.resolve.addons.backends import Backend, Server, find_backend
from stackgen.spec import StackSpec

__all__ = [
    "NETWORK",
    "add_routers",
    "assets",
    "is_requested",
    "join_router_network",
    "mistakes",
    "networks",
    "services",
]

FOLDER, PORT, NETWORK = "vllm-router", 30000, "routing"
# the image's own user
USER = "1000:1000"
# vLLM 0.32 closes idle connections after 5 s (vllm/envs.py), before the router does, so that requests fail with 500
KEEP_ALIVE = ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "120")
HEALTH = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/liveness', timeout=4)"


def is_requested(stack: StackSpec) -> bool:
    """Whether any model is cache-aware."""
    return any(map(_is_cache_aware, stack.models))


def mistakes(stack: StackSpec, gateway: bool) -> list[Mistake]:
    """Finds cache-aware models with a single replica or without a gateway."""
    found = []
    for index, model in enumerate(stack.models):
        if not _is_cache_aware(model):
            continue
        path = f"models[{index}].cache_aware"
        if model.replicas < 2:
            found.append(Mistake(path, "needs at least two replicas", hint="set `replicas`, or remove `cache_aware`"))
        if not gateway:
            found.append(Mistake(path, "needs the gateway", hint="set gateway: true"))
    return found


def add_routers(stack: StackSpec, backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Adds a router to the backends of cache-aware models."""
    cached = {find_backend(model, backends).name for model in stack.models if _is_cache_aware(model)}
    return tuple(
        replace(one, router=Server(f"router-{one.name.removeprefix('vllm-')}", PORT)) if one.name in cached else one
        for one in backends
    )


def join_router_network(service: Service, backends: Sequence[Backend]) -> Service:
    """Adds a replica behind a router to the router's network, and lets it keep idle connections open longer."""
    if not any(server.name == service.name for one in backends if one.router for server in one.servers):
        return service
    environment = dict((KEEP_ALIVE, *service.environment))
    return replace(
        service, networks=(*(service.networks or ("default",)), NETWORK), environment=tuple(environment.items())
    )


def services(stack: StackSpec, backends: Sequence[Backend]) -> tuple[Service, ...]:
    """Returns a router for each cache-aware model."""
    found = [_service(stack, one, one.router) for one in backends if one.router]
    # all routers use the image that the first one builds
    return tuple(service if service is found[0] else replace(service, build=None) for service in found)


def networks(backends: Sequence[Backend]) -> tuple[Network, ...]:
    """The routers' network, if there are routers."""
    return (Network(NETWORK, internal=True),) if any(one.router for one in backends) else ()


def assets(backends: Sequence[Backend]) -> tuple[Asset, ...]:
    """The build context of the router's image, if there are routers."""
    return context_assets(FOLDER) if any(one.router for one in backends) else ()


def _is_cache_aware(model: Any) -> bool:
    # only vLLM models have this field
    return bool(getattr(model, "cache_aware", False))


def _service(stack: StackSpec, backend: Backend, router: Server) -> Service:
    return Service(
        name=router.name, role="router",
        comment=f"Sends requests with equal prefixes to the same replica of {backend.names[0]}. This router has no "
        "authentication, so it is only on an internal network",
        image=cpu_image_tag(FOLDER), build=Build(f"./{FOLDER}"), pull=False,
        command=(
            # the default is loopback, where the router's Prometheus port stays
            *format_flags((("--host", "0.0.0.0"), ("--port", PORT))),
            "--worker-urls", *(f"http://{server.name}:{server.port}" for server in backend.servers),
            *format_flags((
                ("--policy", "cache_aware"),
                # by default, the router exits if no replica is up in 10 minutes; the gateway bypasses a waiting router
                ("--worker-startup-timeout-secs", 86400),
                ("--worker-startup-check-interval", 2),
                ("--health-check-interval-secs", 2),
                ("--health-check-timeout-secs", 5),
                ("--health-failure-threshold", 2),
                ("--health-success-threshold", 1),
                # the gateway retries better: the router would then exclude a replica for 60 s, even if it is healthy
                ("--disable-retries", True),
                ("--disable-circuit-breaker", True),
                # limits a whole response; the gateway has its own timeout for silence
                ("--request-timeout-secs", 86400),
                ("--log-level", "warning"),
            )),
        ),
        mounts=(Tmpfs("/tmp", "mode=1777"),),
        networks=(NETWORK,),
        health=HealthCheck(("python3", "-c", HEALTH), interval=10, timeout=5, start_period=3600, start_interval=2),
        restart="unless-stopped",
        user=USER,
        stop_grace_period=60,
        logging=Logging(stack.logging.max_size, stack.logging.max_file),
    )  # fmt: skip
