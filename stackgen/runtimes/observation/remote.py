"""Programs of another machine, run over SSH: only those that read, such as nvidia-smi."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from stackgen.errors import MachineError
from stackgen.runtimes.observation.gpu_tools import Runner

__all__ = ["ssh_runner"]

# seconds; ssh itself gives up connecting earlier
TIMEOUT, CONNECT_TIMEOUT = 20.0, 5
# man ssh(1): "or with 255 if an error occurred"
SSH_FAILED = 255


def ssh_runner(host: str, address: str) -> Runner:
    """Runs commands at `address`, the machine `host` of the stack, with the SSH configuration of this user.

    Raises MachineError if the machine can't be reached, or wants a password.
    """

    def run(command: Sequence[str]) -> tuple[int, str] | None:
        words = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT}", "--", address,
                 shlex.join(command)]  # fmt: skip
        hint = f"`ssh {address} nvidia-smi` must work without a password. Otherwise, list the GPUs: `--machine FILE`"
        try:
            done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        except FileNotFoundError:
            raise MachineError(f"the GPUs of {host} can't be read, because this machine has no `ssh`", hint) from None
        except subprocess.TimeoutExpired:
            raise MachineError(f"{host} ({address}) does not answer over SSH", hint) from None
        if done.returncode == SSH_FAILED:
            reason = (done.stderr.strip().splitlines() or ["ssh failed"])[-1]
            raise MachineError(f"{host} ({address}) can't be reached over SSH: {reason}", hint)
        # 127: the shell found no such program
        return None if done.returncode == 127 else (done.returncode, done.stdout or done.stderr)

    return run
