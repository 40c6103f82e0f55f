"""Small bundles without images, written with the package's own writer, and the command line that reads them."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from stackgen import __version__
from stackgen.bundle.blobs import BlobWriter
from stackgen.bundle.manifest import MANIFEST, SUMS, BaseBundle, Manifest, manifest_digest
from stackgen.cli.main import main
from stackgen.stack.copies import sign

__all__ = ["STACK", "bundle", "flip_byte", "make_bundle", "snapshot_files"]

STACK = """\
name: tiny
storage: {volume: tiny-models, offline: true}
models:
  - {model: org/tiny, engine: vllm, gpus: none, image: "example/vllm:1", revision: main, max_model_len: 512}
"""
COMMIT = "c" * 40


class Done(NamedTuple):
    """What a command has printed."""

    stdout: str
    stderr: str


def snapshot_files(weights: bytes) -> dict[str, bytes | str]:
    """A complete model in the layout of the store: path -> content, or the target of a link."""
    folder, blob = "hub/models--org--tiny", hashlib.sha256(weights).hexdigest()
    marker = {"repo": "org/tiny", "revision": "main", "commit": COMMIT, "files": {"model.safetensors": len(weights)}}
    return {
        f"{folder}/blobs/{blob}": weights,
        f"{folder}/snapshots/{COMMIT}/model.safetensors": f"../../blobs/{blob}",
        f"{folder}/refs/main": COMMIT.encode(),
        "by-name/org/tiny/main": f"../../../{folder}/snapshots/{COMMIT}",
        ".stackgen/org--tiny@main+all.json": json.dumps(marker).encode(),
    }


def make_bundle(
    folder: Path, weights: bytes, *, part_size: int = 0, base: Path | None = None, stack: str = STACK, **fields: Any
) -> Path:
    """Writes a bundle with one model and a stack, and returns its folder. `fields` replace fields of the manifest."""
    earlier = Manifest.model_validate_json((base / MANIFEST).read_bytes()) if base else None
    folder.mkdir(parents=True)
    writer = BlobWriter(folder, part_size, earlier.sizes() if earlier else {})
    files = [
        {"path": path, "link": content}
        if isinstance(content, str)
        else {"path": path, "digest": writer.add([content], len(content))}
        for path, content in snapshot_files(weights).items()
    ]
    data: dict[str, Any] = {
        "stack": "tiny", "stackgen": __version__, "created": "2026-11-29T00:00:00Z", "platform": "linux/amd64",
        "images": (), "store_volume": "tiny-models",
        "models": ({"name": "org/tiny", "revision": "main", "commit": COMMIT, "files": files},),
        "stack_files": ({"path": "stack.yaml", "digest": writer.add_bytes(sign(stack).encode()), "rendered": False},
                        {"path": "compose.yaml", "digest": writer.add_bytes(b"name: tiny\n")}),
        "bases": (BaseBundle(digest=manifest_digest(base), created=earlier.created),) if base and earlier else (),
    }  # fmt: skip
    blobs = [blob.model_dump() for blob in writer.blobs.values()]
    text = Manifest.model_validate({**data, "blobs": blobs, **fields}).model_dump_json(indent=1)
    (folder / MANIFEST).write_text(text)
    (folder / SUMS).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")
    writer.finish()
    return folder


def bundle(*args: str | Path, code: int = 0) -> Done:
    """Runs `stackgen bundle` in this process, and requires its exit code."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            found = main(["bundle", *map(str, args)])
        # argparse exits
        except SystemExit as error:
            found = int(error.code or 0)
    assert found == code, out.getvalue() + err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def flip_byte(path: Path, offset: int = 10) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
