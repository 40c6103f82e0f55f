"""Find the folder and the runtime that a command applies to."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from stackgen.errors import StackgenError
from stackgen.stack.folder import Stack, find_stack_file, open_stack
from stackgen.targets.kubernetes import FOLDER

__all__ = ["find_cluster_stack", "find_runtime", "stack_folder"]


def find_cluster_stack(stack: str) -> Stack | None:
    """Returns the stack in the file or folder `stack` if it is for a cluster, and otherwise None. Raises SpecError."""
    folder = (find_stack_file(stack) or Path(stack) / "stack.yaml").parent
    # for containers, a command such as `down` must work with any stack.yaml
    if not (folder / FOLDER / "kustomization.yaml").exists():
        return None
    opened = open_stack(stack)
    return opened if opened.site.is_cluster else None


def stack_folder(stack: str) -> Path:
    """Returns the folder of the rendered stack for the argument `stack`. Raises StackgenError if there is none."""
    folder = (find_stack_file(stack) or Path(stack) / "stack.yaml").parent
    if not (folder / "compose.yaml").exists() and not (folder / ".stackgen").exists():
        if (folder / FOLDER / "kustomization.yaml").exists():
            # the target was chosen with the option --target only
            raise StackgenError(
                f"{folder} contains Kubernetes manifests, but its stack.yaml has the target compose",
                "write `target: kubernetes` into stack.yaml, or run `stackgen render` for containers",
            )
        raise StackgenError(f"{folder} contains no rendered stack", "run `stackgen render`, which writes one")
    return folder


def find_runtime(args: Namespace, folder: Path) -> str:
    """Returns --runtime if given, else `process` if the stack runs or last ran as processes, else `compose`."""
    if args.runtime:
        return str(args.runtime)
    # without a state file, nothing ran as processes here, so there is no need to query Docker
    if not (folder / ".stackgen" / "state.json").exists():
        return "compose"
    # few stacks get here, and loading the rules of `diagnose` takes longer than a short command
    from stackgen.runtimes.observation.evidence import last_ran_as_processes
    from stackgen.runtimes.process.lifecycle import process_status

    try:
        return "process" if last_ran_as_processes(open_stack(args.stack).plan, folder) else "compose"
    # stack.yaml may be invalid by now, and `down` must still work
    except StackgenError:
        running = any(one.state in ("running", "waiting", "restarting") for one in process_status(folder))
        return "process" if running else "compose"
