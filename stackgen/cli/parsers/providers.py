"""The arguments of `stackgen providers`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands

__all__ = ["add_providers"]


def add_providers(subcommands: Subcommands) -> None:
    """Adds `stackgen providers`."""
    providers = subcommands.add(
        "providers",
        "list providers: their base URLs, where their API keys were found, and their supported features",
        stack=False,
    )
    # unlike in other commands, the stack may be missing: the providers are known without a stack
    providers.add_argument(
        "stack", nargs="?", default=".",
        help="also list the endpoints of this stack.yaml or endpoints.yaml, and look for keys in .env in the same "
        "folder (default: the current folder)",
    )  # fmt: skip
