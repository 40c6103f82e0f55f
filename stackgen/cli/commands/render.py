"""`stackgen render`: writes the files of a stack, or shows what would change."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from stackgen.cli.commands.locking import lock_folder
from stackgen.cli.commands.model_argument import complete_model_flags
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.renames import describe_rename
from stackgen.cli.commands.rendering import find_changes, write_changes
from stackgen.cli.scrub import scrub_diff
from stackgen.errors import StackgenError
from stackgen.render.templating import RenderedFile
from stackgen.render.write import diff
from stackgen.runtimes.compose.volumes import create_shared_volumes
from stackgen.stack.folder import Stack, build_from_flags, find_hosts, find_stack_file, given_model_flags, open_stack
from stackgen.stack.host_keys import share_key

__all__ = ["render"]


def render(args: Namespace) -> int:
    """Runs `stackgen render`. With --check, returns 1 if files are out of date.

    Raises StackBusyError if it would write files while another command is changing the stack.
    """
    if args.output and Path(args.output).exists() and not Path(args.output).is_dir():
        raise StackgenError(f"{args.output} is not a folder", "pass a folder for the rendered files with `-o`")
    path = find_stack_file(args.stack)
    if not path and not args.engine:
        complete_model_flags(args)
    if path:
        # a flag without effect is worse than an error
        if flags := given_model_flags(vars(args)):
            raise StackgenError(
                f"{args.stack} is a stack, and {' and '.join(flags)} {'is' if len(flags) == 1 else 'are'} only for "
                "`render MODEL`",
                f"set the fields in {path} instead",
            )
        if hosts := find_hosts(path):
            return _render_hosts(args, Path(args.output or path.parent), hosts)
        with _lock(args, Path(args.output or path.parent), create=bool(args.output)):
            return _render(args, open_stack(args.stack, args.output, args.target))
    stack = build_from_flags(args.stack, vars(args), args.set, args.output, args.target)
    with _lock(args, stack.folder, create=True):
        return _render(args, stack)


def _lock(args: Namespace, folder: Path, create: bool) -> AbstractContextManager[None]:
    writes = not (args.stdout or args.check or args.diff)
    return lock_folder(args, folder, create) if writes else nullcontext()


def _render_hosts(args: Namespace, folder: Path, hosts: tuple[str, ...]) -> int:
    """Renders the folder of each host. The first one is first, because the others need its key."""
    if args.stdout:
        raise StackgenError(
            f"{args.stack} runs on several machines, but --stdout prints only one file",
            f"pass the folder of one machine, for example `stackgen render {folder / hosts[0]} --stdout`",
        )
    # all of them, so that an error in one leaves no folder that fits no other
    stacks = [open_stack(args.stack, str(folder / host), args.target, host) for host in hosts]
    codes, found = [], {}
    for host, stack in zip(hosts, stacks, strict=True):
        with _lock(args, stack.folder, create=True):
            if not (args.diff or args.check):
                share_key(folder / hosts[0], stack.folder, stack.plan)
            code, data, lines = _render_stack(args, stack, on_this_machine=False)
        codes.append(code)
        found[host] = (data, lines)
    stale = any(one["kind"] != "same" for data, _ in found.values() for one in data["changes"])
    print_data(args, {"hosts": {host: data for host, (data, _) in found.items()}},
               [line for _, lines in found.values() for line in lines])  # fmt: skip
    if stale and not (args.diff or args.check):
        volumes = _create_commands([name for data, _ in found.values() for name in data["missing_volumes"]])
        note(f"next: copy each folder in {folder} to its machine, with .env, and run `stackgen up FOLDER` there, or "
             f"{volumes}`docker compose up -d` in that folder")  # fmt: skip
    return max(codes)


def _render(args: Namespace, stack: Stack) -> int:
    # the first file is compose.yaml
    if args.stdout:
        return _print_compose_file(args, stack)
    code, data, lines = _render_stack(args, stack)
    print_data(args, data, lines)
    if any(one["kind"] != "same" for one in data["changes"]) and not (args.diff or args.check):
        # stderr, as in `init`: stdout lists the files
        apply = f"`kubectl apply --server-side -k {shlex.quote(str(stack.output))}`"
        from stackgen.cli.commands.to_do import describe_download

        volumes = _create_commands(data["missing_volumes"])
        docker = f"`stackgen up {shlex.quote(str(stack.folder))}`, or {volumes}`docker compose up -d` in that folder"
        download = describe_download(stack)
        when = ", after the to-dos" if data["to_do"] else ""
        note(f"next{when}: {apply if stack.site.is_cluster else docker}{f'. {download}' if download else ''}")
    return code


def _create_commands(volumes: Sequence[str]) -> str:
    """The commands that create `volumes` before a plain `docker compose up`."""
    # Compose does not create the volumes that all stacks share
    return "".join(f"`docker volume create {name}` and " for name in dict.fromkeys(volumes))


def _render_stack(args: Namespace, stack: Stack, on_this_machine: bool = True) -> tuple[int, dict[str, Any], list[str]]:
    """Writes or compares the files of one folder. Returns the exit code, and what to print as JSON and as text."""
    changes = find_changes(stack, validate=not args.no_validate)
    stale = [change for change in changes if change.kind != "same"]
    if (args.diff or args.check) and not args.json:
        texts = [text for change in stale for text in (change.old, change.new)]
        print("\n".join(scrub_diff(diff(changes), texts)), end="\n" if stale else "")
    warnings, to_do, missing_volumes = list(stack.plan.warnings), list[str](), stack.plan.shared_volumes
    if not (args.diff or args.check):
        # loading doctor's checks takes longer than the rest of a `render` that writes nothing
        from stackgen.cli.commands.neighbours import describe_conflicts
        from stackgen.cli.commands.to_do import find_to_do

        # before the write, because compose.yaml on disk has the former name
        warnings += describe_rename(stack, ask_docker=not args.no_validate and on_this_machine)
        write_changes(stack, changes, args.force)
        if not args.no_validate and not stack.site.is_cluster and on_this_machine:
            warnings += describe_conflicts(stack)
            # plain `docker compose up` finds the volumes; without Docker on this machine, `up` creates them elsewhere
            with suppress(StackgenError):
                create_shared_volumes(stack.plan, timeout=5)
                missing_volumes = ()
        to_do = find_to_do(stack)
    for warning in warnings:
        note(f"warning: {warning}")
    for line in to_do:
        note(f"to do: {line}")
    # --diff and --check have printed the diff already
    lines = [] if args.diff or args.check else [f"{change.kind:8}{stack.output / change.path}" for change in stale]
    rows = [{"path": change.path, "kind": change.kind, "edited": change.edited} for change in changes]
    data = {"folder": str(stack.output), "changes": rows, "warnings": warnings, "to_do": to_do,
            "missing_volumes": list(missing_volumes)}  # fmt: skip
    code = 1 if args.check and stale else 0
    return code, data, lines or ([] if stale else [f"{stack.output}: up to date"])


def _printed_file(stack: Stack) -> RenderedFile:
    """The Compose file; or all manifests in one, without what kustomize adds: ConfigMaps and Secrets."""
    files = stack.files()
    if not stack.site.is_cluster:
        return files[0]
    manifests = [one.text for one in files[1:] if "/" not in one.path and one.path != "references.yaml"]
    return RenderedFile("manifests.yaml", "---\n".join(manifests))


def _print_compose_file(args: Namespace, stack: Stack) -> int:
    file = _printed_file(stack)
    if args.json:
        # as with text, the file is usable: no value in it is replaced
        print_data(args, {"path": file.path, "text": file.text, "warnings": list(stack.plan.warnings)}, [],
                   has_new_key=True)  # fmt: skip
        return 0
    sys.stdout.write(file.text)
    for warning in stack.plan.warnings:
        note(f"warning: {warning}")
    return 0
