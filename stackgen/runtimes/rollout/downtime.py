"""Report before a rollout which requests will fail, and how long each service's last start took."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from stackgen import engines
from stackgen.plan import Plan, Service
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.runtimes.rollout.drift import Container, gpus_in_use
from stackgen.runtimes.rollout.gpu_handover import (
    engine_of,
    first_replica_of,
    gpus_overlap,
    order_updates,
    removals_blocking,
    reserved_gpus,
)

__all__ = ["find_downtime", "find_routers", "last_start_seconds", "skip_repeats"]

# roles that serve no requests of clients
ROLES_WITHOUT_REQUESTS = ("download", "monitoring", "ui")


def find_downtime(
    plan: Plan,
    changed: Sequence[str],
    removed: Sequence[str],
    running: Mapping[str, Container],
    added: Sequence[str] = (),
) -> Iterator[str]:
    """Yields a sentence for each service whose requests fail while it is down, or that stops before its successor."""
    backends = [{server.name for server in backend.servers} for backend in _gateway_backends(plan)]
    # while a router is down, the gateway sends requests directly to the replicas
    routers = {*find_routers(plan)}
    has_gateway = SERVICE in running and running[SERVICE].running and SERVICE not in removed
    reported = set()
    for name in changed:
        service = plan.service(name)
        own_backends = [servers for servers in backends if name in servers]
        # a service in no backend, such as FastChat's controller, can't be drained
        has_no_peer = not has_gateway or not own_backends or any(len(servers) < 2 for servers in own_backends)
        if service.role in ROLES_WITHOUT_REQUESTS or name in routers or not has_no_peer:
            continue
        reported.add(name)
        last_start = _last_start(service.engine, running[name])
        if name == SERVICE:
            yield (
                "the gateway itself is recreated: it first finishes the requests in flight, then restarts within about "
                "one second, and accepts no new requests during this time. The gateway waits at most "
                f"{service.stop_grace_period} s for the requests in flight, and at most 10 s for an idle keep-alive "
                "connection"
            )
        elif service.role == "worker" and _has_peer_worker(plan, service):
            yield f"FastChat can't drain a worker, so the requests in flight on {name} fail{last_start}"
        elif not has_gateway:
            yield f"{name} is not behind a gateway: its models do not answer while {name} is recreated{last_start}"
        else:
            yield f"{name} has no other replica: its models do not answer while {name} restarts{last_start}"
    yield from _find_gpu_downtime(plan, changed, removed, running, added, reported)
    workers = {worker for endpoint in plan.endpoints for worker in endpoint.workers}
    for name in removed:
        # if the plan has no workers, the API server is removed too, and the gateway can drain the API server
        if workers and name.startswith("fastchat-"):
            yield f"FastChat can't drain a worker, so the requests in flight on {name} fail"
    if SERVICE in removed:
        yield "the gateway is removed, and its keys and its address no longer work: each model answers on its own port"
    elif SERVICE in added and changed:
        yield "a gateway is added: the models answer at the gateway's address, and no longer on their own ports"


def _find_gpu_downtime(
    plan: Plan,
    changed: Sequence[str],
    removed: Sequence[str],
    running: Mapping[str, Container],
    added: Sequence[str],
    reported: Collection[str],
) -> Iterator[str]:
    """Yields a sentence for each service that must stop first, because another one takes over its GPU."""
    in_use = gpus_in_use(running)
    for name in removals_blocking(plan, added, removed, in_use):
        # the model keeps its first replica, so there is no downtime
        first = first_replica_of(plan, name)
        if first and first in running and running[first].running:
            continue
        after = ", ".join(one for one in added if gpus_overlap(reserved_gpus(plan.service(one)), in_use[name]))
        last_start = _last_start(engine_of(name), running[name])
        yield (
            f"{name} stops before {after} starts on the same GPU, so both are down until {after} is ready{last_start}"
        )
    for name, stopped_first in order_updates(plan, changed, in_use):
        for other in stopped_first:
            # report each service only once
            if other not in reported:
                last_start = _last_start(engine_of(other), running[other])
                yield f"{other} stops before {name} starts on the same GPU, so {other} is down until then{last_start}"


def _last_start(engine: str, container: Container) -> str:
    seconds = last_start_seconds(engine, container)
    return f"; the last start of {container.service} took {seconds:.0f} s" if seconds is not None else ""


def last_start_seconds(engine: str, container: Container) -> float | None:
    """Returns the seconds from the container's start to the log line that reports it as ready, or None.

    Docker keeps only the last five results of a health check, so the first one is gone (engine 28.5).
    """
    ready = [pattern for pattern, phase in engines.get(engine).phases if phase == "ready"] if engine else []
    api = connect().api
    try:
        started = _parse_timestamp(api.inspect_container(container.id)["State"]["StartedAt"])
        # the log of a restarted container also holds its earlier starts
        log = api.logs(container.id, timestamps=True, since=started.timestamp()).decode(errors="replace")
    # the duration is only information: a rollout continues without it
    except (sdk().errors.DockerException, ValueError):
        return None
    for line in log.splitlines():
        timestamp, _, text = line.partition(" ")
        if any(re.search(pattern, text) for pattern in ready):
            return (_parse_timestamp(timestamp) - started).total_seconds()
    return None


def skip_repeats(progress: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """Wraps `progress` so that repeated phases of a service are shown only once."""
    last: dict[str, str] = {}

    def on_change(service: str, phase: str) -> None:
        if last.get(service) != phase:
            last[service] = phase
            progress(service, phase)

    return on_change


def find_routers(plan: Plan, behind: Collection[str] | None = None) -> list[str]:
    """Returns the cache-aware routers: all, or those in `behind` and those in front of a service in `behind`."""
    return [
        router.name
        for backend in _gateway_backends(plan)
        if (router := getattr(backend, "router", None))
        and (behind is None or {router.name, *(server.name for server in backend.servers)} & {*behind})
    ]


def _has_peer_worker(plan: Plan, worker: Service) -> bool:
    """Whether another FastChat worker serves the same model."""
    # the gateway does not know the workers: only a worker's command shows which model it serves
    names = [one.command[one.command.index("--model-names") + 1] for one in plan.services if one.role == "worker"]
    return names.count(worker.command[worker.command.index("--model-names") + 1]) > 1


def _gateway_backends(plan: Plan) -> Sequence[Any]:
    return [backend for one in plan.documents if one.path == "gateway/haproxy.cfg" for backend in one.data.backends]


def _parse_timestamp(text: str) -> datetime:
    # Docker writes nanoseconds, which Python 3.10 does not parse
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text.replace("Z", "+00:00")))
