"""What `.env` lacks although the old value is still in use: by clients, other machines, or the database of a service.

A new value would lock them out, so no command generates one before the user says so.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stackgen.plan import EnvRef, Volume
from stackgen.stack.envfile import API_KEY, has_run, read_env
from stackgen.stack.folder import Stack
from stackgen.stack.host_keys import ENGINE_KEY
from stackgen.stack.keys import MAP

__all__ = ["KeptKeys", "LostKey", "find_lost", "find_missing", "find_neighbour_key"]

# what becomes of a new value, next to the volume of a service that has started with the old one
IN_DATABASE = {
    "WEBUI_SECRET_KEY": (
        "the sessions of chat users in {} are signed with the old key, and a new key signs the users out"
    ),
    "WEBUI_ADMIN_PASSWORD": (
        "the administrator's account in {} keeps the old password, and a new password has no effect"
    ),
    "GRAFANA_PASSWORD": "the account `admin` in {} keeps the old password, and a new password has no effect",
}


@dataclass(frozen=True, slots=True)
class LostKey:
    """A secret that is missing in `.env`: who uses the old value, and how to get it back.

    `replaceable`: a new value is possible if the user wants one.
    """

    name: str
    reason: str
    remedy: str
    replaceable: bool = True


@dataclass(frozen=True, slots=True)
class KeptKeys:
    """What is known about values that `.env` lacks.

    - `values`: old values that something on this machine still has, by name. Secret: never print them.
    - `lost`: values that are in use, and that nothing here has.
    - `source`: where `values` come from.
    """

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    lost: tuple[LostKey, ...] = ()
    source: str = ""


def find_missing(stack: Stack) -> dict[str, EnvRef]:
    """The required variables without a value, by name. Compose also reads the environment."""
    env = read_env(stack.folder) | ({} if stack.site.is_cluster else dict(os.environ))
    found = {value.name: value for service in stack.plan.services for _, value in service.environment
             if isinstance(value, EnvRef) and value.required}  # fmt: skip
    return {name: one for name, one in found.items() if not env.get(name) and not env.get(one.alternative)}


def find_neighbour_key(stack: Stack) -> dict[str, str]:
    """The key between the machines of a stack, from the folders next to this one; empty if they don't agree on it."""
    spec, folder = stack.spec, stack.folder.resolve()
    if not spec.host:
        return {}
    name = {True: API_KEY, False: ENGINE_KEY}
    found = {_read(folder.parent / host, name[host != spec.front]) for host in spec.hosts if host != spec.host} - {""}
    return {name[spec.is_behind_front]: found.pop()} if len(found) == 1 else {}


def find_lost(
    stack: Stack, missing: Collection[str], kept: Collection[str], volumes: Collection[str] | None
) -> tuple[LostKey, ...]:
    """The variables among `missing` whose old value is in use, and not `kept` anywhere.

    `volumes` are those of the Docker engine; None if it does not answer, and then a stack that has run has its volumes.
    """
    found = []
    for name in missing:
        if name in kept:
            continue
        lost = _find_in_hosts(stack, name) if name in (API_KEY, ENGINE_KEY) else None
        if lost is None and name == API_KEY and (has_run(stack.folder) or ENGINE_KEY in find_neighbour_key(stack)):
            lost = LostKey(name, "clients may still use the old key", _restore(stack, name))
        if lost is None and name in IN_DATABASE and (volume := _find_volume(stack, name, volumes)):
            lost = LostKey(name, IN_DATABASE[name].format(f"the volume {volume}"), _restore(stack, name))
        if lost:
            found.append(lost)
    return tuple(found)


def _find_in_hosts(stack: Stack, name: str) -> LostKey | None:
    spec, file = stack.spec, stack.folder / ".env"
    if spec.is_behind_front and name == API_KEY:
        return LostKey(name, f"the gateway of {spec.front} sends the old key",
                       f"write the value of {ENGINE_KEY} in the .env of {spec.front} into {file}, as {name}=…",
                       replaceable=False)  # fmt: skip
    others = [host for host in spec.hosts if host != spec.host]
    if spec.host and others and not spec.is_behind_front and name == ENGINE_KEY and has_run(stack.folder):
        return LostKey(name, f"the gateways of {', '.join(others)} accept only the old key",
                       f"write the value of {API_KEY} in the .env of {others[0]} into {file}, as {name}=…",
                       replaceable=False)  # fmt: skip
    return None


def _restore(stack: Stack, name: str) -> str:
    text = f"restore the line {name}=… in {stack.folder / '.env'} from a backup"
    if name == API_KEY and (stack.folder / MAP).exists():
        return (
            f"{text}, or run `stackgen keys rotate default --stack {stack.folder}`, which writes a new key and keeps "
            "the keys of other clients valid"
        )
    return f"{text}. Without a backup, `stackgen up {stack.folder} --new-keys` writes a new value"


def _find_volume(stack: Stack, name: str, volumes: Collection[str] | None) -> str:
    """The stack's own volume of the service that gets the variable; "" if it does not exist."""
    names = dict(stack.plan.volumes)
    for service in stack.plan.services:
        if any(isinstance(value, EnvRef) and value.name == name for _, value in service.environment):
            for mount in service.mounts:
                volume = names.get(mount.name, "") if isinstance(mount, Volume) else ""
                if volume and (has_run(stack.folder) if volumes is None else volume in volumes):
                    return volume
    return ""


def _read(folder: Path, name: str) -> str:
    # the process's environment is no evidence of what another machine has
    value = read_env(folder).get(name, "")
    return "" if value == os.environ.get(name) else value
