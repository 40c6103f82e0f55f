"""A `render` that is killed at any moment: the next command repairs the stack, and takes nothing for a hand edit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.render.write import LOCK, TEMPORARY, remove_leftovers, write_atomically
from tests.conftest import ROOT

ONE = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc}]\n"
OTHER = ONE.replace("org/name", "org/other")
# no download script: a render removes a file
LOCAL = "name: demo\nmodels: [{model: ./local, engine: vllm}]\n"
GATEWAY = ONE + "gateway: true\n"


def run_killed(folder: Path, **case: Any) -> list[dict[str, Any]]:
    """Results of tests/render/killed.py: one for each change on disk that `render` was killed before, and one whole."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.render.killed", str(folder)],
        input=json.dumps(case),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"DOCKER_HOST": f"unix://{folder}/nobody", "PATH": "/nowhere"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(done.stdout)
    # the last one was not killed any more
    assert [one["code"] for one in results[:-1]] == [None] * (len(results) - 1) and results[-1]["code"] == 0
    return results


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ({"before": [], "then": ONE}, 20),
        ({"before": [ONE], "then": OTHER}, 8),
        ({"before": [ONE], "then": LOCAL}, 8),
        ({"before": [ONE], "then": OTHER, "next": LOCAL}, 8),
        ({"before": [ONE, LOCAL], "then": GATEWAY, "next": OTHER}, 20),
    ],
    ids=["first", "changed", "removed", "edited again", "more and fewer files"],
)
def test_the_next_render_repairs_a_killed_one(tmp_path: Path, case: dict[str, Any], changes: int) -> None:
    results = run_killed(tmp_path, command="render", options=["--no-validate"], **case)
    assert len(results) > changes
    for number, one in enumerate(results, 1):
        assert one["next_code"] == 0 and "edited by hand" not in one["output"], (number, one["output"])
        assert one["fresh"] == 0, number
        assert not [path for path in one["files"] if path.endswith(TEMPORARY)], number
        assert {path: text for path, text in one["files"].items() if path != ".env"} == {
            path: text for path, text in results[-1]["files"].items() if path != ".env"
        }, number


def test_up_after_a_killed_render_starts_with_complete_files(tmp_path: Path) -> None:
    """No engine is installed here, but `up` has written its files by then."""
    results = run_killed(tmp_path, before=[ONE], then=OTHER, command="up", options=["--runtime", "process"])
    assert len(results) > 8
    for one in results:
        assert one["next_code"] == 3 and "edited by hand" not in one["output"], one["output"]
        assert "org/other" in one["files"]["compose.yaml"] and "org/name" not in one["files"]["compose.yaml"]
        assert one["fresh"] == 0


def test_the_lock_lists_every_rendered_file_at_every_moment(tmp_path: Path) -> None:
    for one in run_killed(tmp_path, before=[ONE], then=OTHER, command="render", options=["--no-validate"]):
        lines = set(one["left"][LOCK].splitlines())
        for path, text in one["left"].items():
            # names with a dot are keys and state, which are not rendered
            if path not in ("stack.yaml", LOCK) and not path.startswith("."):
                assert f"{hashlib.sha256(text.encode()).hexdigest()}  {path}" in lines, path


def test_a_hand_edit_after_a_killed_render_is_still_a_hand_edit(tmp_path: Path) -> None:
    """The checksums of a killed command accept what it wrote, and nothing else."""
    (tmp_path / "stack.yaml").write_text(ONE)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    lock, compose = (tmp_path / LOCK).read_text(), (tmp_path / "compose.yaml").read_text()
    (tmp_path / "stack.yaml").write_text(OTHER)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    # as a kill leaves it: all files written, both checksums of each, and half a line
    (tmp_path / LOCK).write_text(f"{(tmp_path / LOCK).read_text()}{lock}{'0' * 40}")
    (tmp_path / "compose.yaml").write_text(compose)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    (tmp_path / LOCK).write_text(f"{(tmp_path / LOCK).read_text()}{lock}{'0' * 40}")
    (tmp_path / "compose.yaml").write_text(compose + "# mine\n")
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 2
    assert (tmp_path / "compose.yaml").read_text() == compose + "# mine\n"


@pytest.mark.parametrize("args", [["render", "--no-validate"], ["status"], ["keys", "list", "--stack"], ["check"]])
def test_any_command_removes_leftovers_but_no_file_in_use(tmp_path: Path, args: list[str]) -> None:
    """A leftover of .env holds the new keys."""
    (tmp_path / "stack.yaml").write_text(GATEWAY)
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    leftovers = [tmp_path / f"..env.a1b2{TEMPORARY}", tmp_path / "gateway" / f".keys.map.a1b2{TEMPORARY}"]
    folder = tmp_path / "gateway" / f".new.a1b2{TEMPORARY}"
    folder.mkdir()
    for path in (*leftovers, folder / "key"):
        path.write_text("sk-secret")
    mine = tmp_path / ".compose.yaml.swp"
    mine.write_text("")
    in_use = tmp_path / f".a.c3d4{TEMPORARY}"
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
         "print(flush=True)\nsys.stdin.read()", str(in_use)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout and holder.stdout.readline()
        cli.main([*args, str(tmp_path)])
        assert not [path for path in (*leftovers, folder) if path.exists()]
        assert mine.exists() and in_use.exists()
    finally:
        holder.communicate()
    remove_leftovers(tmp_path)
    assert not in_use.exists()


def test_a_file_taken_for_a_leftover_at_its_creation_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    real, names = tempfile.mkstemp, []

    def taken(**options: Any) -> tuple[int, str]:
        handle, name = real(**options)
        names.append(name)
        if len(names) == 1:
            remove_leftovers(tmp_path)
        return handle, name

    monkeypatch.setattr("stackgen.render.write.tempfile.mkstemp", taken)
    write_atomically(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and len(names) == 2
    assert all(re.search(rf"/\.a\.\w+{TEMPORARY}$", name) for name in names)
