"""`stackgen bundle create --dry-run`: what the bundle would contain, and what must be pulled or downloaded first."""

from __future__ import annotations

import os
import shutil
from argparse import Namespace
from pathlib import Path

from stackgen.bundle.create import CreateOptions
from stackgen.bundle.preview import Preview, PreviewItem, preview
from stackgen.bundle.weights import Request
from stackgen.check.huggingface import HUB, look_up_model
from stackgen.cli.commands.output import note, print_data
from stackgen.cli.commands.table import format_table, size_text
from stackgen.doctor.collect import read_env_facts, read_hub_token
from stackgen.stack.folder import Stack

__all__ = ["show_preview"]

STATES = {
    "here": "on this machine", "base": "in the earlier bundle, left out", "pull": "must be pulled",
    "build": "must be built", "download": "must be downloaded",
    "forbidden": "missing, and storage.offline forbids the download",
}  # fmt: skip


def show_preview(args: Namespace, stack: Stack, options: CreateOptions) -> int:
    """Prints the preview. Returns 1 if `create` would fail because weights are missing."""
    token = read_hub_token(read_env_facts(stack.folder))
    # HF_ENDPOINT is the variable that the download reads too
    endpoint = stack.spec.storage.hub_endpoint or os.environ.get("HF_ENDPOINT") or HUB

    def look_up(request: Request) -> int | None:
        # the size of several patterns of files is not known without their names
        if stack.spec.storage.offline or len(request.patterns) > 1:
            return None
        file = request.patterns[0] if request.patterns else ""
        return look_up_model(request.repo, request.revision, token=token, endpoint=endpoint, file=file).download_bytes

    found = preview(stack, options, look_up)
    forbidden = [one.name for one in found.items if one.state == "forbidden"]
    data = {
        "dry_run": True, "bundle": str(options.target), "platform": found.platform, "bytes": found.size,
        "unknown": list(found.unknown), "parts": found.parts, "continues": found.continues,
        "items": [{"kind": one.kind, "name": one.name, "bytes": one.size, "exact": one.exact, "state": one.state}
                  for one in found.items],
        "needed": list(found.needed),
    }  # fmt: skip
    table = format_table(("KIND", "NAME", "SIZE", "STATE"), [_row(one) for one in found.items])
    print_data(args, data, [*table, *_summary(found, options), *(f"not in the bundle: {one}" for one in found.needed)])
    if forbidden:
        note(f"`bundle create` would fail, because the store lacks {', '.join(forbidden)}. Set `storage.offline: "
             "false` (the stack in the bundle is offline in any case)")  # fmt: skip
    note("nothing was written, pulled or downloaded. To create the bundle, run the command without --dry-run")
    return 1 if forbidden else 0


def _row(one: PreviewItem) -> tuple[str, ...]:
    size = size_text(one.size)
    return one.kind, one.name, size if one.exact or one.size is None else f"about {size}", STATES[one.state]


def _summary(found: Preview, options: CreateOptions) -> list[str]:
    lines = [f"{options.target}: {size_text(found.size)} for {found.platform}"]
    if found.unknown:
        lines.append(f"not counted, because the size is unknown: {', '.join(found.unknown)}")
    if found.parts:
        least = "at least " if found.unknown else ""
        lines.append(f"parts of at most {size_text(options.part_size)}: {least}{found.parts}")
    if found.continues:
        lines.append(f"{options.target} already contains a part of this bundle: `bundle create` continues there")
    if (free := _free(options.target)) is not None:
        lines.append(f"free at {options.target}: {size_text(free)}" + (", which is too little" * (free < found.size)))
    return lines


def _free(target: Path) -> int | None:
    folder = next((one for one in (target, *target.absolute().parents) if one.is_dir()), None)
    return shutil.disk_usage(folder).free if folder else None
