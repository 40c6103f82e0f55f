"""The download service: fetches all weights once, before any engine starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stackgen.engines.base import SCRIPTS, Context, Engine, storage_mount
from stackgen.plan import Bind, Dependency, EnvRef, Service, Tmpfs

__all__ = ["HF_TOKEN", "downloads", "with_download"]

DOWNLOAD = "download"
# Of a file, as Compose can't put a secret from the environment into a container whose root is read-only; the empty
# device stands in where there is no token, so that public models need none
HF_TOKEN = EnvRef("HF_TOKEN_FILE", default="/dev/null")


def downloads(contexts: Sequence[tuple[Engine, Context]]) -> tuple[str, ...]:
    """Arguments of `download.py` for all that comes from the Hub, each model once; none where all models are local."""
    wanted = [engine.downloads(one.spec) for engine, context in contexts for one in context.replicas if not one.index]
    return tuple(argument for group in dict.fromkeys(wanted) for argument in group)


def with_download(
    services: Sequence[Service], contexts: Sequence[tuple[Engine, Context]], arguments: tuple[str, ...]
) -> list[Service]:
    """The download service, then `services`, those that load from the store waiting for it."""
    service = _download(*contexts[0], arguments)
    # one service builds an image that several use
    if any(one.build and one.image == service.image for one in services):
        service = replace(service, build=None)
    return [service, *(_waiting(one) for one in services)]


def _waiting(service: Service) -> Service:
    """Engines that load from the Hub's cache start when the download is complete."""
    if not any(getattr(mount, "target", "") == "/models" for mount in service.mounts):
        return service
    return replace(service, depends_on=(Dependency(DOWNLOAD, "service_completed_successfully"), *service.depends_on))


def _download(engine: Engine, context: Context, arguments: tuple[str, ...]) -> Service:
    stack, site = context.stack, context.site
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
        name=DOWNLOAD,
        role="download",
        engine=engine.name,
        comment="Fetches the weights once and ends; what is in the storage already is not asked for again",
        image=image,
        build=build,
        pull=build is None,
        entrypoint=("python3", site.script("download.py")),
        command=arguments,
        environment=tuple(environment),
        mounts=(Bind("./scripts", SCRIPTS), storage_mount(stack, site, read_only=False), Tmpfs("/tmp", "mode=1777")),
        secrets=("hf_token",),
        user=user,
        # root without capabilities can't read a token of mode 0600, nor write into a folder, that somebody else owns
        cap_add=("DAC_OVERRIDE" if stack.storage.path else "DAC_READ_SEARCH",) if user.startswith("0") else (),
    )
