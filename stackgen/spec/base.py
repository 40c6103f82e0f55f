"""The fields that every model has, `fallback`, `storage`, `logging`, and the entries of endpoints.yaml.

Each engine adds its own model fields in `stackgen/engines/`. All pydantic models are frozen and reject unknown fields.
`stackgen.stack.mistakes` turns validation errors into messages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from stackgen.spec.cluster import KubernetesModelSpec
from stackgen.spec.hosts import ModelHosts
from stackgen.spec.strict import Strict, short_form
from stackgen.spec.types import (
    BaseUrl,
    ByteSize,
    EngineValue,
    EnvName,
    Gpus,
    KeyName,
    ModelSource,
    Provider,
    Text,
)

__all__ = [
    "EndpointSpec", "EndpointsSpec", "FallbackSpec", "LoggingSpec", "ModelSpec", "StorageSpec", "Strict", "short_form",
]  # fmt: skip


class FallbackSpec(Strict):
    """Sets the server that answers while no replica is up: a known cloud, or any OpenAI-compatible URL.

    With `overflow`, it also answers while all replicas are busy.
    """

    model: Text = Field(description="Model id at the provider")
    provider: Provider | None = Field(
        None, description="`together` or `openai`: stackgen knows their URL and the variable with the key. Other "
        "names in `stackgen providers` need `base_url`"
    )  # fmt: skip
    base_url: BaseUrl | None = Field(None, description="Base URL including /v1. Default: the provider's base URL")
    api_key_env: KeyName | None = Field(
        None, description="Name of the variable in .env that contains the API key. Default: the provider's variable"
    )
    overflow: bool = Field(
        False,
        description="Also send requests to the fallback while all replicas are busy and the queue of the model is full "
        "(`gateway.max_queue`). Without `overflow`, these requests get a 429. Also set `gateway.max_queue` and "
        "`max_num_seqs`: by default, each replica of vLLM and SGLang takes 256 requests, and the queue 256 more",
    )

    @model_validator(mode="after")
    def _require_address(self) -> FallbackSpec:
        if not (self.provider or self.base_url):
            raise PydanticCustomError("fallback", "needs `provider` or `base_url`")
        return self


def _expand_fallback(value: Any) -> Any:
    """Expands the short form `together:org/model`."""
    if isinstance(value, str):
        provider, colon, model = value.partition(":")
        if not colon or not provider or not model:
            raise PydanticCustomError(
                "fallback", "must look like together:<model id> or openai:<model id>. For other servers, write "
                "`{model: …, base_url: …, api_key_env: …}`",
            )  # fmt: skip
        return {"provider": provider, "model": model}
    return value


Fallback = Annotated[
    FallbackSpec | None,
    BeforeValidator(_expand_fallback),
    Field(json_schema_extra=short_form({"type": "string"})),
]


LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_./-]*$")]
NetworkName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")]


class MountSpec(Strict):
    """Mounts a file or folder of this machine into the containers of a model."""

    source: Text = Field(description="File or folder on this machine, absolute or relative to the stack file")
    target: Text = Field(pattern=r"^/[^:]*$", description="Absolute path in the container")
    read_only: bool = Field(True, description="Mount the file or folder read-only")


class ModelSpec(Strict):
    """A model and how to serve it: the fields that all engines have."""

    model: ModelSource = Field(
        description="Hugging Face id (organization/name), or path of a local folder (llamacpp: of a local file). A "
        "local path starts with `/`, `./` or `~`"
    )
    revision: Text | None = Field(
        None, description="Branch, tag or commit of the Hub repository. With a commit, the weights do not change"
    )
    served_names: tuple[Text, ...] = Field(
        (),
        description="Model names that clients use. The first name is also part of the service's name. Default: the "
        "model id",
    )
    gpus: Gpus = Field(
        0,
        # inside, 0 is no GPU; in the file, it is refused
        json_schema_extra={"default": "none"},
        description="GPUs of each replica: a count, `all`, or `none` to use the CPU. A list of indices, UUIDs or CDI "
        "names is divided evenly among all replicas. With `auto`, `stackgen plan` chooses the GPUs by the "
        "estimated memory",
    )
    share_gpus: bool = Field(
        False,
        description="Share GPUs with another model. Set `share_gpus` and `gpu_memory_utilization` on both models. Set "
        "`gpus` of both models to the same list, for example `[0]`, or to `auto`. Models whose `gpus` is a count never "
        "share a GPU",
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Maximum fraction of each GPU's memory for this model. vLLM's default is 0.92. FastChat and "
        "llama.cpp can't limit their memory: the field is only for `stackgen fit`. On the CPU, set `cpu_kv_cache_gib`",
    )
    replicas: int = Field(
        1, ge=1, le=64, description="Number of replicas of the model. Each replica is a service with its own GPUs"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float", "bfloat"] | None = Field(
        None, description="Data type of weights and activations. Default: from the model's config"
    )
    trust_remote_code: bool = Field(
        False,
        description="Run Python code from the model's repository. Set `true` only for repositories that you trust",
    )
    port: int | None = Field(None, ge=1, le=65535, description="Port on this machine. Default: the next free port")
    extra_args: tuple[str, ...] = Field(
        (),
        description="Flags passed to the engine, after all other flags. "
        "A path that starts with `./`, `../` or `~/` is mounted into the container; everything else is unchanged",
    )
    extra_env: dict[EnvName, EngineValue] = Field(
        {},
        description="Environment variables of the engine. `NAME: {from_env: NAME}` reads a secret from .env, so that "
        "no rendered file contains it",
    )
    image: Text | None = Field(
        None, description="Image to use instead of the engine's pinned image. Include a version tag"
    )
    user: Text | None = Field(
        None, description="uid:gid that the engine runs as. Default: the user that the image is built for"
    )
    read_only: bool | None = Field(
        None,
        description="Make the container's root file system read-only. /tmp stays writable. Default: `true` on the CPU, "
        "`false` with GPUs, because hooks of the NVIDIA Container Toolkit write to the root file system",
    )
    shm_size: ByteSize | None = Field(
        None, description="Size of /dev/shm, for example 8g. The default depends on the parallel sizes"
    )
    ipc: Literal["host", "private", "shareable"] | None = Field(
        None, description="IPC mode of the container, instead of `shm_size`"
    )
    cpuset: Text | None = Field(None, pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$", description="CPU cores, for example 0-7")
    labels: dict[LabelName, str] = Field({}, description="Labels of the model's containers")
    networks: tuple[NetworkName, ...] = Field(
        (), description="Existing Docker networks that the model's containers also join"
    )
    mounts: tuple[MountSpec, ...] = Field((), description="Additional files and folders to mount into the containers")
    group_add: tuple[Text, ...] = Field(
        (), description="Additional groups of the container's user: a gid, or the name of a group in the image"
    )
    start_timeout: int | None = Field(
        None,
        ge=10,
        le=86400,
        description="Seconds until a start counts as failed. The default depends on the model's size",
    )
    restart_hung: bool = Field(
        True, description="Restart a replica that hangs: it makes no progress, answers no request, and computes nothing"
    )
    hang_timeout: int = Field(
        25,
        ge=10,
        le=3600,
        description="Seconds without progress until a replica counts as hung. A replica that still computes gets 40 "
        "times as long",
    )
    fallback: Fallback = Field(
        None,
        description="Server to use while no replica is up: `together:<model id>`, `openai:<model id>`, or the fields "
        "`base_url`, `model` and `api_key_env`. The fallback's responses have the header x-stackgen-served-by. A "
        "fallback needs the gateway",
    )
    host: ModelHosts = Field(
        (),
        description="The machine in `hosts` that runs the model, or a list of machines. Each machine of the list runs "
        "`replicas` replicas. Default: the first machine in `hosts`; with `gpus: auto`, the machines that `stackgen "
        "plan` chooses",
    )
    kubernetes: KubernetesModelSpec | None = Field(
        None, description="What the model's pods need. Only for the target `kubernetes`"
    )


class StorageSpec(Strict):
    """Sets where the weights are stored: one volume or folder for all models, which is mounted into every engine."""

    # all stacks share one volume, so that two stacks with the same model download it once
    volume: str = Field(
        "stackgen-models",
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$",
        description="Docker volume for the weights. All stacks share this volume",
    )
    path: Text | None = Field(
        None, description="Folder for the weights, instead of the volume. Like a Hub cache, it contains `hub`"
    )
    offline: bool = Field(
        False, description="Never contact the Hugging Face Hub. All weights must already be in the volume or folder"
    )
    hub_endpoint: Text | None = Field(
        None, pattern=r"^https?://", description="URL of a mirror of the Hugging Face Hub"
    )
    user: Text | None = Field(
        None, description="uid:gid that runs the download. Default: the owner of the volume or folder"
    )


class LoggingSpec(Strict):
    """Sets the log rotation of every container."""

    # without rotation, the log of an engine fills the disk
    max_size: str = Field("20m", pattern=r"^[1-9][0-9]*[kmg]$", description="Maximum size of a log file")
    max_file: int = Field(5, ge=1, le=100, description="Number of log files to keep for each container")


class EndpointSpec(Strict):
    """Adds endpoints that this stack does not start: one URL, or all endpoints of another stack."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name to pass to `--provider`")
    provider: Provider | None = Field(
        None,
        description="Provider name (`stackgen providers` lists all names). The provider determines the base URL, the "
        "dialect and the variable with the key",
    )
    base_url: BaseUrl | None = Field(None, description="Base URL including /v1. Default: the provider's base URL")
    api_key_env: KeyName | None = Field(
        None,
        description="Name of the variable (environment or .env) that contains the API key. Default: the provider's "
        "variable",
    )
    models: tuple[Text, ...] = Field(
        (), description="Served model names that the endpoint must list. `ask` uses the first one by default"
    )
    dialect: Provider | None = Field(
        None,
        description="Dialect: the known deviations of the server from the OpenAI API. Default: the provider's "
        "dialect, or detected from the server's responses",
    )
    stack: Text | None = Field(
        None,
        description="Another stack.yaml or its folder, instead of a URL. All endpoints of that stack are added, "
        "with the key from the .env of that stack",
    )
    max_ttft: float | None = Field(
        None, gt=0, description="The check fails if the time to first token (TTFT) exceeds this many seconds"
    )
    min_tokens_per_second: float | None = Field(
        None, gt=0, description="The check fails if the server generates fewer tokens per second than this number"
    )

    @model_validator(mode="after")
    def _require_one_address(self) -> EndpointSpec:
        own = [name for name in ("provider", "base_url", "api_key_env", "models", "dialect") if getattr(self, name)]
        if self.stack and own:
            raise PydanticCustomError(
                "address",
                "has both `stack` and {fields}. Remove `stack`, or remove {fields}: "
                "if `stack` is set, the other stack determines {fields}",
                {"fields": ", ".join(own)},
            )
        if not (self.stack or self.provider or self.base_url):
            raise PydanticCustomError("address", "needs one of `provider`, `base_url` and `stack`")
        return self


class EndpointsSpec(Strict):
    """The file `endpoints.yaml`: endpoints that `stackgen check` and `stackgen ask` can find by name."""

    endpoints: tuple[EndpointSpec, ...] = Field(description="Endpoints, each with a unique name")
