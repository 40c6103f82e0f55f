"""`stackgen completion`: prints a completion script for a shell."""

from __future__ import annotations

from argparse import Namespace

__all__ = ["completion"]


def completion(args: Namespace) -> int:
    """Runs `stackgen completion`: prints a script for the shell to source."""
    # no other command needs argcomplete
    from argcomplete.shell_integration import shellcode

    print(shellcode(["stackgen"], shell=args.shell))
    return 0
