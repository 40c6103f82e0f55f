"""Host ports: one for each endpoint, counting up from the stack's own `port`."""

from __future__ import annotations

from collections.abc import Iterator

from stackgen import engines
from stackgen.errors import Mistake
from stackgen.plan import Site
from stackgen.resolve.addons import gateway, monitoring, webui
from stackgen.spec import StackSpec

__all__ = ["assign_ports"]

HIGHEST = 65535


def assign_ports(stack: StackSpec, site: Site) -> tuple[dict[tuple[int, int], int], list[Mistake]]:
    """Host ports by (model, replica), 0 behind a gateway; and ports that are used twice or don't exist.

    Replicas of an engine with a single endpoint share one port.
    """
    everyone = [member for members in _endpoints(stack) for member in members]
    if gateway.wanted(stack, site):
        return dict.fromkeys(everyone, 0), []
    addon_ports = (*monitoring.ports(stack, site).values(), *webui.ports(stack, site).values())
    reserved = {*(model.port for model in stack.models if model.port), *addon_ports}
    mistakes: list[Mistake] = []
    ports: dict[tuple[int, int], int] = {}
    taken: set[int] = set()
    for members in _endpoints(stack):
        requested = _requested(stack, members)
        port = requested or next(port for port in range(stack.port, 2**17) if port not in taken | reserved)
        if port in taken:
            mistakes.append(Mistake("models", f"port {port} is given to two endpoints", "give each its own"))
        if port > HIGHEST:
            mistakes.append(Mistake("port", "no port is left below 65536", "start lower"))
        taken.add(port)
        ports |= dict.fromkeys(members, port)
    return ports, mistakes


def _endpoints(stack: StackSpec) -> Iterator[tuple[tuple[int, int], ...]]:
    """The (model, replica) pairs behind each endpoint, engine by engine in the order of the file."""
    for name in dict.fromkeys(model.engine for model in stack.models):
        members = tuple(
            (index, replica)
            for index, model in enumerate(stack.models)
            if model.engine == name
            for replica in range(model.replicas)
        )
        yield from [members] if engines.get(name).single_endpoint else [(member,) for member in members]


def _requested(stack: StackSpec, members: tuple[tuple[int, int], ...]) -> int | None:
    """The port that the file sets for this endpoint; a model's own port is that of its first replica."""
    wanted = (stack.models[index].port for index, replica in members if replica == 0)
    return next((port for port in wanted if port), None)
