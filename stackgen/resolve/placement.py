"""Which replica gets which GPUs.

Compose reserves nothing exclusively: two services with `count: 1` both get GPU 0, and `deploy.replicas: 2` puts
both copies on the same cards. So each replica is a service of its own, and as soon as more than one service wants
GPUs, counts become explicit indices around those that are claimed explicitly: first for the first replica of each
model in the order of the file, then for the second ones, …, so that a replica more moves none that runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from stackgen.errors import Mistake
from stackgen.plan import GpuRequest
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["Claim", "place"]

CDI = "nvidia.com/gpu="


@dataclass(frozen=True, slots=True)
class Claim:
    """One replica's GPUs: explicit `ids`, a `count` (0: none, -1: all), and the model that claims them."""

    model: int
    replica: int
    ids: tuple[str, ...] = ()
    count: int = 0


def place(stack: StackSpec, explicit: bool = False) -> tuple[dict[tuple[int, int], GpuRequest | None], list[Mistake]]:
    """GPU requests by (model, replica), and what can't be: overlaps, uneven shares, `all` beside others.

    With `explicit` a lone count becomes indices too, so that nothing changes for it when others come.
    """
    mistakes: list[Mistake] = []
    claims = [claim for index, model in enumerate(stack.models) for claim in _claims(index, model, mistakes)]
    wanting = [claim for claim in claims if claim.ids or claim.count]
    if len(wanting) > 1 or explicit:
        claims = _spread(claims, mistakes)
    mistakes += _overlaps([claim for claim in claims if claim.ids or claim.count], stack)
    requests = {(claim.model, claim.replica): _request(claim, stack.gpu_driver) for claim in claims}
    return requests, mistakes


def _claims(index: int, model: ModelSpec, mistakes: list[Mistake]) -> list[Claim]:
    path, replicas, gpus = f"models[{index}].gpus", model.replicas, model.gpus
    if gpus == "all":
        if replicas > 1:
            mistakes.append(Mistake(path, f"`all` can't be shared out among {replicas} replicas", "list the indices"))
        return [Claim(index, 0, count=-1)]
    if isinstance(gpus, int):
        return [Claim(index, replica, count=gpus) for replica in range(replicas)]
    gpus = tuple(id.removeprefix(CDI) for id in gpus)  # `0` and its CDI name are one card
    each, rest = divmod(len(gpus), replicas)
    if rest:
        mistakes.append(
            Mistake(
                path,
                f"{len(gpus)} GPUs can't be shared out evenly among {replicas} replicas",
                f"list {replicas}, {2 * replicas}, …",
            )
        )
    return [Claim(index, one, ids=gpus[one * each : (one + 1) * each]) for one in range(replicas)]


def _spread(claims: Sequence[Claim], mistakes: list[Mistake]) -> list[Claim]:
    """Counts become the lowest indices that nobody claims."""
    taken = {id for claim in claims for id in claim.ids}
    free = (str(index) for index in count() if str(index) not in taken)
    named = sorted(id for id in taken if not id.isdigit())
    if named and any(claim.count > 0 for claim in claims):
        first = next(claim for claim in claims if claim.count > 0)
        mistakes.append(
            Mistake(f"models[{first.model}].gpus", f"a count can't be placed beside {named[0]}, of unknown index",
                    "list indices or UUIDs for all models")
        )  # fmt: skip
    dealt = {}
    for claim in sorted(claims, key=lambda claim: (claim.replica, claim.model)):
        ids = tuple(next(free) for _ in range(claim.count)) if claim.count > 0 else claim.ids
        dealt[claim.model, claim.replica] = Claim(claim.model, claim.replica, ids, min(claim.count, 0))
    return [dealt[claim.model, claim.replica] for claim in claims]


def _overlaps(claims: Sequence[Claim], stack: StackSpec) -> list[Mistake]:
    mistakes = []
    users: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.count == -1 and len(claims) > 1:
            mistakes.append(
                Mistake(f"models[{claim.model}].gpus", "`all` leaves no GPU for the other models", "list the indices")
            )
        for id in claim.ids:
            users.setdefault(id, []).append(claim)
    for id, sharing in users.items():
        if len(sharing) < 2:
            continue
        specs = [stack.models[claim.model] for claim in sharing]
        path = f"models[{sharing[1].model}].gpus"
        who = " and ".join(f"models[{claim.model}]" for claim in sharing)
        shares = [spec.gpu_memory_utilization for spec in specs]
        if not all(spec.share_gpus for spec in specs):
            mistakes.append(
                Mistake(
                    path, f"GPU {id} is claimed by {who}", "give each its own, or set share_gpus: true on all of them"
                )
            )
        elif None in shares:
            mistakes.append(
                Mistake(path, f"{who} share GPU {id}, so each must say gpu_memory_utilization", "e.g. 0.45 and 0.45")
            )
        elif (total := round(sum(share or 0 for share in shares), 4)) > 0.95:
            mistakes.append(
                Mistake(path, f"{who} share GPU {id}, but their gpu_memory_utilization adds up to {total:g}",
                        "keep the sum at 0.95 or below: each process needs some memory beside its share")
            )  # fmt: skip
    return mistakes


def _request(claim: Claim, driver: str) -> GpuRequest | None:
    if not claim.ids and not claim.count:
        return None
    if driver == "cdi":
        ids = claim.ids or (("all",) if claim.count == -1 else tuple(map(str, range(claim.count))))
        return GpuRequest("cdi", ids=tuple(id if "=" in id else f"{CDI}{id}" for id in ids))
    return GpuRequest("amd" if driver == "amd" else "nvidia", count=claim.count, ids=claim.ids)
