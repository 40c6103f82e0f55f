"""Explains why a server at a stack's port rejects the stack's key: the server may belong to another stack."""

from __future__ import annotations

from urllib.parse import urlsplit

from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.providers.targets import ResolvedTarget

__all__ = ["explain_rejection"]


def explain_rejection(one: ResolvedTarget, error: StackgenError) -> StackgenError:
    """`error`, or an error that names the container at the port of a stack that has no running container."""
    if one.stack is None or one.stack.site.is_cluster:
        return error
    # Docker's client is imported only after a failure
    from stackgen.runtimes.compose.lifecycle import connect
    from stackgen.runtimes.observation.containers import read_containers

    try:
        containers = list(read_containers(connect(timeout=5.0), uses_gpus=False))
    # without Docker, nothing is known about the port
    except MachineError:
        return error
    name, port = one.stack.plan.name, urlsplit(one.target.base_url).port
    if any(container.project == name for container in containers):
        return error
    holder = next((each for each in containers if any(number == port for _, number in each.ports)), None)
    # a local process may have the port: stackgen's own, or another one
    if holder is None:
        return error
    whose = f" of the stack {holder.project}" if holder.project else ""
    return StartError(
        f"the stack {name} is not running: the container {holder.name}{whose} answers at port {port}, and rejects "
        "the key of this stack",
        f"stop the container, or set another `port:` in {one.stack.folder / one.stack.source}. Then run `stackgen up "
        f"{one.stack.folder}`",
    )
