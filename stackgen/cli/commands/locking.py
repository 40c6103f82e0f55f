"""The lock of a stack, for the commands that change the stack."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stackgen.cli.commands.output import note
from stackgen.stack.folder import find_stack_file
from stackgen.stack.lock import stack_lock
from stackgen.stack.registry import state_folder

__all__ = ["lock_folder", "lock_loads", "lock_stack"]


@contextmanager
def lock_folder(args: Namespace, folder: Path, create: bool = False) -> Iterator[None]:
    """Holds the lock of the stack in `folder`. Raises StackBusyError if another command holds it longer than --wait.

    `create`: creates the folder, and removes it again if nothing was written to it.
    """
    with stack_lock(folder, args.command, wait=args.wait, on_wait=note, create=create) as is_locked:
        if not is_locked:
            note(
                f"warning: the file system of {folder} does not support file locks. Run only one stackgen command at a "
                "time on this stack"
            )
        yield


@contextmanager
def lock_stack(args: Namespace, where: str) -> Iterator[None]:
    """Holds the lock of the stack in the file or folder `where`. Read stack.yaml within the block, not before."""
    with lock_folder(args, (find_stack_file(where) or Path(where) / "stack.yaml").parent):
        yield


@contextmanager
def lock_loads(args: Namespace) -> Iterator[None]:
    """Holds this user's lock for loading bundles. Raises StackBusyError if another load holds it longer than --wait.

    Two loads at once would take back each other's images after an error.
    """
    folder = state_folder().with_name("loads")
    with ExitStack() as stack:
        try:
            stack.enter_context(
                stack_lock(folder, args.command, wait=args.wait, on_wait=note, create=True, doing="loading a bundle")
            )
        except OSError as error:
            note(f"warning: {folder} can't be written ({error.strerror}). Run only one `bundle load` at a time")
        yield
