"""llama.cpp's server: one service a replica, serving a GGUF file.

Flags and variables as printed by `llama-server --help` of build 11434. On the CPU it runs from an image of ours,
on NVIDIA cards from upstream's CUDA image. The key guards all but `/health` and `/v1/health`.
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
    download_model,
    engine_mounts,
    flags,
    health,
    served_names,
    start_period,
    supervised,
)
from stackgen.errors import Mistake
from stackgen.images.tags import VERSIONS, context_assets, image_tag
from stackgen.plan import Asset, Build, Deviation, Dialect, Endpoint, EnvRef, Port, Service
from stackgen.spec import ModelSpec, Size, Text, human_int, is_local

__all__ = ["ENGINE", "LlamaCppModel"]

BUILD = VERSIONS["llamacpp"]
PORT = 8080
CUDA_IMAGE = f"ghcr.io/ggml-org/llama.cpp:server-cuda-b{BUILD}"


class LlamaCppModel(ModelSpec):
    """A GGUF model served by llama.cpp."""

    engine: Literal["llamacpp"] = Field(description="The engine")
    file: Text | None = Field(None, description="The GGUF file inside the Hub repository (needed for a Hub id)")
    max_model_len: Size | None = Field(
        None, description="Context length in tokens: 8192, 32k, or `auto` for the model's"
    )
    max_num_seqs: int | None = Field(None, ge=1, description="Requests generated at the same time (slots)")
    gpu_layers: int | None = Field(None, ge=0, description="Layers on the GPU; default: all where there is one")


class LlamaCpp:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "llamacpp"
    Model = LlamaCppModel
    dialect = Dialect(
        name="llamacpp",
        alive_path="/health",
        unknown_model=(200, None),
        leading_name=True,
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "content"),
        deviations=(
            Deviation("errors", r"unknown model: accepted with 200", "answers under whatever model name is asked"),
            Deviation(
                "errors", r"too large max_tokens: accepted with 200", "generates up to the context, whatever is asked"
            ),
            Deviation("errors", r"unsupported role: accepted with 200", "leaves unknown roles to the chat template"),
        ),
    )
    single_endpoint = False
    phases = (
        (r"load_model: loading model|loading model", "load weights"),
        (r"warming up", "warm up"),
        (r"llama_server: listening on|server is listening", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """One service and one endpoint for each replica."""
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
        """A Hub repository without a file name, and cards there is no image for."""
        found = []
        for replica in context.replicas:
            if not replica.index and not is_local(replica.spec.model) and not replica.spec.file:
                found.append(Mistake(f"{replica.path}.file", "is missing: which GGUF file of the repository?"))
            if replica.gpus and replica.gpus.driver == "amd" and not replica.spec.image:
                found.append(Mistake(f"{replica.path}.image", "is needed for AMD cards", "name a ROCm or Vulkan build"))
        return found

    def downloader(self, context: Context) -> tuple[str, Build | None]:
        """Our image holds `hf`, which upstream's doesn't."""
        return image_tag("llamacpp", BUILD, "cpu"), Build("./llamacpp")

    def downloads(self, model: Any) -> tuple[str, ...]:
        """The one GGUF file."""
        return download_model(model, (model.file,))

    def _replica(self, replica: Replica, context: Context) -> tuple[Service, Endpoint]:
        model, stack, site = replica.spec, context.stack, context.site
        address, port = site.listen(replica.service, PORT, host_port=replica.host_port)
        own = not model.image and not replica.gpus
        layers = model.gpu_layers if model.gpu_layers is not None else ("all" if replica.gpus else None)
        command = (
            "llama-server",
            *flags((
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
            # one service builds the image, the others find it
            build=Build("./llamacpp") if own and replica is context.replicas[0] else None,
            pull=not own,
            entrypoint=supervised(site),
            command=command,
            environment=tuple((environment | dict(site.gpu_environment(replica.gpus)) | model.extra_env).items()),
            gpus=replica.gpus,
            mounts=engine_mounts(model, stack, site),
            ports=(Port(stack.bind, replica.host_port, port),),
            health=health(
                ("/bin/sh", site.script("llamacpp_health.sh"), f"http://127.0.0.1:{port}"), start_period(model), 60
            ),
            restart=stack.restart,
            init=True,
            user=model.user or "",
            read_only=model.read_only,
            shm_size=model.shm_size or "",
            ipc=model.ipc or "",
            cpuset=model.cpuset or "",
        )
        url = site.public_url(stack.bind, replica.host_port)
        names, slots = served_names(model), model.max_num_seqs or 0
        return service, Endpoint(replica.service, replica.service, url, names, self.dialect, slots=slots)

    def _file(self, model: Any, context: Context) -> str:
        """The GGUF: a mounted file, or the link that the download leaves, as snapshots are named by commit."""
        if is_local(model.model):
            return context.site.local_path(model.model) + (f"/{model.file}" if model.file else "")
        return (
            f"{context.site.models_dir()}/by-name/{model.model}/{quote(model.revision or 'main', safe='')}/{model.file}"
        )

    def _context(self, model: Any) -> int | None:
        if model.max_model_len in (None, "auto", "-1"):
            return None
        # the server divides its context among the slots
        return human_int(model.max_model_len) * (model.max_num_seqs or 1)


ENGINE = LlamaCpp()
