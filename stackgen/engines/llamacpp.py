"""llama.cpp's service, one for each replica: images, command, flags, variables, health check and dialect.

Flags and variables: `llama-server --help` of build 11434. The CPU variant runs from stackgen's own image, the NVIDIA
variant from upstream's CUDA image. All paths except `/health` and `/v1/health` need the key.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from stackgen.engines._dialects import dialect_of
from stackgen.engines._llamacpp_context import context_size, describe_replica, warn_of_slots
from stackgen.engines._llamacpp_model import LlamaCppModel
from stackgen.engines._llamacpp_router import ROUTER_WATCH, find_router_mistakes, router_dialect
from stackgen.engines._llamacpp_template import warn_of_templates
from stackgen.engines._values import find_value_mistakes
from stackgen.engines._versions import find_version_mistakes, warn_of_versions
from stackgen.engines._watch import watch_environment
from stackgen.engines.base import (
    API_KEY,
    DRAIN_SECONDS,
    STOP_GRACE_PERIOD,
    Context,
    Part,
    Replica,
    engine_mounts,
    estimate_start_period,
    format_flags,
    has_read_only_root,
    health_check,
    image_user,
    model_download_arguments,
    served_names,
    supervisor_entrypoint,
)
from stackgen.errors import Mistake
from stackgen.flags.releases import image_of
from stackgen.images.tags import VERSIONS, context_assets, download_image, image_tag
from stackgen.plan import Asset, Build, Dialect, Endpoint, EnvRef, Port, Service
from stackgen.spec import is_local
from stackgen.spec.sources import gguf_parts

__all__ = ["ENGINE", "LlamaCppModel"]

BUILD = VERSIONS["llamacpp"]
PORT = 8080
# formats of other engines; names of GGUF files may have any other ending
OTHER_FORMATS = (".safetensors", ".safetensors.index.json", ".pth")


class LlamaCpp:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "llamacpp"
    Model = LlamaCppModel
    # what all versions share
    shared = Dialect(
        name="llamacpp",
        # tools/server/server.cpp
        api_paths=(
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/responses",
            "/v1/responses/input_tokens",
            "/v1/messages",
            "/v1/messages/count_tokens",
            "/v1/rerank",
            "/v1/audio/transcriptions",
        ),
        liveness_path="/health",
        unknown_model=(200, None),
        reports_first_name=True,
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "content"),
        context_flags=("--ctx-size", "-c"),
        slots_flags=("--parallel", "-np"),
    )  # fmt: skip
    dialect = dialect_of(shared)
    single_endpoint = False
    phases = (
        (r"load_model: loading model|loading model", "loading weights"),
        (r"warming up", "warming up"),
        (r"llama_server: listening on|server is listening", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """Plans one service and one endpoint per replica."""
        parts = [self._replica(replica, context) for replica in context.replicas]
        return Part(
            services=tuple(service for service, _ in parts),
            endpoints=tuple(endpoint for _, endpoint in parts),
            assets=(
                Asset("images/common/supervise.sh", "scripts/supervise.sh"),
                Asset("engines/llamacpp_health.sh", "scripts/llamacpp_health.sh"),
                Asset("engines/llamacpp_drain.sh", "scripts/llamacpp_drain.sh"),
                Asset("engines/llamacpp_watch.sh", "scripts/llamacpp_watch.sh"),
                *(
                    (Asset(f"engines/{ROUTER_WATCH}", f"scripts/{ROUTER_WATCH}"),)
                    if any(one.spec.models_dir for one in context.replicas)
                    else ()
                ),
                *(context_assets("llamacpp") if any(map(_is_own_image, context.replicas)) else ()),
            ),
            warnings=(
                *warn_of_versions(self.name, context),
                *(
                    text
                    for one in context.replicas
                    if one.index == 0
                    for text in (
                        *warn_of_slots(one.spec, one.path),
                        *warn_of_templates(one.spec, one.path, context.site.find_on_disk(one.spec.model)),
                    )
                ),
            ),
        )

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds Hub repositories without a file name, and GPUs without an image."""
        found = [*find_value_mistakes(self.name, context), *find_version_mistakes(context)]
        # report each error once per model, not once per replica
        for replica in (one for one in context.replicas if one.index == 0):
            found += find_router_mistakes(replica, context.site)
            if not (is_local(replica.spec.model) or replica.spec.file or replica.spec.models_dir):
                found.append(
                    Mistake(
                        f"{replica.path}.file",
                        "is missing, and llama.cpp loads only GGUF files",
                        hint="set `file` to a GGUF file of the Hub repository (`--file` of `init` and `render`); the "
                        "names of such repositories often end with -GGUF",
                    )
                )
            if (replica.spec.file or "").lower().endswith(OTHER_FORMATS):
                hint = "set `file` to a GGUF file, or use vLLM with the repository of the original model"
                found.append(
                    Mistake(f"{replica.path}.file", "is no GGUF file, and llama.cpp loads only GGUF files", hint)
                )
            if replica.spec.dtype:
                found.append(
                    Mistake(
                        f"{replica.path}.dtype",
                        "has no effect: the GGUF file determines the data types",
                        hint="remove dtype, or set `file` to a file with another quantization",
                    )
                )
            if replica.gpus and replica.gpus.driver == "amd" and not replica.spec.image:
                found.append(
                    Mistake(
                        f"{replica.path}.image",
                        "is required for AMD GPUs",
                        hint="set `image` to a ROCm or Vulkan image",
                    )
                )
        return found

    def download_image(self, context: Context) -> tuple[str, Build | None]:
        """Stackgen's own image, if a replica uses it anyway; otherwise an image that only downloads."""
        # upstream's images don't have `hf`, and a build of llama-server takes minutes
        own = next(filter(_is_own_image, context.replicas), None)
        return (_image(own), _build(own)) if own else download_image()

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments for the one GGUF file, or for all its parts."""
        # a repository may have dozens of quantizations, and the engine needs one
        return model_download_arguments(model, (gguf_parts(model.file or ""),))

    def _replica(self, replica: Replica, context: Context) -> tuple[Service, Endpoint]:
        model, stack, site = replica.spec, context.stack, context.site
        address, port = site.listen(replica.service, PORT, host_port=replica.host_port)
        own, router = _is_own_image(replica), ("router",) if model.models_dir else ()
        image = _image(replica)
        # on the CPU, llama-server would only warn that it ignores the flag
        layers = model.gpu_layers if model.gpu_layers is not None else ("all" if replica.gpus else None)
        command = (
            "llama-server",
            *format_flags((
                *self._source(model, context),
                ("--host", address),
                ("--port", port),
                ("--ctx-size", context_size(model)),
                ("--parallel", model.max_num_seqs),
                ("--n-gpu-layers", layers),
                ("--no-ui", True),
            )),
            *model.extra_args,
        )  # fmt: skip
        # the key comes from the environment, because --api-key would show it in the process list
        environment: dict[str, str | EnvRef] = {"LLAMA_API_KEY": API_KEY, "HOME": site.home_dir()}
        if site.uses_containers:
            # llama-server aborts the requests in flight on SIGTERM, so supervise.sh runs this command before
            script = site.script("llamacpp_drain.sh")
            environment["STACKGEN_DRAIN"] = " ".join(
                ["/bin/sh", script, f"http://127.0.0.1:{port}", str(DRAIN_SECONDS), *router]
            )
        watch = ROUTER_WATCH if router else "llamacpp_watch.sh"
        environment |= watch_environment(model, site, self.name, f"http://127.0.0.1:{PORT}", watch)
        service = Service(
            name=replica.service,
            role="engine",
            engine=self.name,
            comment=describe_replica(replica),
            image=image,
            # one service builds the image and the others use it
            build=_build(replica) if own and replica is _first_with(image, context) else None,
            # stackgen's own images are in no registry
            pull=not own,
            entrypoint=supervisor_entrypoint(site),
            command=command,
            # the user's variables come last and take precedence
            environment=tuple((environment | dict(site.gpu_environment(replica.gpus)) | model.extra_env).items()),
            gpus=replica.gpus,
            mounts=engine_mounts(model, stack, site),
            ports=(Port(stack.bind, replica.host_port, port),),
            # the health check waits up to 55 s for a token
            health=health_check(
                ("/bin/sh", site.script("llamacpp_health.sh"), f"http://127.0.0.1:{port}", *router),
                estimate_start_period(replica, site),
                timeout=60,
                ready_path="/health",
            ),
            restart=stack.restart,
            init=True,
            user=model.user or image_user(image),
            read_only=has_read_only_root(model, replica.gpus),
            shm_size=model.shm_size or "",
            ipc=model.ipc or "",
            cpuset=model.cpuset or "",
            stop_grace_period=STOP_GRACE_PERIOD,
        )
        dialect = dialect_of(self.shared, model.engine_version)
        endpoint = Endpoint(
            replica.service,
            service=replica.service,
            base_url=site.public_url(stack.bind, replica.host_port),
            models=served_names(model),
            dialect=router_dialect(dialect) if router else dialect,
            max_concurrent_requests=(model.max_num_seqs or 0) * (model.models_max or 1),
        )
        return service, endpoint

    def _source(self, model: Any, context: Context) -> tuple[tuple[str, Any], ...]:
        """The flags that select the model, or the folder of a router."""
        if model.models_dir:
            # one model by default: llama-server's own default is 4, whose sum the memory may not hold
            return (("--models-dir", context.site.local_path(model.models_dir)),
                    ("--models-max", model.models_max or 1), ("--offline", True))  # fmt: skip
        return (("--model", self._file(model, context)), ("--alias", ",".join(served_names(model))))

    def _file(self, model: Any, context: Context) -> str:
        """Path of the GGUF file: a mounted file, or a file below the link that `download.py` creates."""
        if is_local(model.model):
            return context.site.local_path(model.model) + (f"/{model.file}" if model.file else "")
        # a snapshot's name is its commit, which is unknown here; quoted, because a branch may contain a slash
        return (
            f"{context.site.models_dir()}/by-name/{model.model}/{quote(model.revision or 'main', safe='')}/{model.file}"
        )


def _is_own_image(replica: Replica) -> bool:
    # stackgen's own image has no CUDA build
    return not replica.spec.image and not replica.gpus


def _image(replica: Replica) -> str:
    version = replica.spec.engine_version or BUILD
    if replica.spec.image:
        return str(replica.spec.image)
    return image_of("llamacpp", version, "nvidia") if replica.gpus else image_tag("llamacpp", version, "cpu")


def _build(replica: Replica) -> Build:
    version = replica.spec.engine_version
    return Build("./llamacpp", (("LLAMA_BUILD", version),) if version else ())


def _first_with(image: str, context: Context) -> Replica:
    return next(one for one in context.replicas if _image(one) == image)


ENGINE = LlamaCpp()
