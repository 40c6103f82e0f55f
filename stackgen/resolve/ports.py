"""Assigns a host port to each endpoint, counting up from the stack's `port`."""

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
    """Returns host ports by (model, replica) and errors for ports that are used twice or too high.

    Behind a gateway, all ports are 0. Replicas of an engine with a single endpoint share one port.
    """
    all_members = [member for members in _endpoints(stack) for member in members]
    if gateway.is_enabled(stack, site):
        # engines publish no ports
        return dict.fromkeys(all_members, 0), []
    # the ports of add-ons are fixed by default, so an engine must not take one of them
    addon_ports = (*monitoring.ports(stack, site).values(), *webui.ports(stack, site).values())
    reserved = {*(model.port for model in stack.models if model.port), *addon_ports}
    mistakes: list[Mistake] = []
    ports: dict[tuple[int, int], int] = {}
    taken: set[int] = set()
    for members in _endpoints(stack):
        requested = _requested_port(stack, members)
        # skips ports that other models set, before or after in the file; a port above HIGHEST is reported below
        port = requested or next(port for port in range(stack.port, 2**17) if port not in taken | reserved)
        if port in taken:
            mistakes.append(
                Mistake("models", f"port {port} is used by two endpoints", hint="give each model its own port")
            )
        if port > HIGHEST:
            mistakes.append(Mistake("port", "no free port is left below 65536", hint="choose a lower port"))
        taken.add(port)
        ports |= dict.fromkeys(members, port)
    return ports, mistakes


def _endpoints(stack: StackSpec) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yields the (model, replica) pairs behind each endpoint, engine by engine, in the order of the file."""
    for name in dict.fromkeys(model.engine for model in stack.models):
        members = tuple(
            (index, replica)
            for index, model in enumerate(stack.models)
            if model.engine == name
            for replica in range(model.replicas)
        )
        yield from [members] if engines.get(name).single_endpoint else [(member,) for member in members]


def _requested_port(stack: StackSpec, members: tuple[tuple[int, int], ...]) -> int | None:
    """The port that the stack file sets for this endpoint, or None."""
    # a model's port belongs to its first replica; the others count up from the stack's port
    requested = (stack.models[index].port for index, replica in members if replica == 0)
    return next((port for port in requested if port), None)
