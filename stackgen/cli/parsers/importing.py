"""The arguments of `stackgen import`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands

__all__ = ["add_import"]


def add_import(subcommands: Subcommands) -> None:
    """Adds import."""
    command = subcommands.add(
        "import",
        "write a stack.yaml from an existing command, Compose file, systemd unit or Helm values file",
        stack=False,
    )
    command.add_argument(
        "source", nargs="+", metavar="FILE|-|COMMAND",
        help="a file, a folder with a Compose file, several Compose files to merge, `-` for standard input, or a "
        "command: in quotes, or after `--`. Reads `docker run`, `vllm serve`, SGLang, `llama-server` and FastChat "
        "commands, scripts that contain such commands, Compose files, Dockerfiles, systemd units, and values of vLLM's "
        "production-stack",
    )  # fmt: skip
    command.add_argument(
        "-o", "--output", metavar="DIR",
        help="write DIR/stack.yaml, and DIR/.env with the keys and tokens of the source (default: print stack.yaml)",
    )  # fmt: skip
    command.add_argument("--force", action="store_true", help="overwrite DIR/stack.yaml if it exists")
    command.add_argument(
        "--diff", action="store_true",
        help="show each service of the source next to the service that stackgen renders for it, and write nothing",
    )  # fmt: skip
    command.add_argument(
        "-v", "--verbose", action="store_true", help="also list the settings that stackgen handles by itself"
    )
