"""SGLang's service and its fields: images, command, flags, variables, mounts, health check and dialect.

Flags, paths and messages: SGLang 0.5.23, read from the package's own parser (`prepare_server_args`) and source
(`python/sglang/srt`); the images are those of docs.sglang.io. Without a GPU, SGLang needs an image of one's own.
`/health_generate` generates a token, `--api-key` guards every path except /health*, /ready* and /metrics* and OPTIONS
(`utils/auth.py`), and SIGTERM lets the requests in flight finish (`tokenizer_manager.sigterm_watchdog`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stackgen.engines._dialects import dialect_of
from stackgen.engines._sglang_sizes import find_size_mistakes
from stackgen.engines._values import find_value_mistakes
from stackgen.engines._versions import EngineVersion, find_version_mistakes, warn_of_versions
from stackgen.engines._watch import WATCH_ASSETS, watch_environment
from stackgen.engines.base import (
    API_KEY,
    STOP_GRACE_PERIOD,
    Context,
    Part,
    Replica,
    engine_mounts,
    estimate_start_period,
    format_flags,
    has_read_only_root,
    health_check,
    hub_environment,
    model_download_arguments,
    model_source,
    served_names,
    supervisor_entrypoint,
)
from stackgen.errors import Mistake
from stackgen.flags import PINNED
from stackgen.flags.parallel import sglang_tensor_size
from stackgen.flags.releases import image_of
from stackgen.images.tags import download_image
from stackgen.plan import Asset, Build, Dialect, Endpoint, EnvRef, Port, Service, Volume
from stackgen.spec import ModelSpec, Text, TokenCount, is_local, parse_token_count

__all__ = ["ENGINE", "SglangModel"]

VERSION = PINNED["sglang"]
# SGLang's own default, 30000, lies in the range from which Linux takes ports for outgoing connections
PORT = 8000
# Paths outside /v1 that read or generate. All of them need the key, which the check verifies.
GUARDED_PATHS = ("/invocations", "/tokenize", "/detokenize", "/model_info", "/server_info")


class SglangModel(ModelSpec):
    """A model served by SGLang."""

    engine: Literal["sglang"] = Field(description="The engine")
    engine_version: EngineVersion = None
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="Each layer is split across this number of GPUs. Default: all GPUs of a replica"
    )
    pipeline_parallel_size: int = Field(
        1, ge=1, le=64, description="Number of pipeline stages. A stage is a group of layers that runs on its own GPUs"
    )
    data_parallel_size: int = Field(
        1, ge=1, le=64, description="Number of copies of the model in one server, each on its own GPUs"
    )
    max_model_len: TokenCount | None = Field(
        None,
        description="Context length in tokens: 8192, 32k (32,000), 32K (32,768), or `auto` for the model's own context "
        "length, which is also the default",
    )
    mem_fraction_static: float | None = Field(
        None, gt=0, lt=1,
        description="Fraction of each GPU's memory for weights and KV cache. The rest is for CUDA graphs and "
        "activations. Default: SGLang chooses the fraction by the GPU's memory",
    )  # fmt: skip
    quantization: Text | None = Field(
        None, description="Quantization method, for example awq, gptq or fp8. Default: from the model's config"
    )
    kv_cache_dtype: Text | None = Field(
        None, description="Data type of the KV cache, for example fp8_e5m2. Default: the model's data type"
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Maximum number of requests that run at the same time. Without the field, the gateway "
        "sends at most 256 requests at a time to each replica, and queues the others",
    )  # fmt: skip
    chunked_prefill_size: int | None = Field(
        None,
        ge=-1,
        description=(
            "Maximum number of prompt tokens that SGLang computes at once. With -1, it computes the whole "
            "prompt at once"
        ),
    )
    enforce_eager: bool = Field(False, description="Disable CUDA graphs: saves memory, but slows decoding down")
    chat_template: Text | None = Field(None, description="Local Jinja file that replaces the model's chat template")
    tool_call_parser: Text | None = Field(None, description="Parser for tool calls")
    reasoning_parser: Text | None = Field(None, description="Parser that separates reasoning from the answer")


class Sglang:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "sglang"
    Model = SglangModel
    # what all versions share
    shared = Dialect(
        name="sglang",
        # entrypoints/http_server.py, without paths that no other engine has; all of them need the key
        api_paths=(
            "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
            "/v1/messages/count_tokens", "/v1/rerank", "/v1/score", "/v1/audio/transcriptions",
        ),
        liveness_path="/health",
        open_paths=GUARDED_PATHS,
        # chats are not refused for a name that SGLang doesn't know; only /v1/models/NAME and /v1/responses look at it
        unknown_model=(200, None),
        error_path=("message",),
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "prompt"),
        context_flags=("--context-length",),
    )  # fmt: skip
    dialect = dialect_of(shared)
    single_endpoint = False
    phases = (
        (r"Load weight begin", "loading weights"),
        (r"Load weight end|Capture .*graph|KV Cache is allocated", "warming up"),
        (r"The server is fired up and ready to roll", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """Plans one service and one endpoint per replica."""
        services, endpoints = zip(*(self._replica(replica, context) for replica in context.replicas), strict=True)
        return Part(
            services=services, endpoints=endpoints,
            assets=(Asset("images/common/supervise.sh", "scripts/supervise.sh"),
                    *(Asset(f"engines/sglang_{name}.py", f"scripts/sglang_{name}.py")
                      for name in ("launch", "health", "progress")), *WATCH_ASSETS),
            volumes=((CACHE, f"stackgen-{CACHE}"),),
            warnings=warn_of_versions(self.name, context),
        )  # fmt: skip

    def download_image(self, context: Context) -> tuple[str, Build | None]:
        """Upstream's image has `hf`; an image of the user's own may lack it, and gets an image that downloads."""
        replica = context.replicas[0]
        return download_image() if replica.spec.image else (self._image(replica), None)

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments for the model."""
        return model_download_arguments(model)

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds what SGLang can't do: several names, a CPU or an AMD GPU without an image, a share of a GPU."""
        found = [*find_value_mistakes(self.name, context), *find_version_mistakes(context)]
        # all replicas of a model have the same fields: report each problem once
        for replica in (one for one in context.replicas if one.index == 0):
            model, path = replica.spec, replica.path
            if len(model.served_names) > 1:
                found.append(Mistake(f"{path}.served_names", "SGLang serves a model under one name",
                                     hint="keep one name in served_names"))  # fmt: skip
            if not model.image and context.site.uses_containers:
                if not replica.gpus:
                    found.append(Mistake(f"{path}.image", "is required on the CPU: the SGLang project publishes no "
                                         "CPU image", hint="set `gpus`, or set `engine: vllm`, or build an image "
                                         "with SGLang's docker/xeon.Dockerfile and set `image` to it"))  # fmt: skip
                elif replica.gpus.driver == "amd":
                    found.append(Mistake(f"{path}.image", "is required for AMD GPUs: SGLang's images differ by GPU",
                                         hint="set `image` to SGLang's ROCm image for your GPU"))  # fmt: skip
            if model.gpu_memory_utilization or model.share_gpus:
                field = "gpu_memory_utilization" if model.gpu_memory_utilization else "share_gpus"
                found.append(Mistake(f"{path}.{field}", "has no effect, because SGLang can't limit the whole memory "
                                                        "of a process",
                                     hint="remove the field. `mem_fraction_static` limits weights and KV cache. For "
                                     "two models on one GPU, use `engine: vllm`"))  # fmt: skip
            found += find_size_mistakes(replica)
        return found

    def _image(self, replica: Replica) -> str:
        return str(replica.spec.image or image_of(self.name, replica.spec.engine_version, "nvidia"))

    def _replica(self, replica: Replica, context: Context) -> tuple[Service, Endpoint]:
        model, stack, site = replica.spec, context.stack, context.site
        address, port = site.listen(replica.service, PORT, host_port=replica.host_port)
        mounts = list(engine_mounts(model, stack, site, Volume(CACHE, site.cache_dir())))
        # before /tmp, which stays the last mount
        if model.chat_template and (bind := site.mount(model.chat_template)) not in mounts:
            mounts.insert(-1, bind)
        service = Service(
            name=replica.service, role="engine", engine=self.name,
            comment=f"SGLang serving {model.model}" + (f", replica {replica.index + 1}" if model.replicas > 1 else ""),
            image=self._image(replica),
            entrypoint=supervisor_entrypoint(site),
            command=self._command(replica, context, address, port),
            environment=self._environment(replica, context),
            gpus=replica.gpus, mounts=tuple(mounts), ports=(Port(stack.bind, replica.host_port, port),),
            # SGLang itself waits up to 20 s for the token (HEALTH_CHECK_TIMEOUT)
            health=health_check(("python3", site.script("sglang_health.py"), f"http://127.0.0.1:{port}"),
                                estimate_start_period(replica, site), timeout=60),
            restart=stack.restart,
            init=True,
            user=model.user or "",
            read_only=has_read_only_root(model, replica.gpus),
            # NCCL and SGLang's processes communicate through /dev/shm: 32g in all examples of SGLang
            shm_size=model.shm_size or ("" if model.ipc else "32g" if (replica.gpu_count or 2) > 1 else "8g"),
            ipc=model.ipc or "", cpuset=model.cpuset or "",
            stop_grace_period=STOP_GRACE_PERIOD,
        )  # fmt: skip
        endpoint = Endpoint(
            replica.service, service=replica.service, base_url=site.public_url(stack.bind, replica.host_port),
            models=served_names(model), dialect=dialect_of(self.shared, model.engine_version),
            max_concurrent_requests=model.max_num_seqs or 0,
        )  # fmt: skip
        return service, endpoint

    def _command(self, replica: Replica, context: Context, address: str, port: int) -> tuple[str, ...]:
        model, site = replica.spec, context.site
        tensor = sglang_tensor_size(model, replica.gpu_count or 1)
        own_length = model.max_model_len in (None, "auto", "-1")
        return (
            # the launcher adds the key, which a flag would show in the process list and SGLang in its log
            "python3", site.script("sglang_launch.py"),
            *format_flags((
                ("--model-path", model_source(model, site)),
                ("--host", address),
                ("--port", port),
                # a local folder has no revisions
                ("--revision", model.revision if not is_local(model.model) else None),
                # without it, the name is the path
                ("--served-model-name", served_names(model)[0]),
                ("--device", None if replica.gpus else "cpu"),
                ("--tp-size", tensor if tensor > 1 else None),
                ("--pp-size", model.pipeline_parallel_size if model.pipeline_parallel_size > 1 else None),
                ("--dp-size", model.data_parallel_size if model.data_parallel_size > 1 else None),
                ("--context-length", None if own_length else parse_token_count(model.max_model_len)),
                ("--dtype", model.dtype),
                ("--quantization", model.quantization),
                ("--kv-cache-dtype", model.kv_cache_dtype),
                ("--mem-fraction-static", model.mem_fraction_static),
                ("--max-running-requests", model.max_num_seqs),
                ("--chunked-prefill-size", model.chunked_prefill_size),
                ("--cuda-graph-backend-decode", "disabled" if model.enforce_eager else None),
                ("--chat-template", model.chat_template and site.local_path(model.chat_template)),
                ("--tool-call-parser", model.tool_call_parser),
                ("--reasoning-parser", model.reasoning_parser),
                ("--trust-remote-code", model.trust_remote_code),
                # dashboards, alerts and the watch for hangs read them
                ("--enable-metrics", True),
            )),
            *model.extra_args,
        )  # fmt: skip

    def _environment(self, replica: Replica, context: Context) -> tuple[tuple[str, str | EnvRef], ...]:
        model, site, cache = replica.spec, context.site, context.site.cache_dir()
        values: dict[str, str | EnvRef] = {"SGLANG_API_KEY": API_KEY}
        if self.download_arguments(model):
            values |= dict(hub_environment(site))
        values |= {
            "HOME": site.home_dir(),
            "USER": "sglang",  # torch looks up the user's name, which a bare uid doesn't have
            # kernels that are compiled for this GPU
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "FLASHINFER_WORKSPACE_BASE": f"{cache}/flashinfer",
        }
        if not replica.gpus:
            values |= {"SGLANG_USE_CPU_ENGINE": "1"}
        # a container always listens at PORT
        values |= watch_environment(model, site, self.name, f"http://127.0.0.1:{PORT}")
        values |= dict(site.gpu_environment(replica.gpus))
        # the user's variables take precedence
        return tuple((values | model.extra_env).items())


CACHE = "sglang-cache"
ENGINE = Sglang()
