"""What diagnose reads of local processes: real supervisors, and small programs that fail as engines do."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.report import Report
from stackgen.cli.commands import diagnose as command
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.runtimes.observation import evidence
from stackgen.runtimes.process.lifecycle import prepare_processes, process_status, start_processes
from stackgen.runtimes.process.procfs import read_state
from tests.cli.test_diagnose import words
from tests.diagnose.fixtures import LOGS, load
from tests.runtimes.test_process import stack, supervise, task, until

__all__ = ["stack", "supervise"]

FAILS = """#!PYTHON
import sys, time
print(open(LOG).read(), flush=True)
time.sleep(0.2)
sys.exit(1)
"""


@pytest.fixture(autouse=True)
def _no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may depend on an engine: none is reached."""

    def none() -> Any:
        raise MachineError("the Docker engine does not answer")

    monkeypatch.setattr(evidence, "connect", none)


def up(folder: Path) -> Report:
    return start_processes(prepare_processes(folder, lambda line: None), lambda service, phase: None, 60)


def diagnosed(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = command.diagnose(words("diagnose", str(folder), "--json", *more))
    return code, json.loads(capsys.readouterr().out)


def broken(folder: Path, fixture: str, tmp_path: Path) -> None:
    """Makes the stack's program one that logs what a real one logged, and fails like it."""
    said = tmp_path / "said.txt"
    said.write_text(load(LOGS / f"{fixture}.log").text)
    program = tmp_path / "engines" / "vllm" / "bin" / "vllm"
    program.write_text(FAILS.replace("PYTHON", sys.executable).replace("LOG", repr(str(said))))
    with pytest.raises(StartError):
        up(folder)


@pytest.mark.parametrize("given", [(), ("--runtime", "process")])
def test_a_start_that_failed_is_diagnosed(
    stack: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...]
) -> None:
    folder = stack(restart="on-failure:1", max_model_len=1000000)
    broken(folder, "SG-V001-len", tmp_path)
    capsys.readouterr()
    code, data = diagnosed(folder, capsys, *given)
    first = data["findings"][0]
    assert (code, first["id"], first["service"]) == (1, "SG-V001", "vllm-tiny")
    assert (first["change"]["value"], first["change"]["was"]) == ("2048", "1000000")


def test_state_exit_code_restarts_and_log_are_read(stack: Callable[..., Path], tmp_path: Path) -> None:
    folder = stack(restart="on-failure:1")
    broken(folder, "SG-V001-len", tmp_path)
    (one,) = evidence.of_processes(folder / "stack.yaml").services
    # the start is undone where it fails, and what the processes were is kept
    assert (one.state, one.exit_code, one.restarts, one.engine) == ("exited", 1, 1, "vllm")
    assert one.log.count("User-specified max_model_len") >= 2 and one.failed


def test_a_stack_that_works_is_checked_and_has_no_finding(
    stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack()
    assert up(folder).ok
    capsys.readouterr()
    code, data = diagnosed(folder, capsys)
    assert (code, data["findings"]) == (0, [])
    # the key in .env is another one now: met by the check, which asks the processes' own port
    env = folder / ".env"
    env.write_text(env.read_text().replace("STACKGEN_API_KEY=", "STACKGEN_API_KEY=x"))
    code, data = diagnosed(folder, capsys)
    assert code == 1 and data["findings"][0]["id"] == "SG-C011"


def test_a_killed_supervisor_is_told(stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = stack()
    up(folder)
    os.kill(read_state(folder / ".stackgen")["supervisor"]["pid"], signal.SIGKILL)
    until(folder, lambda _: process_status(folder)[0].health == "unsupervised")
    capsys.readouterr()
    code, data = diagnosed(folder, capsys)
    assert code == 1 and data["findings"][0]["id"] == "SG-C010"


def test_a_stack_that_was_never_started_is_told(stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = stack()
    code, data = diagnosed(folder, capsys, "--runtime", "process")
    assert code == 1 and data["findings"][0]["id"] == "SG-C007"
    # without the folder of a start, containers are meant
    with pytest.raises(MachineError):
        diagnosed(folder, capsys)


def test_a_program_that_can_not_be_started_is_told(
    stack: Callable[..., Path], supervise: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack()
    supervise(replace(task(tmp_path, "vllm-tiny", "", tries=0), argv=["/no/such/vllm"]))
    until(tmp_path, lambda s: s["vllm-tiny"]["state"] == "exited")
    # the supervisor of the fixture keeps its state beside the stack's folder
    (folder / ".stackgen").symlink_to(tmp_path / ".stackgen")
    code, data = diagnosed(folder, capsys)
    assert code == 1 and data["findings"][0]["id"] == "SG-D013" and "/no/such/vllm" in data["findings"][0]["cause"]


def test_head_and_tail_of_a_long_log_are_read(stack: Callable[..., Path]) -> None:
    """What vLLM says of its settings stands in the first lines only, which rotation may have moved aside."""
    folder = stack()
    up(folder)
    logs = folder / ".stackgen" / "logs"
    (logs / "vllm-tiny.log.1").write_text("Enforce eager set\n" + "".join(f"line {n}\n" for n in range(4000)))
    (one,) = evidence.of_processes(folder / "stack.yaml").services
    lines = one.log.splitlines()
    assert lines[0] == "Enforce eager set" and lines[500] == "[stackgen: lines left out here]" and len(lines) == 2501
    assert "Application startup complete" in one.log


def test_mistakes_in_the_stack_are_told(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("models: 3\n")
    with pytest.raises(StackgenError):
        evidence.of_processes(tmp_path / "stack.yaml")


def test_secrets_in_the_stack_file_are_known_wherever_they_show(
    stack: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack(
        restart="on-failure:1", extra_env={"DB_PASS": "hunter2hunter2"}, extra_args=["--api-key", "abcdefgh"]
    )
    assert {"hunter2hunter2", "abcdefgh"} <= set(evidence.of_processes(folder / "stack.yaml").secrets)
    said = tmp_path / "odd.log"
    said.write_text("Traceback (most recent call last):\nOddError: abcdefgh met hunter2hunter2\n")
    program = tmp_path / "engines" / "vllm" / "bin" / "vllm"
    program.write_text(FAILS.replace("PYTHON", sys.executable).replace("LOG", repr(str(said))))
    with pytest.raises(StartError):
        up(folder)
    capsys.readouterr()
    code, data = diagnosed(folder, capsys)
    assert code == 1 and "OddError" in json.dumps(data)
    assert "hunter2" not in json.dumps(data) and "abcdefgh" not in json.dumps(data)


def test_secrets_of_a_foreign_container_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the engine's API: the names of variables decide, whatever the container is."""
    names = ("MYSQL_PASSWORD", "DB_PASS", "WANDB_KEY", "HF_TOKEN", "MY_SECRET", "PAD_TOKEN", "PATH")
    config = {
        "Env": [f"{name}=value-of-{name}" for name in names],
        "Image": "x",
        "Cmd": ["serve", "--api-key=abcdefgh"],
    }
    state = {"Status": "exited", "ExitCode": 1, "OOMKilled": False}

    class Api:
        def inspect_container(self, name: str) -> dict[str, Any]:
            return {"Id": name, "Config": config, "State": state, "RestartCount": 0}

        def logs(self, *_: Any, **__: Any) -> bytes:
            return b"nothing\n"

    monkeypatch.setattr(evidence, "connect", lambda: type("Client", (), {"api": Api()})())
    assert evidence.of_container("c").secrets == (*(f"value-of-{name}" for name in names[:5]), "abcdefgh")
