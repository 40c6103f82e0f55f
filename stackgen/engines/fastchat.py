"""FastChat: controller, OpenAI API server, and one model worker for each replica, from one image of ours.

Flags, heartbeats and failure behaviour as measured on FastChat 0.2.36 (upstream publishes no image). Controller
and workers have no authentication at all, so they stand on an internal network that publishes nothing; only the
API server, which asks for a key, is reached from outside.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stackgen.engines.base import (
    API_KEY,
    SCRIPTS,
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
from stackgen.images.tags import VERSIONS, context_assets, image_tag
from stackgen.plan import Asset, Bind, Build, Dependency, Deviation, Dialect, Endpoint, Network, Port, Service, Tmpfs
from stackgen.spec import ModelSpec, Text, is_local

__all__ = ["ENGINE", "FastChatModel"]

VERSION = VERSIONS["fastchat"]
CONTROLLER, API, NETWORK = "fastchat-controller", "fastchat-api", "fastchat"
CONTROLLER_PORT, WORKER_PORT, API_PORT = 21001, 21002, 8000
# 45 s and 90 s by default: a killed worker then answers 500 for up to three minutes; measured 26 s with these
HEARTBEAT, EXPIRATION = "5", "15"


class FastChatModel(ModelSpec):
    """A model served by a FastChat worker."""

    engine: Literal["fastchat"] = Field(description="The engine")
    conv_template: Text | None = Field(
        None, description="Conversation template; default: FastChat's for the path, else one made from the tokenizer's"
    )
    worker_concurrency: int = Field(5, ge=1, description="Requests that a worker generates at the same time, at most")
    dispatch_method: Literal["shortest_queue", "lottery"] = Field(
        "shortest_queue", description="How the controller picks a worker; one for the whole stack"
    )
    load_8bit: bool = Field(False, description="Compress the weights to 8 bits while loading")
    cpu_offloading: bool = Field(False, description="With load_8bit: keep what doesn't fit the GPU in host memory")
    max_gpu_memory: Text | None = Field(None, description="Memory for weights on each GPU, e.g. 13GiB")


class FastChat:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "fastchat"
    Model = FastChatModel
    dialect = Dialect(
        name="fastchat",
        alive_path=None,
        open_paths=("/api/v1/chat/completions", "/api/v1/token_check", "/docs", "/openapi.json"),
        # controller and worker have no authentication at all
        private_ports=((21001, "/list_models"), (21002, "/worker_get_status")),
        stream_usage=False,
        unknown_model=(400, 40301),
        error_path=("message",),
        silent_hint="the worker may be wedged: each request with a null parameter took one of its slots for good"
        " (plain FastChat 0.2.36 does that): restart the worker",
        claims=("completions", "embeddings"),
        lacks=("tokenize",),
        ignores=("tools", "json-schema", "logprobs", "seed"),
        deviations=(
            Deviation("stream", r"(object|created): field required", "sends object and created in the last chunk only"),
            Deviation(
                "chat",
                r"completion_tokens is \d+ at a length limit of \d+",
                "counts one completion token too few at the length limit",
            ),
            Deviation("errors", r"messages as a text: accepted with 200", "takes a plain text as messages"),
            Deviation("errors", r"too large max_tokens: accepted with 200", "cuts max_tokens down to the context"),
            Deviation("errors", r"list-style content: HTTP 500 .*", "fails at list-style content with a 500"),
            Deviation("errors", r"unsupported role: HTTP 500 .*", "fails at roles it doesn't know with a 500"),
            Deviation(
                "errors",
                r"(malformed JSON|temperature as a text): the error tells of the server's inside: .*",
                "names its own source file in validation errors",
            ),
        ),
    )
    single_endpoint = True
    phases = (
        (r"Loading the model|Loading checkpoint shards", "load weights"),
        (r"Register to controller", "register"),
        (r"Uvicorn running on", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """The trio: one controller, one API server, and a worker for each replica."""
        workers = tuple(self._worker(replica, context) for replica in context.replicas)
        port = context.replicas[0].host_port
        names = tuple(dict.fromkeys(name for r in context.replicas for name in served_names(r.spec)))
        api = self._api(context, names, workers, port)
        url = context.site.public_url(context.stack.bind, port)
        groups = tuple(dict.fromkeys(served_names(r.spec) for r in context.replicas))
        # the API server spreads over its workers, so a model has as many slots as they have together
        slots = min(r.spec.worker_concurrency * r.spec.replicas for r in context.replicas)
        endpoint = Endpoint(
            "fastchat",
            API,
            url,
            names,
            self.dialect,
            workers=tuple(w.name for w in workers),
            groups=groups,
            slots=slots,
        )
        return Part(
            services=(self._controller(context), *workers, api),
            endpoints=(endpoint,),
            assets=(Asset("images/common/supervise.sh", "scripts/supervise.sh"), *context_assets("fastchat")),
            networks=(Network(NETWORK, internal=True),),
            warnings=("FastChat always runs code that comes with a model (trust_remote_code is hard-coded): "
                      "serve only repositories that you trust",),
        )  # fmt: skip

    def mistakes(self, context: Context) -> list[Mistake]:
        """What the trio can't do: several dispatch methods or ports, AMD cards, commas in names."""
        found = []
        models = list({id(replica.spec): replica.spec for replica in context.replicas}.values())
        for field, plural in (("dispatch_method", "one controller"), ("port", "one API server")):
            values = {getattr(model, field) for model in models} - {None}
            if len(values) > 1:
                told = ", ".join(sorted(map(str, values)))
                found.append(Mistake("models", f"FastChat models share {plural}, but {field} differs: {told}"))
        for model in models:
            found += [Mistake("models", f"served name {name!r} holds a comma, which FastChat splits names at")
                      for name in served_names(model) if "," in name]  # fmt: skip
        if context.stack.gpu_driver == "amd" and any(replica.gpus for replica in context.replicas):
            found.append(Mistake("gpu_driver", "FastChat's image has no AMD variant", "use engine: vllm"))
        return found

    def downloader(self, context: Context) -> tuple[str, Build | None]:
        """Our image holds `hf`."""
        return self._image(context)

    def downloads(self, model: Any) -> tuple[str, ...]:
        """The repository without duplicates of the weights."""
        return download_model(model)

    def _image(self, context: Context) -> tuple[str, Build | None]:
        chosen = next((replica.spec.image for replica in context.replicas if replica.spec.image), None)
        if chosen:
            return chosen, None
        variant = "cuda" if any(replica.gpus for replica in context.replicas) else "cpu"
        return image_tag("fastchat", VERSION, variant), Build("./fastchat", (("VARIANT", variant),))

    def _words(self, context: Context, role: str) -> tuple[str, ...]:
        return ("python3", context.site.image_file("fastchat", "launch.py"), role)

    def _probe(self, context: Context, *words: str) -> tuple[str, ...]:
        return ("python3", context.site.image_file("fastchat", "health.py"), *words)

    def _controller(self, context: Context) -> Service:
        site, stack = context.site, context.stack
        address, port = site.listen(CONTROLLER, CONTROLLER_PORT)
        method = context.replicas[0].spec.dispatch_method
        image, build = self._image(context)
        return Service(
            name=CONTROLLER, role="controller", engine=self.name,
            comment="FastChat's controller: knows the workers; no authentication, so on the internal network only",
            image=image, build=build,
            entrypoint=supervised(site),
            command=(*self._words(context, "controller"),
                     *flags((("--host", address), ("--port", port), ("--dispatch-method", method)))),
            environment=(("FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION", EXPIRATION), ("LOGDIR", "")),
            mounts=(Bind("./scripts", SCRIPTS), Tmpfs("/tmp", "mode=1777")),
            networks=(NETWORK,),
            health=health(self._probe(context, "controller", site.local_url(CONTROLLER, CONTROLLER_PORT)), 60),
            restart=stack.restart, init=True,
        )  # fmt: skip

    def _worker(self, replica: Replica, context: Context) -> Service:
        site, stack, model = context.site, context.stack, replica.spec
        address, port = site.listen(replica.service, WORKER_PORT)
        image, _ = self._image(context)
        own, controller = site.url(replica.service, WORKER_PORT), site.url(CONTROLLER, CONTROLLER_PORT)
        hub = () if is_local(model.model) else hub_environment(site)
        environment = dict([
            *hub, ("FASTCHAT_WORKER_HEART_BEAT_INTERVAL", HEARTBEAT), ("HOME", site.home_dir()), ("LOGDIR", ""),
            *site.gpu_environment(replica.gpus), *model.extra_env.items(),
        ])  # fmt: skip
        return Service(
            name=replica.service, role="worker", engine=self.name,
            comment=f"FastChat worker serving {model.model}"
            + (f", replica {replica.index + 1}" if model.replicas > 1 else ""),
            image=image, pull=bool(model.image),
            entrypoint=supervised(site),
            command=(*self._words(context, "worker"), *flags((
                ("--host", address),
                ("--port", port),
                ("--worker-address", own),
                ("--controller-address", controller),
                ("--model-path", model_source(model, site)),
                ("--revision", model.revision if not is_local(model.model) else None),
                ("--model-names", ",".join(served_names(model))),
                ("--conv-template", model.conv_template),
                ("--limit-worker-concurrency", model.worker_concurrency),
                ("--device", "cuda" if replica.gpus else "cpu"),
                ("--num-gpus", replica.gpu_count if replica.gpus and replica.gpu_count else None),
                ("--max-gpu-memory", model.max_gpu_memory),
                ("--dtype", model.dtype),
                ("--load-8bit", model.load_8bit),
                ("--cpu-offloading", model.cpu_offloading),
            )), *model.extra_args),
            environment=tuple(environment.items()),
            gpus=replica.gpus,
            mounts=engine_mounts(model, stack, site),
            networks=(NETWORK,),
            depends_on=(Dependency(CONTROLLER, "service_healthy"),),
            health=health(self._probe(context, "worker", own, controller), start_period(model), 60),
            restart=stack.restart, init=True,
            user=model.user or "", read_only=model.read_only, cpuset=model.cpuset or "",
            shm_size=model.shm_size or "", ipc=model.ipc or "",
        )  # fmt: skip

    def _api(self, context: Context, names: tuple[str, ...], workers: tuple[Service, ...], host_port: int) -> Service:
        site, stack = context.site, context.stack
        address, port = site.listen(API, API_PORT, host_port=host_port)
        image, _ = self._image(context)
        return Service(
            name=API, role="api", engine=self.name,
            comment="FastChat's OpenAI API server: the only one of the trio that is reached from outside",
            image=image, pull=bool(context.replicas[0].spec.image),
            entrypoint=supervised(site),
            # the key comes from the environment and not by --api-keys, which would show it in the process list
            command=(*self._words(context, "api"), *flags((
                ("--host", address), ("--port", port),
                ("--controller-address", site.url(CONTROLLER, CONTROLLER_PORT)),
                ("--expect-models", ",".join(names)),
            ))),
            environment=(("LOGDIR", ""), ("STACKGEN_API_KEY", API_KEY)),
            mounts=(Bind("./scripts", SCRIPTS), Tmpfs("/tmp", "mode=1777")),
            ports=(Port(stack.bind, host_port, port),),
            networks=("default", NETWORK),
            depends_on=tuple(Dependency(worker.name, "service_healthy") for worker in workers),
            health=health(self._probe(context, "api", site.local_url(API, API_PORT), *names), 60),
            restart=stack.restart, init=True,
        )  # fmt: skip


ENGINE = FastChat()
