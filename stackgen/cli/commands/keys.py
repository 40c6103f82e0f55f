"""`stackgen keys`: list, create, rotate and remove clients' keys. A key is printed once, when it is created."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import note, print_data
from stackgen.engines.base import API_KEY
from stackgen.errors import StackgenError
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.gateway import has_gateway, reload_if_changed
from stackgen.stack.folder import Stack, open_stack
from stackgen.stack.keys import DEFAULT, create_key, list_keys, remove_key, rotate_key

__all__ = ["keys"]


def keys(args: Namespace) -> int:
    """Runs `stackgen keys`. Raises StackgenError without a gateway, and without a name where one is needed."""
    stack = open_stack(args.stack)
    if not has_gateway(stack.plan):
        raise StackgenError("the stack has no gateway, so it has no keys for clients", "set `gateway: true`")
    if args.action == "list":
        return _list(args, stack)
    if not args.name:
        raise StackgenError(
            f"the name of the key is missing: `stackgen keys {args.action} NAME`",
            "`stackgen keys list` shows the names",
        )
    return _remove(args, stack) if args.action == "remove" else _create(args, stack)


def _list(args: Namespace, stack: Stack) -> int:
    rows = list_keys(stack.folder, stack.spec.gateway.keys if stack.spec.gateway else ())
    print_data(args, {"keys": [row.to_json() for row in rows]}, [row.to_line() for row in rows])
    return 0


def _create(args: Namespace, stack: Stack) -> int:
    key = (create_key if args.action == "new" else rotate_key)(stack.folder, args.name)
    declared = {DEFAULT, *(one.name for one in (stack.spec.gateway.keys if stack.spec.gateway else ()))}
    if args.name not in declared:
        note(
            f"warning: gateway.keys of stack.yaml does not list {args.name}: the key works, without limits and metrics"
        )
    if args.action == "rotate":
        where = "; .env contains the new key" if args.name == DEFAULT else ""
        note(f"the old key stays valid until `stackgen keys remove {args.name} --older`{where}")
    # a container keeps the environment it was started with
    if args.action == "rotate" and args.name == DEFAULT and (users := _default_key_users(stack)):
        note(f"these services still use the old key: {users}. Run `stackgen update` before you remove the old key")
    reloaded = _reload(stack)
    # only the key's hash was saved, so the key can't be printed again
    print_data(args, {"name": args.name, "key": key, "reloaded": reloaded}, [key])
    return 0


def _remove(args: Namespace, stack: Stack) -> int:
    count = remove_key(stack.folder, args.name, args.older)
    line = f"removed {count} key{'' if count == 1 else 's'} for {args.name}"
    reloaded = _reload(stack) if count else False
    if count and args.name == DEFAULT and (users := _default_key_users(stack)):
        note(f"services with a removed key get a 401 until `stackgen update`. Services that may have one: {users}")
    print_data(args, {"name": args.name, "removed": count, "reloaded": reloaded}, [line])
    return 0


def _default_key_users(stack: Stack) -> str:
    """Returns the services that use the key in .env as their own key at the gateway, separated by commas."""
    # the gateway also has this key, but uses keys.map once that file exists
    others = [one for one in stack.plan.services if one.name != SERVICE]
    return ", ".join(one.name for one in others if API_KEY in dict(one.environment).values())


def _reload(stack: Stack) -> bool:
    """Reloads a running gateway. Returns whether the gateway has loaded the keys."""
    # the keys are saved already, so a rejected reload is reported instead of raised
    # restart=False: a renewed certificate must not cause downtime here
    try:
        reloaded = reload_if_changed(stack.plan, stack.folder, restart=False)
    except StackgenError as error:
        note(f"the keys are saved, but the gateway did not load them: {error.message}")
        return False
    note(
        "the running gateway has loaded the keys, without a restart"
        if reloaded
        else "the gateway is not running: it loads the keys at its next start"
    )
    return reloaded
