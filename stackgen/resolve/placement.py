"""Decides which replica gets which GPUs.

Compose doesn't reserve GPUs exclusively: two services with `count: 1` both get GPU 0, and `deploy.replicas: 2` puts
both replicas on the same GPUs. So each replica is a service of its own. If more than one service needs GPUs, stackgen
replaces counts by indices that no model sets explicitly. The first replica of each model gets its GPUs first, in the
order of the file, then the second replica of each model, and so on. So an added replica moves no running replica.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from stackgen.errors import Mistake
from stackgen.plan import GpuRequest
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["Claim", "find_start_order", "find_unplaced", "place", "sharing_warnings"]

CDI = "nvidia.com/gpu="
# the most GPUs of one machine that NVIDIA built (DGX-2); an HGX board has 8. The field's own limit is 64
MAX_PER_REPLICA = 16
# engines without a limit for the memory of a GPU
UNLIMITED = {"fastchat": "FastChat", "llamacpp": "llama.cpp"}
# the NVIDIA runtime and the engines read these variables
VISIBLE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


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


def find_unplaced(stack: StackSpec, is_cluster: bool) -> list[Mistake]:
    """Errors about `gpus: auto` without a recorded place: `stack/placement_file.py` has replaced all others."""
    message = "the GPUs of `auto` are not chosen yet"
    hint = "run `stackgen plan`, which chooses the GPUs and records them in placement.yaml"
    if is_cluster:
        message, hint = (
            "`auto` is not available in a cluster, which chooses the GPUs itself",
            "set a count, for example `gpus: 1`",
        )
    return [Mistake(f"models[{index}].gpus", message, hint=hint) for index, model in enumerate(stack.models)
            if model.gpus == "auto"]  # fmt: skip


def find_start_order(
    requests: Mapping[tuple[int, int], GpuRequest | None],
) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Returns the replicas that each replica waits for, both as (model, replica): the previous user of each GPU.

    vLLM measures free memory while it starts. If another engine allocates memory on the same GPU meanwhile, the
    measurement is wrong, and vLLM fails (vllm-project/vllm issue 10533).
    """
    waits: dict[tuple[int, int], set[tuple[int, int]]] = {}
    previous: dict[str, tuple[int, int]] = {}
    # first replicas first, as in `_spread`: the order doesn't change if a replica is added
    for key in sorted(requests, key=lambda key: (key[1], key[0])):
        request = requests[key]
        for id in request.ids if request else ():
            if id in previous:
                waits.setdefault(key, set()).add(previous[id])
            previous[id] = key
    return waits


def sharing_warnings(stack: StackSpec, requests: Mapping[tuple[int, int], GpuRequest | None]) -> list[str]:
    """Warnings about models that share a GPU without a limit, and about `share_gpus` of models that share no GPU.

    Counts give each replica GPUs of its own. llama.cpp has no flag for a share. FastChat 0.2.36 passes --max-gpu-memory
    to Transformers only with several GPUs (`load_model` in fastchat/model/model_adapter.py).
    """
    users: dict[str, set[int]] = {}
    for (model, _), request in requests.items():
        for id in request.ids if request else ():
            users.setdefault(id, set()).add(model)
    sharing = {model for models in users.values() if len(models) > 1 for model in models}
    indices = [id for id in users if id.removeprefix(CDI).isdigit()]
    uuids = [id for id in users if id.removeprefix(CDI).startswith("GPU-")]
    found = []
    if indices and uuids and len({model for id in (*indices, *uuids) for model in users[id]}) > 1:
        found = [
            f"{uuids[0]} may be the GPU {' or '.join(indices)} of another model: `render` can't compare UUIDs with "
            "indices. List the GPUs of all models in one way; on the machine itself, `stackgen doctor` compares them"
        ]
    found += [
        f"models[{index}].gpu_memory_utilization does not limit {UNLIMITED[model.engine]}, which takes the memory that "
        "it needs: stackgen only adds up the shares. `stackgen fit` compares what the model needs with its share"
        for index, model in enumerate(stack.models)
        if index in sharing and model.engine in UNLIMITED
    ]
    return found + [
        f"models[{index}].share_gpus has no effect: no other model uses the GPUs of {model.model}. To put models on "
        "the same GPU, give them the same indices, for example `gpus: [0]` for both"
        for index, model in enumerate(stack.models)
        if model.share_gpus and index not in sharing
    ]


def _claims(index: int, model: ModelSpec, mistakes: list[Mistake]) -> list[Claim]:
    path, replicas, gpus = f"models[{index}].gpus", model.replicas, model.gpus
    mistakes += _find_visible_devices(index, model)
    if isinstance(gpus, int) and gpus > MAX_PER_REPLICA:
        mistakes.append(
            Mistake(
                path,
                f"{gpus} GPUs for each replica are more than one machine has, but with Compose a stack runs on one "
                "machine",
                hint="set `gpus` to the number of GPUs on one machine. On a cluster, set `target: kubernetes`, which "
                "splits a replica across several nodes",
            )
        )
    if gpus == "all":
        if replicas > 1:
            mistakes.append(
                Mistake(path, f"`all` can't be divided among {replicas} replicas", hint="list the GPU indices")
            )
        # a single claim, so that this error causes no other errors
        return [Claim(index, 0, count=-1)]
    if isinstance(gpus, int):
        return [Claim(index, replica, count=gpus) for replica in range(replicas)]
    if gpus == "auto":
        # reported by `find_unplaced`
        return [Claim(index, replica) for replica in range(replicas)]
    gpus = tuple(id.removeprefix(CDI) for id in gpus)  # `0` and its CDI name are the same GPU
    each, rest = divmod(len(gpus), replicas)
    if rest:
        mistakes.append(
            Mistake(
                path,
                f"the number of GPUs ({len(gpus)}) can't be divided evenly among {replicas} replicas",
                hint=f"use {replicas}, {2 * replicas}, … GPUs",
            )
        )
    return [Claim(index, one, ids=gpus[one * each : (one + 1) * each]) for one in range(replicas)]


def _find_visible_devices(index: int, model: ModelSpec) -> Iterator[Mistake]:
    for name in VISIBLE:
        value = model.extra_env.get(name)
        # an empty value, and the runtime's `void`, show no GPU
        if value in (None, "", "void", "none", "-1"):
            continue
        # the value of a variable in .env is unknown here
        wanted = f"[{value}]" if isinstance(value, str) and re.fullmatch(r"\d+(,\d+)*", value) else "[0]"
        yield Mistake(
            f"models[{index}].extra_env.{name}",
            "contradicts `gpus`: a container sees only the GPUs in `gpus`, and numbers them from 0",
            hint=f"remove the variable, and set for example `gpus: {wanted}`",
        )


def _spread(claims: Sequence[Claim], mistakes: list[Mistake]) -> list[Claim]:
    """Replaces counts by the lowest indices that no model claims explicitly."""
    taken = {id for claim in claims for id in claim.ids}
    free = (str(index) for index in count() if str(index) not in taken)
    # the index of a UUID is unknown, so a count could get the same GPU
    uuids = sorted(id for id in taken if not id.isdigit())
    if uuids and any(claim.count > 0 for claim in claims):
        first = next(claim for claim in claims if claim.count > 0)
        mistakes.append(
            Mistake(f"models[{first.model}].gpus",
                    f"a GPU count can't be combined with {uuids[0]}, whose index is unknown",
                    hint="list the GPUs of all models as indices or UUIDs")
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
                    hint="give each model its own GPUs, or set `share_gpus: true` on all these models",
                )
            )
        # by default, each engine assumes that it has the GPU for itself
        elif None in shares:
            mistakes.append(
                Mistake(
                    path,
                    f"{who} share GPU {id}, so each of these models needs gpu_memory_utilization",
                    hint="for example 0.45 and 0.45",
                )
            )
        # rounded, because binary floats don't represent 0.45 exactly
        elif (total := round(sum(share or 0 for share in shares), 4)) > 0.95:
            mistakes.append(
                Mistake(path, f"{who} share GPU {id}, but their gpu_memory_utilization adds up to {total:g}",
                        hint="keep the sum of gpu_memory_utilization at 0.95 or below, because each process also needs "
                             "GPU memory beyond this fraction")
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
