"""`stackgen keys new --from` with a table: adds names and limits that stack.yaml lacks to its `gateway.keys`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from stackgen.cli.commands.output import note
from stackgen.errors import Mistake, SpecError, StackgenError
from stackgen.spec.keys import KeySpec
from stackgen.stack.edit import write_stack_file
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.stack.key_entries import add_entries, format_entry
from stackgen.stack.key_table import KeyRow, read_table
from stackgen.stack.keys import MAX_NAMES, load_keys
from stackgen.stack.load import parse_stack, read_text

__all__ = ["declare_rows", "read_rows"]


def read_rows(stack: Stack, source: str, text: str, missing: bool) -> tuple[KeyRow, ...]:
    """Returns the rows of the table `text`, with `missing` only those without a key.

    Raises StackgenError, before anything is written, for a wrong line, a name that has a key, and a name for which
    stack.yaml has other limits.
    """
    served = list(dict.fromkeys(name for endpoint in stack.plan.endpoints for name in endpoint.models))
    rows = read_table(source, text, served)
    owners = {one.name for one in load_keys(stack.folder)}
    declared = {one.name: one for one in stack.spec.gateway.keys} if stack.spec.gateway else {}
    mistakes = []
    for row in rows:
        name, known = row.key.name, declared.get(row.key.name)
        if name in owners and not missing:
            mistakes.append(Mistake("name", f"{name} already has a key", line=row.line,
                                    hint="remove the line, or add --missing to skip such names"))  # fmt: skip
        # a line with only a name sets no limits
        elif known and row.key.model_fields_set != {"name"} and known != row.key:
            mistakes.append(Mistake(
                "", f"{name} has other limits in stack.yaml: {format_entry(known)}", line=row.line,
                hint="change stack.yaml, or the line, so that both are the same",
            ))  # fmt: skip
    if mistakes:
        raise SpecError(source, mistakes)
    return tuple(row for row in rows if row.key.name not in owners)


def declare_rows(stack: Stack, where: str, rows: Iterable[KeyRow]) -> Stack:
    """Adds the keys that `gateway.keys` does not list to the stack file in `where`. Returns the stack, read again.

    Raises StackgenError, and changes nothing, if the new stack would be invalid.
    """
    declared = {one.name for one in stack.spec.gateway.keys} if stack.spec.gateway else set()
    new = [row.key for row in rows if row.key.name not in declared]
    if not new:
        return stack
    path = find_stack_file(where) or Path(where) / "stack.yaml"
    before = read_text(path)
    after = add_entries(before, new)
    parse_stack(after, str(path))
    write_stack_file(path, before, after)
    try:
        changed = open_stack(where)
    except StackgenError:
        # nothing else has changed, so the file can go back
        write_stack_file(path, after, before)
        raise
    note(f"{path}: added {_some(new)} to gateway.keys")
    return changed


def _some(keys: Sequence[KeySpec]) -> str:
    names = ", ".join(one.name for one in keys[:MAX_NAMES])
    return names if len(keys) <= MAX_NAMES else f"{names} and {len(keys) - MAX_NAMES} others"
