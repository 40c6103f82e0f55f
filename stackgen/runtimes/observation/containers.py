"""The containers on this machine, as facts for doctor: projects, published ports, and reserved GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

from stackgen.doctor.facts import Container
from stackgen.doctor.gpus import VLLM_UTILIZATION
from stackgen.runtimes.compose.docker_sdk import sdk
from stackgen.runtimes.compose.project import PROJECT_LABEL

__all__ = ["list_projects", "parse_container", "parse_reservation", "read_containers"]

UTILIZATION = "--gpu-memory-utilization"
# with one of these, vLLM may hold less than its share of the memory
LIMITS = ("--kv-cache-memory-bytes", "--num-gpu-blocks-override", "--enable-sleep-mode")


def read_containers(client: Any, uses_gpus: bool) -> Iterator[Container]:
    """The running containers. With `uses_gpus`, also the GPUs that each container reserves."""
    for about in client.api.containers():
        container = parse_container(about)
        # one request for each container, which only a stack with GPUs is worth
        if uses_gpus:
            # the container may have ended meanwhile
            with suppress(sdk().errors.NotFound):
                yield replace(container, **parse_reservation(client.api.inspect_container(about["Id"])))
        else:
            yield container


def parse_container(about: dict[str, Any]) -> Container:
    """A container from the engine's list of containers, without its GPUs."""
    ports = tuple(
        dict.fromkeys((p.get("IP") or "0.0.0.0", p["PublicPort"]) for p in about["Ports"] if "PublicPort" in p)
    )
    project = (about.get("Labels") or {}).get(PROJECT_LABEL, "")
    return Container((about["Names"] or ["/?"])[0].lstrip("/"), project, ports)


def parse_reservation(about: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Container` about GPUs, from `docker inspect`."""
    requests = [
        one
        for one in (about.get("HostConfig") or {}).get("DeviceRequests") or ()
        if one.get("Driver") in ("nvidia", "cdi") or ["gpu"] in (one.get("Capabilities") or ())
    ]
    counts = [one.get("Count") or 0 for one in requests]
    return {
        "gpu_count": -1 if -1 in counts else max(counts, default=0),
        "gpu_ids": tuple(id for one in requests for id in one.get("DeviceIDs") or ()),
        "gpu_share": _parse_share([about.get("Path") or "", *(about.get("Args") or ())]) if requests else None,
    }


def _parse_share(command: list[str]) -> float | None:
    """The fraction of each GPU's memory that vLLM takes; None if the command does not say it."""
    # after supervise.sh, or alone in a container that stackgen did not start
    if ("vllm", "serve") not in pairwise(command) or any(one.startswith(LIMITS) for one in command):
        return None
    given = command[command.index(UTILIZATION) + 1 :] if UTILIZATION in command else [str(VLLM_UTILIZATION)]
    try:
        return float(given[0])
    except (IndexError, ValueError):
        return None


def list_projects(rows: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Each Compose project with its folder, from the engine's list of containers."""
    labels = (row.get("Labels") or {} for row in rows)
    found = ((one.get(PROJECT_LABEL, ""), one.get(f"{PROJECT_LABEL}.working_dir", "")) for one in labels)
    return tuple(dict.fromkeys(found))
