"""The download service: downloads all weights once, before any engine starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stackgen.engines.base import SCRIPTS, Context, Engine, storage_mount
from stackgen.plan import Bind, Dependency, EnvRef, Service, Tmpfs

__all__ = ["HF_TOKEN", "download_arguments", "with_download"]

DOWNLOAD = "download"
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
    return [service, *(_wait_for_download(one) for one in services)]


def _wait_for_download(service: Service) -> Service:
    """Delays the start of an engine that loads from the model storage until the download is complete."""
    if not any(getattr(mount, "target", "") == "/models" for mount in service.mounts):
        return service
    return replace(service, depends_on=(Dependency(DOWNLOAD, "service_completed_successfully"), *service.depends_on))


def _download(engine: Engine, context: Context, arguments: tuple[str, ...]) -> Service:
    stack, site = context.stack, context.site
    image, build = engine.download_image(context)
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
        name=DOWNLOAD,
        role="download",
        engine=engine.name,
        comment="Downloads the weights, then exits. Skips models that are already in the storage",
        image=image,
        build=build,
        pull=build is None,
        entrypoint=("python3", site.script("download.py")),
        command=arguments,
        environment=tuple(environment),
        mounts=(Bind("./scripts", SCRIPTS), storage_mount(stack, site, read_only=False), Tmpfs("/tmp", "mode=1777")),
        secrets=("hf_token",),
        user=user,
        # without capabilities, root can't read another user's token (mode 0600) or write into another user's folder
        cap_add=("DAC_OVERRIDE" if stack.storage.path else "DAC_READ_SEARCH",) if user.startswith("0") else (),
    )
