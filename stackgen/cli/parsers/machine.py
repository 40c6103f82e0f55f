"""The arguments of the commands about the whole machine: its stacks, its stores of weights, and its GPUs."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands
from stackgen.cli.parsers.completers import complete_with, stored

__all__ = ["add_machine_commands"]


def add_machine_commands(subcommands: Subcommands) -> None:
    """Adds list, storage and gpus."""
    listed = subcommands.add("list", "list the stacks on this machine: state, URL, GPUs, disk and folder", stack=False)
    listed.add_argument(
        "folders", nargs="*", metavar="FOLDER",
        help="also search these folders for stacks, for example of other users",
    )  # fmt: skip
    listed.add_argument(
        "--forget", action="store_true",
        help="forget stacks without containers whose folder does not exist, even if the folder may be on a disk that "
        "is not mounted",
    )  # fmt: skip
    storage = subcommands.add(
        "storage", "list the disk space of models and caches, and remove those that no stack uses", stack=False
    )
    # `storage remove --yes ORG/MODEL`
    storage.options_first = True
    storage.add_argument(
        "action", choices=("list", "remove"),
        help="`list`: show the volumes and folders with models and compiled code, and the stacks that use them. "
        "`remove`: delete models, compiled code, or a complete volume. Nothing that a stack uses is removed, even if "
        "the stack is down",
    )  # fmt: skip
    complete_with(storage.add_argument(
        "names", nargs="*", metavar="NAME",
        help="models (organization/name), compiled code (code/name) or volumes to remove",
    ), stored)  # fmt: skip
    storage.add_argument(
        "--unused", action="store_true", help="remove all models and compiled code that no known stack uses"
    )
    storage.add_argument(
        "--stacks", action="append", metavar="FOLDER",
        help="also keep what the stacks in FOLDER use, for example the stacks of another user; repeatable",
    )  # fmt: skip
    storage.add_argument("--yes", action="store_true", help="remove without asking")
    subcommands.add(
        "gpus", "list the GPUs of this machine, and the stacks, containers and processes that hold them", stack=False
    )
