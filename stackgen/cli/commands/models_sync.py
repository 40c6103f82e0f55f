"""`stackgen models sync`: reads newer recipes, checks them, and stores the catalog in this user's cache."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zlib
from argparse import Namespace
from pathlib import Path
from typing import Any

from stackgen.catalog import Entry, Snapshot, load_catalog, load_packaged
from stackgen.catalog.archive import read_archive, read_folder
from stackgen.catalog.entry import MAX_BYTES, parse_snapshot, snapshot_text
from stackgen.catalog.flags import settle, why_not
from stackgen.catalog.recipes import SOURCE, build_snapshot
from stackgen.catalog.store import cache_file
from stackgen.check.download import download
from stackgen.cli.commands.output import print_data
from stackgen.errors import MachineError, StackgenError
from stackgen.flags import PINNED
from stackgen.render.read import read_regular
from stackgen.render.write import write_atomically
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

__all__ = ["sync"]

# the archive that GitHub makes of a branch (docs.github.com, "Downloading source code archives")
DEFAULT_URL = f"https://github.com/{SOURCE}/archive/refs/heads/main.tar.gz"
# packed, and unpacked; the repository of 2026-08-21 has 3 MB as an archive
MAX_ARCHIVE, MAX_UNPACKED = 64 * 2**20, 256 * 2**20


def sync(args: Namespace) -> int:
    """Runs `stackgen models sync`. Returns 0."""
    if args.remove:
        return _remove(args)
    if len(args.words) > 1:
        raise StackgenError("`models sync` reads one source", "pass one folder, file or URL")
    source = args.words[0] if args.words else DEFAULT_URL
    snapshot = _read(source, args.sha256)
    before = load_catalog().snapshot
    changes = _compare(before, snapshot)
    path = cache_file()
    if snapshot.updated < load_packaged().updated:
        raise StackgenError(
            f"{source} is older than stackgen's own catalog: its newest recipe is from {snapshot.updated}, and "
            f"stackgen's newest recipe is from {load_packaged().updated}", "use a newer source",
        )  # fmt: skip
    if not args.dry_run:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, snapshot_text(snapshot))
        except OSError as error:
            raise MachineError(f"{path} can't be written: {error.strerror or error}",
                               "set XDG_CACHE_HOME to a folder that you can write to") from error  # fmt: skip
        load_catalog.cache_clear()
    data = {"source": source, "commit": snapshot.commit, "updated": snapshot.updated, "sha256": snapshot.sha256,
            "models": len(snapshot.models), **changes, "written": None if args.dry_run else str(path)}  # fmt: skip
    print_data(args, data, _to_lines(snapshot, changes, "" if args.dry_run else str(path)))
    return 0


def _remove(args: Namespace) -> int:
    if args.words or args.sha256 or args.dry_run:
        raise StackgenError("--remove needs no source and no other option", "`stackgen models sync --remove`")
    path = cache_file()
    existed = path.exists()
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"{path} can't be removed: {error.strerror or error}", "remove the file yourself") from error
    load_catalog.cache_clear()
    print_data(args, {"removed": str(path) if existed else None},
               [f"removed {path}" if existed else "no synced catalog is stored"])  # fmt: skip
    return 0


def _read(source: str, sha256: str | None) -> Snapshot:
    path = Path(source)
    if "://" not in source and path.is_dir():
        if sha256:
            raise StackgenError("--sha256 is for a file or a URL, but the source is a folder", "remove --sha256")
        return _build(read_folder(path))
    if "://" in source:
        data = download(source, MAX_ARCHIVE)
    else:
        try:
            data = read_regular(path, MAX_ARCHIVE)
        except OSError as error:
            raise StackgenError(f"{source} can't be read: {error.strerror or error}",
                                f"pass a checkout of github.com/{SOURCE}, a file or a URL") from None  # fmt: skip
    if sha256:
        _require_hash(data, sha256, source)
    # gzip (RFC 1952), or an archive that is not packed (POSIX ustar)
    if data[:2] == b"\x1f\x8b" or data[257:262] == b"ustar":
        return _build(_read_archive(data, source))
    if len(data) > MAX_BYTES or not data.lstrip()[:1] == b"{":
        raise StackgenError(
            f"{source} is neither an archive of the recipes nor a catalog",
            f"pass a checkout of github.com/{SOURCE}, its archive (.tar.gz), or a catalog (.json)",
        )
    return parse_snapshot(data, source)


def _require_hash(data: bytes, sha256: str, source: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise StackgenError("--sha256 must have 64 hexadecimal digits", "`sha256sum FILE` prints it")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise StackgenError(f"{source} has the SHA-256 {found}, which differs from --sha256",
                            "compare both hashes with the one that the publisher lists: either --sha256 is wrong, or "
                            "the file differs from the published one")  # fmt: skip


def _read_archive(data: bytes, source: str) -> tuple[list[tuple[str, str]], str, str | None]:
    hint = f"pass an archive of github.com/{SOURCE}"
    try:
        if data[:2] == b"\x1f\x8b":
            unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(data, MAX_UNPACKED)
            if unpacker.unconsumed_tail:
                raise StackgenError(f"{source} unpacks to more than {MAX_UNPACKED // 2**20} MiB", hint)
            if not unpacker.eof:
                raise StackgenError(
                    f"{source} is cut off: the end of the archive is missing", "copy or download the archive again"
                )
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return read_archive(archive)
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise StackgenError(f"{source} is not a readable archive: {error}"[:300], hint) from None


def _build(found: tuple[list[tuple[str, str]], str, str | None]) -> Snapshot:
    texts, taxonomy, commit = found
    recipes = ((name, _parse(text, name)) for name, text in texts)
    return build_snapshot(recipes, _parse(taxonomy, "taxonomy.yaml"), commit)


def _parse(text: str, name: str) -> Any:
    try:
        return read_value(text)
    except YAML_ERRORS as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StackgenError(f"{name} is not YAML: {line[:200]}", "copy or download the recipes again") from None


def _compare(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    old, new = ({one.model: one for one in snapshot.models} for snapshot in (before, after))
    changed = [name for name, entry in new.items() if name in old and old[name] != entry]
    return {
        "new": sorted(new.keys() - old.keys()), "changed": sorted(changed), "gone": sorted(old.keys() - new.keys()),
        "left_out": sum(len(settle(entry, variant).left_out) for entry in after.models for variant in _able(entry)),
    }  # fmt: skip


def _able(entry: Entry) -> list[Any]:
    return [one for one in entry.variants if not why_not(entry, one)]


def _to_lines(snapshot: Snapshot, changes: dict[str, Any], path: str) -> list[str]:
    commit = f" at {snapshot.commit[:12]}" if snapshot.commit else ""
    lines = [f"{len(snapshot.models)} models of {snapshot.source}{commit}, newest recipe from {snapshot.updated}"]
    for name in ("new", "changed", "gone"):
        found = changes[name]
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        lines.append(f"{name}: {len(found)}" + (f" ({', '.join(found[:10])}{more})" if found else ""))
    lines.append(f"flags that vLLM {PINNED['vllm']} lacks, or that stackgen does not use: {changes['left_out']}")
    lines.append(f"wrote {path}" if path else "nothing is written: --dry-run")
    return lines
