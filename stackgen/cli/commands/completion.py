"""`stackgen completion`: prints a completion script for a shell."""

from __future__ import annotations

from argparse import Namespace

from stackgen.cli.commands.output import print_data

__all__ = ["completion"]


def completion(args: Namespace) -> int:
    """Runs `stackgen completion`: prints a script for the shell to source."""
    # no other command needs argcomplete
    from argcomplete.shell_integration import shellcode

    script = shellcode(["stackgen"], shell=args.shell)
    print_data(args, {"shell": args.shell, "script": script}, [script])
    return 0
