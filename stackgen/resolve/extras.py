"""What a model adds to its containers: labels, groups, mounts, networks of other stacks, and files named in flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stackgen.plan import Bind, Network, Plan, Service, Site
from stackgen.spec import ModelSpec, StackSpec

__all__ = ["dollar_warnings", "split_local_path", "with_extras"]

# only these: an absolute path may be a path of the image
LOCAL_PREFIXES = ("./", "../", "~/")


def with_extras(plan: Plan, models: Mapping[str, ModelSpec], site: Site) -> Plan:
    """Returns the plan with the extras of each model. `models` maps the service of each replica to its model."""
    services = tuple(
        _extend(service, models[service.name], site) if service.name in models else service for service in plan.services
    )
    # only networks that a service joins, each once
    names = dict.fromkeys(name for model in models.values() for name in model.networks)
    networks = tuple(Network(name, external=True) for name in names)
    return replace(plan, services=services, networks=(*plan.networks, *networks))


def dollar_warnings(stack: StackSpec) -> list[str]:
    """Warnings about `$$`, which Compose reads as one `$`, and a stack file as two."""
    found = []
    for index, model in enumerate(stack.models):
        values = {f"labels.{name}": value for name, value in model.labels.items()}
        values |= {f"extra_env.{name}": value for name, value in model.extra_env.items()}
        values |= {f"extra_args[{number}]": value for number, value in enumerate(model.extra_args)}
        # the value is not repeated, because it may be the hash of a password
        found += [
            f"models[{index}].{place} contains `$$`, so the container gets two dollar signs. A stack file needs no "
            "doubled `$`, unlike a Compose file. To pass one dollar sign, write a single `$`"
            for place, value in values.items()
            if isinstance(value, str) and "$$" in value
        ]
    return found


def _extend(service: Service, model: ModelSpec, site: Site) -> Service:
    command, files = _mount_files(service.command, model.extra_args, site)
    binds = [Bind(site.host_path(one.source), one.target, one.read_only) for one in model.mounts]
    known = {getattr(mount, "target", "") for mount in service.mounts}
    binds += [file for file in dict.fromkeys(files) if file.target not in known]
    # a service without networks is on the default network, and must stay there
    networks = (*(service.networks or ("default",)), *model.networks) if model.networks else service.networks
    return replace(
        service,
        command=command,
        # before /tmp, which stays the last mount
        mounts=(*service.mounts[:-1], *binds, *service.mounts[-1:]),
        networks=networks,
        labels=tuple(model.labels.items()),
        group_add=model.group_add,
    )


def _mount_files(command: Sequence[str], extra: Sequence[str], site: Site) -> tuple[tuple[str, ...], list[Bind]]:
    """Replaces local paths in `extra`, the end of `command`, by the container's. Also returns the mounts."""
    if not extra:
        return tuple(command), []
    words, binds = [], []
    for word in extra:
        flag, path = split_local_path(word)
        if path:
            binds.append(Bind(site.host_path(path), site.local_path(path)))
            word = f"{flag}{site.local_path(path)}"
        words.append(word)
    return (*command[: -len(extra)], *words), binds


def split_local_path(word: str) -> tuple[str, str]:
    """Splits an argument into its start (`--flag=` or "") and the local path that is mounted; "" if it has none."""
    flag, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
    return (f"{flag}{equals}", value) if value.startswith(LOCAL_PREFIXES) else (word, "")
