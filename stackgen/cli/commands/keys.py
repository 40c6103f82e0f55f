"""`stackgen keys`: names and hashes of clients' keys; a key itself is printed once, when it is created."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import note, print_data
from stackgen.engines.base import API_KEY
from stackgen.errors import StackgenError
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.gateway import has_gateway, reload_changed
from stackgen.stack.folder import Stack, open_stack
from stackgen.stack.keys import DEFAULT, listed, make_key, remove_key, rotate_key

__all__ = ["keys"]


def keys(args: Namespace) -> int:
    """`stackgen keys`: names and hashes; a key itself is printed once, where it is made."""
    stack = open_stack(args.stack)
    if not has_gateway(stack.plan):
        raise StackgenError("the stack has no gateway, which is what keys are for", "set `gateway: true`")
    if args.action == "list":
        return _list(args, stack)
    if not args.name:
        raise StackgenError(f"whose key? `stackgen keys {args.action} NAME`", "`stackgen keys list` shows the names")
    return _remove(args, stack) if args.action == "remove" else _make(args, stack)


def _list(args: Namespace, stack: Stack) -> int:
    rows = listed(stack.folder, stack.spec.gateway.keys if stack.spec.gateway else ())
    print_data(args, {"keys": [one.to_json() for one in rows]}, [one.line() for one in rows])
    return 0


def _make(args: Namespace, stack: Stack) -> int:
    key = (make_key if args.action == "new" else rotate_key)(stack.folder, args.name)
    declared = {DEFAULT, *(one.name for one in (stack.spec.gateway.keys if stack.spec.gateway else ()))}
    if args.name not in declared:
        note(f"warning: {args.name} is not in gateway.keys of stack.yaml: its key works, without limits and metrics")
    if args.action == "rotate":
        where = "; .env holds the new one" if args.name == DEFAULT else ""
        note(f"the old key stays valid until `stackgen keys remove {args.name} --older`{where}")
    if args.action == "rotate" and args.name == DEFAULT and (holders := _holders(stack)):
        note(f"these go on with the old key until `stackgen update`, so run it before that key is removed: {holders}")
    reloaded = _reload(stack)
    # the only time that the key is seen
    print_data(args, {"name": args.name, "key": key, "reloaded": reloaded}, [key])
    return 0


def _remove(args: Namespace, stack: Stack) -> int:
    count = remove_key(stack.folder, args.name, args.older)
    told = f"removed {count} key{'' if count == 1 else 's'} of {args.name}"
    reloaded = _reload(stack) if count else False
    if count and args.name == DEFAULT and (holders := _holders(stack)):
        note(f"these get a 401 if they were started with a key that is gone, until `stackgen update`: {holders}")
    print_data(args, {"name": args.name, "removed": count, "reloaded": reloaded}, [told])
    return 0


def _holders(stack: Stack) -> str:
    """The services that were started with the key of .env as their own to the gateway."""
    others = [one for one in stack.plan.services if one.name != SERVICE]
    return ", ".join(one.name for one in others if API_KEY in dict(one.environment).values())


def _reload(stack: Stack) -> bool:
    """Whether a running gateway has read the keys; a refusal is told, for the key's file is written already."""
    try:
        reloaded = reload_changed(stack.plan, stack.folder, restart=False)
    except StackgenError as error:
        note(f"written, but the gateway did not load it: {error.message}")
        return False
    note(
        "the running gateway has loaded it, without a restart"
        if reloaded
        else "no gateway runs: it counts from the next start"
    )
    return reloaded
