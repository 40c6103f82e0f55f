"""What `scripts/test` does with failed tests, and what `tests/parts.py` writes about them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FUNCTION = re.compile(r"^alone\(\) \{\n.*?^\}\n", re.M | re.S)


def run_alone(folder: Path, ids: list[str], command: str = "true") -> subprocess.CompletedProcess[str]:
    """Calls the function `alone` of scripts/test with a stub that prints the tests instead of running them."""
    (folder / "failures.ids").write_text("".join(f"{one}\n" for one in ids))
    function = FUNCTION.search((ROOT / "scripts" / "test").read_text())
    assert function
    script = f'run() {{ echo "ran $*"; {command}; }}\nlog={folder}\n{function[0]}alone'
    return subprocess.run(["bash", "-uc", script], capture_output=True, text=True)


def test_failed_tests_of_two_files_must_pass_twice_alone(tmp_path: Path) -> None:
    ids = ["tests/a/test_b.py::test_c[a b]", "tests/a/test_b.py::test_d", "tests/test_e.py::test_closed"]
    done = run_alone(tmp_path, ids)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == [f"ran {' '.join(ids)}"] * 2


def test_a_second_failure_is_a_failure(tmp_path: Path) -> None:
    assert run_alone(tmp_path, ["tests/a/test_b.py::test_c"], "false").returncode == 1


@pytest.mark.parametrize(
    "ids",
    [
        [],
        ["tests/test_a.py::test_a", "tests/test_b.py::test_a", "tests/test_c.py::test_a"],
        ["tests/live/test_failover.py::test_a_rolling_update_loses_no_request"],
        ["tests/live/test_keys.py::test_keys_commands_at_once_lose_no_request"],
        ["tests/live/test_front_updates.py::test_a_killed_replica_interrupts_only_its_own_streams"],
        ["tests/test_a.py::test_a", "the budget"],
    ],
    ids=["none", "three files", "loses", "lose", "interrupts", "budget"],
)
def test_these_tests_get_no_second_chance(tmp_path: Path, ids: list[str]) -> None:
    done = run_alone(tmp_path, ids)
    assert (done.returncode, done.stdout) == (1, "")


def test_failures_are_listed_with_their_messages(tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(
        "import pytest\n"
        "@pytest.fixture\ndef broken(): raise ValueError('no stack')\n"
        "def test_fails(): assert 1 == 2, 'first\\nsecond'\n"
        "def test_has_no_stack(broken): pass\n"
        "def test_passes(): pass\n"
    )
    environment = {**os.environ, "STACKGEN_TEST_FAILURES": str(tmp_path / "failures"), "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.parts", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = (tmp_path / "failures").read_text().splitlines()
    assert [re.sub(r", \d+ s", "", one) for one in lines] == [
        "test_sample.py::test_fails (call): AssertionError: first second assert 1 == 2",
        "test_sample.py::test_has_no_stack (setup): ValueError: no stack",
    ]
    assert (tmp_path / "failures.ids").read_text().split() == [
        "test_sample.py::test_fails", "test_sample.py::test_has_no_stack",
    ]  # fmt: skip
