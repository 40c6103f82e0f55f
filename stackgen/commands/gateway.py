"""keys, scale, update: what changes behind a running gateway. Exit 1: a replica failed, and was rolled back."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from stackgen.commands.output import note, print_data

if TYPE_CHECKING:
    from stackgen.stack import Stack

__all__ = ["keys", "scale", "update"]


def keys(words: Namespace) -> int:
    """`stackgen keys`: names and hashes; a key itself is printed once, where it is made."""
    from stackgen.errors import StackgenError
    from stackgen.runtimes.gateway import has_gateway
    from stackgen.stack import open_stack

    stack = open_stack(words.stack)
    if not has_gateway(stack.plan):
        raise StackgenError("the stack has no gateway, which is what keys are for", "set `gateway: true`")
    if words.action == "list":
        return _list(words, stack)
    if not words.name:
        raise StackgenError(f"whose key? `stackgen keys {words.action} NAME`", "`stackgen keys list` shows the names")
    return _remove(words, stack) if words.action == "remove" else _make(words, stack)


def scale(words: Namespace) -> int:
    """`stackgen scale`: stack.yaml changed, replicas started, or drained and removed."""
    from stackgen.runtimes.rolling import look
    from stackgen.runtimes.scaling import counts, scaled

    wanted, where = counts(words.words)
    stack, text, lines = scaled(where, wanted)
    work = look(stack, text)
    for line in lines:
        note(line)
    return _carried_out(words, stack, work)


def update(words: Namespace) -> int:
    """`stackgen update`: one replica at a time, and back to the old one where the new one fails."""
    from stackgen.runtimes.rolling import look
    from stackgen.stack import open_stack

    stack = open_stack(words.stack)
    return _carried_out(words, stack, look(stack))


def _carried_out(words: Namespace, stack: Stack, work: Any) -> int:
    from dataclasses import asdict

    from stackgen.progress import shown
    from stackgen.runtimes.rolling import carry_out

    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    for line in work.told():
        note(line)
    if work.gaps and not _agreed(words):
        print_data(words, {"done": False, "gaps": list(work.gaps)}, [])
        return 2
    with shown(words.progress, stack.plan) as progress:
        done = carry_out(stack, work, progress, words.timeout)
    told = [f"{kind}: {', '.join(names)}" for kind, names in asdict(done).items() if isinstance(names, list) and names]
    print_data(words, {"done": True, "gaps": list(work.gaps), **asdict(done)}, told or ["all runs as it is rendered"])
    return 0


def _agreed(words: Namespace) -> bool:
    if words.yes:
        return True
    if not sys.stdin.isatty():
        note("nothing was changed; --yes goes on in spite of the gap")
        return False
    sys.stderr.write("go on? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _list(words: Namespace, stack: Stack) -> int:
    from stackgen.keys import listed

    rows = listed(stack.folder, stack.spec.gateway.keys if stack.spec.gateway else ())
    print_data(words, {"keys": [one.to_json() for one in rows]}, [one.line() for one in rows])
    return 0


def _make(words: Namespace, stack: Stack) -> int:
    from stackgen.keys import DEFAULT, make_key, rotate_key

    key = (make_key if words.action == "new" else rotate_key)(stack.folder, words.name)
    declared = {DEFAULT, *(one.name for one in (stack.spec.gateway.keys if stack.spec.gateway else ()))}
    if words.name not in declared:
        note(f"warning: {words.name} is not in gateway.keys of stack.yaml: its key works, without limits and metrics")
    if words.action == "rotate":
        where = "; .env holds the new one" if words.name == DEFAULT else ""
        note(f"the old key stays valid until `stackgen keys remove {words.name} --older`{where}")
    if words.action == "rotate" and words.name == DEFAULT and (holders := _holders(stack)):
        note(f"these go on with the old key until `stackgen update`, so run it before that key is removed: {holders}")
    reloaded = _reload(stack)
    # the only time that the key is seen
    print_data(words, {"name": words.name, "key": key, "reloaded": reloaded}, [key])
    return 0


def _remove(words: Namespace, stack: Stack) -> int:
    from stackgen.keys import DEFAULT, remove_key

    count = remove_key(stack.folder, words.name, words.older)
    told = f"removed {count} key{'' if count == 1 else 's'} of {words.name}"
    reloaded = _reload(stack) if count else False
    if count and words.name == DEFAULT and (holders := _holders(stack)):
        note(f"these get a 401 if they were started with a key that is gone, until `stackgen update`: {holders}")
    print_data(words, {"name": words.name, "removed": count, "reloaded": reloaded}, [told])
    return 0


def _holders(stack: Stack) -> str:
    """The services that were started with the key of .env as their own to the gateway."""
    from stackgen.addons.gateway import SERVICE
    from stackgen.engines.base import API_KEY

    others = [one for one in stack.plan.services if one.name != SERVICE]
    return ", ".join(one.name for one in others if API_KEY in dict(one.environment).values())


def _reload(stack: Stack) -> bool:
    """Whether a running gateway has read the keys; a refusal is told, for the key's file is written already."""
    from stackgen.errors import StackgenError
    from stackgen.runtimes.gateway import reload_changed

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
