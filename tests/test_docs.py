"""The documentation: generated pages are fresh, links resolve, and commands, ids, files and stack files are valid."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli.parsers import build_parser
from stackgen.diagnose.rules import RULES
from stackgen.doctor.table import CHECKS, CLUSTER_CHECKS
from stackgen.stack.load import parse_stack

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "compose").glob("*.md")])
# Pages that people type from; references show synopses with placeholders
GUIDES = [
    *(ROOT / "README.md", DOCS / "tutorial.md", DOCS / "faq.md", DOCS / "coming-from.md"),
    *sorted((DOCS / "how-to").glob("*.md")),
]
FOLDERS = ("stackgen", "templates", "tests", "scripts", "docs", "benchmarks", "compose")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_references_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def find_anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def find_links(page: Path) -> list[str]:
    """Links and images that point into the repository."""
    # a regular expression in a code block may look like a link
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.M | re.S)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in find_links(page):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in find_anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", page.read_text())
    # NAME is a placeholder for the reader's own
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing


def test_index_lists_every_page_once() -> None:
    # each cause has a page of its own, and docs/errors/index.md lists them
    pages = {page for page in DOCS.rglob("*.md") if not page.name.startswith("SG-") and page != DOCS / "index.md"}
    listed = [(DOCS / link).resolve() for link in find_links(DOCS / "index.md")]
    # the first sentence links the tutorial before the list does
    assert sorted(path for path in listed if path in pages) == sorted([*pages, DOCS / "tutorial.md"])


def read_code(page: Path, languages: str) -> list[str]:
    return re.findall(rf"^```(?:{languages})\n(.*?)^```$", page.read_text(), re.M | re.S)


def find_commands(page: Path) -> list[list[str]]:
    """The arguments of each `stackgen` command in the page's shell and console blocks."""
    commands = []
    for code in read_code(page, "sh|bash|console"):
        for line in code.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            if not re.match(r"(\w+=\S+ )*stackgen ", line):
                continue
            words = shlex.split(re.sub(r"(^|\s)(#|>|2>).*", "", line))
            for part in " ".join(shlex.quote(word) for word in words).replace("'&&'", "&&").split("&&"):
                for one in part.replace("'|'", "|").split(" | "):
                    arguments = shlex.split(one)
                    if "stackgen" in arguments:
                        commands.append(arguments[arguments.index("stackgen") + 1 :])
    return commands


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_commands_are_accepted_by_the_parser(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for arguments in find_commands(page):
        try:
            build_parser().parse_args(arguments)
        except SystemExit:
            wrong.append(f"stackgen {shlex.join(arguments)}: {capsys.readouterr().err.splitlines()[-1]}")
    assert not wrong


@pytest.mark.parametrize("page", GUIDES, ids=page_id)
def test_whole_stack_files_are_valid(page: Path) -> None:
    for code in read_code(page, "yaml"):
        if re.search(r"^name:", code, re.M) and re.search(r"^models:", code, re.M):
            parse_stack(code, page_id(page))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_ids_are_known(page: Path) -> None:
    known = {rule.id for rule in RULES} | {check.id for check in (*CHECKS, *CLUSTER_CHECKS)} | {"SG-0000"}
    assert not set(re.findall(r"SG-[A-Z0-9]\d{3}\b", page.read_text())) - known


def test_faq_names_a_source_for_each_question_from_a_tracker() -> None:
    questions = re.split(r"^### ", (DOCS / "faq.md").read_text().partition("## stackgen itself")[0], flags=re.M)[1:]
    assert len(questions) >= 25
    assert [text.splitlines()[0] for text in questions if "](https://github.com/" not in text] == []


def read_project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_architecture_page_shows_the_enforced_layers() -> None:
    (contract,) = (
        one for one in read_project()["tool"]["importlinter"]["contracts"] if one["containers"] == ["stackgen"]
    )
    layers = [set(layer.split(" | ")) for layer in contract["layers"] if layer != "__main__"]
    text = (DOCS / "architecture.md").read_text()
    floors = {
        int(number): set(names.split())
        for number, names in re.findall(r"subgraph f(\d+)\[.*?\]\n(.*?)end\n", text, re.S)
    }
    assert [floors[number] for number in sorted(floors, reverse=True)] == layers
    # and the picture stacks them in that order
    assert " --> ".join(f"f{number}" for number in sorted(floors, reverse=True)) in text


def test_every_library_has_a_reason() -> None:
    project = read_project()["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["dev"]
    rows = re.findall(r"^\| ([\w-]+) \| ", (DOCS / "decisions" / "dependencies.md").read_text(), re.M)
    assert {re.split(r"[<>=]", line)[0] for line in listed} == set(rows) - {"library"}


def test_texts_use_american_spelling() -> None:
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "stackgen").rglob("*.py")]
    british = re.compile(r"\b(?:licence|catalogue|behaviour|colour|favourite|recognise|organisation)[sd]?\b", re.I)
    found = {str(path.relative_to(ROOT)): british.findall(path.read_text()) for path in texts}
    assert not {path: words for path, words in found.items() if words}
