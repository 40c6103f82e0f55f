"""Renders the examples in compose/. With --check, fails if an example is stale or incomplete, or has an unknown file.

scripts/examples [--check] [options of `stackgen render`]
docs/decisions/examples.md has the reasons for the layout.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stackgen.cli.main import main as stackgen
from stackgen.images.wheel import WHEEL_NAME
from stackgen.render.write import LOCK, Change, compare, write_files
from stackgen.stack.folder import open_stack
from stackgen.targets.kubernetes import FOLDER

__all__ = [
    "EXAMPLES", "MANIFESTS", "complete_copy", "find_manifest_changes", "find_problems", "find_template_copies",
]  # fmt: skip

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.parent for path in ROOT.glob("compose/*/stack.yaml"))
# These examples need `stackgen render` anyway (it adds the exporter's wheel), so git has no copies of their templates
RENDERED_ON_DEMAND = ("gateway-monitored",)
# Stacks that are also rendered as manifests: examples, and stacks with options that no example has. Git has no copies
# of templates there: manifests need `stackgen render` anyway, which makes the folder of secrets
MANIFESTS = [
    *(ROOT / "compose" / name for name in ("fastchat-two-models", "gateway-monitored", "vllm-one-gpu")),
    *sorted(path.parent for path in ROOT.glob("tests/kubernetes/golden/*/stack.yaml")),
]
# Files that are not rendered: the user's own files, the checksums, and the wheel, which changes with each line of code
NOT_RENDERED = ("stack.yaml", ".env", ".gitignore", LOCK, f"exporter/{WHEEL_NAME}")


def find_template_copies(folder: Path) -> set[str]:
    """Returns the rendered files that are a template byte by byte, as paths relative to the example's `folder`."""
    return {asset.path for asset in open_stack(str(folder)).plan.assets}


def find_manifest_changes(folder: Path) -> list[Change]:
    """Returns what rendering the manifests of `folder` would change, without copies of templates."""
    stack = open_stack(str(folder), target="kubernetes")
    templates = {path.read_bytes() for path in (ROOT / "templates").rglob("*") if path.is_file()}
    copies = {file.path for file in stack.files() if file.text.encode() in templates}
    return [one for one in compare(stack.files(), stack.output) if one.path not in copies]


def find_problems(folder: Path) -> list[str]:
    """Returns one line for each file of an example that is stale, missing, a link, or not known to stackgen."""
    files = open_stack(str(folder)).files()
    optional = find_template_copies(folder) if folder.name in RENDERED_ON_DEMAND else set()
    problems = []
    for change in compare(files, folder):
        # a broken link is `new` here too, because it can't be read
        missing_on_purpose = change.kind == "new" and change.path in optional
        if change.kind != "same" and not missing_on_purpose:
            what = "is missing" if change.kind == "new" else "is out of date"
            problems.append(f"{folder.name}/{change.path} {what}. Run scripts/examples")
    known = {*NOT_RENDERED, *(file.path for file in files)}
    if (folder / FOLDER).is_dir():
        manifests = find_manifest_changes(folder)
        stale = [one.path for one in manifests if one.kind != "same"]
        problems += [f"{folder.name}/{FOLDER}/{path} is out of date. Run scripts/examples" for path in stale]
        known |= {f"{FOLDER}/{one.path}" for one in manifests}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            problems.append(f"{folder.name}/{name} is a link, which breaks when a folder is copied. Use a file")
        elif path.is_file() and name not in known:
            problems.append(f"{folder.name}/{name} is not rendered by stackgen. Remove it")
    return problems


def complete_copy(folder: Path, target: Path) -> Path:
    """Copies an example to `target`, adds the copies of templates that git doesn't have, and returns `target`."""
    shutil.copytree(folder, target, symlinks=True)
    if folder.name not in RENDERED_ON_DEMAND:
        return target
    copies = find_template_copies(folder)
    missing = [
        change
        for change in compare(open_stack(str(target)).files(), target)
        if change.kind == "new" and change.path in copies
    ]
    write_files(missing, target)
    return target


def main(args: Sequence[str]) -> int:
    """Renders all examples, or checks them. Returns 1 if an example has a problem, else 0."""
    failed = 0
    for folder in EXAMPLES:
        if "--check" not in args:
            env = folder / ".env"
            had_keys = env.exists()
            failed |= stackgen(["render", str(folder), *args])
            # examples are copied, and two copies must not share keys
            if not had_keys:
                env.unlink(missing_ok=True)
            continue
        problems = find_problems(folder)
        for problem in problems:
            print(problem, file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            # a copy, because `render --check` calls a missing file out of date, and a check must not write
            complete = (
                folder if folder.name not in RENDERED_ON_DEMAND else complete_copy(folder, Path(scratch, folder.name))
            )
            failed |= max(bool(problems), stackgen(["render", str(complete), *args]))
    for folder in MANIFESTS:
        changes = find_manifest_changes(folder)
        if "--check" not in args:
            write_files(changes, folder / FOLDER, force=True)
        else:
            failed |= any(one.kind != "same" for one in changes)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
