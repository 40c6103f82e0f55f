"""`stackgen keys`: list, create, rotate and remove clients' keys, and report their use. A key is printed once."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

from stackgen.cli.commands.drains import report_drains
from stackgen.cli.commands.key_files import (
    key_path,
    read_names,
    read_source,
    require_new_files,
    write_key_files,
)
from stackgen.cli.commands.key_limits import require_rendered, warn_pending
from stackgen.cli.commands.key_table import declare_rows, read_rows
from stackgen.cli.commands.keys_usage import usage
from stackgen.cli.commands.locking import lock_stack
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.ownership import check_ownership
from stackgen.engines.base import API_KEY
from stackgen.errors import StackgenError, StartError
from stackgen.render.read import stack_file_in
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.gateway import has_gateway, load_client_keys
from stackgen.spec.addons import KeySpec
from stackgen.spec.types import BASE_URL
from stackgen.stack.folder import Stack, open_stack
from stackgen.stack.key_table import KeyRow, is_table
from stackgen.stack.keys import (
    DEFAULT,
    MAX_NAMES,
    NAME,
    create_keys,
    forget_keys,
    list_keys,
    load_keys,
    remove_key,
    rotate_key,
)

__all__ = ["keys"]

# another `keys` command ends within a second, so several at once wait for each other
WAIT_SECONDS = 60.0


def keys(args: Namespace) -> int:
    """Runs `stackgen keys`. Raises StackgenError without a gateway, and without a name where one is needed.

    Returns 1 if a running gateway did not load the change.
    """
    _take_stack(args)
    if args.action in ("list", "usage"):
        stack = _open(args)
        return _list(args, stack) if args.action == "list" else usage(args, stack)
    args.wait = max(args.wait, WAIT_SECONDS)
    with lock_stack(args, args.stack):
        stack = _open(args)
        names, rows = _names(args, stack)
        if not stack.site.is_cluster:
            check_ownership(stack.plan.name, stack.folder)
            # a gateway that does not answer is reported when it has to load the keys
            with suppress(StackgenError):
                report_drains(stack.plan, stack.folder)
        if args.action == "remove":
            return _remove(args, stack, names[0])
        if rows:
            # a file of the table must not be left without its key
            if args.write_to:
                require_new_files(args.write_to, names)
            stack = declare_rows(stack, args.stack, rows)
        return _create(args, stack, names)


def _take_stack(args: Namespace) -> None:
    """Moves the stack from the end of the names to `args.stack`, as other commands take it."""
    # a folder may have the name of a key
    needs_name = args.action not in ("list", "usage") and not args.missing and not args.source
    is_only_name = len(args.names) == 1 and needs_name
    if args.names and args.stack is None and not (is_only_name and NAME.fullmatch(args.names[0])):
        path = Path(args.names[-1])
        if stack_file_in(path).is_file() or path.suffix in (".yaml", ".yml"):
            args.stack = args.names.pop()
    if args.names and args.action in ("list", "usage"):
        raise StackgenError(f"{args.names[0]} is not the folder of a stack", f"`keys {args.action}` takes no name")
    args.stack = args.stack or "."


def _open(args: Namespace) -> Stack:
    stack = open_stack(args.stack)
    if not has_gateway(stack.plan):
        raise StackgenError("the stack has no gateway, so it has no keys for clients", "set `gateway: true`")
    return stack


def _declared(stack: Stack) -> tuple[KeySpec, ...]:
    return stack.spec.gateway.keys if stack.spec.gateway else ()


def _names(args: Namespace, stack: Stack) -> tuple[list[str], tuple[KeyRow, ...]]:
    """Returns the names that the command is about, and the rows of a table with limits.

    There is at least one name, and only one unless the command creates keys.
    """
    _require_fitting_arguments(args)
    rows: tuple[KeyRow, ...] = ()
    names: list[str] = list(args.names)
    if args.source:
        text = read_source(args.source)
        if is_table(args.source, text):
            if names:
                raise StackgenError(f"{names[0]} is a name next to a table", f"add a line for {names[0]} to the table")
            rows = read_rows(stack, args.source, text, args.missing)
            names += (row.key.name for row in rows)
        else:
            names += read_names(args.source, text)
    names = list(dict.fromkeys(names))
    if args.missing:
        owners = {one.name for one in load_keys(stack.folder)}
        listed = names if args.source else names or [one.name for one in _declared(stack)]
        names = [name for name in listed if name not in owners]
        if not names:
            raise StackgenError("every name has a key", "list more names under gateway.keys, or pass them")
    if not names:
        raise StackgenError(
            f"the name of the key is missing: `stackgen keys {args.action} NAME`",
            "`stackgen keys list` shows the names",
        )
    if args.action != "new" and len(names) > 1:
        raise StackgenError(
            f"`stackgen keys {args.action}` takes one name, not {len(names)}", "run the command once for each name"
        )
    return names, rows


def _require_fitting_arguments(args: Namespace) -> None:
    if args.action != "new" and (args.source or args.missing or args.write_to or args.base_url):
        raise StackgenError("--from, --missing, --write-to and --base-url are only for `stackgen keys new`")
    if args.base_url and not args.write_to:
        raise StackgenError("--base-url has an effect only together with --write-to", "add `--write-to FOLDER`")
    if args.base_url is not None and not re.fullmatch(BASE_URL, args.base_url):
        # no copy of the value: it may contain a password
        raise StackgenError(
            "--base-url must look like http://127.0.0.1:8000/v1, without credentials, query or fragment"
        )


def _list(args: Namespace, stack: Stack) -> int:
    rows = list_keys(stack.folder, stack.spec.gateway)
    # only what is printed: there may be 100,000 keys
    if args.json:
        print_data(args, {"keys": [row.to_json() for row in rows]}, [])
    else:
        print_data(args, {}, [row.to_line() for row in rows])
    if warning := warn_pending(stack, (one.name for one in _declared(stack))):
        note(warning)
    return 0


def _create(args: Namespace, stack: Stack, names: list[str]) -> int:
    """Creates keys and prints them. Removes keys that can't be printed, because only their hashes are saved."""
    if sys.stdout is None or sys.stdout.closed:
        raise StackgenError("standard output is closed, but a key is printed only once", "nothing was changed")
    if args.write_to:
        require_new_files(args.write_to, names)
    if args.action == "new":
        require_rendered(stack, names)
        created = create_keys(stack.folder, names)
    else:
        created = {names[0]: rotate_key(stack.folder, names[0])}
    try:
        _warn(args, stack, names)
        if args.write_to:
            base_url = args.base_url or next(one.base_url for one in stack.plan.endpoints)
            write_key_files(args.write_to, created, base_url)
        loaded = _load(args, stack, "the new key is not valid yet")
        # only the keys' hashes were saved, so the keys can't be printed again
        _print_keys(args, created, loaded is True)
        sys.stdout.flush()
    except OSError as error:
        # Python would try to print the key again when it ends
        if not args.write_to:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = f"written to {error.filename or args.write_to}" if args.write_to else "printed"
        raise StartError(
            f"the key could not be {where} ({error.strerror}). The key {_take_back(args, stack, created)}",
            "choose another folder for --write-to" if args.write_to else "run the command again",
        ) from None
    except KeyboardInterrupt:
        note(f"interrupted: the new key {_take_back(args, stack, created)}")
        raise
    return 1 if loaded is None else 0


def _warn(args: Namespace, stack: Stack, names: list[str]) -> None:
    # the key in .env needs no entry in gateway.keys
    declared = {DEFAULT, *(one.name for one in _declared(stack))}
    if missing := [name for name in names if name not in declared]:
        some = ", ".join(missing[:MAX_NAMES]) + (" and others" if len(missing) > MAX_NAMES else "")
        limits = (
            "the limits of gateway.key_defaults"
            if stack.spec.gateway and stack.spec.gateway.key_defaults
            else "no limits"
        )
        note(
            f"warning: gateway.keys of stack.yaml does not list {some}: the key works, but has {limits} and no metrics"
        )
    if args.action == "rotate":
        where = "; .env contains the new key" if names[0] == DEFAULT else ""
        note(f"the old key stays valid until you run `stackgen keys remove {names[0]} --older`{where}")
    # a container keeps the environment it was started with
    if args.action == "rotate" and names[0] == DEFAULT and (users := _default_key_users(stack)):
        note(f"these services still use the old key: {users}. Run `{_update(stack)}` before you remove the old key")


def _print_keys(args: Namespace, created: dict[str, str], reloaded: bool) -> None:
    if args.write_to:
        paths = {name: str(key_path(args.write_to, name)) for name in created}
        data: dict[str, Any] = {"keys": [{"name": name, "file": path} for name, path in paths.items()]}
        print_data(args, data | {"reloaded": reloaded}, [f"wrote {path}" for path in paths.values()])
    elif len(created) > 1 or args.source or args.missing:
        data = {"keys": [{"name": name, "key": key} for name, key in created.items()], "reloaded": reloaded}
        print_data(args, data, [f"{name}  {key}" for name, key in created.items()], has_new_key=True)
    else:
        ((name, key),) = created.items()
        print_data(args, {"name": name, "key": key, "reloaded": reloaded}, [key], has_new_key=True)


def _take_back(args: Namespace, stack: Stack, created: dict[str, str]) -> str:
    """Makes keys invalid that nobody has seen. Returns what was done, as a predicate."""
    # the stack's own commands use the key in .env
    if DEFAULT in created:
        return "is in .env"
    forget_keys(stack.folder, created)
    with suppress(StackgenError):
        _load_keys(args, stack)
    return "was deleted again"


def _remove(args: Namespace, stack: Stack, name: str) -> int:
    count = remove_key(stack.folder, name, args.older)
    line = f"removed {count} key{'' if count == 1 else 's'} for {name}"
    # without a removed key, the gateway has nothing to load
    loaded = _load(args, stack, "the removed keys are still valid") if count else False
    if count and name == DEFAULT and (users := _default_key_users(stack)):
        note(f"these services may still use a removed key: {users}. They get a 401 until you run `{_update(stack)}`")
    print_data(args, {"name": name, "removed": count, "reloaded": loaded is True}, [line])
    return 1 if loaded is None else 0


def _default_key_users(stack: Stack) -> str:
    """Returns the services that use the key in .env as their own key at the gateway, separated by commas."""
    # the gateway also has this key, but uses keys.map once that file exists
    others = [one for one in stack.plan.services if one.name != SERVICE]
    return ", ".join(one.name for one in others if API_KEY in dict(one.environment).values())


def _update(stack: Stack) -> str:
    return "stackgen up" if stack.site.is_cluster else "stackgen update"


def _load_keys(args: Namespace, stack: Stack) -> bool | None:
    if not stack.site.is_cluster:
        return load_client_keys(stack.plan, stack.folder)
    # most stacks run on one machine
    from stackgen.cli.commands.cluster_keys import load_cluster_keys

    return load_cluster_keys(args, stack)


def _load(args: Namespace, stack: Stack, consequence: str) -> bool | None:
    """Loads the keys into the running gateway. Returns whether one is running; None if it did not load them."""
    # the keys are saved already, so a failure is reported instead of raised
    try:
        loaded = _load_keys(args, stack)
    except StackgenError as error:
        note(f"the keys are saved, but the gateway did not load them, so {consequence}: {error.message}")
        note(f"  hint: `{_update(stack)}` loads them")
        return None
    if loaded is None:
        return None
    note(
        "the running gateway has loaded the keys, without a restart"
        if loaded
        else "the gateway is not running: it loads the keys at its next start"
    )
    return loaded
