"""What a stack keeps on disk: its weights with their store and repositories of the Hub, and its compiled code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stackgen import engines
from stackgen.stack.folder import Stack

__all__ = ["StackUse", "find_use"]


@dataclass(frozen=True, slots=True)
class StackUse:
    """A stack's store (`volume` or `path`, the other one is ""), and the repositories that it needs in the store.

    `code`: the folders of compiled code that its services use, as names without a path.
    """

    volume: str
    path: str
    repositories: frozenset[str]
    code: frozenset[str] = frozenset()

    @property
    def store(self) -> tuple[str, bool] | None:
        """The name of the volume, or the path, and whether it is a volume. None: nothing is on this machine."""
        return (self.path or self.volume, not self.path) if self.path or self.volume else None


def find_use(stack: Stack) -> StackUse:
    """What the stack file needs, whether the stack is up or down."""
    storage = stack.spec.storage
    path = str((stack.folder / os.path.expanduser(storage.path)).resolve()) if storage.path else ""
    roots = (dict(one.environment).get("VLLM_CACHE_ROOT") for one in stack.plan.services)
    code = frozenset(str(one).rstrip("/").rpartition("/")[2] for one in roots if one)
    return StackUse("" if path else storage.volume, path, frozenset(_repositories(stack)), code)


def _repositories(stack: Stack) -> Iterator[str]:
    for model in stack.spec.models:
        arguments = engines.get(model.engine).download_arguments(model)
        # also the adapters, which are repositories of their own
        yield from (value for flag, value in zip(arguments[::2], arguments[1::2], strict=True) if flag == "--model")
        # a local path may be a snapshot in the store's own cache
        parts = Path(model.model).parts
        yield from (one[8:].replace("--", "/", 1) for one in parts if one.startswith("models--"))
