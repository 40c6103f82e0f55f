"""A stack that another version of stackgen rendered is reported by the commands that render it again."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from stackgen import __version__
from stackgen.cli import main as cli
from stackgen.render.version import describe_version
from stackgen.render.write import LOCK

STACK = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc}]\n"


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    capsys.readouterr()
    return tmp_path


def set_version(folder: Path, version: str | None) -> None:
    """Changes the lock file as if `version` had rendered the stack; None: a version without a line for it."""
    path = folder / LOCK
    rest = path.read_text().partition("\n")[2]
    path.write_text(rest if version is None else f"# rendered by stackgen {version}\n{rest}")


def test_the_lock_file_contains_the_version_and_stays_a_checksum_file(folder: Path) -> None:
    assert (folder / LOCK).read_text().startswith(f"# rendered by stackgen {__version__}\n")
    done = subprocess.run(["sha256sum", "-c", "--strict", LOCK], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("version", "shown"), [(None, "0.1.0, which is older"), ("0.1.0", "0.1.0, which is older"),
                                                ("0.1.9", "0.1.9, which is older"),
                                                ("0.10.0", "0.10.0, which is newer"),
                                                ("9.0", "9.0, which is newer")])  # fmt: skip
def test_render_reports_another_version_once(
    folder: Path, version: str | None, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_version(folder, version)
    # for CI: the stack is out of date, and the reason is printed
    assert cli.main(["render", str(folder), "--no-validate", "--check"]) == 1
    assert shown in capsys.readouterr().err
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    err = capsys.readouterr().err
    assert f"the files were rendered by stackgen {shown} than this version ({__version__})" in err
    # from now on, this version has rendered them
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    assert "rendered by" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "update", "scale"])
def test_commands_that_apply_the_files_report_it_before_anything_else(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/nobody")
    set_version(folder, None)
    arguments = [command, "name=2", str(folder)] if command == "scale" else [command, str(folder)]
    assert cli.main(arguments) != 0
    assert capsys.readouterr().err.startswith("stackgen: the files were rendered by stackgen 0.1.0, which is older")


def test_doctor_warns_about_another_version(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "were rendered by stackgen" not in doctor(folder, capsys)
    set_version(folder, None)
    assert "the files were rendered by stackgen 0.1.0, which is older" in doctor(folder, capsys)


def doctor(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    cli.main(["doctor", str(folder), "--offline"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "lock", ["", "\n", f"# rendered by stackgen {__version__}\n", f"# rendered by stackgen {__version__}\nx"]
)
def test_this_version_and_no_file_are_not_reported(lock: str) -> None:
    assert describe_version(lock) == ""


@pytest.mark.parametrize("line", ["# rendered by stackgen", f"# rendered by stackgen {'9' * 5000}", "\0", "é" * 100])
def test_a_broken_lock_file_counts_as_the_oldest_version(line: str) -> None:
    assert "0.1.0" in describe_version(f"{line}\n{'0' * 64}  compose.yaml\n")


def test_the_page_that_the_message_names_exists_and_names_this_version() -> None:
    (page,) = set(re.findall(r"docs/\S+\.md", describe_version("x")))
    text = (Path(__file__).parents[2] / page).read_text()
    # 0.2 stands for all its patch releases
    assert f"To {__version__.rpartition('.')[0]}" in text


def test_the_changelog_has_a_dated_section_of_this_version() -> None:
    text = (Path(__file__).parents[2] / "CHANGELOG.md").read_text()
    sections = re.findall(r"(?m)^## (.+)$", text)
    # unreleased changes first, so that nobody adds a line to a version that is out
    assert sections[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(__version__)} - \d{{4}}-\d\d-\d\d", sections[1])
