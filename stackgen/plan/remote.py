"""Another machine of a stack on several machines."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Remote"]


@dataclass(frozen=True, slots=True)
class Remote:
    """Another machine of the stack, whose gateway at `address` and `port` has `replicas` of a model of `engine`."""

    host: str
    address: str
    port: int
    engine: str
    replicas: int
