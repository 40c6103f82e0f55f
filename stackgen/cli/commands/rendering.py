"""Rendered files on disk, for the commands that write or need them."""

from __future__ import annotations

from stackgen.cli.commands.output import note
from stackgen.plan import EnvRef
from stackgen.render.templating import RenderedFile
from stackgen.render.write import Change, compare, diff, write_files
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.runtimes.compose.command import has_compose
from stackgen.runtimes.compose.command import validate as ask_compose
from stackgen.runtimes.compose.exporter_image import write_wheel
from stackgen.stack.envfile import complete_env, create_env
from stackgen.stack.folder import Stack

__all__ = ["changes_of", "complete", "prepare", "write"]


def changes_of(stack: Stack, validate: bool) -> list[Change]:
    """What rendering would change on disk; with `validate`, Compose has read the new file. Raises StackgenError."""
    files = stack.files()
    if validate and has_compose():
        ask_compose(stack.plan, files[0].text, stack.folder)
    if stack.own_file:
        files = (*files, RenderedFile("stack.yaml", stack.own_file))
    return compare(files, stack.folder)


def write(stack: Stack, changes: list[Change], force: bool) -> None:
    """Writes `changes`, and shows a diff of each file that changes. Raises DriftError unless `force`."""
    for line in diff([change for change in changes if change.kind == "changed"]):
        note(line)
    write_files(changes, stack.folder, force)
    complete(stack)


def complete(stack: Stack) -> None:
    """What belongs to the stack and is no text: it is made, not rendered."""
    write_wheel(stack.plan, stack.folder)
    if made := ensure_certificate(stack.spec, stack.plan, stack.folder):
        note(f"made a certificate that signs itself: {made}")


def prepare(stack: Stack) -> None:
    """Rendered files and a key must be there before a start; a hand-edited file is used as it is."""
    changes = changes_of(stack, validate=False)
    kept = [change.path for change in changes if change.edited]
    stale = [change for change in changes if change.kind != "same" and not change.edited]
    write_files(stale, stack.folder)
    complete(stack)
    if any(change.kind == "changed" for change in stale):
        note(f"rendered anew: {', '.join(change.path for change in stale)}")
    if kept:
        note(f"edited by hand, so used as it is: {', '.join(kept)}")
    if create_env(stack.folder):
        note(f"wrote {stack.folder / '.env'} with a new key")
    values = (value for service in stack.plan.services for _, value in service.environment)
    if added := complete_env(stack.folder, (value.name for value in values if isinstance(value, EnvRef))):
        note(f"added to {stack.folder / '.env'}: {', '.join(added)}")
