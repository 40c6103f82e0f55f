"""`stackgen completion SHELL`: a script for the shell to source."""

from __future__ import annotations

from argparse import Namespace

__all__ = ["completion"]


def completion(args: Namespace) -> int:
    """`stackgen completion SHELL`: a script for the shell to source."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["stackgen"], shell=args.shell))
    return 0
