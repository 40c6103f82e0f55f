"""The arguments of `stackgen plan`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands, add_lock_argument

__all__ = ["add_plan"]


def add_plan(subcommands: Subcommands) -> None:
    """Adds `stackgen plan`."""
    plan = subcommands.add("plan", "choose GPUs for the models with `gpus: auto`, by their estimated memory")
    plan.add_argument(
        "--machine", metavar="FILE",
        help="YAML file that lists the GPUs of another machine, or of all `hosts` of the stack (default: the GPUs of "
        "this machine)",
    )  # fmt: skip
    plan.add_argument(
        "--ssh", action="store_true", help="read the GPUs of the stack's `hosts` with nvidia-smi over SSH"
    )
    plan.add_argument("--print-machine", action="store_true", help="print this machine's GPUs as a file for --machine")
    plan.add_argument("--svg", metavar="FILE", help="write a picture of the chosen GPUs to FILE (`-`: standard output)")
    plan.add_argument("--dry-run", action="store_true", help="show the chosen GPUs, and don't record them")
    plan.add_argument(
        "--repack", action="store_true", help="ignore recorded choices, so that running models may move to other GPUs"
    )
    plan.add_argument(
        "--ignore-busy", action="store_true",
        help="also choose GPUs that other stacks, containers or processes use now. Use this only if these GPUs will be "
        "free when the stack starts",
    )  # fmt: skip
    plan.add_argument("--offline", action="store_true", help="don't contact the Hugging Face Hub")
    add_lock_argument(plan)
