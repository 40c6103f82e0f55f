"""The arguments of `stackgen providers`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Subcommands

__all__ = ["add_providers"]


def add_providers(subcommands: Subcommands) -> None:
    """Adds `stackgen providers`."""
    providers = subcommands.add(
        "providers", "list providers: base URL, where the API key was found, supported features", stack=False
    )
    # unlike in other commands, the stack may be missing: the providers are known without a stack
    providers.add_argument(
        "stack", nargs="?", default=".",
        help="stack.yaml or endpoints.yaml whose endpoints and .env to include (default: the current folder)",
    )  # fmt: skip
