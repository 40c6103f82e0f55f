"""What `stackgen up` reports about the seconds of a start: a real supervisor and a program that behaves like vLLM."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.runtimes.process.lifecycle import down_processes
from stackgen.stack.start_times import RECORD
from tests.runtimes.test_process import VLLM, stack  # noqa: F401

# what vLLM 0.32.0 logs while it loads weights and compiles, and the time that a cold and a warm start need
LOADS = """
print("Starting to load model", flush=True); time.sleep(1.6)
print("Loading weights took 1.50 seconds", flush=True)
if not os.path.exists("compiled"):
    print("Starting torch.compile", flush=True); time.sleep(1.6); open("compiled", "w").close()
    print("torch.compile took 1.50 s in total", flush=True)
class Handler"""


@pytest.fixture
def slow(stack: Callable[..., Path], tmp_path: Path) -> Path:  # noqa: F811
    """The folder of a stack whose engine takes its time."""
    program = tmp_path / "engines" / "vllm" / "bin" / "vllm"
    program.write_text(program.read_text().replace("\nclass Handler", LOADS, 1))
    assert VLLM.count("\nclass Handler") == 1
    return stack()


def up(folder: Path, *more: str) -> None:
    command = ["up", str(folder), "--runtime", "process", "--timeout", "60", "--progress", "none", *more]
    assert cli.main(command) == 0
    down_processes(folder)


def times(out: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    data = json.loads(out)["start"]
    (engine,) = (one for one in data["services"] if one["service"] == "vllm-tiny")
    return data, {one["phase"]: one for one in engine["phases"]}


def test_a_start_is_compared_with_the_last_one_of_the_same_stack(
    slow: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up(slow, "--json")
    data, first = times(capsys.readouterr().out)
    assert data["last_seconds"] is None and {one["last_seconds"] for one in first.values()} == {None}
    assert first["loading weights"]["seconds"] >= 1.0 and first["compiling"]["seconds"] >= 1.0
    assert data["seconds"] >= sum(one["seconds"] for one in first.values()) - 0.5
    assert stat.S_IMODE((slow / RECORD).stat().st_mode) == 0o600

    up(slow)
    shown = capsys.readouterr().err
    assert f"(last start: {data['seconds']:.1f} s)" in shown
    rows = {tuple(line.split()[:2]): line for line in shown.splitlines()}
    # the code is compiled by now
    assert rows["vllm-tiny", "compiling"].split()[2:] == ["-", f"{first['compiling']['seconds']:.1f}", "s"]
    assert f"{first['loading weights']['seconds']:.1f} s" in rows["vllm-tiny", "loading"]

    # a damaged record, for example of a full disk, is no reason to fail
    (slow / RECORD).write_text('{"services": [3')
    up(slow, "--json")
    data, third = times(capsys.readouterr().out)
    assert data["last_seconds"] is None and third["loading weights"]["last_seconds"] is None
    assert json.loads((slow / RECORD).read_text())["services"]["vllm-tiny"]["loading weights"] >= 1.0
