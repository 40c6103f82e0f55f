"""Only one command at a time changes a stack: the others are refused or wait, and a killed command locks nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stackgen.cli.commands import fix, keys
from stackgen.cli.main import build_parser, main
from stackgen.diagnose import Finding
from stackgen.diagnose.rule import Edit
from stackgen.runtimes.compose import command
from stackgen.stack.lock import HOLDER, StackBusyError, find_holder, stack_lock

STACK = "name: s\nport: 18300\ngateway: true\nmodels: [{model: acme/m, engine: vllm, gpus: none, served_names: [m]}]\n"
# a process of its own, because a lock belongs to a process; it holds the lock until its standard input is closed
HOLD = (
    "import sys; from pathlib import Path; from stackgen.stack.lock import stack_lock\n"
    "with stack_lock(Path(sys.argv[1]), sys.argv[2]): print(flush=True); sys.stdin.read()"
)


@contextmanager
def held(folder: Path, name: str = "update") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `folder`."""
    args = [sys.executable, "-c", HOLD, str(folder), name]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK)
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    # several `keys` commands wait for each other
    monkeypatch.setattr(keys, "WAIT_SECONDS", 0.0)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# every command that changes a stack; `--fix` is tested below, and `fit --pin` asks running engines before it locks
CHANGES: dict[str, list[str]] = {
    "render": ["render", "FOLDER"],
    "render -o": ["render", "FOLDER/stack.yaml", "-o", "FOLDER"],
    "render a model": ["render", "acme/m", "--engine", "vllm", "--gpus", "none", "-o", "FOLDER", "--force"],
    "up": ["up", "FOLDER"],
    "up with processes": ["up", "FOLDER", "--runtime", "process"],
    "down": ["down", "FOLDER"],
    "down with processes": ["down", "FOLDER", "--runtime", "process"],
    "update": ["update", "FOLDER"],
    "scale": ["scale", "m=2", "FOLDER"],
    "upgrade": ["upgrade", "FOLDER", "--to", "0.33.0"],
    "plan": ["plan", "FOLDER"],
    "keys new": ["keys", "new", "team", "--stack", "FOLDER"],
    "keys rotate": ["keys", "rotate", "default", "--stack", "FOLDER"],
    "keys remove": ["keys", "remove", "team", "--stack", "FOLDER"],
}


def test_every_command_that_changes_a_stack_is_refused_while_another_one_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(folder, "scale") as process:
        before = snapshot(folder)
        capsys.readouterr()
        for name, args in CHANGES.items():
            assert main([arg.replace("FOLDER", str(folder)) for arg in args]) == 2, name
            message = capsys.readouterr().err
            assert f"`stackgen scale` (pid {process.pid}) has been changing this stack since " in message, name
            assert "--wait SECONDS" in message, name
        assert snapshot(folder) == before


def test_every_command_that_takes_the_lock_is_tested() -> None:
    with_wait = set()
    for name in next(one for one in build_parser()._actions if one.dest == "command").choices or ():
        try:
            args = build_parser().parse_args([name, *(["new"] if name == "keys" else ["m=2"]), "--wait", "1"])
        except SystemExit:
            continue
        with_wait |= {name} if args.wait == 1 else set()
    assert with_wait - {"check"} == {args[0] for args in CHANGES.values()} | {"diagnose", "fit"}


def test_commands_that_only_read_need_no_lock(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(folder):
        for args in (["render", "--check"], ["render", "--diff"], ["render", "--stdout"]):
            assert main([*args, str(folder), "--no-validate"]) == 0
        assert main(["keys", "list", "--stack", str(folder)]) == 0


def test_fix_changes_nothing_while_another_command_changes_the_stack(folder: Path) -> None:
    finding = Finding("SG-X001", "title", "", "cause", (), "fix", edit=Edit(("models", 0, "max_model_len"), "1024"))
    args = Namespace(command="diagnose", wait=0.0, yes=True, json=False)
    with held(folder), pytest.raises(StackBusyError, match="`stackgen update`"):
        fix.fix(args, (finding,), folder / "stack.yaml")
    assert (folder / "stack.yaml").read_text() == STACK


def test_command_with_wait_runs_after_the_other_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held(folder) as process:
        assert process.stdin
        threading.Timer(0.2, process.stdin.close).start()
        assert main(["render", str(folder), "--no-validate", "--wait", "20"]) == 0
    assert f"waiting up to 20 s: `stackgen update` (pid {process.pid})" in capsys.readouterr().err


def test_command_with_wait_is_refused_when_the_time_is_over(folder: Path) -> None:
    with held(folder):
        assert main(["render", str(folder), "--no-validate", "--wait", "0.2"]) == 2


def test_killed_command_locks_nothing(folder: Path) -> None:
    with held(folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / HOLDER).exists()
    assert find_holder(folder) is None
    assert main(["render", str(folder), "--no-validate"]) == 0
    assert not (folder / HOLDER).exists()


def test_holder_is_known_only_while_it_holds_the_lock(folder: Path) -> None:
    with held(folder, "up") as process:
        holder = find_holder(folder)
        assert holder and (holder.command, holder.pid) == ("up", process.pid)
    assert find_holder(folder) is None


def test_a_command_may_call_another_one(folder: Path) -> None:
    with stack_lock(folder, "up"):
        assert main(["render", str(folder), "--no-validate"]) == 0
        # the inner command did not free the lock of the outer one
        done = subprocess.run([sys.executable, "-c", HOLD, str(folder), "x"], capture_output=True, text=True)
        assert f"`stackgen up` (pid {os.getpid()})" in done.stderr


def test_folder_that_can_not_be_written_is_locked_without_a_description(folder: Path) -> None:
    # root may write to every folder, but nobody can overwrite a folder with a file
    (folder / HOLDER).mkdir()
    with held(folder), pytest.raises(StackBusyError, match="another stackgen command"), stack_lock(folder):
        pass
    with stack_lock(folder) as is_locked:
        assert is_locked


def test_broken_stack_can_be_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[Path] = []
    monkeypatch.setattr(command, "down", lambda folder, volumes: stopped.append(folder))
    (folder / "stack.yaml").write_text("models: [")
    assert main(["down", str(folder)]) == 0
    assert stopped == [folder]


def test_file_system_without_locks_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(handle: int, operation: int) -> None:
        # what NFS answers for a folder (Linux, nfs_flock)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert main(["render", str(folder), "--no-validate"]) == 0
    assert "does not support file locks. Run only one stackgen command at a time" in capsys.readouterr().err


def test_new_folder_stays_only_if_something_is_written(folder: Path) -> None:
    target = folder / "a" / "b"
    assert main(["render", str(folder / "absent.yaml"), "-o", str(target)]) == 2
    assert not (folder / "a").exists()
    assert main(["render", str(folder), "-o", str(target), "--no-validate"]) == 0
    assert (target / "compose.yaml").exists()
    assert not (target / HOLDER).exists()


def _replace_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.mkdir()


@pytest.mark.parametrize("change", [os.rmdir, _replace_folder], ids=["removed", "replaced"])
def test_folder_that_is_replaced_before_it_is_locked_is_locked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    folder, flock = tmp_path / "stack", fcntl.flock
    folder.mkdir()
    changes = iter([change])

    def lock(handle: int, operation: int) -> None:
        flock(handle, operation)
        for one in changes:
            one(folder)

    monkeypatch.setattr(fcntl, "flock", lock)
    with stack_lock(folder, "render", create=True) as is_locked:
        assert is_locked
        assert folder.is_dir() and find_holder(folder)
