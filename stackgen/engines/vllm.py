"""vLLM: one service a replica, which is an OpenAI-compatible server of its own.

Flags as of vLLM 0.32.0 (`vllm serve --help`); images and paths: docs.vllm.ai, "Using Docker" and "CPU"; failure
and liveness behaviour measured on 0.32.0. The model is positional, as `--model` is on its way out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from stackgen.engines.base import (
    API_KEY,
    Context,
    Part,
    Replica,
    download_model,
    engine_mounts,
    flags,
    health,
    hub_environment,
    model_source,
    served_names,
    start_period,
    supervised,
)
from stackgen.errors import Mistake
from stackgen.plan import Asset, Bind, Build, Deviation, Dialect, Endpoint, EnvRef, Port, Service, Volume
from stackgen.spec import ModelSpec, Size, Strict, Text, is_local

__all__ = ["ENGINE", "VllmModel"]

VERSION = "0.32.0"
PORT = 8000
IMAGES = {"nvidia": f"vllm/vllm-openai:v{VERSION}", "amd": f"vllm/vllm-openai-rocm:v{VERSION}"}
CPU_IMAGE = f"vllm/vllm-openai-cpu:v{VERSION}-{{arch}}"
# The CUDA image is prepared for this user (upstream's "Run as a non-root user"); the CPU and ROCm images are not.
CUDA_USER = "2000:0"
# Of the last two lines most change the server's state, some are there in its developer mode only; those under /v2 and
# /inference are guarded as /v1 is, unless a proxy in front leaves that out. Which a server has depends on its model's
# task: /openapi.json of a running one lists them.
OPEN_PATHS = (
    "/invocations", "/generative_scoring", "/tokenize", "/detokenize", "/score", "/rerank", "/classify", "/pooling",
    "/metrics", "/version", "/load", "/ping", "/kv_event_sources", "/docs", "/openapi.json", "/scale_elastic_ep",
    "/pause", "/resume", "/update_weights", "/abort_requests", "/sleep", "/collective_rpc", "/server_info",
    "/v2/rerank", "/inference/v1/generate",
)  # fmt: skip


class LoraAdapter(Strict):
    """A LoRA adapter, served under a name of its own beside the base model."""

    name: Annotated[str, StringConstraints(pattern=r"^[^\s=]+$")] = Field(description="Served name of the adapter")
    path: Text = Field(description="Local folder of the adapter, or a Hugging Face id")


class VllmModel(ModelSpec):
    """A model served by vLLM."""

    engine: Literal["vllm"] = Field(description="The engine")
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="GPUs that each layer is split over; default: all GPUs of the replica"
    )
    pipeline_parallel_size: int = Field(1, ge=1, le=64, description="Groups of layers on GPUs of their own")
    max_model_len: Size | None = Field(
        None,
        description="Context length in tokens: 8192, 32k, or `auto` for the largest that fits; it is no batch size",
    )
    quantization: Text | None = Field(None, description="Method, e.g. awq, gptq, fp8; default: from the model's config")
    kv_cache_dtype: Text | None = Field(None, description="Type of the KV cache, e.g. fp8; default: that of the model")
    max_num_seqs: int | None = Field(None, ge=1, description="Requests generated at the same time, at most")
    enforce_eager: bool = Field(False, description="Turn CUDA graphs off: less memory, slower decoding")
    chat_template: Text | None = Field(None, description="Local Jinja file that replaces the model's chat template")
    tool_call_parser: Text | None = Field(None, description="Parser for tool calls; also enables automatic tool choice")
    reasoning_parser: Text | None = Field(None, description="Parser that separates reasoning from the answer")
    lora_adapters: tuple[LoraAdapter, ...] = Field((), description="LoRA adapters served beside the model")
    cache_aware: bool = Field(
        False,
        description="Send requests that begin alike to the same replica, which has their beginning in its cache "
        "(vllm-router); needs two replicas or more, and the gateway",
    )
    cpu_kv_cache_gib: int = Field(4, ge=1, description="On the CPU: memory for the KV cache, whole GiB")


class Vllm:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "vllm"
    Model = VllmModel
    dialect = Dialect(
        name="vllm",
        alive_path="/health",
        open_paths=OPEN_PATHS,
        unknown_model=(404, 404),
        leading_name=True,
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "prompt"),
        deviations=(
            Deviation("errors", r"unsupported role: accepted with 200", "leaves unknown roles to the chat template"),
        ),
    )
    single_endpoint = False
    phases = (
        (r"Starting to load model|Loading safetensors checkpoint", "load weights"),
        (r"Loading weights took", "warm up"),
        (r"(GPU|CPU) KV cache size|Capturing CUDA graphs", "warm up"),
        (r"Application startup complete", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """One service and one endpoint for each replica."""
        parts = [self._replica(replica, context) for replica in context.replicas]
        return Part(
            services=tuple(service for service, _ in parts),
            endpoints=tuple(endpoint for _, endpoint in parts),
            assets=(
                Asset("images/common/supervise.sh", "scripts/supervise.sh"),
                Asset("engines/vllm_health.py", "scripts/vllm_health.py"),
            ),
            volumes=tuple(dict.fromkeys((_cache(r), f"stackgen-{_cache(r)}") for r in context.replicas)),
        )

    def downloader(self, context: Context) -> tuple[str, Build | None]:
        """VLLM's own image holds `hf`: nothing more to pull."""
        return self._image(context.replicas[0], context), None

    def downloads(self, model: Any) -> tuple[str, ...]:
        """The model, and the adapters that come from the Hub."""
        adapters = [word for lora in model.lora_adapters if not is_local(lora.path) for word in ("--model", lora.path)]
        return (*download_model(model), *adapters)

    def mistakes(self, context: Context) -> list[Mistake]:
        """Parallel sizes that the GPUs can't hold, and flags that the CPU doesn't know."""
        found = []
        for replica in context.replicas:
            model, count = replica.spec, replica.gpu_count
            if replica.index:
                continue
            found += [
                Mistake(f"{replica.path}.served_names", f"{name!r} starts with a dash: vLLM takes it for a flag")
                for name in served_names(model)
                if name.startswith("-")
            ]
            size = (model.tensor_parallel_size or 1) * model.pipeline_parallel_size
            if count is None and not model.tensor_parallel_size:
                found.append(
                    Mistake(
                        replica.path,
                        "`gpus: all` needs tensor_parallel_size: how many GPUs are all?",
                        "write the number of GPUs, or a list",
                    )
                )
            elif count is not None and count and size > count:
                found.append(
                    Mistake(
                        replica.path,
                        f"tensor x pipeline parallel size is {size}, but a replica has "
                        f"{count} GPU{'s' if count > 1 else ''}",
                        "raise gpus, or lower the sizes",
                    )
                )
            elif count and not model.tensor_parallel_size and count % model.pipeline_parallel_size:
                found.append(
                    Mistake(
                        replica.path,
                        f"{count} GPUs can't be split into {model.pipeline_parallel_size} "
                        "pipeline stages of equal size",
                        "set tensor_parallel_size",
                    )
                )
        return found

    def _image(self, replica: Replica, context: Context) -> str:
        if replica.spec.image:
            return str(replica.spec.image)
        if not replica.gpus:
            return CPU_IMAGE.format(arch=context.stack.cpu_arch)
        return IMAGES["amd" if replica.gpus.driver == "amd" else "nvidia"]

    def _replica(self, replica: Replica, context: Context) -> tuple[Service, Endpoint]:
        model, stack, site = replica.spec, context.stack, context.site
        address, port = site.listen(replica.service, PORT, host_port=replica.host_port)
        parallel = replica.gpu_count or 1
        cuda = bool(replica.gpus) and replica.gpus.driver != "amd"  # type: ignore[union-attr]
        mounts = list(
            engine_mounts(
                model, stack, site, Volume(_cache(replica), "/home/vllm/.cache"), hub=bool(self.downloads(model))
            )
        )
        for path in [model.chat_template, *(lora.path for lora in model.lora_adapters if is_local(lora.path))]:
            if path:
                mounts.insert(-1, Bind(site.host_path(path), site.local_path(path)))
        service = Service(
            name=replica.service,
            role="engine",
            engine=self.name,
            comment=f"vLLM serving {model.model}" + (f", replica {replica.index + 1}" if model.replicas > 1 else ""),
            image=self._image(replica, context),
            platform="linux/arm64" if not replica.gpus and stack.cpu_arch == "arm64" else "",
            entrypoint=supervised(site),
            command=self._command(replica, context, address, port),
            environment=self._environment(replica, context),
            gpus=replica.gpus,
            mounts=tuple(mounts),
            ports=(Port(stack.bind, replica.host_port, port),),
            health=health(
                ("python3", site.script("vllm_health.py"), f"http://127.0.0.1:{port}"), start_period(model), 60
            ),
            restart=stack.restart,
            user=model.user or (CUDA_USER if cuda and not model.image else ""),
            read_only=model.read_only,
            # NCCL and the engine's worker processes talk through /dev/shm; Docker's 64 MB fail at start
            shm_size=model.shm_size or ("" if model.ipc else f"{max(1, 4 * (parallel - 1))}g"),
            ipc=model.ipc or "",
            cpuset=model.cpuset or "",
            stop_grace_period=30,
        )
        names = served_names(model) + tuple(lora.name for lora in model.lora_adapters)
        endpoint = Endpoint(
            replica.service,
            replica.service,
            site.public_url(stack.bind, replica.host_port),
            names,
            self.dialect,
            slots=model.max_num_seqs or 0,
        )
        return service, endpoint

    def _command(self, replica: Replica, context: Context, address: str, port: int) -> tuple[str, ...]:
        model, site = replica.spec, context.site
        pipeline = model.pipeline_parallel_size
        tensor = model.tensor_parallel_size or max(1, (replica.gpu_count or 1) // pipeline)
        local_template = model.chat_template and site.local_path(model.chat_template)
        loras = tuple(
            f"{lora.name}={site.local_path(lora.path) if is_local(lora.path) else lora.path}"
            for lora in model.lora_adapters
        )
        return (
            "vllm", "serve", model_source(model, site),
            *flags((
                ("--host", address),
                ("--port", port),
                ("--revision", model.revision if not is_local(model.model) else None),
                ("--served-model-name", served_names(model)),
                ("--tensor-parallel-size", tensor if tensor > 1 else None),
                ("--pipeline-parallel-size", pipeline if pipeline > 1 else None),
                ("--max-model-len", model.max_model_len),
                ("--dtype", model.dtype),
                ("--quantization", model.quantization),
                ("--kv-cache-dtype", model.kv_cache_dtype),
                ("--gpu-memory-utilization", model.gpu_memory_utilization),
                ("--max-num-seqs", model.max_num_seqs),
                ("--enforce-eager", model.enforce_eager),
                ("--chat-template", local_template),
                ("--enable-auto-tool-choice", bool(model.tool_call_parser)),
                ("--tool-call-parser", model.tool_call_parser),
                ("--reasoning-parser", model.reasoning_parser),
                ("--enable-lora", bool(loras)),
                ("--lora-modules", loras),
                ("--trust-remote-code", model.trust_remote_code),
                # vllm-router has prompts made into tokens there; without, it sends all requests to one replica
                ("--enable-scale-out", model.cache_aware),
            )),
            *model.extra_args,
        )  # fmt: skip

    def _environment(self, replica: Replica, context: Context) -> tuple[tuple[str, str | EnvRef], ...]:
        model, site = replica.spec, context.site
        cache = site.cache_dir()
        values: dict[str, str | EnvRef] = {"VLLM_API_KEY": API_KEY}
        if self.downloads(model):
            values |= dict(hub_environment(site))
        values |= {
            "HOME": site.home_dir(),
            "USER": "vllm",  # torch asks for the user's name, and a bare uid has none
            "VLLM_CACHE_ROOT": f"{cache}/vllm",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if not replica.gpus:
            values |= {"VLLM_CPU_KVCACHE_SPACE": str(model.cpu_kv_cache_gib)}
        elif replica.gpus.driver != "amd":
            values |= {"FLASHINFER_WORKSPACE_BASE": f"{cache}/flashinfer"}  # kernels compiled for this card
        values |= dict(site.gpu_environment(replica.gpus))
        return tuple((values | model.extra_env).items())


def _cache(replica: Replica) -> str:
    """The volume of compile caches: one for each kind of image, as they run as different users."""
    return (
        "vllm-cache"
        if replica.gpus and replica.gpus.driver != "amd"
        else f"vllm-{'rocm' if replica.gpus else 'cpu'}-cache"
    )


ENGINE = Vllm()
