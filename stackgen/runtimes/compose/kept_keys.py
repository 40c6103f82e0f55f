"""Values of a lost `.env`, read from the environment of the stack's containers, including stopped ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Any

from stackgen.errors import MachineError, StackgenError
from stackgen.plan import EnvRef
from stackgen.runtimes.compose.docker_sdk import check_socket, sdk
from stackgen.runtimes.compose.lifecycle import connect
from stackgen.runtimes.compose.project import PROJECT_LABEL
from stackgen.stack.envfile import API_KEY
from stackgen.stack.folder import Stack
from stackgen.stack.keys import is_key_accepted
from stackgen.stack.lost_keys import KeptKeys, find_lost, find_missing, find_neighbour_key
from stackgen.stack.project import compare_folders

__all__ = ["find_kept_keys"]

# seconds for each request to the engine
LIMIT = 2.0
# where a container finds the Hub token; the source of the mount is the path in .env
TOKEN, TOKEN_FILE = "/run/secrets/hf_token", "HF_TOKEN_FILE"  # noqa: S105


def find_kept_keys(stack: Stack) -> KeptKeys:
    """The values that `.env` lacks: those that are kept somewhere, and those that are lost although they are in use.

    Asks the Docker engine only if `.env` lacks a value.
    """
    missing, is_gone = find_missing(stack), not (stack.folder / ".env").exists()
    if not missing:
        return KeptKeys()
    kept, source, volumes = find_neighbour_key(stack), "the folders of the other machines", None
    if stack.site.is_cluster:
        # only a cluster needs the modules that write manifests
        from stackgen.stack.cluster_secrets import read_secrets

        kept, source = read_secrets(stack), "the files of the Secrets"
    else:
        with suppress(MachineError, OSError):
            found, volumes = _ask_engine(stack)
            if found:
                kept, source = found | kept, "the stack's containers"
    wanted = {*missing, *([TOKEN_FILE] if is_gone else [])}
    kept = {name: value for name, value in kept.items() if name in wanted and _is_valid(stack, name, value)}
    return KeptKeys(kept, find_lost(stack, tuple(missing), kept, volumes), source)


def _ask_engine(stack: Stack) -> tuple[dict[str, str], set[str]]:
    """The values in the stack's containers, and the names of all volumes. Raises MachineError or OSError."""
    check_socket(LIMIT)
    with closing(connect(LIMIT)) as client:
        try:
            volumes = {one["Name"] for one in client.api.volumes().get("Volumes") or ()}
            return _read_containers(client, stack), volumes
        except sdk().errors.DockerException as error:
            raise MachineError(f"the Docker engine does not answer: {error}") from None


def _is_valid(stack: Stack, name: str, value: str) -> bool:
    # a line of .env can't contain it
    if not value or "'" in value or "\n" in value:
        return False
    try:
        # a container keeps the key of its start, also after `stackgen keys rotate`
        return name != API_KEY or is_key_accepted(stack.folder, value)
    # `stackgen keys` reports an unreadable map
    except StackgenError:
        return False


def _read_containers(client: Any, stack: Stack) -> dict[str, str]:
    """The values of .env's variables in the containers. Running containers and the gateway count first."""
    services = {one.name: one for one in stack.plan.services}
    rows = client.api.containers(all=True, filters={"label": [f"{PROJECT_LABEL}={stack.plan.name}"]})
    found: dict[str, str] = {}
    for row in sorted(rows, key=_rank):
        labels = row.get("Labels") or {}
        service = services.get(labels.get("com.docker.compose.service", ""))
        # another folder's stack of the same name has keys of its own
        if service is None or compare_folders([labels.get(f"{PROJECT_LABEL}.working_dir", "")], stack.folder).present:
            continue
        # the container may have ended meanwhile
        with suppress(sdk().errors.NotFound):
            about = client.api.inspect_container(row["Id"])
            for name, value in _read_container(about, dict(service.environment)):
                found.setdefault(name, value)
    return found


def _rank(row: Mapping[str, Any]) -> tuple[bool, bool]:
    service = (row.get("Labels") or {}).get("com.docker.compose.service", "")
    return row.get("State") != "running", service != "gateway"


def _read_container(about: Mapping[str, Any], environment: Mapping[str, str | EnvRef]) -> Iterator[tuple[str, str]]:
    for line in (about.get("Config") or {}).get("Env") or ():
        variable, _, value = line.partition("=")
        reference = environment.get(variable)
        if isinstance(reference, EnvRef) and value:
            yield reference.name, value
    for mount in about.get("Mounts") or ():
        if mount.get("Destination") == TOKEN and mount.get("Source") not in (None, "", "/dev/null"):
            yield TOKEN_FILE, mount["Source"]
