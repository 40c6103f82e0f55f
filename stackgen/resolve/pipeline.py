"""From what the user wrote to what will run: names, GPUs, ports, the download service, and whole-stack checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from stackgen import engines
from stackgen.engines.base import SCRIPTS, Context, Engine, Part, Replica, served_names, storage_mount
from stackgen.errors import Mistake, SpecError
from stackgen.images.tags import unpinned
from stackgen.plan import Asset, Bind, Dependency, EnvRef, Logging, Plan, Role, Service, Site, Tmpfs, Volume
from stackgen.resolve.addons import gateway, monitoring, webui
from stackgen.resolve.placement import place
from stackgen.spec import ModelSpec, StackSpec, is_local

__all__ = ["resolve"]

DOWNLOAD = "download"
# each builds on what those before it made
ADDONS = (gateway, monitoring, webui)
# Of a file, as Compose can't put a secret from the environment into a container whose root is read-only; the empty
# device stands in where there is no token, so that public models need none
HF_TOKEN = EnvRef("HF_TOKEN_FILE", default="/dev/null")


def resolve(stack: StackSpec, site: Site, source: str = "stack.yaml") -> Plan:
    """The plan of `stack` at `site`. Raises SpecError with every mistake of the whole stack, not only the first."""
    requests, mistakes = place(stack, explicit=gateway.wanted(stack, site))
    mistakes += _names(stack)
    replicas: dict[str, list[Replica]] = {}
    # an engine's own services, such as FastChat's `fastchat-api`, keep their names when a model is called `api`
    taken = {f"{model.engine}-{role}" for model in stack.models for role in get_args(Role)}
    for index, model in enumerate(stack.models):
        services = _services(model, taken)
        for number in range(model.replicas):
            gpus = requests.get((index, number))
            count = 0 if gpus is None else (len(gpus.ids) or gpus.count)
            replicas.setdefault(model.engine, []).append(
                Replica(
                    spec=model,
                    service=services[number],
                    index=number,
                    gpus=gpus,
                    gpu_count=None if count == -1 or (gpus and gpus.ids[-1:] == ("nvidia.com/gpu=all",)) else count,
                    path=f"models[{index}]",
                )
            )
    # behind a gateway no engine has a port on this machine
    take_port = _ports(stack, site, mistakes) if not gateway.wanted(stack, site) else lambda _: 0
    contexts = [
        (engines.get(name), Context(stack, site, tuple(members), take_port)) for name, members in replicas.items()
    ]
    for engine, context in contexts:
        mistakes += engine.mistakes(context)
    for addon in ADDONS:
        mistakes += addon.mistakes(stack, site)
    if mistakes:
        raise SpecError(source, mistakes)
    parts = [engine.plan(context) for engine, context in contexts]
    if mistakes:  # a port can turn out to be taken twice only now
        raise SpecError(source, mistakes)
    plan = _assemble(stack, site, contexts, parts)
    for addon in ADDONS:
        plan = addon.extend(stack, site, plan)
    return plan


def _assemble(stack: StackSpec, site: Site, contexts: list[tuple[Engine, Context]], parts: list[Part]) -> Plan:
    wanted = [engine.downloads(one.spec) for engine, context in contexts for one in context.replicas if not one.index]
    words = dict.fromkeys(wanted)
    flat = tuple(word for group in words for word in group)
    download = bool(flat) and not stack.storage.offline
    services = [service for part in parts for service in part.services]
    if download:
        services = [_waiting(service) for service in services]
        fetching = _download(stack, site, *contexts[0], flat)
        if any(service.build and service.image == fetching.image for service in services):
            fetching = replace(fetching, build=None)  # one service builds an image that several use
        services.insert(0, fetching)
    log = Logging(stack.logging.max_size, stack.logging.max_file)
    used = {mount.name for service in services for mount in service.mounts if isinstance(mount, Volume)}
    volumes = [("models", stack.storage.volume), *(volume for part in parts for volume in part.volumes)]
    assets = [asset for part in parts for asset in part.assets]
    if download:
        assets.append(Asset("images/common/download.py", "scripts/download.py"))
    return Plan(
        name=stack.name,
        services=tuple(replace(service, logging=log) for service in services),
        endpoints=tuple(replace(endpoint, exposed=_exposed(stack)) for part in parts for endpoint in part.endpoints),
        volumes=tuple(dict.fromkeys(volume for volume in volumes if volume[0] in used)),
        networks=tuple(network for part in parts for network in part.networks),
        secrets=(("hf_token", HF_TOKEN),) if download else (),
        assets=tuple(sorted(set(assets), key=lambda asset: asset.path)),
        warnings=(*_warnings(stack, site), *(warning for part in parts for warning in part.warnings)),
    )


def _waiting(service: Service) -> Service:
    """Engines that load from the Hub's cache start when the download is complete."""
    if not any(getattr(mount, "target", "") == "/models" for mount in service.mounts):
        return service
    return replace(service, depends_on=(Dependency(DOWNLOAD, "service_completed_successfully"), *service.depends_on))


def _download(stack: StackSpec, site: Site, engine: Engine, context: Context, words: tuple[str, ...]) -> Service:
    image, build = engine.downloader(context)
    environment: list[tuple[str, str | EnvRef]] = [
        ("HF_HUB_CACHE", f"{site.models_dir()}/hub"),
        ("HF_XET_CACHE", f"{site.models_dir()}/xet"),
        ("HF_TOKEN_PATH", "/run/secrets/hf_token"),
        ("HOME", site.home_dir()),
    ]
    if stack.storage.hub_endpoint:
        environment.append(("HF_ENDPOINT", stack.storage.hub_endpoint))
    user = stack.storage.user or "0:0"
    return Service(
        name=DOWNLOAD, role="download", engine=engine.name,
        comment="Fetches the weights once and ends; what is in the storage already is not asked for again",
        image=image, build=build, pull=build is None,
        entrypoint=("python3", site.script("download.py")),
        command=words,
        environment=tuple(environment),
        mounts=(Bind("./scripts", SCRIPTS), storage_mount(stack, site, read_only=False), Tmpfs("/tmp", "mode=1777")),
        secrets=("hf_token",),
        user=user,
        # root without capabilities can't read a token of mode 0600, nor write into a folder, that somebody else owns
        cap_add=("DAC_OVERRIDE" if stack.storage.path else "DAC_READ_SEARCH",) if user.startswith("0") else (),
    )  # fmt: skip


def _services(model: ModelSpec, taken: set[str]) -> list[str]:
    """The replicas' service names, unique in the stack; from the leading name: `vllm-llama-3-2-1b-instruct`.

    The first has no number, so that a second replica renames, and with it restarts, nothing.
    """
    name = re.sub(r"[^a-z0-9]+", "-", served_names(model)[0].rpartition("/")[2].lower()).strip("-")[:40]
    base = slug = f"{model.engine}-{name or 'model'}".rstrip("-")  # type: ignore[attr-defined]
    number = 2
    while not taken.isdisjoint(names := [slug if n == 0 else f"{slug}-{n + 1}" for n in range(model.replicas)]):
        slug, number = f"{base}-{number}", number + 1
    taken.update(names)
    return names


def _ports(stack: StackSpec, site: Site, mistakes: list[Mistake]) -> Callable[[int | None], int]:
    beside = (*monitoring.ports(stack, site).values(), *webui.ports(stack, site).values())
    explicit = [*(model.port for model in stack.models if model.port), *beside]
    taken: set[int] = set()

    def take(wanted: int | None) -> int:
        port = wanted or stack.port
        while not wanted and (port in taken or port in explicit):
            port += 1
        if port in taken:
            mistakes.append(Mistake("models", f"port {port} is given to two endpoints", "give each its own"))
        if port > 65535:
            mistakes.append(Mistake("port", "no port is left below 65536", "start lower"))
        taken.add(port)
        return port

    return take


def _names(stack: StackSpec) -> list[Mistake]:
    """One name must not mean two models of one engine; replicas of one model share theirs."""
    mistakes = []
    seen: dict[tuple[str, str], int] = {}
    for index, model in enumerate(stack.models):
        for name in served_names(model):
            first = seen.setdefault((model.engine, name), index)
            if first != index:
                mistakes.append(
                    Mistake(f"models[{index}].served_names", f"{name!r} is served by models[{first}] already",
                            "set served_names, or use replicas for copies of one model")
                )  # fmt: skip
    return mistakes


def _exposed(stack: StackSpec) -> bool:
    return not stack.bind.startswith("127.") and stack.bind not in ("::1", "[::1]")


def _warnings(stack: StackSpec, site: Site) -> list[str]:
    warnings = []
    # which is such a proxy
    if _exposed(stack) and not gateway.wanted(stack, site):
        warnings.append(
            f"ports are open on {stack.bind}; the key guards /v1 only, other paths answer without one: "
            "let the gateway stand before them (gateway: true), or a proxy of your own with an allow-list of paths"
        )
    for model in stack.models:
        if not is_local(model.model) and not model.revision:
            warnings.append(
                f"{model.model} has no revision: a commit keeps two machines from serving different weights"
            )
        warnings += unpinned(model.image)
    return warnings
