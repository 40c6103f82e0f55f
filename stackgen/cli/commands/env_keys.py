"""The keys in `.env`, for the commands that write or need them: new ones, those of a lost file, and missing ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from stackgen.cli.commands.output import note
from stackgen.errors import StackgenError
from stackgen.plan import EnvRef
from stackgen.runtimes.compose.gateway import has_gateway
from stackgen.runtimes.compose.kept_keys import find_kept_keys
from stackgen.stack.envfile import (
    API_KEY,
    add_values,
    complete_env,
    create_env,
    generate_key,
    warn_hub_token,
)
from stackgen.stack.folder import Stack
from stackgen.stack.gitignore import complete_gitignore
from stackgen.stack.keys import DEFAULT, MAP, is_env_key_refused, load_keys, rotate_key
from stackgen.stack.lost_keys import LostKey, find_missing

__all__ = ["Start", "write_keys"]

# what the command starts afterwards; "" for nothing
Start = Literal["", "containers", "processes"]


def write_keys(stack: Stack, start: Start = "", new_keys: bool = False) -> None:
    """Writes the .env that the Compose file needs, or adds what it lacks. A key that is there is never changed.

    What a lost .env had is restored if something still has it. A value that is in use is replaced only with `new_keys`.
    Raises StackgenError before a `start` that lacks a value. Local processes need only the API key: they have no
    gateway, no monitoring and no chat UI.
    """
    path = stack.folder / ".env"
    kept = find_kept_keys(stack)
    replaced = [one for one in kept.lost if new_keys and one.replaceable]
    lost = [one for one in kept.lost if one not in replaced]
    if stopping := [one for one in lost if start == "containers" or (start and one.name == API_KEY)]:
        raise _lost_error(stack, stopping)
    for one in lost:
        note(f"warning: {path} lacks {one.name}: {one.reason}. Next: {one.remedy}")
    names = {one.name for one in kept.lost}
    _create(stack, kept.values, names, kept.source)
    for one in replaced:
        _replace(stack, one)
    # only values that nobody can generate are missing now
    missing = find_missing(stack)
    if start == "containers" and (others := {name: one for name, one in missing.items() if name not in names}):
        raise _missing_error(stack, others)
    if stack.site.is_cluster:
        from stackgen.stack.cluster_secrets import write_secrets

        # `render` lists what is missing at its end, after its warnings
        try:
            changed = write_secrets(stack, without=() if start else tuple(missing))
        # a missing file ends the command, but the folder of secrets is there
        finally:
            _write_gitignore(stack)
        if changed:
            note(
                f"wrote {', '.join(map(str, changed))}: kustomize creates Secrets from these files. Keep the files "
                "private"
            )
    else:
        _write_gitignore(stack)
    # without a download, nothing needs the token
    if stack.plan.secrets and (warning := warn_hub_token(stack.folder)):
        note(f"warning: {warning}")
    if has_gateway(stack.plan) and is_env_key_refused(stack.folder):
        note(
            f"warning: the gateway refuses the key in {path}: it is not in {stack.folder / MAP}, which lists the valid "
            "keys. Restore .env from a backup, or run `stackgen keys rotate default`, which writes a valid key into "
            ".env. The keys of clients stay valid"
        )


def _create(stack: Stack, kept: Mapping[str, str], without: Collection[str], source: str) -> None:
    """Writes or completes .env with the `kept` values and new ones, except for those `without`."""
    path = stack.folder / ".env"
    if create_env(stack.folder, {*kept, *without}):
        note(f"wrote {path}{'' if kept or without else ' with new keys'}. Keep the file private, and out of version "
             "control")  # fmt: skip
    add_values(stack.folder, kept)
    if kept:
        note(f"restored in {path}, from {source}: {', '.join(kept)}")
    # a gateway or monitoring that was added to stack.yaml needs keys that .env does not have yet
    values = (value for service in stack.plan.services for _, value in service.environment)
    names = [value.name for value in values if isinstance(value, EnvRef)]
    if added := complete_env(stack.folder, names, without):
        note(f"added to {path}: {', '.join(added)}")


def _replace(stack: Stack, lost: LostKey) -> None:
    if lost.name == API_KEY and any(one.name == DEFAULT for one in load_keys(stack.folder)):
        # with a list of keys, a key in .env alone counts for nothing
        rotate_key(stack.folder, DEFAULT)
    else:
        add_values(stack.folder, {lost.name: generate_key()})
    note(f"wrote a new {lost.name} into {stack.folder / '.env'}: {lost.reason}")


def _lost_error(stack: Stack, lost: Collection[LostKey]) -> StackgenError:
    lines = [f"{stack.folder / '.env'} lacks values that are in use. Nothing was started:"]
    for one in lost:
        lines += [f"  ✗ {one.name}: {one.reason}", f"      fix: {one.remedy}"]
    return StackgenError("\n".join(lines), "`stackgen doctor` shows what .env lacks")


def _missing_error(stack: Stack, missing: Mapping[str, EnvRef]) -> StackgenError:
    lines = [f"{stack.folder / '.env'} lacks values. Nothing was started:"]
    lines += [f"  ✗ {one.name}{f' or {one.alternative}' if one.alternative else ''}: {one.required}"
              for one in missing.values()]  # fmt: skip
    return StackgenError("\n".join(lines), "write a line NAME=VALUE into the file for each of these variables")


def _write_gitignore(stack: Stack) -> None:
    path = stack.folder / ".gitignore"
    try:
        added = complete_gitignore(stack.folder, stack.spec)
    # the stack works without it
    except OSError as error:
        note(f"warning: {path} can't be completed ({error.strerror}): keep .env and TLS keys out of version control")
    else:
        if added:
            note(f"added to {path}: {' '.join(added)}")
