"""Decides which replica gets which GPUs.

Compose doesn't reserve GPUs exclusively: two services with `count: 1` both get GPU 0, and `deploy.replicas: 2` puts
both replicas on the same GPUs. So each replica is a service of its own. If more than one service needs GPUs, stackgen
replaces counts by indices that no model sets explicitly. The first replica of each model gets its GPUs first, in the
order of the file, then the second replica of each model, and so on. So an added replica moves no running replica.
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
    """The GPUs of one replica: explicit `ids`, or a `count` (0: none, -1: all). `model` and `replica` are indices."""

    model: int
    replica: int
    ids: tuple[str, ...] = ()
    count: int = 0


def place(stack: StackSpec, explicit: bool = False) -> tuple[dict[tuple[int, int], GpuRequest | None], list[Mistake]]:
    """Returns GPU requests by (model, replica) and errors: overlaps, uneven shares, `all` next to other models.

    With `explicit`, a single count becomes indices too, so that adding a replica later doesn't change it.
    """
    mistakes: list[Mistake] = []
    claims = [claim for index, model in enumerate(stack.models) for claim in _claims(index, model, mistakes)]
    with_gpus = [claim for claim in claims if claim.ids or claim.count]
    # a count is safe only if a single service needs GPUs: that service gets the first GPUs
    if len(with_gpus) > 1 or explicit:
        claims = _spread(claims, mistakes)
    mistakes += _find_overlaps([claim for claim in claims if claim.ids or claim.count], stack)
    requests = {(claim.model, claim.replica): _request(claim, stack.gpu_driver) for claim in claims}
    return requests, mistakes


def _claims(index: int, model: ModelSpec, mistakes: list[Mistake]) -> list[Claim]:
    path, replicas, gpus = f"models[{index}].gpus", model.replicas, model.gpus
    if gpus == "all":
        if replicas > 1:
            mistakes.append(
                Mistake(path, f"`all` can't be divided among {replicas} replicas", hint="list the GPU indices")
            )
        # a single claim, so that this error causes no other errors
        return [Claim(index, 0, count=-1)]
    if isinstance(gpus, int):
        return [Claim(index, replica, count=gpus) for replica in range(replicas)]
    gpus = tuple(id.removeprefix(CDI) for id in gpus)  # `0` and its CDI name are the same GPU
    each, rest = divmod(len(gpus), replicas)
    if rest:
        mistakes.append(
            Mistake(
                path,
                f"{len(gpus)} GPUs can't be divided evenly among {replicas} replicas",
                hint=f"list {replicas}, {2 * replicas}, … GPUs",
            )
        )
    return [Claim(index, one, ids=gpus[one * each : (one + 1) * each]) for one in range(replicas)]


def _spread(claims: Sequence[Claim], mistakes: list[Mistake]) -> list[Claim]:
    """Replaces counts by the lowest indices that no model claims explicitly."""
    taken = {id for claim in claims for id in claim.ids}
    free = (str(index) for index in count() if str(index) not in taken)
    # the index of a UUID is unknown, so a count could get the same GPU
    uuids = sorted(id for id in taken if not id.isdigit())
    if uuids and any(claim.count > 0 for claim in claims):
        first = next(claim for claim in claims if claim.count > 0)
        mistakes.append(
            Mistake(f"models[{first.model}].gpus", f"a count can't be combined with {uuids[0]}, whose index is unknown",
                    hint="list indices or UUIDs for all models")
        )  # fmt: skip
    assigned = {}
    # all first replicas before all second replicas: adding a replica must not move GPUs of running services
    for claim in sorted(claims, key=lambda claim: (claim.replica, claim.model)):
        ids = tuple(next(free) for _ in range(claim.count)) if claim.count > 0 else claim.ids
        assigned[claim.model, claim.replica] = Claim(claim.model, claim.replica, ids, min(claim.count, 0))
    return [assigned[claim.model, claim.replica] for claim in claims]


def _find_overlaps(claims: Sequence[Claim], stack: StackSpec) -> list[Mistake]:
    mistakes = []
    users: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.count == -1 and len(claims) > 1:
            mistakes.append(
                Mistake(
                    f"models[{claim.model}].gpus", "`all` leaves no GPU for other models", hint="list the GPU indices"
                )
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
                    path,
                    f"GPU {id} is used by {who}",
                    hint="give each model its own GPUs, or set share_gpus: true on all of them",
                )
            )
        # by default, each engine assumes that it has the GPU for itself
        elif None in shares:
            mistakes.append(
                Mistake(
                    path,
                    f"{who} share GPU {id}, so each needs gpu_memory_utilization",
                    hint="for example 0.45 and 0.45",
                )
            )
        # rounded, because binary floats don't represent 0.45 exactly
        elif (total := round(sum(share or 0 for share in shares), 4)) > 0.95:
            mistakes.append(
                Mistake(path, f"{who} share GPU {id}, but their gpu_memory_utilization adds up to {total:g}",
                        hint="keep the sum at 0.95 or below, because each process needs memory outside its share")
            )  # fmt: skip
    return mistakes


def _request(claim: Claim, driver: str) -> GpuRequest | None:
    if not claim.ids and not claim.count:
        return None
    # CDI has no counts, only device names
    if driver == "cdi":
        ids = claim.ids or (("all",) if claim.count == -1 else tuple(map(str, range(claim.count))))
        return GpuRequest("cdi", ids=tuple(id if "=" in id else f"{CDI}{id}" for id in ids))
    return GpuRequest("amd" if driver == "amd" else "nvidia", count=claim.count, ids=claim.ids)
