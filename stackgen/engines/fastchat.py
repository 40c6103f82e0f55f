"""FastChat's fields and services: controller, API server and a model worker per replica; command, health checks.

Flags, heartbeats and failure behavior: measured on FastChat 0.2.36. Upstream publishes no image. Controller and
workers have no authentication, so they run on an internal network without published ports. Only the API server, which
requires a key, is reachable from outside.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stackgen.engines._fastchat_dialect import PLAIN, launched_dialect
from stackgen.engines._values import find_value_mistakes
from stackgen.engines._versions import EngineVersion, find_version_mistakes, warn_of_versions
from stackgen.engines._watch import WATCH_ASSETS, watch_environment
from stackgen.engines.base import (
    API_KEY,
    SCRIPTS,
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
    image_user,
    model_download_arguments,
    model_source,
    served_names,
    supervisor_entrypoint,
)
from stackgen.errors import Mistake
from stackgen.images.tags import VERSIONS, context_assets, image_tag
from stackgen.plan import Asset, Bind, Build, Dependency, Endpoint, Network, Port, Service, Tmpfs
from stackgen.spec import ModelSpec, Text, is_local

__all__ = ["ENGINE", "FastChatModel"]

VERSION = VERSIONS["fastchat"]
CONTROLLER, API, NETWORK = "fastchat-controller", "fastchat-api", "fastchat"
CONTROLLER_PORT, WORKER_PORT, API_PORT = 21001, 21002, 8000
# Requests to a killed worker fail with 500 for 26 s. With FastChat's defaults (45 and 90 s): for up to 3 minutes
HEARTBEAT, EXPIRATION = "5", "15"


class FastChatModel(ModelSpec):
    """A model served by a FastChat worker."""

    engine: Literal["fastchat"] = Field(description="The engine")
    engine_version: EngineVersion = None
    conv_template: Text | None = Field(
        None,
        description="Conversation template: `chat-template` for the chat template of the model's tokenizer, or the "
        "name of one of FastChat's own templates, for example vicuna_v1.1. Default: FastChat looks for a "
        "known name in the model's path, and uses its own template for that model. If it knows no such name, the "
        "default is `chat-template`, for example for Llama 3.1",
    )
    worker_concurrency: int = Field(
        5, ge=1, description="Maximum number of requests that a worker runs at the same time"
    )
    dispatch_method: Literal["shortest_queue", "lottery"] = Field(
        "shortest_queue", description="How the controller chooses a worker. All FastChat models need the same value"
    )
    load_8bit: bool = Field(False, description="Compress the weights to 8 bits while loading")
    cpu_offloading: bool = Field(
        False, description="If `load_8bit` is set, weights that don't fit into GPU memory stay in host memory"
    )
    max_gpu_memory: Text | None = Field(None, description="Memory for weights on each GPU, for example 13GiB")


class FastChat:
    """The engine object; see `stackgen.engines.base.Engine`."""

    name = "fastchat"
    Model = FastChatModel
    # servers that others have started; the stack's own API server has the launcher's
    dialect = PLAIN
    single_endpoint = True
    phases = (
        (r"Loading the model|Loading checkpoint shards", "loading weights"),
        (r"Register to controller", "registering"),
        (r"Uvicorn running on", "ready"),
    )

    def plan(self, context: Context) -> Part:
        """Plans one controller, one API server, and one worker per replica."""
        workers = tuple(self._worker(replica, context) for replica in context.replicas)
        # one API server answers for all replicas, so they share one host port
        port = context.replicas[0].host_port
        # each replica has the same names, so duplicates are removed
        names = tuple(dict.fromkeys(name for r in context.replicas for name in served_names(r.spec)))
        api = self._api(context, names, workers, port)
        url = context.site.public_url(context.stack.bind, port)
        groups = tuple(dict.fromkeys(served_names(r.spec) for r in context.replicas))
        # the API server balances over the workers, so a model's concurrency is the sum over its workers
        concurrency = min(r.spec.worker_concurrency * r.spec.replicas for r in context.replicas)
        endpoint = Endpoint(
            "fastchat",
            service=API,
            base_url=url,
            models=names,
            dialect=launched_dialect(_version(context)),
            workers=tuple(w.name for w in workers),
            groups=groups,
            max_concurrent_requests=concurrency,
        )
        return Part(
            services=(self._controller(context), *workers, api),
            endpoints=(endpoint,),
            assets=(Asset("images/common/supervise.sh", "scripts/supervise.sh"), *context_assets("fastchat"),
                    Asset("engines/fastchat_progress.py", "scripts/fastchat_progress.py"), *WATCH_ASSETS),
            networks=(Network(NETWORK, internal=True),),
            warnings=("FastChat always runs code from the model's repository (trust_remote_code is hard-coded): "
                      "serve only models that you trust", *warn_of_versions(self.name, context)),
        )  # fmt: skip

    def mistakes(self, context: Context) -> list[Mistake]:
        """Finds what FastChat can't do: several dispatch methods, ports or versions, AMD GPUs, commas in names."""
        found = [*find_value_mistakes(self.name, context), *find_version_mistakes(context)]
        models = list({id(replica.spec): replica.spec for replica in context.replicas}.values())
        shares = (("dispatch_method", "one controller"), ("port", "one API server"), ("engine_version", "one image"))
        for field, shared in shares:
            values = {getattr(model, field) for model in models} - {None}
            if len(values) > 1:
                listed = ", ".join(sorted(map(str, values)))
                found.append(
                    Mistake(
                        "models",
                        f"FastChat models share {shared}, but {field} differs: {listed}",
                        hint=f"set the same {field} for all FastChat models",
                    )
                )
        for model in models:
            found += [
                Mistake(
                    "models",
                    f"served name {name!r} contains a comma, which separates names in FastChat",
                    hint="choose another name",
                )
                for name in served_names(model)
                if "," in name
            ]
        if context.stack.gpu_driver == "amd" and any(replica.gpus for replica in context.replicas):
            found.append(Mistake("gpu_driver", "FastChat's image has no AMD variant", hint="use engine: vllm"))
        return found

    def download_image(self, context: Context) -> tuple[str, Build | None]:
        """The engine's own image, which has `hf`."""
        return self._image(context)

    def download_arguments(self, model: Any) -> tuple[str, ...]:
        """Arguments for the repository, without copies of the weights in other formats."""
        return model_download_arguments(model)

    def _image(self, context: Context) -> tuple[str, Build | None]:
        # all services run the same image: the first image in the stack file
        chosen = next((replica.spec.image for replica in context.replicas if replica.spec.image), None)
        if chosen:
            return chosen, None
        variant = "cuda" if any(replica.gpus for replica in context.replicas) else "cpu"
        version = _version(context)
        other = (("FASTCHAT_VERSION", version),) if version != VERSION else ()
        return image_tag("fastchat", version, variant), Build("./fastchat", (("VARIANT", variant), *other))

    def _launch_command(self, context: Context, role: str) -> tuple[str, ...]:
        return ("python3", context.site.image_file("fastchat", "launch.py"), role)

    def _health_command(self, context: Context, *arguments: str) -> tuple[str, ...]:
        return ("python3", context.site.image_file("fastchat", "health.py"), *arguments)

    def _controller(self, context: Context) -> Service:
        site, stack = context.site, context.stack
        address, port = site.listen(CONTROLLER, CONTROLLER_PORT)
        # `mistakes` has checked that all models have the same value
        method = context.replicas[0].spec.dispatch_method
        image, build = self._image(context)
        return Service(
            name=CONTROLLER, role="controller", engine=self.name,
            comment="The controller tracks FastChat's workers. It is only on the internal network, because it has no "
            "authentication",
            image=image, build=build,
            entrypoint=supervisor_entrypoint(site),
            command=(*self._launch_command(context, "controller"),
                     *format_flags((("--host", address), ("--port", port), ("--dispatch-method", method)))),
            # unless LOGDIR is empty, FastChat writes log files, which a read-only container can't
            environment=(("FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION", EXPIRATION), ("LOGDIR", "")),
            mounts=(Bind("./scripts", SCRIPTS), Tmpfs("/tmp", "mode=1777")),
            networks=(NETWORK,),
            health=health_check(
                self._health_command(context, "controller", site.local_url(CONTROLLER, CONTROLLER_PORT)), period=60
            ),
            # as process 1, FastChat ignores SIGTERM
            restart=stack.restart, init=True, user=image_user(image),
        )  # fmt: skip

    def _worker(self, replica: Replica, context: Context) -> Service:
        site, stack, model = context.site, context.stack, replica.spec
        address, port = site.listen(replica.service, WORKER_PORT)
        image, _ = self._image(context)
        own, controller = site.own_url(replica.service, WORKER_PORT), site.url(CONTROLLER, CONTROLLER_PORT)
        hub = () if is_local(model.model) else hub_environment(site)
        environment = dict([
            # the user's variables come last and take precedence
            *hub, ("FASTCHAT_WORKER_HEART_BEAT_INTERVAL", HEARTBEAT), ("HOME", site.home_dir()), ("LOGDIR", ""),
            *watch_environment(model, site, self.name, f"http://127.0.0.1:{WORKER_PORT}").items(),
            *site.gpu_environment(replica.gpus), *model.extra_env.items(),
        ])  # fmt: skip
        return Service(
            name=replica.service, role="worker", engine=self.name,
            comment=f"FastChat worker serving {model.model}{replica.ordinal}",
            # the controller's service builds the image
            image=image, pull=bool(model.image),
            entrypoint=supervisor_entrypoint(site),
            command=(*self._launch_command(context, "worker"), *format_flags((
                ("--host", address),
                ("--port", port),
                # with the default, localhost, the controller would connect to its own container
                ("--worker-address", own),
                ("--controller-address", controller),
                ("--model-path", model_source(model, site)),
                # a local folder has no revisions
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
            # a worker exits if it can't register
            depends_on=(Dependency(CONTROLLER, "service_healthy"),),
            # the health check waits up to 50 s for a token
            health=health_check(
                self._health_command(context, "worker", own, controller),
                estimate_start_period(replica, site),
                timeout=60,
            ),
            restart=stack.restart, init=True,
            user=model.user or image_user(image), read_only=has_read_only_root(model, replica.gpus),
            cpuset=model.cpuset or "", shm_size=model.shm_size or "", ipc=model.ipc or "",
            # uvicorn finishes the requests in flight, without a limit
            stop_grace_period=STOP_GRACE_PERIOD,
        )  # fmt: skip

    def _api(self, context: Context, names: tuple[str, ...], workers: tuple[Service, ...], host_port: int) -> Service:
        site, stack = context.site, context.stack
        address, port = site.listen(API, API_PORT, host_port=host_port)
        image, _ = self._image(context)
        return Service(
            name=API, role="api", engine=self.name,
            comment="FastChat's OpenAI API server: the only FastChat service that is reachable from outside",
            image=image, pull=bool(context.replicas[0].spec.image),
            entrypoint=supervisor_entrypoint(site),
            # the key comes from the environment, because --api-keys would show it in the process list
            command=(*self._launch_command(context, "api"), *format_flags((
                ("--host", address), ("--port", port),
                ("--controller-address", site.url(CONTROLLER, CONTROLLER_PORT)),
                # launch.py waits for a worker; without workers, FastChat answers 200 with an empty list of models
                ("--expect-models", ",".join(names)),
            ))),
            environment=(("LOGDIR", ""), ("STACKGEN_API_KEY", API_KEY)),
            mounts=(Bind("./scripts", SCRIPTS), Tmpfs("/tmp", "mode=1777")),
            ports=(Port(stack.bind, host_port, port),),
            # an internal network can't publish ports, so the API server is on the default network too
            networks=("default", NETWORK),
            # a worker that can't start must not keep the other models from answering
            depends_on=tuple(Dependency(worker.name, "service_healthy", required=False) for worker in workers),
            health=health_check(self._health_command(context, "api", site.local_url(API, API_PORT), *names), period=60),
            restart=stack.restart, init=True, user=image_user(image), stop_grace_period=STOP_GRACE_PERIOD,
        )  # fmt: skip


def _version(context: Context) -> str:
    # `mistakes` has checked that all models have the same value
    return next((one.spec.engine_version for one in context.replicas if one.spec.engine_version), VERSION)


ENGINE = FastChat()
