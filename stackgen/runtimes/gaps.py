"""What is told of a change: what it can't be done without, in the user's words, how long a start took, and phases."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from stackgen import engines
from stackgen.addons.gateway import SERVICE
from stackgen.plan import Plan, Service
from stackgen.runtimes.compose import _client as connect
from stackgen.runtimes.drift import Container

__all__ = ["gaps", "once", "routers", "start_seconds"]

SILENT = ("download", "monitoring", "ui")


def gaps(plan: Plan, changed: Sequence[str], removed: Sequence[str], running: Mapping[str, Container]) -> Iterator[str]:
    """A sentence for each service of `changed` and `removed` that leaves requests unanswered while it is away."""
    backends = [{server.name for server in backend.servers} for backend in _backends(plan)]
    # while a router is away, the gateway sends to the replicas directly
    without = {*routers(plan)}
    for name in changed:
        service = plan.service(name)
        mine = [servers for servers in backends if name in servers]
        if service.role in SILENT or name in without or (mine and all(len(servers) > 1 for servers in mine)):
            continue
        took = start_seconds(service, running[name])
        long = f"; its last start took {took:.0f} s" if took is not None else ""
        if name == SERVICE:
            yield "the gateway itself is made anew: about a second in which nothing answers"
        elif service.role == "worker" and _peers(plan, service):
            yield f"{name}: FastChat can't drain a worker, so requests that it is at work on fail{long}"
        else:
            yield f"{name} has no other replica: no answers of its models while it starts anew{long}"
    workers = {worker for endpoint in plan.endpoints for worker in endpoint.workers}
    for name in removed:
        if workers and name.startswith("fastchat-"):
            yield f"{name}: FastChat can't drain a worker, so requests that it is at work on fail"


def start_seconds(service: Service, container: Container) -> float | None:
    """From the start of the container to the line of its log that says that it is ready; None where there is none.

    Docker keeps the last five results of a health check only, so that the first is gone (engine 28.5).
    """
    import docker.errors

    ready = (
        [pattern for pattern, phase in engines.get(service.engine).phases if phase == "ready"] if service.engine else []
    )
    api = connect().api
    try:
        began = _moment(api.inspect_container(container.id)["State"]["StartedAt"])
        lines = api.logs(container.id, timestamps=True, since=began.timestamp()).decode(errors="replace").splitlines()
    except (docker.errors.DockerException, ValueError):
        return None
    for line in lines:
        stamp, _, text = line.partition(" ")
        if any(re.search(pattern, text) for pattern in ready):
            return (_moment(stamp) - began).total_seconds()
    return None


def once(progress: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """`progress`, but not again for what it was told last."""
    last: dict[str, str] = {}

    def tell(service: str, phase: str) -> None:
        if last.get(service) != phase:
            last[service] = phase
            progress(service, phase)

    return tell


def routers(plan: Plan, behind: Collection[str] | None = None) -> list[str]:
    """The routers that stand between the gateway and replicas: all, or those before one of the services `behind`."""
    return [
        router.name
        for backend in _backends(plan)
        if (router := getattr(backend, "router", None))
        and (behind is None or {router.name, *(server.name for server in backend.servers)} & {*behind})
    ]


def _peers(plan: Plan, worker: Service) -> bool:
    """Whether another FastChat worker serves the same model."""
    named = [one.command[one.command.index("--model-names") + 1] for one in plan.services if one.role == "worker"]
    return named.count(worker.command[worker.command.index("--model-names") + 1]) > 1


def _backends(plan: Plan) -> Sequence[Any]:
    return [backend for one in plan.documents if one.path == "gateway/haproxy.cfg" for backend in one.data.backends]


def _moment(text: str) -> datetime:
    # nanoseconds, which Python 3.10 does not read
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text.replace("Z", "+00:00")))
