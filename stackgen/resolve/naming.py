"""Names each replica's service, uniquely in the stack."""

from __future__ import annotations

import re
from typing import get_args

from stackgen.engines.base import served_names
from stackgen.errors import Mistake
from stackgen.plan import Role
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["name_services"]


def name_services(stack: StackSpec) -> tuple[dict[tuple[int, int], str], list[Mistake]]:
    """Returns service names by (model, replica), and errors for served names that two models of an engine share."""
    # reserves names of an engine's own services: a model called `api` must not take `fastchat-api`
    taken = {f"{model.engine}-{role}" for model in stack.models for role in get_args(Role)}
    names: dict[tuple[int, int], str] = {}
    for index, model in enumerate(stack.models):
        for replica, name in enumerate(_replica_names(model, taken)):
            names[index, replica] = name
            taken.add(name)
    return names, _find_ambiguous_names(stack)


def _replica_names(model: ModelSpec, taken: set[str]) -> list[str]:
    """`vllm-llama-3-2-1b-instruct`, `…-2`: engine and first served name, none of them in `taken`."""
    name = re.sub(r"[^a-z0-9]+", "-", served_names(model)[0].rpartition("/")[2].lower()).strip("-")[:40]
    base = slug = f"{model.engine}-{name or 'model'}".rstrip("-")  # type: ignore[attr-defined]
    number = 2
    # replica 1 has no number: adding a second replica must not rename, and so restart, the first container
    while not taken.isdisjoint(names := [slug if n == 0 else f"{slug}-{n + 1}" for n in range(model.replicas)]):
        slug, number = f"{base}-{number}", number + 1
    return names


def _find_ambiguous_names(stack: StackSpec) -> list[Mistake]:
    """Finds names that two models or LoRA adapters of one engine share. Replicas of one model may share names."""
    mistakes = []
    # per engine only: the gateway routes across engines, and has its own check
    seen: dict[tuple[str, str], int] = {}
    adapters: dict[str, str] = {}
    for index, model in enumerate(stack.models):
        for name in served_names(model):
            first = seen.setdefault((model.engine, name), index)
            if first != index:
                mistakes.append(
                    Mistake(
                        f"models[{index}].served_names",
                        f"{name!r} is already served by models[{first}]",
                        hint="set different `served_names`. To run several copies of one model, set `replicas`",
                    )
                )
    # after all models, whose names count first
    for index, model in enumerate(stack.models):
        for number, lora in enumerate(getattr(model, "lora_adapters", ())):
            path = f"models[{index}].lora_adapters[{number}]"
            owner = seen.get((model.engine, lora.name), adapters.get(lora.name))
            if owner is not None:
                mistakes.append(
                    Mistake(
                        f"{path}.name",
                        f"{lora.name!r} is already served by {f'models[{owner}]' if isinstance(owner, int) else owner}",
                        hint="choose another name, because clients select the adapter by its name",
                    )
                )
            adapters.setdefault(lora.name, path)
    return mistakes
