"""The files of a copy of the recipes: a tar archive as GitHub and `git archive` make it, or a folder.

Only names that recipes have are read, each up to a limit, and nothing is extracted. The YAML is parsed elsewhere.
"""

from __future__ import annotations

import os
import re
import tarfile
from pathlib import Path

from stackgen.errors import StackgenError

__all__ = ["MAX_FILE", "MAX_FILES", "read_archive", "read_folder"]

# the largest recipe of 2026-08-21 has 58 kB, and there are 173
MAX_FILE, MAX_FILES, MAX_MEMBERS = 2**19, 5000, 50_000
RECIPE = re.compile(r"(?:[^/]+/)?(models/[\w.-]+/[\w.-]+\.yaml)")
TAXONOMY = re.compile(r"(?:[^/]+/)?taxonomy\.yaml")
# GitHub writes the commit into a comment of the archive, as `git archive` does
COMMIT = re.compile(r"[0-9a-f]{40}")
HINT = "pass a checkout or an archive of github.com/vllm-project/recipes"

Texts = list[tuple[str, str]]


def read_archive(archive: tarfile.TarFile) -> tuple[Texts, str, str | None]:
    """The recipes as (name, text), the text of taxonomy.yaml, and the commit if the archive has it.

    Raises StackgenError for an archive that is none of the recipes, or is larger than they could be.
    """
    found: Texts = []
    taxonomy = ""
    for index, member in enumerate(archive):
        if index >= MAX_MEMBERS:
            raise StackgenError(f"the archive has more than {MAX_MEMBERS} files", HINT)
        recipe = RECIPE.fullmatch(member.name)
        if not member.isfile() or not (recipe or TAXONOMY.fullmatch(member.name)):
            continue
        if member.size > MAX_FILE:
            raise StackgenError(
                f"{member.name} is larger than {MAX_FILE // 1024} KiB, which is too large for a recipe", HINT
            )
        file = archive.extractfile(member)
        text = _decode(file.read(MAX_FILE) if file else b"", member.name)
        if recipe:
            found.append((recipe[1], text))
        else:
            taxonomy = text
    comment = archive.pax_headers.get("comment", "")
    return _require(found, taxonomy, "the archive"), taxonomy, comment if COMMIT.fullmatch(comment) else None


def read_folder(folder: Path) -> tuple[Texts, str, str | None]:
    """As `read_archive`, for a checkout."""
    paths = sorted((folder / "models").glob("*/*.yaml"))[: MAX_FILES + 1]
    found = [(str(path.relative_to(folder)), _read(path)) for path in paths]
    taxonomy = _read(folder / "taxonomy.yaml") if (folder / "taxonomy.yaml").is_file() else ""
    return _require(found, taxonomy, str(folder)), taxonomy, _read_head(folder / ".git")


def _read(path: Path) -> str:
    with path.open("rb") as file:
        if not path.is_file() or os.fstat(file.fileno()).st_size > MAX_FILE:
            raise StackgenError(f"{path} is not a file of at most {MAX_FILE // 1024} KiB", HINT)
        return _decode(file.read(MAX_FILE), str(path))


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise StackgenError(f"{name} is not UTF-8", HINT) from None


def _require(found: Texts, taxonomy: str, where: str) -> Texts:
    if not found or not taxonomy:
        what = "models/ORGANIZATION/MODEL.yaml" if not found else "taxonomy.yaml"
        raise StackgenError(f"{where} has no {what}", HINT)
    if len(found) > MAX_FILES:
        raise StackgenError(f"{where} has more than {MAX_FILES} recipes", HINT)
    return found


def _read_head(git: Path) -> str | None:
    """The commit of a clone, without starting git; None if that takes more than two files."""
    try:
        head = (git / "HEAD").read_text("utf-8").strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            loose = git / name
            packed = (git / "packed-refs").read_text("utf-8") if not loose.exists() else ""
            lines = [line.partition(" ")[0] for line in packed.splitlines() if line.endswith(f" {name}")]
            head = loose.read_text("utf-8").strip() if loose.exists() else "".join(lines[:1])
    except (OSError, ValueError):
        return None
    return head if COMMIT.fullmatch(head) else None
