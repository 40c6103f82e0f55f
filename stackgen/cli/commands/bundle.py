"""`stackgen bundle`: create, verify, load and compare bundles for machines without Internet access."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from stackgen.bundle.compare import compare_bundles
from stackgen.bundle.create import CreateOptions
from stackgen.bundle.create import create as create_bundle
from stackgen.bundle.layout import write_layout
from stackgen.bundle.load import EVERYTHING, LoadOptions, require_intact
from stackgen.bundle.load import load as load_bundle
from stackgen.bundle.manifest import Manifest, manifest_digest, read_manifest
from stackgen.bundle.verify import open_bases
from stackgen.bundle.verify import verify as verify_bundle
from stackgen.cli.commands.env_keys import write_keys
from stackgen.cli.commands.locking import lock_folder, lock_loads, lock_stack
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.rendering import prepare_files, write_unrendered
from stackgen.cli.progress import show_bytes
from stackgen.cli.scrub import scrub_diff
from stackgen.errors import StackgenError
from stackgen.stack.folder import Stack, open_stack

__all__ = ["bundle"]

# action -> options that only this action has
OWN_OPTIONS = {
    "create": ("part_size", "platform", "python", "no_wheels", "dry_run"),
    "load": ("storage", "only", "layout"),
}


def bundle(args: Namespace) -> int:
    """Runs `stackgen bundle`. Returns 1 for a damaged bundle, and for bundles that differ.

    Raises StackgenError for wrong input, MachineError if Docker or the disk is not ready.
    """
    _require_options(args)
    return {"create": _create, "verify": _verify, "load": _load, "diff": _diff}[args.action](args)


def _require_options(args: Namespace) -> None:
    # an option without effect is worse than an error
    for action, names in OWN_OPTIONS.items():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
        if given and args.action != action:
            raise StackgenError(f"{given[0]} is only for `bundle {action}`", "run the command without this option")
    if args.expect and args.action not in ("verify", "load"):
        raise StackgenError(
            "--expect is only for `bundle verify` and `bundle load`", "run the command without this option"
        )
    if args.target and args.action not in ("create", "load"):
        raise StackgenError(f"-o has no effect on `bundle {args.action}`", "run the command without this option")
    wanted = {"create": (0, 1), "diff": (2, 2)}.get(args.action, (1, 1))
    if not wanted[0] <= len(args.paths) <= wanted[1]:
        what = (
            "the older and the newer bundle"
            if args.action == "diff"
            else "one stack"
            if args.action == "create"
            else "one bundle"
        )
        raise StackgenError(f"`bundle {args.action}` takes {what}, but {len(args.paths)} paths were given",
                            f"`stackgen bundle {args.action} --help`")  # fmt: skip


def _create(args: Namespace) -> int:
    where = args.paths[0] if args.paths else "."
    if args.dry_run:
        stack = open_stack(where).for_one_machine()
        # most calls create a bundle
        from stackgen.cli.commands.bundle_preview import show_preview

        return show_preview(args, stack, _options(args, stack))
    with lock_stack(args, where):
        stack = open_stack(where).for_one_machine()
        options = _options(args, stack)
        target = options.target
        with show_bytes(args.progress) as progress:
            made = create_bundle(stack, options, lambda: prepare_files(stack), progress)
    manifest = made.manifest
    size = sum(blob.size for blob in manifest.blobs)
    data = {
        "bundle": str(target), "digest": made.digest, "bytes": size, "bytes_written": made.written, "parts": made.parts,
        "platform": manifest.platform, "images": [one.name for one in manifest.images],
        "models": [one.name for one in manifest.models], "wheels": len(manifest.wheels),
        "needed": list(manifest.needed),
    }  # fmt: skip
    lines = [f"{target}: {_count(len(manifest.images), 'image')}, {_count(len(manifest.models), 'model')}, "
             f"{_count(len(manifest.wheels), 'package')}; {size:,} bytes, of which {made.written:,} are in this bundle",
             f"digest: {made.digest}", *(f"not in the bundle: {one}" for one in manifest.needed)]  # fmt: skip
    print_data(args, data, lines)
    note(f"next: copy {target} to the other machine, and follow {target}/README.txt there")
    return 0


def _options(args: Namespace, stack: Stack) -> CreateOptions:
    target = Path(args.target or f"{stack.plan.name}.bundle")
    return CreateOptions(target, args.part_size, tuple(map(Path, args.base)), args.platform or "",
                         tuple(dict.fromkeys(args.python)), not args.no_wheels)  # fmt: skip


def _verify(args: Namespace) -> int:
    folder, manifest = _open(args)
    with show_bytes(args.progress) as progress:
        found = verify_bundle(folder, manifest, open_bases(manifest, list(map(Path, args.base))), progress)
    elsewhere = sum(blob.size for blob in found.elsewhere)
    data = {
        "bundle": str(folder), "digest": manifest_digest(folder), "intact": not found.problems, "files": found.files,
        "bytes": found.size, "not_verified_bytes": elsewhere,
        "problems": [{"path": one.path, "message": one.message, "content": one.content} for one in found.problems],
    }  # fmt: skip
    lines = [f"{problem}" for problem in found.problems]
    if not found.problems:
        lines = [f"{folder}: {_count(found.files, 'file')}, {found.size:,} bytes: all intact",
                 f"digest: {data['digest']}"]  # fmt: skip
    if found.elsewhere:
        known = ", ".join(one.digest for one in manifest.bases)
        lines.append(
            f"not verified: {elsewhere:,} bytes, because they are in an earlier bundle ({known}). Pass its folder "
            f"with --base"
        )
    print_data(args, data, lines)
    return 1 if found.problems else 0


def _load(args: Namespace) -> int:
    folder, manifest = _open(args)
    bases = tuple(map(Path, args.base))
    if args.layout:
        with show_bytes(args.progress) as progress:
            reader = require_intact(folder, manifest, bases, progress)
            write_layout(manifest, reader, Path(args.layout), progress)
        names = [one.name for one in manifest.images]
        print_data(args, {"layout": args.layout, "images": names}, [f"oci:{args.layout}:{name}" for name in names])
        return 0
    target = Path(args.target or manifest.stack)
    options = LoadOptions(folder, target, bases, Path(args.storage) if args.storage else None,
                          tuple(args.only) or EVERYTHING)  # fmt: skip
    with lock_loads(args), lock_folder(args, target, create=True):
        with show_bytes(args.progress) as progress:
            loaded = load_bundle(options, manifest, progress)
        if "stack" in options.only:
            stack = open_stack(str(target))
            write_unrendered(stack)
            # new keys: a bundle contains none
            write_keys(stack)
    data = {"stack": str(target), "digest": manifest_digest(folder), "images": list(loaded.images),
            "models": list(loaded.models), "files": list(loaded.files), "needed": list(manifest.needed)}  # fmt: skip
    lines = [*(f"image    {one}" for one in loaded.images), *(f"weights  {one}" for one in loaded.models)]
    lines += [f"stack    {target}"] if "stack" in options.only else []
    print_data(args, data, lines + [f"to do: {one}" for one in manifest.needed])
    if "stack" in options.only:
        note(
            f"next: `stackgen up {shlex.quote(str(target))}`, or `docker compose up -d` in that folder. "
            "`stackgen keys new` creates keys for clients"
        )
    return 0


def _diff(args: Namespace) -> int:
    old, new = map(Path, args.paths)
    found, added = compare_bundles(old, read_manifest(old), new, read_manifest(new))
    rows = [
        {"kind": one.kind, "name": one.name, "old": one.old, "new": one.new, "diff": list(one.diff)} for one in found
    ]
    lines = []
    for one in found:
        lines += [f"{one.kind:9}{one.name}: {one.old or 'not there'} -> {one.new or 'not there'}",
                  *scrub_diff(one.diff, one.diff)]  # fmt: skip
    lines += [f"{added:,} bytes are only in {new}"] if found else [f"{old} and {new} have the same content"]
    print_data(args, {"same": not found, "bytes_added": added, "differences": rows}, lines)
    return 1 if found else 0


def _open(args: Namespace) -> tuple[Path, Manifest]:
    folder = Path(args.paths[0])
    manifest = read_manifest(folder)
    if args.expect and manifest_digest(folder) != args.expect:
        error = StackgenError(f"{folder} is another bundle: its digest is {manifest_digest(folder)}",
                              "compare the digest with the digest that `bundle create` printed")  # fmt: skip
        error.exit_code = 1
        raise error
    return folder, manifest


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
