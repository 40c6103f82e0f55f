"""The examples in compose/: complete, up to date, safe to copy one by one, and quiet in diffs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.examples import EXAMPLES, RENDERED_ON_DEMAND, complete_copy, find_problems, find_template_copies
from stackgen.stack.folder import open_stack
from tests.conftest import ROOT

by_example = pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)


def git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def copy_of(name: str, tmp_path: Path) -> Path:
    return complete_copy(ROOT / "compose" / name, tmp_path / name)


@by_example
def test_example_is_fresh_and_has_no_links_or_unknown_files(folder: Path) -> None:
    assert find_problems(folder) == []


@by_example
def test_example_works_without_the_rest_of_the_repository(folder: Path, tmp_path: Path) -> None:
    """Each file that Compose mounts or builds from is in the folder itself."""
    copy = complete_copy(folder, tmp_path / "copied")
    assert {file.path for file in open_stack(str(copy)).files()} <= {
        str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file() and not path.is_symlink()
    }


def test_only_examples_that_need_stackgen_are_incomplete_in_git() -> None:
    """The exporter's wheel is made by `stackgen render`: without it, plain Compose can't start the stack at all."""
    assert set(RENDERED_ON_DEMAND) == {
        folder.name
        for folder in EXAMPLES
        if any(one.name == "exporter" for one in open_stack(str(folder)).plan.services)
    }


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../../shared/gone")


def replace_folder_by_link(path: Path) -> None:
    shared = path.parent.parent.parent / "shared"
    path.parent.rename(shared)
    path.parent.symlink_to(shared)


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (lambda path: path.write_text("# old\n"), ["scripts/supervise.sh is out of date"]),
        (Path.unlink, ["scripts/supervise.sh is missing"]),
        (replace_by_link, ["scripts/supervise.sh is missing", "scripts/supervise.sh is a link"]),
        (replace_folder_by_link, ["scripts is a link"]),
        (lambda path: path.with_name("more.sh").touch(), ["scripts/more.sh is not rendered by stackgen"]),
    ],
    ids=["stale", "missing", "broken-link", "linked-folder", "unknown"],
)
def test_a_damaged_example_is_reported(change: Callable[[Path], object], problems: list[str], tmp_path: Path) -> None:
    folder = copy_of("vllm-cpu", tmp_path)
    assert find_problems(folder) == []
    change(folder / "scripts" / "supervise.sh")
    found = find_problems(folder)
    assert len(found) == len(problems)
    assert all(line.startswith(f"vllm-cpu/{problem}") for line, problem in zip(found, problems, strict=True)), found


def test_a_stale_copy_or_a_missing_document_is_reported_in_an_example_rendered_on_demand(tmp_path: Path) -> None:
    (name,) = RENDERED_ON_DEMAND
    folder = copy_of(name, tmp_path)
    shutil.rmtree(folder / "scripts")
    assert find_problems(folder) == []
    (folder / "gateway" / "model.lua").write_text("-- old\n")
    (folder / "monitoring" / "rules.yml").unlink()
    assert [line.partition(". ")[0] for line in find_problems(folder)] == [
        f"{name}/gateway/model.lua is out of date", f"{name}/monitoring/rules.yml is missing",
    ]  # fmt: skip


@by_example
def test_git_shows_changes_of_copies_only_in_templates(folder: Path) -> None:
    if not (ROOT / ".git").exists():  # an archive of the sources
        return
    copies = find_template_copies(folder)
    paths = {file.path: f"compose/{folder.name}/{file.path}" for file in open_stack(str(folder)).files()}
    if folder.name in RENDERED_ON_DEMAND:
        assert {path for path in paths if is_ignored(paths[path])} == copies
        return
    hidden = {
        line.split(": ")[0] for line in git("check-attr", "diff", *paths.values()).splitlines() if "unset" in line
    }
    assert hidden == {paths[path] for path in copies}


def is_ignored(path: str) -> bool:
    # --no-index: what is tracked by mistake counts too
    return subprocess.run(["git", "check-ignore", "--no-index", "-q", path], cwd=ROOT).returncode == 0


def test_git_tracks_no_ignored_file_in_compose() -> None:
    if (ROOT / ".git").exists():
        tracked = git("ls-files", "--cached", "--ignored", "--exclude-standard", "compose").split()
        assert not tracked, f"run: git rm --cached {' '.join(tracked)}"
