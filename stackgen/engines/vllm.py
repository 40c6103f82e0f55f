"""vLLM's service: images, command, flags, variables, mounts, /dev/shm, GPUs, health check and dialect.

Flags: vLLM 0.32.0 (`vllm serve --help`). Images and paths: docs.vllm.ai, "Using Docker" and "CPU". Failure and liveness
behavior: measured on 0.32.0. The model is a positional argument, because `--model` is deprecated.
"""

from __future__ import annotations

from typing import Any

from stackgen.engines import _nodes
from stackgen.engines._dialects import dialect_of
from stackgen.engines._gpt_oss import vocabulary_arguments, vocabulary_environment
from stackgen.engines._lora import (
    adapter_downloads,
    adapter_modules,
    choose_rank,
    find_lora_mistakes,
    find_lora_warnings,
)
from stackgen.engines._parallel import find_parallel_mistakes, parallel_sizes
from stackgen.engines._speculative import (
    draft_download,
    draft_folder,
    find_speculative_mistakes,
    speculative_config,
)
from stackgen.engines._values import find_value_mistakes
from stackgen.engines._versions import find_version_mistakes, warn_of_versions
from stackgen.engines._vllm_cache import CACHE_ASSETS, cache_environment
from stackgen.engines._vllm_fields import find_field_mistakes, find_field_warnings, vllm_field_flags
from stackgen.engines._vllm_model import VllmModel
from stackgen.engines._watch import WATCH_ASSETS, watch_environment
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
    hub_environment,
    model_download_arguments,
    model_source,
    served_names,
    supervisor_entrypoint,
)
from stackgen.errors import Mistake
from stackgen.flags import PINNED, is_too_old
from stackgen.flags.releases import image_of
from stackgen.plan import Asset, Build, Dialect, Endpoint, EnvRef, Port, Service, Volume
from stackgen.spec import is_local

__all__ = ["ENGINE", "VllmModel"]

VERSION = PINNED["vllm"]
PORT = 8000
# The CUDA image supports this user (upstream's docs: "Run as a non-root user"); the CPU and ROCm images don't.
CUDA_USER = "2000:0"
# Only paths in vLLM's docs/usage/security.md, "API Key Authentication Limitations". Most paths in the last two lines
# change the server's state; some exist only in the developer mode. Paths under /v2 and /inference need the key, as
# paths under /v1 do; the check verifies this. The gateway has a list of allowed paths, and needs no complete list here.
OPEN_PATHS = (
    "/invocations", "/generative_scoring", "/tokenize", "/detokenize", "/score", "/rerank", "/classify", "/pooling",
    "/version", "/load", "/ping", "/scale_elastic_ep", "/pause", "/resume", "/update_weights", "/abort_requests",
    "/sleep", "/collective_rpc", "/server_info", "/v2/rerank", "/inference/v1/generate",
)  # fmt: skip


class Vllm:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "vllm"
    Model = VllmModel
    # what all versions share
    shared = Dialect(
        name="vllm",
        liveness_path="/health",
        open_paths=OPEN_PATHS,
        unknown_model=(404, 404),
        reports_first_name=True,
        claims=("completions", "tokenize", "json-schema", "logprobs", "seed"),
        depends=("embeddings", "tools"),
        tokenize=("/tokenize", "prompt"),
        # measured on 0.32.0: a 400 even for `tools: []`, in /v1/chat/completions and /v1/messages
        tools_flags=("--tool-call-parser",), context_flags=("--max-model-len",),
    )  # fmt: skip
    dialect = dialect_of(shared)
    single_endpoint = False
    phases = (
        (r"Starting to load model|Loading safetensors checkpoint", "loading weights"),
        (r"Loading weights took", "warming up"),
        # compilation/monitor.py, backends.py and decorators.py, and v1/worker/cpu_model_runner.py, of 0.32.0
        (r"Starting torch\.compile|Dynamo bytecode transform time|Warming up model for the compilation", "compiling"),
        (r"torch\.compile took|Directly load AOT compilation|profiling/warmup run took|Warming up done", "warming up"),
        (r"(GPU|CPU) KV cache size|Capturing CUDA graphs", "warming up"),
        (r"Application startup complete", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """Plans one service and one endpoint per replica."""
        services, endpoints = zip(*(self._replica(replica, context) for replica in context.replicas), strict=True)
        return Part(
            services=services, endpoints=tuple(one for one in endpoints if one),
            assets=(Asset("images/common/supervise.sh", "scripts/supervise.sh"),
                    Asset("engines/vllm_health.py", "scripts/vllm_health.py"),
                    Asset("engines/vllm_progress.py", "scripts/vllm_progress.py"), *CACHE_ASSETS, *WATCH_ASSETS,
                    *(_nodes.GROUP_ASSETS if any(one.nodes > 1 for one in context.replicas) else ()),
                    *(_nodes.HOST_ASSETS if any(one.node for one in context.replicas) else ())),
            volumes=tuple(dict.fromkeys((_cache(r), f"stackgen-{_cache(r)}") for r in context.replicas)),
            warnings=(*warn_of_versions(self.name, context), *(
                text for one in context.replicas if one.index == 0
                for text in (*find_field_warnings(one), *find_lora_warnings(one))
            )),
        )  # fmt: skip

    def download_image(self, context: Context) -> tuple[str, Build | None]:
        """VLLM's own image, which has `hf`, so that no other image is pulled."""
        return self._image(context.replicas[0], context), None

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments for the model, adapters and draft model from the Hub, and for the vocabulary of gpt-oss."""
        return (*model_download_arguments(model), *adapter_downloads(model), *draft_download(model),
                *vocabulary_arguments(model))  # fmt: skip

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds parallel sizes that don't match the GPUs, and served names that vLLM parses as flags."""
        found = [*find_value_mistakes(self.name, context), *find_version_mistakes(context)]
        # all replicas of a model have the same fields: report each problem once
        for replica in (one for one in context.replicas if one.index == 0):
            found += [
                Mistake(f"{replica.path}.served_names", f"{name!r} starts with a dash, so vLLM parses it as a flag",
                        hint="choose another name")
                for name in served_names(replica.spec)
                if name.startswith("-")
            ]  # fmt: skip
            found += [*find_parallel_mistakes(replica), *_nodes.find_node_mistakes(replica),
                      *find_lora_mistakes(replica, context.site), *find_field_mistakes(replica, context.stack.cpu_arch),
                      *find_speculative_mistakes(replica, parallel_sizes(replica)[0])]  # fmt: skip
        return found

    def _image(self, replica: Replica, context: Context) -> str:
        if replica.spec.image:
            return str(replica.spec.image)
        kind = "amd" if replica.gpus and replica.gpus.driver == "amd" else "nvidia"
        return image_of(
            self.name, replica.spec.engine_version, kind if replica.gpus else f"cpu-{context.stack.cpu_arch}"
        )

    def _replica(self, replica: Replica, context: Context) -> tuple[Service, Endpoint | None]:
        model, stack, site = replica.spec, context.stack, context.site
        address, port = site.listen(replica.service, PORT, host_port=replica.host_port)
        if node := replica.node:
            # not on all interfaces of the machine, whose network the container uses
            address, port = node.address, node.api_port
        own_url = _nodes.own_url(replica, port)
        cuda = bool(replica.gpus) and replica.gpus.driver != "amd"  # type: ignore[union-attr]
        cache = Volume(_cache(replica), "/home/vllm/.cache")
        # a local model may have adapters from the Hub
        mounts = list(engine_mounts(model, stack, site, cache, hub=bool(self.download_arguments(model))))
        # before /tmp, which stays the last mount
        adapters = (lora.path for lora in model.lora_adapters if is_local(lora.path))
        for path in [model.chat_template, draft_folder(model), *adapters]:
            # several of them can be in one Hub snapshot
            if path and (bind := site.mount(path)) not in mounts:
                mounts.insert(-1, bind)
        command = self._command(replica, context, address, port)
        service = Service(
            name=replica.service, role="engine", engine=self.name,
            comment=f"vLLM serving {model.model}{replica.ordinal}",
            image=self._image(replica, context),
            platform="linux/arm64" if not replica.gpus and stack.cpu_arch == "arm64" else "",
            entrypoint=supervisor_entrypoint(site),
            command=_nodes.follow(replica, site, command) if replica.follows else command,
            environment=self._environment(replica, context, command, own_url),
            gpus=replica.gpus, mounts=tuple(mounts),
            # a container in its machine's network publishes no ports
            ports=() if node else (Port(stack.bind, replica.host_port, port),), internal_port=port if node else 0,
            # the health check waits up to 30 s for a token, then 2 s for the counters of a busy engine
            health=_nodes.follower_health(replica, site) if replica.follows else health_check(
                ("python3", site.script("vllm_health.py"), own_url),
                estimate_start_period(replica, site), timeout=60, ready_path="/health"),
            # a rank fails whenever the first machine does, and must be there when the first machine starts again
            restart="unless-stopped" if replica.follows and stack.restart != "no" else stack.restart,
            # an image from the stack file may not have the user that upstream's image has
            user=model.user or (CUDA_USER if cuda and not model.image else ""),
            read_only=has_read_only_root(model, replica.gpus),
            # NCCL and the engine's worker processes communicate through /dev/shm; Docker's 64 MB are too small to start
            shm_size=model.shm_size or ("" if model.ipc else f"{max(1, 4 * ((replica.gpu_count or 1) - 1))}g"),
            ipc=model.ipc or "", cpuset=model.cpuset or "",
            stop_grace_period=STOP_GRACE_PERIOD,
            group=_nodes.group_of(replica, site, command),
            host_address=node.address if node else "", follows=replica.follows,
        )  # fmt: skip
        if replica.follows:
            return service, None
        names = served_names(model) + tuple(lora.name for lora in model.lora_adapters)
        url = site.public_url(stack.bind, replica.host_port)
        endpoint = Endpoint(
            replica.service, service=replica.service, base_url=url, models=names,
            dialect=dialect_of(self.shared, model.engine_version),
            max_concurrent_requests=(model.max_num_seqs or 0) * model.data_parallel_size, open_paths=OPEN_PATHS,
        )  # fmt: skip
        return service, endpoint

    def _command(self, replica: Replica, context: Context, address: str, port: int) -> tuple[str, ...]:
        model, site = replica.spec, context.site
        tensor, pipeline = parallel_sizes(replica)
        local_template = model.chat_template and site.local_path(model.chat_template)
        loras = adapter_modules(model, site)
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
                *vllm_field_flags(model),
                ("--speculative-config", speculative_config(model, site)),
                ("--enforce-eager", model.enforce_eager),
                ("--chat-template", local_template),
                ("--enable-auto-tool-choice", bool(model.tool_call_parser)),
                ("--tool-call-parser", model.tool_call_parser),
                ("--reasoning-parser", model.reasoning_parser),
                ("--enable-lora", bool(loras)),
                ("--lora-modules", loras),
                ("--max-lora-rank", choose_rank(model, site)),
                ("--max-loras", model.max_loras),
                ("--trust-remote-code", model.trust_remote_code),
                # vllm-router tokenizes prompts through this interface; without it, all requests would go to one replica
                ("--enable-scale-out", model.cache_aware),
                # without the flag, which vLLM has since 0.18 (vllm-project/vllm pull 34730), a stop aborts all requests
                ("--shutdown-timeout", None if is_too_old(self._image(replica, context), (0, 18)) else DRAIN_SECONDS),
            )),
            *(_nodes.node_flags(replica, site) if replica.nodes > 1 else ()),
            *model.extra_args,
        )  # fmt: skip

    def _environment(
        self, replica: Replica, context: Context, command: tuple[str, ...], own_url: str
    ) -> tuple[tuple[str, str | EnvRef], ...]:
        model, site, cache = replica.spec, context.site, context.site.cache_dir()
        # the key comes from the environment, because --api-key would show it in the process list
        values: dict[str, str | EnvRef] = {} if replica.follows else {"VLLM_API_KEY": API_KEY}
        # without anything from the Hub, no Hub cache is mounted
        if self.download_arguments(model):
            values |= dict((*hub_environment(site), *vocabulary_environment(model, site)))
        values |= {
            "HOME": site.home_dir(),
            "USER": "vllm",  # torch looks up the user's name, which a bare uid doesn't have
            **cache_environment(model, site, self._image(replica, context), command),
            # by default, vLLM sends usage statistics
            "VLLM_NO_USAGE_STATS": "1",
        }
        if not replica.gpus:
            values |= {"VLLM_CPU_KVCACHE_SPACE": str(model.cpu_kv_cache_gib)}
        elif replica.gpus.driver != "amd":
            values |= {"FLASHINFER_WORKSPACE_BASE": f"{cache}/flashinfer"}  # for kernels compiled for this GPU
        values |= watch_environment(model, site, self.name, own_url)
        values |= dict(site.gpu_environment(replica.gpus))
        if replica.nodes > 1:
            # otherwise vLLM announces the address that a name server gives for the host's name
            values |= {"VLLM_HOST_IP": _nodes.node_of(replica, site).address}
        if replica.node:
            values |= {"STACKGEN_SETUP": _nodes.setup_of(replica, site, str(values.get("STACKGEN_SETUP", "")))}
        if replica.follows:
            values |= {"STACKGEN_WATCH": _nodes.watch_of(replica, site)}
        # the user's variables take precedence
        return tuple((values | model.extra_env).items())


def _cache(replica: Replica) -> str:
    """The volume for compile caches: one per kind of image, because the images run as different users."""
    if replica.gpus and replica.gpus.driver != "amd":
        return "vllm-cache"
    return f"vllm-{'rocm' if replica.gpus else 'cpu'}-cache"


ENGINE = Vllm()
