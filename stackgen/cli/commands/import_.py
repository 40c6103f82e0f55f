"""`stackgen import`: writes the stack.yaml that means the same as a command, a Compose file, a unit or Helm values."""

from __future__ import annotations

import shlex
import shutil
import sys
from argparse import Namespace
from pathlib import Path

from stackgen.cli.commands.output import note, print_data
from stackgen.errors import Mistake, SpecError
from stackgen.importing.report import describe, to_json
from stackgen.importing.side_by_side import compare
from stackgen.importing.source import import_text
from stackgen.importing.stack_file import build_text, find_problems, write_folder
from stackgen.render.read import MAX_BYTES
from stackgen.stack.load import locate, read_text

__all__ = ["import_"]

# in this order, as Compose looks for them
COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
# compose-go 2.9, cli/options.go: DefaultOverrideFileNames
OVERRIDES = (
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)


def import_(args: Namespace) -> int:
    """Runs `stackgen import`. Returns 1 if stackgen can't render the new stack before somebody changes it."""
    text, source, folder, overrides = _read(args.source)
    try:
        found = import_text(text, source, folder, overrides)
    except SpecError as error:
        # a path of merged files may be in another one; without a path, the error is about the whole file
        known = error.source == source and Path(source).suffix in (".yaml", ".yml") and not overrides
        raise (locate(error, text, source) if known and error.mistakes[0].path else error) from None
    stack = build_text(found, source)
    problems = found.problems = find_problems(stack, folder)
    data = to_json(found, stack, problems)
    notes: list[str] = []
    if args.diff:
        lines = list(compare(found, stack, folder, shutil.get_terminal_size((160, 40)).columns))
    elif args.output:
        written, notes = write_folder(found, stack, Path(args.output), args.force)
        data["written"] = [str(path) for path in written]
        lines = [f"wrote {path}" for path in written]
    else:
        lines = stack.splitlines()
    print_data(args, data, lines)
    if not args.json:
        for line in describe(found, problems, verbose=args.verbose):
            note(line)
    for line in notes:
        note(f"warning: {line}")
    if found.ledger.secrets and not args.output:
        note(f"secrets: {len(found.ledger.secrets)}. They are not printed: `-o FOLDER` writes them into FOLDER/.env")
    if args.output and not args.diff:
        quoted = shlex.quote(args.output)
        note(f"next: read {args.output}/stack.yaml, then run `stackgen doctor {quoted}` and `stackgen up {quoted}`")
    return 1 if problems else 0


def _read(words: list[str]) -> tuple[str, str, Path, list[Path]]:
    """The text of the source, its name for messages, the folder of its paths, and further Compose files."""
    if words == ["-"]:
        return _read_stdin(), "standard input", Path(), []
    if len(words) > 1:
        paths = [Path(word) for word in words]
        if all(path.suffix in (".yaml", ".yml") and path.is_file() for path in paths):
            return read_text(paths[0]), str(paths[0]), paths[0].parent, paths[1:]
        return shlex.join(words), "the command", Path(), []
    path = Path(words[0])
    # the name of a file is shorter than a command, and the system refuses longer ones
    if len(words[0]) < 1000 and "\n" not in words[0]:
        overrides: list[Path] = []
        if path.is_dir():
            path, overrides = _find_compose_files(path)
        elif path.name in COMPOSE_FILES and (others := _find_overrides(path.parent)):
            note(
                f"warning: {others[0]} was not read. To merge this file as `docker compose up` does, import the folder"
            )
        if path.exists():
            return read_text(path), str(path), path.parent, overrides
    if " " not in words[0].strip():
        raise SpecError(words[0], [Mistake(
            "", "the file does not exist", hint="pass a file or a folder, a command in quotes, or `-` for standard "
                                                "input",
        )])  # fmt: skip
    return words[0], "the command", Path(), []


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SpecError(
            "standard input", [Mistake("", "is larger than 16 MiB, which is too large for a command or a Compose file")]
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise SpecError("standard input", [Mistake("", "is not UTF-8", hint="save the text as UTF-8")])


def _find_compose_files(folder: Path) -> tuple[Path, list[Path]]:
    """The Compose file in a folder, and the one that `docker compose up` merges into it."""
    found = next((folder / name for name in COMPOSE_FILES if (folder / name).exists()), None)
    if found is None:
        raise SpecError(
            str(folder), [Mistake("", f"contains none of {', '.join(COMPOSE_FILES)}", hint="pass the path of the file")]
        )
    return found, _find_overrides(folder)


def _find_overrides(folder: Path) -> list[Path]:
    return [path for name in OVERRIDES if (path := folder / name).is_file()][:1]
