"""Writing files: all or nothing, never over manual edits, never outside the folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.errors import DriftError
from stackgen.render.templating import RenderedFile
from stackgen.render.write import LOCK, compare, diff, write_atomically, write_files

STACK = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A rendered stack."""
    (tmp_path / "stack.yaml").write_text(STACK)
    assert render(tmp_path) == 0
    return tmp_path


def render(folder: Path, *arguments: str) -> int:
    return cli.main(["render", str(folder), "--no-validate", *arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put(folder: Path, files: dict[str, str], force: bool = False) -> None:
    rendered = [RenderedFile(path, text) for path, text in files.items()]
    write_files(compare(rendered, folder), folder, force)


def test_a_second_render_reports_up_to_date_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert render(folder) == 0
    assert capsys.readouterr().out == f"{folder}: up to date\n"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_check_exits_0_if_fresh_and_1_on_drift(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(folder, "--check") == 0
    (folder / "stack.yaml").write_text(STACK.replace("org/name", "org/other"))
    before = snapshot(folder)
    capsys.readouterr()
    assert render(folder, "--check") == 1
    shown = capsys.readouterr().out
    assert "-      - org/name" in shown
    assert "+      - org/other" in shown
    assert snapshot(folder) == before


def test_check_detects_missing_files_edited_scripts_and_a_stale_lock(folder: Path) -> None:
    (folder / "scripts/supervise.sh").unlink()
    assert render(folder, "--check") == 1
    assert render(folder) == 0
    (folder / "scripts/supervise.sh").write_text("#!/bin/sh\n")
    assert render(folder, "--check") == 1
    assert render(folder, "--force") == 0
    (folder / LOCK).unlink()
    assert render(folder, "--check") == 1


@pytest.mark.parametrize("arguments", [["--diff"], ["--stdout"], ["--check"], ["--diff", "--force"]])
def test_diff_stdout_and_check_write_nothing(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text(STACK)
    assert render(tmp_path, *arguments) == ("--check" in arguments)
    assert set(snapshot(tmp_path)) == {"stack.yaml"}
    assert "services:" in capsys.readouterr().out


def test_diff_is_a_valid_patch(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`patch` accepts it, and the result is what render writes."""
    (folder / "stack.yaml").write_text(STACK.replace("org/name", "org/other"))
    capsys.readouterr()
    assert render(folder, "--diff") == 0
    patch = capsys.readouterr().out
    subprocess.run(
        ["git", "apply", "-p1"],
        cwd=folder,
        input=patch,
        text=True,
        check=True,
        env=os.environ | {"GIT_DIR": "/nowhere"},
    )
    patched = (folder / "compose.yaml").read_text()
    assert render(folder, "--force") == 0
    assert (folder / "compose.yaml").read_text() == patched


def test_a_manual_edit_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "compose.yaml"
    path.write_text(path.read_text() + "# mine\n")
    (folder / "stack.yaml").write_text(STACK.replace("org/name", "org/other"))
    before = snapshot(folder)
    assert render(folder) == 2
    shown = capsys.readouterr().err
    assert f"these files were edited by hand: {path}" in shown
    assert "--force" in shown
    assert snapshot(folder) == before  # nor was anything else written
    assert render(folder, "--force") == 0
    assert "org/other" in path.read_text()
    assert "# mine" not in path.read_text()


def test_a_foreign_compose_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(STACK)
    (tmp_path / "compose.yaml").write_text("services: {mine: {image: x}}\n")
    assert render(tmp_path) == 2
    assert (tmp_path / "compose.yaml").read_text() == "services: {mine: {image: x}}\n"


def test_an_edit_that_equals_the_new_text_is_no_conflict(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    for one in (folder, other):
        (one / "stack.yaml").write_text(STACK.replace("abc", "def"))
    assert render(other) == 0
    (folder / "compose.yaml").write_text((other / "compose.yaml").read_text())
    assert render(folder) == 0
    assert render(folder, "--check") == 0


def test_sha256sum_can_check_the_lock_file(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "--strict", LOCK], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compose.yaml: OK" in done.stdout
    (folder / "compose.yaml").write_text("x")
    assert subprocess.run(["sha256sum", "-c", LOCK], cwd=folder, capture_output=True).returncode == 1


def test_unedited_stale_files_are_removed(folder: Path) -> None:
    assert (folder / "scripts/download.py").exists()
    (folder / "stack.yaml").write_text("name: demo\nmodels: [{model: ./local, engine: vllm}]\n")
    (folder / "scripts/mine.txt").write_text("kept")
    assert render(folder) == 0
    assert not (folder / "scripts/download.py").exists()
    assert (folder / "scripts/mine.txt").read_text() == "kept"
    assert "download.py" not in (folder / LOCK).read_text()


def test_edited_stale_files_are_kept(folder: Path) -> None:
    (folder / "stack.yaml").write_text("name: demo\nmodels: [{model: ./local, engine: vllm}]\n")
    (folder / "scripts/download.py").write_text("# mine\n")
    before = snapshot(folder)
    assert render(folder) == 2
    assert snapshot(folder) == before
    assert render(folder, "--force") == 0
    assert not (folder / "scripts/download.py").exists()


@pytest.mark.parametrize("path", ["../outside", "/{}/outside", "a/../../outside"])
def test_a_lock_that_names_a_file_outside_removes_nothing(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "stack"
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.write_text("")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder / LOCK).write_text(f"{empty}  {path.format(tmp_path)}\n")
    put(folder, {"a": "1"}, force=True)
    assert outside.exists()


@pytest.mark.parametrize("lock", ["", "rubbish\n", "a  b  c\n  \n\n", "\x00\xff", "xyz  compose.yaml\n"])
def test_a_broken_lock_is_not_trusted(tmp_path: Path, lock: str) -> None:
    (tmp_path / "compose.yaml").write_text("mine")
    (tmp_path / LOCK).write_bytes(lock.encode("latin-1"))
    with pytest.raises(DriftError):
        put(tmp_path, {"compose.yaml": "ours"})
    assert (tmp_path / "compose.yaml").read_text() == "mine"


@pytest.mark.parametrize("function", ["replace", "fsync", "fchmod"])
def test_a_failed_write_leaves_no_partial_file(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    (folder / "stack.yaml").write_text(STACK.replace("org/name", "org/other"))
    before = snapshot(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"stackgen.render.write.os.{function}", fail)
    changes = compare([RenderedFile("compose.yaml", "new"), RenderedFile("scripts/new.sh", "new")], folder)
    with pytest.raises(OSError, match="No space"):
        write_files([change for change in changes if change.kind != "removed"], folder, force=True)
    assert snapshot(folder) == before  # no temporary file either


def test_an_interrupt_between_two_files_leaves_each_whole_and_is_repaired(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first file: the lock file is old, but the new file must not count as a manual edit."""
    (folder / "stack.yaml").write_text(STACK.replace("org/name", "org/other"))
    real, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(target)
        real(source, target)

    monkeypatch.setattr("stackgen.render.write.os.replace", interrupted)
    assert render(folder) == 130
    monkeypatch.undo()
    assert "org/other" in (folder / "compose.yaml").read_text()
    assert not list(folder.glob(".*.*"))
    assert render(folder) == 0
    assert render(folder, "--check") == 0


def test_written_files_have_the_requested_mode(tmp_path: Path) -> None:
    write_atomically(tmp_path / "deep/er/file", "text", mode=0o600)
    assert (tmp_path / "deep/er/file").stat().st_mode & 0o777 == 0o600
    put(tmp_path, {"a": "1"})
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644  # containers run as another user


def test_line_ends_are_preserved(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "x\r\ny\n")
    assert (tmp_path / "a").read_bytes() == b"x\r\ny\n"


def test_a_symlink_is_replaced_and_its_target_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    folder.mkdir()
    target = tmp_path / "elsewhere.yaml"
    target.write_text("precious")
    (folder / "compose.yaml").symlink_to(target)
    with pytest.raises(DriftError):
        put(folder, {"compose.yaml": "ours"})
    put(folder, {"compose.yaml": "ours"}, force=True)
    assert target.read_text() == "precious"
    assert (folder / "compose.yaml").read_text() == "ours"
    assert not (folder / "compose.yaml").is_symlink()


def test_removing_a_symlink_keeps_its_target(tmp_path: Path) -> None:
    folder = tmp_path / "stack"
    folder.mkdir()
    put(folder, {"a": "same", "b": "same"})
    target = tmp_path / "target"
    target.write_text("same")
    (folder / "a").unlink()
    (folder / "a").symlink_to(target)
    put(folder, {"b": "same"})
    assert not (folder / "a").is_symlink()
    assert target.read_text() == "same"


def test_a_dangling_symlink_counts_as_new(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    put(tmp_path, {"a": "1"})
    assert (tmp_path / "a").read_text() == "1"
    assert not (tmp_path / "nowhere").exists()


def test_changes_are_classified(tmp_path: Path) -> None:
    put(tmp_path, {"same": "1", "changed": "1", "gone": "1"})
    changes = compare([RenderedFile("same", "1"), RenderedFile("changed", "2"), RenderedFile("new", "1")], tmp_path)
    kinds = {change.path: change.kind for change in changes}
    assert kinds == {"same": "same", "changed": "changed", "new": "new", "gone": "removed", LOCK: "changed"}
    assert not any(change.edited for change in changes)
    lines = list(diff(changes))
    assert "--- /dev/null" in lines
    assert "+++ /dev/null" in lines
    assert not any(LOCK in line or "\n" in line for line in lines)


def test_a_stack_file_made_from_flags_belongs_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["render", "org/name", "--engine", "vllm", "--revision", "abc", "--no-validate"]
    assert cli.main(arguments) == 0
    folder = tmp_path / "compose/name"
    assert "stack.yaml" not in (folder / LOCK).read_text()
    assert cli.main(["render", str(folder), "--check", "--no-validate"]) == 0
    # rendering it later neither removes nor rewrites it
    text = (folder / "stack.yaml").read_text()
    assert render(folder) == 0
    assert (folder / "stack.yaml").read_text() == text


def test_nothing_is_removed_through_a_linked_folder(tmp_path: Path) -> None:
    """If a user moved `scripts` and linked it, another stack may use the files there."""
    folder, elsewhere = tmp_path / "stack", tmp_path / "elsewhere"
    put(folder, {"scripts/a": "1", "b": "1"})
    (folder / "scripts").rename(elsewhere)
    (folder / "scripts").symlink_to(elsewhere)
    put(folder, {"b": "1"})
    assert (elsewhere / "a").exists()
