"""vLLM: one service per replica, each an OpenAI-compatible server.

Flags: vLLM 0.32.0 (`vllm serve --help`). Images and paths: docs.vllm.ai, "Using Docker" and "CPU". Failure and liveness
behaviour: measured on 0.32.0. The model is a positional argument, because `--model` is deprecated.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from stackgen.engines.base import (
    API_KEY,
    Context,
    Part,
    Replica,
    engine_mounts,
    estimate_start_period,
    format_flags,
    health_check,
    hub_environment,
    model_download_arguments,
    model_source,
    served_names,
    supervisor_entrypoint,
)
from stackgen.errors import Mistake
from stackgen.plan import Asset, Bind, Build, Deviation, Dialect, Endpoint, EnvRef, Port, Service, Volume
from stackgen.spec import ModelSpec, Strict, Text, TokenCount, is_local

__all__ = ["ENGINE", "VllmModel"]

VERSION = "0.32.0"
PORT = 8000
IMAGES = {"nvidia": f"vllm/vllm-openai:v{VERSION}", "amd": f"vllm/vllm-openai-rocm:v{VERSION}"}
CPU_IMAGE = f"vllm/vllm-openai-cpu:v{VERSION}-{{arch}}"
# The CUDA image supports this user (upstream's docs: "Run as a non-root user"); the CPU and ROCm images don't.
CUDA_USER = "2000:0"
# Most paths in the last two lines change the server's state; some exist only in the developer mode. Paths under /v2 and
# /inference need the key, as paths under /v1 do, unless a proxy in front removes that requirement. Which paths a server
# has depends on the task of its model: /openapi.json of a running server lists them.
OPEN_PATHS = (
    "/invocations", "/generative_scoring", "/tokenize", "/detokenize", "/score", "/rerank", "/classify", "/pooling",
    "/metrics", "/version", "/load", "/ping", "/kv_event_sources", "/docs", "/openapi.json", "/scale_elastic_ep",
    "/pause", "/resume", "/update_weights", "/abort_requests", "/sleep", "/collective_rpc", "/server_info",
    "/v2/rerank", "/inference/v1/generate",
)  # fmt: skip


class LoraAdapter(Strict):
    """A LoRA adapter, served under its own name next to the base model."""

    name: Annotated[str, StringConstraints(pattern=r"^[^\s=]+$")] = Field(description="Served name of the adapter")
    path: Text = Field(description="Local folder of the adapter, or a Hugging Face id")


class VllmModel(ModelSpec):
    """A model served by vLLM."""

    engine: Literal["vllm"] = Field(description="The engine")
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="Number of GPUs to split each layer across. Default: all GPUs of the replica"
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=64, description="Number of pipeline stages: groups of layers, each on its own GPUs"
    )
    max_model_len: TokenCount | None = Field(
        None,
        description="Context length in tokens: 8192, 32k, or `auto` for the longest that fits; not a batch size",
    )
    quantization: Text | None = Field(
        None, description="Quantization method, for example awq, gptq or fp8. Default: from the model's config"
    )
    kv_cache_dtype: Text | None = Field(
        None, description="Data type of the KV cache, for example fp8. Default: the model's data type"
    )
    max_num_seqs: int | None = Field(None, ge=1, description="Maximum number of requests that run at the same time")
    enforce_eager: bool = Field(False, description="Disable CUDA graphs: saves memory, but slows decoding down")
    chat_template: Text | None = Field(None, description="Local Jinja file that replaces the model's chat template")
    tool_call_parser: Text | None = Field(None, description="Parser for tool calls; also enables automatic tool choice")
    reasoning_parser: Text | None = Field(None, description="Parser that separates reasoning from the answer")
    lora_adapters: tuple[LoraAdapter, ...] = Field((), description="LoRA adapters, served next to the model")
    cache_aware: bool = Field(
        False,
        description="Use vllm-router to send requests with the same prefix to the same replica, which has the "
        "prefix in its cache. Needs at least two replicas and the gateway",
    )
    cpu_kv_cache_gib: int = Field(4, ge=1, description="CPU only: memory for the KV cache in GiB")


class Vllm:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "vllm"
    Model = VllmModel
    dialect = Dialect(
        name="vllm",
        liveness_path="/health",
        open_paths=OPEN_PATHS,
        unknown_model=(404, 404),
        reports_first_name=True,
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "prompt"),
        deviations=(
            Deviation("errors", pattern=r"unsupported role: accepted with 200",
                      note="passes unknown roles to the chat template"),
        ),
    )  # fmt: skip
    single_endpoint = False
    phases = (
        (r"Starting to load model|Loading safetensors checkpoint", "loading weights"),
        (r"Loading weights took", "warming up"),
        (r"(GPU|CPU) KV cache size|Capturing CUDA graphs", "warming up"),
        (r"Application startup complete", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """Plans one service and one endpoint per replica."""
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

    def download_image(self, context: Context) -> tuple[str, Build | None]:
        """VLLM's own image, which has `hf`, so that no other image is pulled."""
        return self._image(context.replicas[0], context), None

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments for the model and for adapters from the Hub."""
        adapters = [arg for lora in model.lora_adapters if not is_local(lora.path) for arg in ("--model", lora.path)]
        return (*model_download_arguments(model), *adapters)

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds parallel sizes that don't match the GPUs, and served names that vLLM parses as flags."""
        found = []
        for replica in context.replicas:
            model, count = replica.spec, replica.gpu_count
            # all replicas have the same fields: report each problem once
            if replica.index:
                continue
            found += [
                Mistake(f"{replica.path}.served_names", f"{name!r} starts with a dash, so vLLM parses it as a flag",
                        hint="choose another name")
                for name in served_names(model)
                if name.startswith("-")
            ]  # fmt: skip
            size = (model.tensor_parallel_size or 1) * model.pipeline_parallel_size
            if count is None and not model.tensor_parallel_size:
                found.append(
                    Mistake(replica.path, "`gpus: all` needs tensor_parallel_size: the number of GPUs is unknown",
                            hint="set gpus to a number or a list, or set tensor_parallel_size")
                )  # fmt: skip
            elif count is not None and count and size > count:
                found.append(
                    Mistake(replica.path, f"tensor_parallel_size x pipeline_parallel_size is {size}, but each replica "
                            f"has {count} GPU{'s' if count > 1 else ''}", hint="increase gpus, or decrease the sizes")
                )  # fmt: skip
            elif count and not model.tensor_parallel_size and count % model.pipeline_parallel_size:
                # tensor parallelism would get count // pipeline GPUs, and the remaining GPUs would idle
                found.append(
                    Mistake(replica.path, f"{count} GPUs can't be split into {model.pipeline_parallel_size} "
                            "pipeline stages of equal size", hint="set tensor_parallel_size")
                )  # fmt: skip
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
        cache = Volume(_cache(replica), "/home/vllm/.cache")
        # a local model may have adapters from the Hub
        mounts = list(engine_mounts(model, stack, site, cache, hub=bool(self.download_arguments(model))))
        # before /tmp, which stays the last mount
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
            entrypoint=supervisor_entrypoint(site),
            command=self._command(replica, context, address, port),
            environment=self._environment(replica, context),
            gpus=replica.gpus,
            mounts=tuple(mounts),
            ports=(Port(stack.bind, replica.host_port, port),),
            # the health check waits up to 30 s for a token, then 2 s for the counters of a busy engine
            health=health_check(("python3", site.script("vllm_health.py"), f"http://127.0.0.1:{port}"),
                                estimate_start_period(model), timeout=60),
            restart=stack.restart,
            # an image from the stack file may not have the user that upstream's image has
            user=model.user or (CUDA_USER if cuda and not model.image else ""),
            read_only=model.read_only,
            # NCCL and the engine's worker processes communicate through /dev/shm; Docker's 64 MB are too small to start
            shm_size=model.shm_size or ("" if model.ipc else f"{max(1, 4 * (parallel - 1))}g"),
            ipc=model.ipc or "",
            cpuset=model.cpuset or "",
            stop_grace_period=30,
        )  # fmt: skip
        names = served_names(model) + tuple(lora.name for lora in model.lora_adapters)
        url = site.public_url(stack.bind, replica.host_port)
        endpoint = Endpoint(
            replica.service, service=replica.service, base_url=url, models=names, dialect=self.dialect,
            max_concurrent_requests=model.max_num_seqs or 0,
        )  # fmt: skip
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
            *format_flags((
                ("--host", address),
                ("--port", port),
                # a local folder has no revisions
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
                # vllm-router tokenizes prompts through this interface; without it, all requests would go to one replica
                ("--enable-scale-out", model.cache_aware),
            )),
            *model.extra_args,
        )  # fmt: skip

    def _environment(self, replica: Replica, context: Context) -> tuple[tuple[str, str | EnvRef], ...]:
        model, site = replica.spec, context.site
        cache = site.cache_dir()
        values: dict[str, str | EnvRef] = {"VLLM_API_KEY": API_KEY}
        if self.download_arguments(model):
            values |= dict(hub_environment(site))
        values |= {
            "HOME": site.home_dir(),
            "USER": "vllm",  # torch looks up the user's name, which a bare uid doesn't have
            "VLLM_CACHE_ROOT": f"{cache}/vllm",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if not replica.gpus:
            values |= {"VLLM_CPU_KVCACHE_SPACE": str(model.cpu_kv_cache_gib)}
        elif replica.gpus.driver != "amd":
            values |= {"FLASHINFER_WORKSPACE_BASE": f"{cache}/flashinfer"}  # for kernels compiled for this GPU
        values |= dict(site.gpu_environment(replica.gpus))
        # the user's variables take precedence
        return tuple((values | model.extra_env).items())


def _cache(replica: Replica) -> str:
    """The volume for compile caches: one per kind of image, because the images run as different users."""
    if replica.gpus and replica.gpus.driver != "amd":
        return "vllm-cache"
    return f"vllm-{'rocm' if replica.gpus else 'cpu'}-cache"


ENGINE = Vllm()
