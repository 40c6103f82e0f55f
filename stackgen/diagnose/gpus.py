"""The cards of the machine that a stack runs on, as evidence: their memory, who holds it, and what is wrong with them.

`stackgen.runtimes.observation.gpu_tools` reads them. None is unknown, which is never taken for "good".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Card", "CardProcess", "GpuState", "card_lines", "held", "summary"]

GIB = 2**30


@dataclass(frozen=True, slots=True)
class CardProcess:
    """A process that holds memory of a card; `memory` in bytes, None where the driver doesn't say."""

    pid: int
    name: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """One card. Memory is bytes, `compute` the compute capability, `ecc_errors` uncorrected ones since the boot."""

    index: int
    uuid: str
    name: str
    memory_total: int | None = None
    memory_used: int | None = None
    memory_free: int | None = None
    compute: str | None = None
    mig: bool | None = None
    ecc_errors: int | None = None
    processes: tuple[CardProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuState:
    """What is known of the cards. `unknown` is why nothing is, `error` what the tool said instead of an answer.

    `cards` is empty where the tool answered that there are none. `xids` are the driver's errors in the kernel's log,
    the newest last; None where this user may not read that log.
    """

    cards: tuple[Card, ...] | None = None
    driver: str | None = None
    cuda: str | None = None
    unknown: str = ""
    error: str = ""
    xids: tuple[str, ...] | None = None

    def used_by(self, ids: Sequence[str]) -> tuple[Card, ...]:
        """The cards with these indices or (beginnings of) UUIDs; all where `ids` names none."""
        cards = self.cards or ()
        return tuple(one for one in cards if any(_is(one, id) for id in ids)) if ids else cards

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and for reports."""
        cards = self.cards
        return {
            "unknown": self.unknown, "error": self.error, "driver": self.driver, "cuda": self.cuda,
            "xids": None if self.xids is None else list(self.xids),
            "cards": None if cards is None else [
                {
                    "index": one.index, "uuid": one.uuid, "name": one.name, "memory_total": one.memory_total,
                    "memory_used": one.memory_used, "memory_free": one.memory_free, "compute_capability": one.compute,
                    "mig": one.mig, "ecc_errors": one.ecc_errors,
                    "processes": [{"pid": by.pid, "name": by.name, "memory": by.memory} for by in one.processes],
                }
                for one in cards
            ],
        }  # fmt: skip


def summary(state: GpuState) -> tuple[str, ...]:
    """The state as lines for a person."""
    if state.unknown:
        return (f"GPUs: unknown: {state.unknown}",)
    xids = tuple(f"  {line}" for line in (state.xids or ())[-3:])
    if state.error:
        return (f"GPUs: unknown: nvidia-smi says: {state.error}", *xids)
    if not state.cards:
        return ("GPUs: none", *xids)
    head = f"GPUs: driver {state.driver or 'unknown'}, which serves CUDA {state.cuda or 'unknown'}"
    return (head, *(f"  {line}" for one in state.cards for line in card_lines(one)), *xids)


def card_lines(card: Card) -> tuple[str, ...]:
    """A card, and who holds its memory."""
    told = f"GPU {card.index} ({card.name}, capability {card.compute or 'unknown'}): {_gib(card.memory_used)} used of "
    told += f"{_gib(card.memory_total)}, {_gib(card.memory_free)} free"
    if card.ecc_errors:
        told += f", {card.ecc_errors} uncorrected memory errors"
    if card.mig:
        told += ", split by MIG"
    return (told, *(f"  held by {_who(one)}" for one in _largest(card)))


def held(cards: Sequence[Card]) -> str:
    """Who holds the memory of `cards`, the largest first; "" where nobody is seen."""
    many = len(cards) > 1
    found = [(one.memory or 0, f"{_who(one)}{f' on GPU {card.index}' if many else ''}")
             for card in cards for one in card.processes]  # fmt: skip
    return ", ".join(text for _, text in sorted(found, key=lambda pair: -pair[0])[:4])


def _largest(card: Card) -> list[CardProcess]:
    return sorted(card.processes, key=lambda one: -(one.memory or 0))[:6]


def _who(process: CardProcess) -> str:
    # the driver says [N/A] for processes of other PID namespaces
    size = f", {_gib(process.memory)}" if process.memory is not None else ""
    return f"{process.name} (pid {process.pid}{size})"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.1f} GiB"


def _is(card: Card, id: str) -> bool:
    return str(card.index) == id if re.fullmatch(r"\d+", id) else bool(id) and card.uuid.startswith(id)
