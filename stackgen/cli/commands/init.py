"""`stackgen init`: writes a commented stack.yaml, its JSON Schema, and a .env with a new key."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.cli.commands.output import note, print_data
from stackgen.stack.starter import write_starter

__all__ = ["init"]


def init(args: Namespace) -> int:
    """Runs `stackgen init`: writes a commented stack.yaml, its JSON Schema, and a .env with a new key."""
    written = write_starter(Path(args.folder), args.engine, args.model, args.gpus, args.file)
    print_data(args, {"written": [str(path) for path in written]}, [f"wrote {path}" for path in written])
    # stderr: stdout lists the files
    note(f"next: edit {args.folder}/stack.yaml, then run `stackgen up {args.folder}`")
    return 0
