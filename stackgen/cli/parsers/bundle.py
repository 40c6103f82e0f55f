"""The arguments of `stackgen bundle`."""

from __future__ import annotations

import argparse
import re

from stackgen.cli.parsers.base import Subcommands, add_lock_argument

__all__ = ["add_bundle"]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def add_bundle(subcommands: Subcommands) -> None:
    """Adds `stackgen bundle`."""
    bundle = subcommands.add(
        "bundle", "pack a stack with images, weights and packages for a machine without Internet access, and load it",
        stack=False,
    )  # fmt: skip
    bundle.options_first = True
    bundle.add_argument(
        "action", choices=("create", "verify", "load", "diff"),
        help="`create`: write the bundle of a stack, or continue an interrupted run. `verify`: read every file of a "
        "bundle, and compare the digests. `load`: verify, then load images, weights and the stack, all or nothing. "
        "`diff`: compare two bundles, and exit with 1 if they differ",
    )  # fmt: skip
    bundle.add_argument(
        "paths", nargs="*", metavar="STACK|BUNDLE",
        help="for `create`: stack.yaml or its folder (default: the current folder). For `verify` and `load`: the "
        "folder of the bundle. For `diff`: the older and the newer bundle",
    )  # fmt: skip
    bundle.add_argument(
        "-o", "--output", dest="target", metavar="DIR",
        help="`create`: folder of the bundle (default: NAME.bundle). `load`: folder of the stack (default: NAME)",
    )  # fmt: skip
    bundle.add_argument(
        "--base", action="append", default=[], metavar="BUNDLE",
        help="an earlier bundle; repeatable. `create` leaves out its content; `verify` and `load` "
        "read the content from it",
    )  # fmt: skip
    bundle.add_argument("--progress", choices=("auto", "plain", "none"), default="auto", help="how to show progress")
    create = bundle.add_argument_group("only for the action `create`")
    create.add_argument(
        "--part-size", type=parse_size, default=0, metavar="SIZE",
        help="split the bundle into folders part-001, part-002, … of at most SIZE, for example 4GiB or 4.7GB",
    )  # fmt: skip
    create.add_argument(
        "--platform", metavar="OS/ARCH", type=_parse_platform,
        help="platform of the other machine, for example linux/arm64 (default: this machine's)",
    )  # fmt: skip
    create.add_argument(
        "--python", action="append", default=[], metavar="VERSION", type=_parse_python,
        help="version of Python on the other machine, for example 3.12; repeatable (default: this Python's)",
    )  # fmt: skip
    create.add_argument(
        "--dry-run", action="store_true",
        help="write nothing: list images, weights, packages with their sizes, the number of parts, and what must be "
        "pulled, built or downloaded first",
    )  # fmt: skip
    create.add_argument("--no-wheels", action="store_true", help="leave out stackgen and the packages that it needs")
    check = bundle.add_argument_group("only for the actions `verify` and `load`")
    check.add_argument("--expect", metavar="DIGEST", help="fail unless the bundle has this digest (`create` prints it)")
    load = bundle.add_argument_group("only for the action `load`")
    load.add_argument("--storage", metavar="DIR", help="write the weights into this folder, and set storage.path to it")
    load.add_argument(
        "--only", choices=("images", "weights", "stack"), action="append", default=[],
        help="load only this part of the bundle; repeatable (default: everything)",
    )  # fmt: skip
    load.add_argument(
        "--layout", metavar="DIR",
        help="load nothing; write the images into this new folder as an OCI image layout, for a registry",
    )  # fmt: skip
    add_lock_argument(bundle)


def parse_size(text: str) -> int:
    """Parses a size in bytes: `4GiB`, `700MB`, `4.7G`. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not match or match[2] not in UNITS or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4GiB or 700MB")
    return int(float(match[1]) * UNITS[match[2]])


def _parse_platform(text: str) -> str:
    if not re.fullmatch(r"linux/[a-z0-9]+(/[a-z0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a platform such as linux/amd64 or linux/arm64")
    return text


def _parse_python(text: str) -> str:
    if not re.fullmatch(r"3\.\d{1,2}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version such as 3.12")
    return text
