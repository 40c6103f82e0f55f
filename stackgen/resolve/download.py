"""The download service: downloads all weights once, before any engine starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from stackgen.engines.base import SCRIPTS, Context, Engine, storage_mount
from stackgen.images.tags import context_assets, download_image
from stackgen.plan import Asset, Bind, Dependency, EnvRef, Service, Tmpfs

__all__ = ["HF_TOKEN", "download_arguments", "download_assets", "with_download"]

DOWNLOAD = "download"
# the user of vLLM's CUDA image, and not 1000, which on many machines is a person who could read the process's memory
STORE_OWNER = "2000:0"
# A file, because Compose 2.40 can't put a secret from the environment into a read-only container (measured)
HF_TOKEN = EnvRef("HF_TOKEN_FILE", default="/dev/null")  # public models need no token


def download_arguments(contexts: Sequence[tuple[Engine, Context]]) -> tuple[str, ...]:
    """Arguments of `download.py` for all models from the Hub, without duplicates; empty if all models are local."""
    # replica 0 is enough, because all replicas load the same files
    requests = [
        engine.download_arguments(one.spec) for engine, context in contexts for one in context.replicas if not one.index
    ]
    return tuple(argument for group in dict.fromkeys(requests) for argument in group)


def with_download(
    services: Sequence[Service], contexts: Sequence[tuple[Engine, Context]], arguments: tuple[str, ...]
) -> list[Service]:
    """Returns the download service and `services`; those that load from the model storage wait for it."""
    service = _download(*contexts[0], arguments)
    # if several services use an image, only one may build it
    if any(one.build and one.image == service.image for one in services):
        service = replace(service, build=None)
    wanted = {
        one.service: engine.download_arguments(one.spec) for engine, context in contexts for one in context.replicas
    }
    return [service, *(_wait_for_download(one, wanted.get(one.name, ())) for one in services)]


def download_assets(service: Service) -> tuple[Asset, ...]:
    """Returns the build context of the download service's image, unless an engine's services use that image too."""
    context = service.build.context if service.build else ""
    return context_assets("download") if context == download_image()[1].context else ()


def _wait_for_download(service: Service, weights: tuple[str, ...]) -> Service:
    """Delays the start of an engine that loads `weights` from the model storage until the download is complete."""
    if not any(getattr(mount, "target", "") == "/models" for mount in service.mounts):
        return service
    waits = (Dependency(DOWNLOAD, "service_completed_successfully"), *service.depends_on)
    return replace(service, depends_on=waits, weights=weights)


def _download(engine: Engine, context: Context, arguments: tuple[str, ...]) -> Service:
    stack, site = context.stack, context.site
    image, build = engine.download_image(context)
    environment: list[tuple[str, str | EnvRef]] = [
        ("HF_HUB_CACHE", f"{site.models_dir()}/hub"),
        ("HF_XET_CACHE", f"{site.models_dir()}/xet"),
        ("HOME", site.home_dir()),
    ]
    # in a container, download.py finds the secret by itself
    if not site.uses_containers:
        environment.append(("HF_TOKEN_PATH", "/run/secrets/hf_token"))
    if stack.storage.hub_endpoint:
        environment.append(("HF_ENDPOINT", stack.storage.hub_endpoint))
    user, entrypoint, capabilities = _identity(context, image)
    return Service(
        name=DOWNLOAD,
        role="download",
        engine=engine.name,
        comment="Downloads the weights, then exits. Skips models that are already in the storage",
        image=image,
        build=build,
        pull=build is None,
        entrypoint=entrypoint,
        command=arguments,
        environment=tuple(environment),
        mounts=(Bind("./scripts", SCRIPTS), storage_mount(stack, site, read_only=False), Tmpfs("/tmp", "mode=1777")),
        secrets=("hf_token",),
        user=user,
        cap_add=capabilities,
    )


def _identity(context: Context, image: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """User, entrypoint and capabilities of the service.

    By default, the container starts as root, and download.py becomes the user who owns the store. Upstream's images of
    vLLM 0.32 and stackgen's own images start as root; an image from the stack file may not.
    """
    stack, script = context.stack, ("python3", context.site.script("download.py"))
    if user := stack.storage.user:
        # without capabilities, root can't write into another user's folder, or read another user's token (mode 0600)
        capability = "DAC_OVERRIDE" if stack.storage.path else "DAC_READ_SEARCH"
        return user, script, (capability,) if re.match(r"0*(:|$)|root", user) else ()
    if not context.site.uses_containers:
        return "", script, ()
    # the claim belongs to the group of the pods
    if context.site.is_cluster:
        return STORE_OWNER, script, ()
    chosen = any(replica.spec.image == image for replica in context.replicas)
    # a folder of the host keeps its owner; Docker creates a new volume for root
    owner, capabilities = ("keep", ()) if stack.storage.path else (STORE_OWNER, ("CHOWN",))
    return "0:0" if chosen else "", (*script, "--owner", owner), (*capabilities, "SETGID", "SETUID")
