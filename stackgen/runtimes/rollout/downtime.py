"""What is told of a change: what it can't be done without, in the user's words, how long a start took, and phases."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from stackgen import engines
from stackgen.plan import Plan, Service
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.lifecycle import _client as connect
from stackgen.runtimes.rollout.drift import Container, holding
from stackgen.runtimes.rollout.gpu_handover import claimed, clash, early, engine_of, replica_of, turns

__all__ = ["gaps", "once", "routers", "start_seconds"]

SILENT = ("download", "monitoring", "ui")


def gaps(
    plan: Plan,
    changed: Sequence[str],
    removed: Sequence[str],
    running: Mapping[str, Container],
    added: Sequence[str] = (),
) -> Iterator[str]:
    """A sentence for each service that leaves requests unanswered while it is away, or goes before another is there."""
    backends = [{server.name for server in backend.servers} for backend in _backends(plan)]
    # while a router is away, the gateway sends to the replicas directly
    without = {*routers(plan)}
    fronted = SERVICE in running and running[SERVICE].running and SERVICE not in removed
    told = set()
    for name in changed:
        service = plan.service(name)
        mine = [servers for servers in backends if name in servers]
        alone = not fronted or not mine or any(len(servers) < 2 for servers in mine)
        if service.role in SILENT or name in without or not alone:
            continue
        told.add(name)
        long = _long(service.engine, running[name])
        if name == SERVICE:
            yield (
                "the gateway itself is made anew: it answers nothing new until what it is at work on is answered (at "
                f"most {service.stop_grace_period} s; a kept connection that idles counts for up to 10 s), and about a "
                "second more"
            )
        elif service.role == "worker" and _peers(plan, service):
            yield f"{name}: FastChat can't drain a worker, so requests that it is at work on fail{long}"
        elif not fronted:
            yield f"{name} is made anew with no gateway before it: no answers of its models meanwhile{long}"
        else:
            yield f"{name} has no other replica: no answers of its models while it starts anew{long}"
    yield from _taken(plan, changed, removed, running, added, told)
    workers = {worker for endpoint in plan.endpoints for worker in endpoint.workers}
    for name in removed:
        if workers and name.startswith("fastchat-"):
            yield f"{name}: FastChat can't drain a worker, so requests that it is at work on fail"
    if SERVICE in removed:
        yield "the gateway goes, and its keys and its address with it: each model answers at a port of its own then"
    elif SERVICE in added and changed:
        yield "the gateway is new: the models answer at its address then, and no more at ports of their own"


def _taken(
    plan: Plan,
    changed: Sequence[str],
    removed: Sequence[str],
    running: Mapping[str, Container],
    added: Sequence[str],
    told: Collection[str],
) -> Iterator[str]:
    """Those that must be stopped first, as another gets a GPU of theirs and there is no room for both."""
    held = holding(running)
    for name in early(plan, added, removed, held):
        stays = replica_of(plan, name)
        if stays and stays in running and running[stays].running:
            continue
        after = ", ".join(one for one in added if clash(claimed(plan.service(one)), held[name]))
        long = _long(engine_of(name), running[name])
        yield f"{name} is stopped before {after} starts, which gets its GPU: neither answers until then{long}"
    for name, first in turns(plan, changed, held):
        for one in first:
            if one not in told:
                long = _long(engine_of(one), running[one])
                yield f"{one} is stopped before {name} starts, which gets its GPU: it answers nothing meanwhile{long}"


def _long(engine: str, container: Container) -> str:
    took = start_seconds(engine, container)
    return f"; its last start took {took:.0f} s" if took is not None else ""


def start_seconds(engine: str, container: Container) -> float | None:
    """From the start of the container to the line of its log that says that it is ready; None where there is none.

    Docker keeps the last five results of a health check only, so that the first is gone (engine 28.5).
    """
    ready = [pattern for pattern, phase in engines.get(engine).phases if phase == "ready"] if engine else []
    api = connect().api
    try:
        began = _moment(api.inspect_container(container.id)["State"]["StartedAt"])
        lines = api.logs(container.id, timestamps=True, since=began.timestamp()).decode(errors="replace").splitlines()
    except (sdk().errors.DockerException, ValueError):
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
