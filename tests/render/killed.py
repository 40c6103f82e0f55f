"""Kills commands with SIGKILL before each of their changes on disk, and runs a next command on what is left.

Run as a program, because the forks need a process with one thread: `python -m tests.render.killed FOLDER < JSON`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stackgen.cli import main as cli

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.symlink", "shutil.rmtree"}


def kill_before_change(number: int, folder: Path) -> None:
    """Kills this process before its change `number` of a file in `folder`, whichever code makes it."""
    counter = itertools.count(1)

    def step() -> None:
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(values[2], int) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (writes or event in CHANGES) and str(values[0]).startswith(str(folder)):
            step()

    sys.addaudithook(hook)
    fsync = os.fsync

    def counted(handle: int) -> None:
        step()
        fsync(handle)

    os.fsync = counted


def forked(run: Callable[[], int]) -> int | None:
    """The exit code of `run` in a process of its own; None if it was killed."""
    if not (pid := os.fork()):
        code = 99
        try:
            code = run()
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def quiet(*args: str) -> tuple[int, str]:
    """The exit code and the output of a command in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = cli.main(list(args))
    return code, out.getvalue()


def snapshot(folder: Path) -> dict[str, str]:
    return {str(one.relative_to(folder)): one.read_text() for one in sorted(folder.rglob("*")) if one.is_file()}


def main() -> None:
    root, case = Path(sys.argv[1]), json.load(sys.stdin)
    start, results = root / "start", []
    start.mkdir()
    for text in case["before"]:
        (start / "stack.yaml").write_text(text)
        assert quiet("render", str(start), "--no-validate")[0] == 0
    (start / "stack.yaml").write_text(case["then"])
    if case.get("env_gone"):
        (start / ".env").unlink(missing_ok=True)
    for number in itertools.count(1):
        folder = root / f"killed{number}"
        shutil.copytree(start, folder)

        def killed_render(number: int = number, folder: Path = folder) -> int:
            kill_before_change(number, folder)
            return quiet("render", str(folder), "--no-validate")[0]

        code = forked(killed_render)
        left = snapshot(folder)
        if case.get("next"):
            (folder / "stack.yaml").write_text(case["next"])
        next_code, output = quiet(case["command"], str(folder), *case.get("options", ()))
        results.append({"code": code, "left": left, "next_code": next_code, "output": output, "files": snapshot(folder),
                        "fresh": quiet("render", str(folder), "--no-validate", "--check")[0]})  # fmt: skip
        shutil.rmtree(folder)
        if code is not None:
            break
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
