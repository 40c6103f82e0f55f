"""Rendered files on disk, for the commands that write or need them."""

from __future__ import annotations

from stackgen.cli.commands.output import note
from stackgen.plan import EnvRef
from stackgen.render.templating import RenderedFile
from stackgen.render.write import Change, compare, diff, write_files
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.runtimes.compose.command import has_compose
from stackgen.runtimes.compose.command import validate as validate_with_compose
from stackgen.runtimes.compose.exporter_image import write_wheel
from stackgen.stack.envfile import complete_env, create_env
from stackgen.stack.folder import Stack

__all__ = ["find_changes", "prepare_files", "write_changes", "write_unrendered"]


def find_changes(stack: Stack, validate: bool) -> list[Change]:
    """Returns what rendering would change on disk.

    With `validate`, Compose parses the new file first, if Compose is installed. Raises StackgenError if Compose rejects
    the file.
    """
    files = stack.files()
    if validate and has_compose():
        validate_with_compose(stack.plan, files[0].text, stack.folder)
    # a stack built from flags also gets a stack.yaml
    if stack.generated_file:
        files = (*files, RenderedFile("stack.yaml", stack.generated_file))
    return compare(files, stack.folder)


def write_changes(stack: Stack, changes: list[Change], force: bool) -> None:
    """Writes `changes` and prints a diff of each file that changes. Raises DriftError unless `force` is set."""
    for line in diff([change for change in changes if change.kind == "changed"]):
        note(line)
    write_files(changes, stack.folder, force)
    write_unrendered(stack)


def write_unrendered(stack: Stack) -> None:
    """Writes the files that are not rendered from templates: the exporter's wheel, and a generated certificate."""
    write_wheel(stack.plan, stack.folder)
    if certificate := ensure_certificate(stack.spec, stack.plan, stack.folder):
        note(f"created a self-signed certificate: {certificate}")


def prepare_files(stack: Stack) -> None:
    """Writes what a start needs: rendered files and keys. A file that was edited by hand is used unchanged."""
    # `compose up` parses the file anyway
    changes = find_changes(stack, validate=False)
    edited = [change.path for change in changes if change.edited]
    # a hand edit is overwritten only by `render --force`
    stale = [change for change in changes if change.kind != "same" and not change.edited]
    write_files(stale, stack.folder)
    write_unrendered(stack)
    if any(change.kind == "changed" for change in stale):
        note(f"rendered again: {', '.join(change.path for change in stale)}")
    if edited:
        note(f"used unchanged, because they were edited by hand: {', '.join(edited)}")
    if create_env(stack.folder):
        note(f"wrote {stack.folder / '.env'} with a new key")
    # a gateway or monitoring that was added to stack.yaml needs keys that .env does not have yet
    values = (value for service in stack.plan.services for _, value in service.environment)
    if added := complete_env(stack.folder, (value.name for value in values if isinstance(value, EnvRef))):
        note(f"added to {stack.folder / '.env'}: {', '.join(added)}")
