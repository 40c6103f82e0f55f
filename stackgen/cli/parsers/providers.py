"""Words of `stackgen providers`."""

from __future__ import annotations

from stackgen.cli.parsers.base import Adder

__all__ = ["add_providers"]


def add_providers(add: Adder) -> None:
    """`providers`: the matrix, and where keys are found from here."""
    providers = add("providers", "list the providers: URL, key and where it is found, what they support", stack=False)
    providers.add_argument(
        "stack", nargs="?", default=".", help="stack or endpoints.yaml whose .env and endpoints count (default: here)"
    )
