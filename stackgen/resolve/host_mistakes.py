"""Errors of a stack on several machines: unknown hosts, missing and repeated addresses, and one-machine features."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

from stackgen.engines.base import served_names
from stackgen.errors import Mistake
from stackgen.plan import Site
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["find_host_mistakes", "hosts_of", "is_split"]


def hosts_of(model: ModelSpec, stack: StackSpec) -> tuple[str, ...]:
    """The machines that run `model`: without `host`, the first one."""
    return model.host or (stack.front,)


def is_split(model: ModelSpec) -> bool:
    """Whether one replica of `model` runs on several machines."""
    return bool(getattr(model, "split_hosts", False))


def find_host_mistakes(stack: StackSpec, site: Site) -> list[Mistake]:
    """Finds the errors of `hosts` and of the fields that name a host."""
    if not stack.hosts:
        found = [Mistake("host", "has no effect without `hosts`", hint="remove it")] if stack.host else []
        return (
            found
            + [
                Mistake(f"models[{index}].host", "needs `hosts`", hint="add `hosts`, or remove the field")
                for index, model in enumerate(stack.models)
                if model.host
            ]
            + [
                Mistake(f"models[{index}].split_hosts", "needs `hosts`", hint="add `hosts`, or remove the field")
                for index, model in enumerate(stack.models)
                if is_split(model)
            ]
        )
    if site.is_cluster or not site.uses_containers:
        what = "a cluster chooses the nodes itself" if site.is_cluster else "local processes run on one machine"
        return [Mistake("hosts", f"works only with Docker Compose: {what}", hint="remove `hosts` and `host`")]
    found = [*_find_in_hosts(stack), *_find_equal_names(stack)]
    known = ", ".join(stack.hosts)
    for index, model in enumerate(stack.models):
        found += _find_in_model(stack, f"models[{index}]", model, known)
    return found


def _find_in_hosts(stack: StackSpec) -> Iterator[Mistake]:
    if stack.host and stack.host not in stack.hosts:
        yield Mistake(
            "host", f"{stack.host!r} is not a machine in `hosts`", hint=f"choose one of {', '.join(stack.hosts)}"
        )
    if stack.hosts[stack.front].port:
        hint = "remove the field, and set `port` of the stack"
        yield Mistake(f"hosts.{stack.front}.port", "has no effect on the first host", hint=hint)
    if stack.gateway is not None and not stack.gateway.enabled:
        hint = "remove `gateway: false`: only the gateway of the first host reaches the engines of the others"
        yield Mistake("gateway", "can't be disabled with `hosts`", hint=hint)
    addresses: dict[Any, str] = {}
    for name, host in stack.hosts.items():
        if host.address:
            first = addresses.setdefault(ip_address(host.address), name)
            if first != name:
                yield Mistake(f"hosts.{name}.address", f"{host.address} is also the address of {first}",
                              hint="give each host its own address")  # fmt: skip
        elif name != stack.front:
            yield Mistake(
                f"hosts.{name}.address",
                "is missing",
                hint=("run `ip -brief address` on that host, which lists its addresses"),
            )
        models = [model for model in stack.models if name in hosts_of(model, stack)]
        if not models and name != stack.front:
            yield Mistake(f"hosts.{name}", "runs no model", hint=f"set `host: {name}` for a model, or remove the host")
        wanted = sum(_count_gpus(model) for model in models)
        if host.gpus is not None and wanted > host.gpus:
            yield Mistake(f"hosts.{name}.gpus", f"is {host.gpus}, but the models on this host need {wanted}",
                          hint="move a model to another host, or reduce `gpus` or `replicas`")  # fmt: skip


def _find_in_model(stack: StackSpec, path: str, model: Any, known: str) -> Iterator[Mistake]:
    for host in model.host:
        if host not in stack.hosts:
            yield Mistake(f"{path}.host", f"{host!r} is not a machine in `hosts`", hint=f"choose one of {known}")
    if len(set(model.host)) < len(model.host):
        yield Mistake(f"{path}.host", "lists a host twice", hint="`replicas` is the number of replicas on each host")
    if is_split(model):
        yield from _find_in_split(stack, path, model)
    if getattr(model, "cache_aware", False) and len(model.host) > 1:
        hint = "set `gateway: {routing: prefix}`, which has the same effect on several hosts"
        yield Mistake(f"{path}.cache_aware", "works on one host only", hint=hint)


def _find_in_split(stack: StackSpec, path: str, model: Any) -> Iterator[Mistake]:
    """Errors of one replica on several machines."""
    if len(model.host) < 2:
        hint = "list them in `host`, for example `host: [box1, box2]`, or remove `split_hosts`"
        yield Mistake(f"{path}.split_hosts", "needs at least two machines", hint=hint)
    if model.replicas > 1:
        hint = "remove `replicas`, and write the model again with other machines for a second replica"
        what = "can't be combined with `split_hosts`: all machines together are one replica"
        yield Mistake(f"{path}.replicas", what, hint=hint)
    if model.gpus in ("all", "auto"):
        what = f"`{model.gpus}` can't be combined with `split_hosts`"
        yield Mistake(f"{path}.gpus", what, hint="set the number of GPUs of each machine")
    if model.networks:
        what = "has no effect with `split_hosts`: the containers use their machine's network"
        yield Mistake(f"{path}.networks", what, hint="remove the field")
    for name in model.host:
        # for the others, a missing address is reported anyway
        if name == stack.front and name in stack.hosts and not stack.hosts[name].address:
            what = f"is missing, but required, because {path} is split across this host and others"
            hint = "run `ip -brief address` on that host, which lists its addresses"
            yield Mistake(f"hosts.{name}.address", what, hint=hint)


def _find_equal_names(stack: StackSpec) -> Iterator[Mistake]:
    """Names of two models on different hosts: equal models are replicas, and all others need names of their own."""
    owners: dict[str, int] = {}
    for index, model in enumerate(stack.models):
        for name in served_names(model):
            first = owners.setdefault(name, index)
            other: Any = stack.models[first]
            # those on one host, and those of two engines, are reported where one machine's are
            if first == index or other.engine != model.engine or set(model.host) & set(other.host):
                continue
            if served_names(other) != served_names(model):
                yield Mistake(
                    f"models[{index}].served_names", f"{name!r} is already served by models[{first}]",
                    hint=("if both models are replicas of one model, give them the same list of names; otherwise, "
                     "give them different names"),
                )  # fmt: skip


def _count_gpus(model: ModelSpec) -> int:
    if isinstance(model.gpus, tuple):
        return len(model.gpus)
    return model.gpus * model.replicas if isinstance(model.gpus, int) else 0
