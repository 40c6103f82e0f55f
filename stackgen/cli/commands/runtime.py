"""Which folder and which runtime a command means."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.runtimes.observation.evidence import ran_as_processes
from stackgen.runtimes.process.lifecycle import process_status
from stackgen.stack.folder import open_stack, stack_file

__all__ = ["folder_of", "runtime_of"]


def folder_of(stack: str) -> Path:
    """The folder of the rendered stack that the argument `stack` names. Raises StackgenError where there is none."""
    folder = (stack_file(stack) or Path(stack) / "stack.yaml").parent
    if not (folder / "compose.yaml").exists() and not (folder / ".stackgen").exists():
        raise StackgenError(f"{folder} holds no rendered stack", "`stackgen render` writes one")
    return folder


def runtime_of(args: Namespace, folder: Path) -> str:
    """What was asked for; else processes where the stack's run, or ran last. A stack file may be broken by now."""
    if args.runtime:
        return str(args.runtime)
    if not (folder / ".stackgen" / "state.json").exists():
        return "compose"

    try:
        return "process" if ran_as_processes(open_stack(args.stack).plan, folder) else "compose"
    except StackgenError:
        running = any(one.state in ("running", "waiting", "restarting") for one in process_status(folder))
        return "process" if running else "compose"
