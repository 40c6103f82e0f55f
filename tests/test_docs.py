"""The documentation says what is so: generated pages are fresh, links lead somewhere, named files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # of Python 3.11

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "compose").glob("*.md")])
FOLDERS = ("stackgen", "templates", "tests", "scripts", "docs", "benchmarks", "compose")


def test_references_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", page.read_text())
    # NAME stands for the reader's own
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing


def listed(key: str) -> list[str]:
    """The strings of a list in pyproject.toml (tomllib came with Python 3.11)."""
    text = (ROOT / "pyproject.toml").read_text()
    (body,) = re.findall(rf"^{key} = \[\n(.*?)^\]", text, re.M | re.S)
    return re.findall(r'"(.+?)"', body)


def test_every_library_has_a_reason() -> None:
    libraries = {re.split(r"[<>=]", line)[0] for line in listed("dependencies")}
    rows = re.findall(r"^\| ([\w-]+) \| ", (ROOT / "docs" / "decisions" / "dependencies.md").read_text(), re.M)
    assert libraries == set(rows) - {"library"}
