"""What stays behind when a stack gets another `name:`: containers and volumes with the old name."""

from __future__ import annotations

from stackgen.errors import StackgenError
from stackgen.runtimes.compose.project import find_former_projects, read_project_name
from stackgen.runtimes.compose.volumes import find_own_volumes
from stackgen.stack.folder import Stack

__all__ = ["describe_rename"]

# what users would miss, by the key of a volume in the Compose file
CONTENT = {"open-webui": "chats and accounts", "grafana": "Grafana's users and dashboards", "prometheus": "metrics"}


def describe_rename(stack: Stack, ask_docker: bool = True) -> list[str]:
    """One sentence for each former name of the stack that still has containers or volumes. Call it before a write.

    Without an answer of Docker, a name in the compose.yaml on disk counts.
    """
    if stack.site.is_cluster:
        return []
    name, rendered = stack.plan.name, read_project_name(stack.folder)
    running: dict[str, int] | None = None
    volumes: set[str] | None = None
    former = {rendered} - {"", name}
    if ask_docker:
        try:
            running = find_former_projects(name, stack.folder)
            former |= set(running)
            volumes = {one for old in former for one in find_own_volumes(old)} if former else set()
        # the names on disk are all that is known
        except (StackgenError, OSError):
            running = volumes = None
    return [text for old in sorted(former) if (text := _describe(stack, old, running, volumes))]


def _describe(stack: Stack, old: str, running: dict[str, int] | None, volumes: set[str] | None) -> str:
    name, count = stack.plan.name, (running or {}).get(old, 0)
    # the volumes of a stack begin with its name
    own = {key: f"{old}{volume.removeprefix(name)}" for key, volume in stack.plan.volumes if volume.startswith(name)}
    kept = [
        f"{volume} ({CONTENT.get(key, key)})" for key, volume in own.items() if volumes is None or volume in volumes
    ]
    if not kept and running is not None and old not in running:
        return ""
    parts = [f"the name of the stack changed from {old} to {name}"]
    if running is None:
        parts.append(f"if {old} is still running, `docker compose -p {old} down` stops it")
    elif old in running:
        what = f"{count} container{'' if count == 1 else 's'} of {old} still run" if count else f"{old} has containers"
        parts.append(f"{what}, which `docker compose -p {old} down` removes")
    if kept:
        parts.append(
            f"{name} does not use the volumes of {old}: {', '.join(kept)}. To keep them, set `name: {old}` again"
        )
    return ". ".join(f"{part[0].upper() if number else part[0]}{part[1:]}" for number, part in enumerate(parts))
