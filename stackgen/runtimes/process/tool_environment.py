"""Environments of Python programs that stackgen runs but does not depend on: one folder for each tool and version.

The folder is made when the tool is needed for the first time, below `$XDG_CACHE_HOME/stackgen/tools`.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from stackgen.errors import MachineError

__all__ = ["find_environment", "make_environment", "tool_folder"]

# written last, so a folder of a stopped installation is not used
MARKER = ".complete"
# the CPU build: the default build of PyTorch brings 5 GB of libraries for GPUs, which a load generator never uses
CPU_TORCH = ("--index-url", "https://download.pytorch.org/whl/cpu", "--retries", "1", "torch")


def tool_folder(name: str, version: str) -> Path:
    """The folder of a tool for this version of Python; it may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    python = f"py{sys.version_info[0]}{sys.version_info[1]}"
    return Path(cache) / "stackgen" / "tools" / f"{name}-{version}-{python}"


def find_environment(name: str, version: str) -> Path | None:
    """The interpreter of a tool's complete environment; None if it must be made first."""
    folder = tool_folder(name, version)
    python = folder / "bin" / "python"
    return python if (folder / MARKER).is_file() and os.access(python, os.X_OK) else None


def make_environment(name: str, version: str, progress: Callable[[str], None], *, torch: bool = False) -> Path:
    """Installs the tool with pip, and returns the interpreter. `torch`: first, the CPU build of PyTorch.

    Another process that does the same is waited for. Raises MachineError, with pip's last message.
    """
    folder = tool_folder(name, version)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{folder}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MachineError(f"{folder.parent} can't be written: {error.strerror or error}",
                           "set XDG_CACHE_HOME to a folder with 2 GB of free space") from None  # fmt: skip
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if python := find_environment(name, version):
            return python
        progress(f"installing {name} {version} in {folder} (once, about 2 GB)")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], folder,
             "install Python's venv module (Debian and Ubuntu: python3-venv)")  # fmt: skip
        python = folder / "bin" / "python"
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        if torch:
            # without that index, the next command takes the default build
            with suppress(MachineError):
                _run([*pip, *CPU_TORCH], folder, "")
        _run([*pip, f"{name}=={version}"], folder, "check this machine's connection to the package index, and its "
                                                   "free disk space, and run the command again. For a machine "
                                                   "without internet access, copy the folder from a machine with the "
                                                   "same path, system and Python")  # fmt: skip
        (folder / MARKER).touch()
        return python
    finally:
        os.close(handle)


def _run(command: Sequence[str], folder: Path, hint: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        output = (done.stderr + done.stdout).strip().splitlines()
        lines = [line for line in output if line.startswith("ERROR")] or output or [f"exit code {done.returncode}"]
        raise MachineError(f"{folder.name} can't be installed: {lines[-1].removeprefix('ERROR: ')}", hint)
