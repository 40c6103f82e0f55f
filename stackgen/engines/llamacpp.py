"""llama.cpp's server: one service per replica, serving a GGUF file.

Flags and variables: `llama-server --help` of build 11434. The CPU variant runs from stackgen's own image, the NVIDIA
variant from upstream's CUDA image. All paths except `/health` and `/v1/health` need the key.
"""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field

from stackgen.engines.base import (
    API_KEY,
    Context,
    Part,
    Replica,
    engine_mounts,
    estimate_start_period,
    format_flags,
    health_check,
    model_download_arguments,
    served_names,
    supervisor_entrypoint,
)
from stackgen.errors import Mistake
from stackgen.images.tags import VERSIONS, context_assets, image_tag
from stackgen.plan import Asset, Build, Deviation, Dialect, Endpoint, EnvRef, Port, Service
from stackgen.spec import ModelSpec, Text, TokenCount, is_local, parse_token_count

__all__ = ["ENGINE", "LlamaCppModel"]

BUILD = VERSIONS["llamacpp"]
PORT = 8080
CUDA_IMAGE = f"ghcr.io/ggml-org/llama.cpp:server-cuda-b{BUILD}"


class LlamaCppModel(ModelSpec):
    """A GGUF model served by llama.cpp."""

    engine: Literal["llamacpp"] = Field(description="The engine")
    file: Text | None = Field(None, description="GGUF file in the Hub repository (required for a Hub id)")
    max_model_len: TokenCount | None = Field(
        None, description="Context length in tokens: 8192, 32k, or `auto` for the model's own context length"
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Number of requests that run at the same time (llama.cpp: slots)"
    )
    gpu_layers: int | None = Field(
        None, ge=0, description="Number of layers on the GPU; default: all if there is a GPU"
    )


class LlamaCpp:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "llamacpp"
    Model = LlamaCppModel
    dialect = Dialect(
        name="llamacpp",
        liveness_path="/health",
        unknown_model=(200, None),
        reports_first_name=True,
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "content"),
        deviations=(
            Deviation(
                "errors", pattern=r"unknown model: accepted with 200", note="answers requests for any model name"
            ),
            Deviation(
                "errors",
                pattern=r"max_tokens too large: accepted with 200",
                note="accepts any max_tokens, and generates up to the context length",
            ),
            Deviation(
                "errors",
                pattern=r"unsupported role: accepted with 200",
                note="passes unknown roles to the chat template",
            ),
        ),
    )
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
                *context_assets("llamacpp"),
            ),
        )

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds Hub repositories without a file name, and GPUs without an image."""
        found = []
        # report each error once per model, not once per replica
        for replica in (one for one in context.replicas if one.index == 0):
            if not is_local(replica.spec.model) and not replica.spec.file:
                found.append(
                    Mistake(
                        f"{replica.path}.file", "is missing", hint="set `file` to a GGUF file of the Hub repository"
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
        """Stackgen's own image, because upstream's image doesn't have `hf`."""
        # the CPU image also with GPUs, because downloading needs no CUDA
        return image_tag("llamacpp", BUILD, "cpu"), Build("./llamacpp")

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments for the one GGUF file."""
        return model_download_arguments(model, (model.file,))

    def _replica(self, replica: Replica, context: Context) -> tuple[Service, Endpoint]:
        model, stack, site = replica.spec, context.stack, context.site
        address, port = site.listen(replica.service, PORT, host_port=replica.host_port)
        # stackgen's own image has no CUDA build
        own = not model.image and not replica.gpus
        layers = model.gpu_layers if model.gpu_layers is not None else ("all" if replica.gpus else None)
        command = (
            "llama-server",
            *format_flags((
                ("--model", self._file(model, context)),
                ("--alias", ",".join(served_names(model))),
                ("--host", address),
                ("--port", port),
                ("--ctx-size", self._context(model)),
                ("--parallel", model.max_num_seqs),
                ("--n-gpu-layers", layers),
                ("--no-ui", True),
            )),
            *model.extra_args,
        )  # fmt: skip
        environment: dict[str, str | EnvRef] = {"LLAMA_API_KEY": API_KEY, "HOME": site.home_dir()}
        service = Service(
            name=replica.service,
            role="engine",
            engine=self.name,
            comment=f"llama.cpp serving {model.model}"
            + (f", replica {replica.index + 1}" if model.replicas > 1 else ""),
            image=model.image or (image_tag("llamacpp", BUILD, "cpu") if own else CUDA_IMAGE),
            # one service builds the image and the others use it
            build=Build("./llamacpp") if own and replica is context.replicas[0] else None,
            pull=not own,
            entrypoint=supervisor_entrypoint(site),
            command=command,
            environment=tuple((environment | dict(site.gpu_environment(replica.gpus)) | model.extra_env).items()),
            gpus=replica.gpus,
            mounts=engine_mounts(model, stack, site),
            ports=(Port(stack.bind, replica.host_port, port),),
            health=health_check(
                ("/bin/sh", site.script("llamacpp_health.sh"), f"http://127.0.0.1:{port}"),
                estimate_start_period(model),
                timeout=60,
            ),
            restart=stack.restart,
            init=True,
            user=model.user or "",
            read_only=model.read_only,
            shm_size=model.shm_size or "",
            ipc=model.ipc or "",
            cpuset=model.cpuset or "",
        )
        endpoint = Endpoint(
            replica.service,
            service=replica.service,
            base_url=site.public_url(stack.bind, replica.host_port),
            models=served_names(model),
            dialect=self.dialect,
            max_concurrent_requests=model.max_num_seqs or 0,
        )
        return service, endpoint

    def _file(self, model: Any, context: Context) -> str:
        """Path of the GGUF file: a mounted file, or a file below the link that `download.py` creates."""
        if is_local(model.model):
            return context.site.local_path(model.model) + (f"/{model.file}" if model.file else "")
        # a snapshot's name is its commit, which is unknown here; quoted, because a branch may contain a slash
        return (
            f"{context.site.models_dir()}/by-name/{model.model}/{quote(model.revision or 'main', safe='')}/{model.file}"
        )

    def _context(self, model: Any) -> int | None:
        # without --ctx-size, llama-server uses the model's own context
        if model.max_model_len in (None, "auto", "-1"):
            return None
        # llama-server divides --ctx-size among its slots
        return parse_token_count(model.max_model_len) * (model.max_num_seqs or 1)


ENGINE = LlamaCpp()
