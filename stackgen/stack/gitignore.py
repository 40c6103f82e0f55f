"""The `.gitignore` of a stack's folder, so that `git add --all` stages neither keys nor the state of one machine.

The file belongs to the user: missing lines are added at its end, and no line is changed. Format: gitignore(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stackgen.render.read import read_regular
from stackgen.render.write import TEMPORARY, write_atomically
from stackgen.spec import StackSpec
from stackgen.stack.envfile import read_env

__all__ = ["complete_gitignore"]

HEADER = "# secrets and local state of the stack; stackgen adds lines that are missing"
# .env.example has no keys; the last line is for files that a killed command left behind
LINES = (".env", ".env.*", "!.env.example", "*.key", ".stackgen/", ".stackgen.*", f"*{TEMPORARY}")
# only with the target Kubernetes: files of Secrets
CLUSTER_LINES = ("kubernetes/secrets/",)


def complete_gitignore(folder: Path, spec: StackSpec) -> list[str]:
    """Adds what `folder/.gitignore` lacks, and returns the lines. Raises OSError if it can't be read or written."""
    path = folder / ".gitignore"
    try:
        # bytes, because names in the user's lines can have any encoding
        before = read_regular(path)
    except FileNotFoundError:
        before = b""
    present = {line.strip() for line in before.decode("utf-8", "replace").splitlines()}
    more = CLUSTER_LINES if (folder / CLUSTER_LINES[0]).is_dir() else ()
    # a line that excludes everything covers the rest
    added = (
        []
        if present & {"*", "/*"}
        else [one for one in (*LINES, *more, *_secret_files(folder, spec)) if one not in present]
    )
    if added:
        start = before + (b"\n" if before and not before.endswith(b"\n") else b"") + (b"\n" if before else b"")
        text = "\n".join([HEADER, *added]) + "\n"
        write_atomically(Path(os.path.realpath(path)), start + text.encode())
    return added


def _secret_files(folder: Path, spec: StackSpec) -> Iterator[str]:
    """Lines for the TLS key and the files that `.env` names, if they are in the folder."""
    named = [value for name, value in read_env(folder).items() if name.endswith("_FILE")]
    if spec.gateway and spec.gateway.tls and spec.gateway.tls.key:
        named.append(spec.gateway.tls.key)
    root = os.path.realpath(folder)
    # a token in place of the path of its file must not get into a file that git stages
    named = [one for one in named if not one.startswith("hf_") or os.path.exists(os.path.join(root, one))]
    for one in dict.fromkeys(named):
        path = os.path.relpath(os.path.normpath(os.path.join(root, os.path.expanduser(one))), root)
        # a character that is special in a pattern, or a line break, needs an escape that few files deserve
        if one and not path.startswith("..") and path != "." and not set(path) & set("\n\r*?[]\\!#"):
            yield f"/{path}"
