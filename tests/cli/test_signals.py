"""Signals at any time of a command: no traceback of stackgen, the exit code of the signal, and no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.cli import signals
from stackgen.cli.commands import schema as schema_command
from tests.conftest import ROOT

STACK = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc}]\n"
STARTS = 12
LATEST = 0.15


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_soon_after_the_start_prints_no_traceback(number: signal.Signals) -> None:
    """Starts with a signal after 0 to 150 ms. Until Python runs the first line of stackgen, Python itself answers."""
    for start in range(STARTS):
        with subprocess.Popen(
            [sys.executable, "-m", "stackgen", "schema"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as one:
            time.sleep(LATEST * start / STARTS)
            one.send_signal(number)
            _, err = one.communicate(timeout=60)
        assert "Traceback" not in err or "/stackgen/" not in err, err
        assert "bug in stackgen" not in err
        # 0: the command ended before the signal; 1 and the negative number: Python was still starting
        assert one.returncode in (0, 1, 128 + number, -number), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_in_a_destructor_stops_the_command_all_the_same(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python prints and drops exceptions of destructors, and of callbacks of libraries such as pydantic-core."""

    class Interrupted:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def run() -> None:
        with signals.raise_on_signals():
            Interrupted()
            time.sleep(5)

    with pytest.raises(signals.Stopped):
        run()
    assert signals.exit_code() == 128 + number
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_stops_a_command_and_its_child(number: signal.Signals, tmp_path: Path) -> None:
    """`docker` is a program that never ends; stackgen waits for it, as for a `docker compose` that pulls an image."""
    (tmp_path / "stack.yaml").write_text(STACK)
    pid = tmp_path / "pid"
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    # `version` asks only whether Compose is installed
    docker.write_text(
        f'#!/bin/sh\n[ "$2" = version ] && exit 0\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60\n'
    )
    docker.chmod(0o755)
    env = os.environ | {"PATH": f"{docker.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "stackgen", "render", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env) as one:
        until = time.monotonic() + 30
        while not pid.exists():
            assert time.monotonic() < until and one.poll() is None, one.communicate()
            time.sleep(0.01)
        one.send_signal(number)
        _, err = one.communicate(timeout=20)
    assert one.returncode == 128 + number, err
    assert err.startswith("stackgen: stopped") and "Traceback" not in err
    # without the memory of a program: it has ended, even if the init process has not yet noticed
    child = Path(f"/proc/{pid.read_text().strip()}/exe")
    until = time.monotonic() + 5
    while os.path.lexists(child) and can_read(child):
        assert time.monotonic() < until, "the child still runs"
        time.sleep(0.01)


def can_read(link: Path) -> bool:
    """Whether a process has a program: a zombie has none."""
    try:
        return bool(os.readlink(link))
    except OSError:
        return False


def test_an_error_that_a_signal_causes_is_not_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An extension module that is interrupted during its import raises an exception of its own, here pyo3's."""

    class PanicException(BaseException):
        pass

    def fail(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except signals.Stopped:
            raise PanicException from None
        return 0

    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    monkeypatch.setattr(schema_command, "schema", fail)
    assert cli.main(["schema"]) == 143
    assert capsys.readouterr().err.startswith("stackgen: stopped")
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before


def test_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup stackgen up`: the end of the SSH session must not stop the command."""

    def hang_up(_: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 7

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(schema_command, "schema", hang_up)
        assert cli.main(["schema"]) == 7
    finally:
        signal.signal(signal.SIGHUP, before)
