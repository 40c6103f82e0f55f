"""Enable the replicas that a killed command has left drained, as a part of the next command of any kind."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.plan import Plan
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.drains import Drain, forget_drains, read_drains
from stackgen.runtimes.compose.gateway import PROJECT_FOLDER, Gateway, has_gateway, running_gateway
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.stack.lock import StackBusyError, stack_lock

__all__ = ["enable_left_over", "recover_drains"]

# seconds for each request to Docker, and for each answer of the gateway: the user waits for another command
PATIENCE = 5.0


def recover_drains(plan: Plan, folder: Path) -> tuple[list[Drain], list[Drain]]:
    """Returns the drained replicas, and those of them that were enabled again, because their command was killed.

    While another command is changing the stack, its replicas stay drained. Raises StartError if the gateway does not
    answer.
    """
    gateway = running_gateway(plan.name) if has_gateway(plan) else None
    drains = gateway.drained() if gateway else []
    if gateway is None or not any(drain.is_left_over for drain in drains):
        return drains, []
    try:
        with stack_lock(folder, "status"):
            return drains, gateway.enable_left_over()
    except StackBusyError:
        return drains, []


def enable_left_over(folder: Path, command: str) -> list[Drain]:
    """Enables the replicas of the stack in `folder` whose command was killed, and returns them.

    Needs no valid stack.yaml. Does nothing if Docker or the gateway does not answer in time, or if another command is
    changing the stack: then, the gateway enables them itself, or a later command does.
    """
    left_over = [name for name, drain in read_drains(folder).items() if drain.is_left_over]
    if not left_over:
        return []
    # a failure of Docker is reported by the command itself, if it needs Docker
    with suppress(StackgenError, OSError, sdk().errors.DockerException), stack_lock(folder, command):
        if gateway := _find_gateway(folder):
            enabled = gateway.enable_left_over()
            # the gateway has enabled the others itself
            forget_drains(folder, *left_over)
            return enabled
    return []


def _find_gateway(folder: Path) -> Gateway | None:
    # not by the name of the stack: stack.yaml may be invalid by now, or another stack may have the same name
    label = {"label": [f"com.docker.compose.service={SERVICE}"], "status": "running"}
    for container in connect(PATIENCE).containers.list(filters=label):
        with suppress(OSError):
            if os.path.samefile(container.labels.get(PROJECT_FOLDER, ""), folder):
                return Gateway(container, PATIENCE)
    return None
