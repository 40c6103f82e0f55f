"""The evidence about local processes: real supervisors, and small programs that fail as engines do."""

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
from tests.cli.test_diagnose import parse_args
from tests.diagnose.fixtures import LOGS, load_fixture
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
    """No test here may depend on a Docker engine, so that none answers."""

    def none() -> Any:
        raise MachineError("the Docker engine does not answer")

    monkeypatch.setattr(evidence, "connect", none)


def up(folder: Path) -> Report:
    return start_processes(prepare_processes(folder, lambda line: None), lambda service, phase: None, 60)


def run_diagnose(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = command.diagnose(parse_args("diagnose", str(folder), "--json", *more))
    return code, json.loads(capsys.readouterr().out)


def fail_with_log(folder: Path, fixture: str, tmp_path: Path) -> None:
    """Replaces the stack's program with one that prints a real engine's log and fails."""
    log_file = tmp_path / "engine.txt"
    log_file.write_text(load_fixture(LOGS / f"{fixture}.log").text)
    program = tmp_path / "engines" / "vllm" / "bin" / "vllm"
    program.write_text(FAILS.replace("PYTHON", sys.executable).replace("LOG", repr(str(log_file))))
    with pytest.raises(StartError):
        up(folder)


@pytest.mark.parametrize("given", [(), ("--runtime", "process")])
def test_failed_start_is_diagnosed(
    stack: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...]
) -> None:
    folder = stack(restart="on-failure:1", max_model_len=1000000)
    fail_with_log(folder, "SG-V001-len", tmp_path)
    capsys.readouterr()
    code, data = run_diagnose(folder, capsys, *given)
    first = data["findings"][0]
    assert (code, first["id"], first["service"]) == (1, "SG-V001", "vllm-tiny")
    assert (first["change"]["value"], first["change"]["was"]) == ("2048", "1000000")


def test_state_exit_code_restarts_and_log_are_collected(stack: Callable[..., Path], tmp_path: Path) -> None:
    folder = stack(restart="on-failure:1")
    fail_with_log(folder, "SG-V001-len", tmp_path)
    (one,) = evidence.collect_from_processes(folder / "stack.yaml").services
    # a failed start stops everything, but its state and logs are kept
    assert (one.state, one.exit_code, one.restarts, one.engine) == ("exited", 1, 1, "vllm")
    assert one.log.count("User-specified max_model_len") >= 2 and one.has_failed


def test_working_stack_is_checked_and_has_no_finding(
    stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack()
    assert up(folder).ok
    capsys.readouterr()
    code, data = run_diagnose(folder, capsys)
    assert (code, data["findings"]) == (0, [])
    # with another key in .env, the check of the process's own port fails
    env = folder / ".env"
    env.write_text(env.read_text().replace("STACKGEN_API_KEY=", "STACKGEN_API_KEY=x"))
    code, data = run_diagnose(folder, capsys)
    assert code == 1 and data["findings"][0]["id"] == "SG-C011"


def test_killed_supervisor_is_diagnosed(stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = stack()
    up(folder)
    os.kill(read_state(folder / ".stackgen")["supervisor"]["pid"], signal.SIGKILL)
    until(folder, lambda _: process_status(folder)[0].health == "unsupervised")
    capsys.readouterr()
    code, data = run_diagnose(folder, capsys)
    assert code == 1 and data["findings"][0]["id"] == "SG-C010"


def test_stack_that_was_never_started_is_diagnosed(
    stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack()
    code, data = run_diagnose(folder, capsys, "--runtime", "process")
    assert code == 1 and data["findings"][0]["id"] == "SG-C007"
    # without a state folder, `diagnose` looks for containers
    with pytest.raises(MachineError):
        run_diagnose(folder, capsys)


def test_missing_program_is_diagnosed(
    stack: Callable[..., Path], supervise: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack()
    supervise(replace(task(tmp_path, "vllm-tiny", "", max_retries=0), argv=["/no/such/vllm"]))
    until(tmp_path, lambda s: s["vllm-tiny"]["state"] == "exited")
    # the fixture's supervisor keeps its state next to the stack's folder
    (folder / ".stackgen").symlink_to(tmp_path / ".stackgen")
    code, data = run_diagnose(folder, capsys)
    assert code == 1 and data["findings"][0]["id"] == "SG-D013" and "/no/such/vllm" in data["findings"][0]["cause"]


def test_head_and_tail_of_a_long_log_are_collected(stack: Callable[..., Path]) -> None:
    """vLLM logs its settings in the first lines only, which may be in a rotated file."""
    folder = stack()
    up(folder)
    logs = folder / ".stackgen" / "logs"
    (logs / "vllm-tiny.log.1").write_text("Enforce eager set\n" + "".join(f"line {n}\n" for n in range(4000)))
    (one,) = evidence.collect_from_processes(folder / "stack.yaml").services
    lines = one.log.splitlines()
    assert (
        lines[0] == "Enforce eager set"
        and lines[500] == "[stackgen: some lines are omitted here]"
        and len(lines) == 2501
    )
    assert "Application startup complete" in one.log


def test_errors_in_the_stack_file_are_raised(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("models: 3\n")
    with pytest.raises(StackgenError):
        evidence.collect_from_processes(tmp_path / "stack.yaml")


def test_secrets_in_the_stack_file_are_removed_from_every_output(
    stack: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack(
        restart="on-failure:1", extra_env={"DB_PASS": "hunter2hunter2"}, extra_args=["--hf-token", "abcdefgh"]
    )
    assert {"hunter2hunter2", "abcdefgh"} <= set(evidence.collect_from_processes(folder / "stack.yaml").secrets)
    log_file = tmp_path / "odd.log"
    log_file.write_text("Traceback (most recent call last):\nOddError: abcdefgh met hunter2hunter2\n")
    program = tmp_path / "engines" / "vllm" / "bin" / "vllm"
    program.write_text(FAILS.replace("PYTHON", sys.executable).replace("LOG", repr(str(log_file))))
    with pytest.raises(StartError):
        up(folder)
    capsys.readouterr()
    code, data = run_diagnose(folder, capsys)
    assert code == 1 and "OddError" in json.dumps(data)
    assert "hunter2" not in json.dumps(data) and "abcdefgh" not in json.dumps(data)


def test_secrets_of_any_container_are_found_by_variable_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake Docker API: the names of variables decide, whatever the container runs."""
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
    assert evidence.collect_from_container("c").secrets == (*(f"value-of-{name}" for name in names[:5]), "abcdefgh")
