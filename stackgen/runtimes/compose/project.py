"""The Compose project of a stack: its name in the rendered file, and the folder that its containers belong to."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.render.read import read_regular, stack_file_in
from stackgen.runtimes.compose.docker_sdk import check_socket
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.stack.project import compare_folders
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

__all__ = ["PROJECT_LABEL", "find_former_projects", "read_project_name", "require_own_project"]

PROJECT_LABEL = "com.docker.compose.project"


def read_project_name(folder: Path) -> str:
    """Returns the project's name in `folder/compose.yaml`; "" if the file can't be read."""
    try:
        name = read_value(read_regular(folder / "compose.yaml").decode("utf-8", "replace"))["name"]
    # Compose reports what is wrong with the file
    except (OSError, *YAML_ERRORS):
        return ""
    return name if isinstance(name, str) else ""


def require_own_project(name: str, folder: Path, timeout: float = 30.0) -> tuple[str, ...]:
    """Returns the folders that the stack `name` was moved from. Also counts stopped containers.

    `timeout` limits each request to the Docker engine, in seconds.
    Raises StackgenError if the containers belong to another folder that still has a stack, MachineError without Docker.
    """
    rows = connect(timeout).api.containers(all=True, filters={"label": [f"{PROJECT_LABEL}={name}"]})
    others = compare_folders((row["Labels"].get(f"{PROJECT_LABEL}.working_dir", "") for row in rows), folder)
    if others.present:
        other = others.present[0]
        raise StackgenError(
            f"a stack with the name {name} already exists: its containers belong to {other}, not to {folder.resolve()}",
            f"set another `name:` in {stack_file_in(folder)}, or run the command in {other}",
        )
    return others.gone


def find_former_projects(name: str, folder: Path, timeout: float = 2.0) -> dict[str, int]:
    """Returns the other projects with containers of stackgen from this folder, and how many of these run.

    A folder has several projects if the name of its stack has changed. Raises MachineError or OSError without Docker.
    """
    check_socket(timeout)
    label = f"{PROJECT_LABEL}.working_dir={folder.resolve()}"
    with closing(connect(timeout)) as client:
        rows = client.api.containers(all=True, filters={"label": [label]})
    found: dict[str, int] = {}
    # a project of the user's own in this folder has no mount at /stackgen
    ours = {
        row["Labels"].get(PROJECT_LABEL, "")
        for row in rows
        if any(mount.get("Destination") == "/stackgen" for mount in row.get("Mounts") or ())
    }
    for row in rows:
        project = row["Labels"].get(PROJECT_LABEL, "")
        if project in ours - {"", name}:
            found[project] = found.get(project, 0) + (row.get("State") == "running")
    return found
