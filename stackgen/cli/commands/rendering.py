"""Rendered files on disk, for the commands that write or need them."""

from __future__ import annotations

import re
from dataclasses import replace

from stackgen.cli.commands.env_keys import Start, write_keys
from stackgen.cli.commands.output import note
from stackgen.cli.scrub import scrub_diff
from stackgen.errors import StackgenError
from stackgen.render.read import PLACEMENT_FILE, STACK_FILES
from stackgen.render.templating import RenderedFile
from stackgen.render.write import Change, compare, diff, write_atomically, write_files
from stackgen.runtimes.compose.certificate import certificate_names, ensure_certificate
from stackgen.runtimes.compose.command import has_compose
from stackgen.runtimes.compose.command import validate as validate_with_compose
from stackgen.runtimes.compose.exporter_image import write_wheel
from stackgen.stack.copies import is_copy, is_unedited
from stackgen.stack.folder import Stack
from stackgen.stack.registry import remember_stack

__all__ = ["find_changes", "prepare_files", "write_changes", "write_unrendered"]


def find_changes(stack: Stack, validate: bool) -> list[Change]:
    """Returns what rendering would change on disk.

    With `validate`, Compose parses the new file first, if Compose is installed. Raises StackgenError if Compose rejects
    the file.
    """
    files = stack.files()
    if stack.site.is_cluster:
        if validate:
            # only stacks in a cluster pay for this import
            from stackgen.kubernetes.validate import validate_manifests

            validate_manifests(files, stack.spec.cluster)
        return compare(files, stack.output)
    if validate and has_compose():
        validate_with_compose(stack.plan, files[0].text, stack.folder)
    # a stack built from flags, or rendered into another folder, also gets a stack.yaml
    if stack.generated_file:
        files = (*files, RenderedFile(STACK_FILES[0], stack.generated_file))
    if stack.placement:
        files = (*files, RenderedFile(PLACEMENT_FILE, stack.placement))
    changes = compare(files, stack.folder)
    # the lock file does not list stack.yaml, which belongs to the user once it is edited, nor the copy of a placement
    return [replace(one, edited=one.path in STACK_FILES and not is_unedited(one.old))
            if one.path in (*STACK_FILES, PLACEMENT_FILE) and one.edited else one for one in changes]  # fmt: skip


def write_changes(stack: Stack, changes: list[Change], force: bool) -> None:
    """Writes `changes` and prints a diff of each file that changes.

    Raises DriftError if a manual edit would be lost and `force` is false, and StackgenError for a stack.yaml that is
    not the stack's own, whatever `force` is.
    """
    _refuse_other_stack(stack, changes)
    changed = [change for change in changes if change.kind == "changed"]
    for line in scrub_diff(diff(changed), [text for change in changed for text in (change.old, change.new)]):
        note(line)
    write_files(changes, stack.output, force)
    remember_stack(stack.folder)
    _write_stack_file(stack)
    write_unrendered(stack, elsewhere=bool(stack.spec.hosts))
    # plain `docker compose up` must work as well, without `stackgen up`
    write_keys(stack)


def _write_stack_file(stack: Stack) -> None:
    """Writes the stack.yaml of manifests that are made from flags: it is next to their folder, not in it."""
    path = stack.folder / STACK_FILES[0]
    if stack.site.is_cluster and stack.generated_file:
        [change] = [one for one in compare([RenderedFile(path.name, stack.generated_file)], stack.folder)
                    if one.path == path.name]  # fmt: skip
        _refuse_other_stack(stack, [replace(change, edited=change.kind == "changed" and not is_unedited(change.old))])
        if change.kind != "same":
            write_atomically(path, change.new)


def _refuse_other_stack(stack: Stack, changes: list[Change]) -> None:
    for change in changes:
        if change.path in STACK_FILES and change.edited and not is_copy(change.old):
            name = re.search(r"(?m)^name:[ \t]*(['\"]?)([a-z0-9][a-z0-9_-]*)\1[ \t]*(?:#.*)?$", change.old)
            raise StackgenError(
                f"{stack.folder} contains another stack" + (f" (`{name[2]}`)" if name else ""),
                "choose another folder for --output",
            )


def write_unrendered(stack: Stack, elsewhere: bool = False) -> None:
    """Writes the files that are not rendered from templates: the exporter's wheel, and a generated certificate.

    `elsewhere`: the stack may be for another machine, as the folders of `hosts` are.
    """
    if stack.site.is_cluster:
        return
    write_wheel(stack.plan, stack.folder)
    if certificate := ensure_certificate(stack.spec, stack.plan, stack.folder):
        note(f"created a self-signed certificate for {', '.join(certificate_names(stack.spec))}: {certificate}")
        # these are the names of the machine that renders, which may be another one than the first host
        later = f", but only after `up` on {stack.spec.host}, which adds the names of that machine" if elsewhere else ""
        note(
            f"  clients need a copy of this file to trust it{later}: `curl --cacert {certificate.name}`, "
            f"SSL_CERT_FILE={certificate.name} (Python), NODE_EXTRA_CA_CERTS={certificate.name} (Node.js). `stackgen "
            "connect` prints the setting of each program"
        )


def prepare_files(stack: Stack, start: Start = "", new_keys: bool = False) -> None:
    """Writes what a start needs: rendered files and keys. A file that was edited by hand is used unchanged.

    `start` and `new_keys` are those of `write_keys`.
    """
    # `compose up` parses the file anyway
    changes = find_changes(stack, validate=False)
    edited = [change.path for change in changes if change.edited]
    # a hand edit is overwritten only by `render --force`
    stale = [change for change in changes if change.kind != "same" and not change.edited]
    write_files(stale, stack.output)
    remember_stack(stack.folder)
    write_unrendered(stack)
    if any(change.kind == "changed" for change in stale):
        note(f"rendered again: {', '.join(change.path for change in stale)}")
    if edited:
        note(f"these files were edited by hand and are used unchanged: {', '.join(edited)}")
    write_keys(stack, start, new_keys)
