"""The fields of models, storage, logging and named endpoints.

Each engine adds its own model fields in `stackgen/engines/`. All pydantic models are frozen and reject unknown fields.
`stackgen.stack.mistakes` turns validation errors into messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from stackgen.spec.types import (
    BaseUrl,
    ByteSize,
    EnvName,
    EnvValue,
    Gpus,
    KeyName,
    ModelSource,
    Provider,
    Text,
)

__all__ = [
    "EndpointSpec", "EndpointsSpec", "FallbackSpec", "LoggingSpec", "ModelSpec", "StorageSpec", "Strict", "short_form",
]  # fmt: skip


def short_form(schema: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Returns a `json_schema_extra` that also allows `schema`: the short form of a field that is a mapping."""
    return lambda field: field["anyOf"].insert(0, schema)


class Strict(BaseModel):
    """Base of all pydantic models: frozen, and unknown fields are errors."""

    # defer_build: base classes and the models of unused engines are never built (docs/decisions/startup-cost.md)
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FallbackSpec(Strict):
    """The server to use while no replica of a model is up: `together:<model id>`, or any OpenAI-compatible URL."""

    model: Text = Field(description="Model id at the provider")
    provider: Provider | None = Field(None, description="Provider name. `stackgen providers` lists them")
    base_url: BaseUrl | None = Field(None, description="Base URL including /v1. Default: the provider's base URL")
    api_key_env: KeyName | None = Field(
        None, description="Name of the variable in .env that contains the API key. Default: the provider's variable"
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
            raise PydanticCustomError("fallback", "must look like together:<model id>")
        return {"provider": provider, "model": model}
    return value


Fallback = Annotated[
    FallbackSpec | None,
    BeforeValidator(_expand_fallback),
    Field(json_schema_extra=short_form({"type": "string"})),
]


class ModelSpec(Strict):
    """A model and how to serve it: the fields that all engines have."""

    model: ModelSource = Field(
        description="Hugging Face id (organization/name), or local folder (llamacpp: file) that starts with /, ./ or ~"
    )
    revision: Text | None = Field(
        None, description="Branch, tag or commit of the Hub repository. A commit keeps the weights from changing"
    )
    served_names: tuple[Text, ...] = Field(
        (), description="Model names that clients use. The first one also names the service. Default: the model id"
    )
    gpus: Gpus = Field(
        0,
        description="GPUs of each replica: a count, `all`, or `none` to use the CPU. A list of indices, UUIDs or CDI "
        "names is divided evenly among all replicas",
    )
    share_gpus: bool = Field(
        False,
        description="Share GPUs with another model. Both models need `share_gpus` and `gpu_memory_utilization`",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Fraction of each GPU's memory that this model may use. vLLM's default is 0.92"
    )
    replicas: int = Field(1, ge=1, le=64, description="Replicas of the model. Each is a service with its own GPUs")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float", "bfloat"] | None = Field(
        None, description="Data type of weights and activations. Default: from the model's config"
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code from the model's repository. Enable it only for repositories that you trust"
    )
    port: int | None = Field(None, ge=1, le=65535, description="Port on this machine. Default: the next free port")
    extra_args: tuple[str, ...] = Field((), description="Flags passed to the engine unchanged, after all other flags")
    extra_env: dict[EnvName, EnvValue] = Field({}, description="Environment variables of the engine")
    image: Text | None = Field(
        None, description="Image to use instead of the engine's pinned image. Include a version tag"
    )
    user: Text | None = Field(
        None, description="uid:gid that the engine runs as. Default: the user that its image is built for"
    )
    read_only: bool = Field(True, description="Make the container's root file system read-only. /tmp stays writable")
    shm_size: ByteSize | None = Field(
        None, description="Size of /dev/shm, for example 8g. The default depends on the parallel sizes"
    )
    ipc: Literal["host", "private", "shareable"] | None = Field(
        None, description="IPC mode of the container, instead of `shm_size`"
    )
    cpuset: Text | None = Field(None, pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$", description="CPU cores, for example 0-7")
    start_timeout: int | None = Field(
        None,
        ge=10,
        le=86400,
        description="Seconds until a start counts as failed. The default depends on the model's size",
    )
    fallback: Fallback = Field(
        None,
        description="Server to use while no replica is up: together:<model id>, or `provider`, `base_url` and `model`. "
        "The fallback's responses have the header x-stackgen-served-by. A fallback needs the gateway",
    )


class StorageSpec(Strict):
    """Where the weights are stored: one volume or folder for all models, mounted into every engine."""

    # all stacks share one volume, so that two stacks with the same model download it once
    volume: str = Field(
        "stackgen-models", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$", description="Docker volume, shared by all stacks"
    )
    path: Text | None = Field(None, description="Folder on this machine, instead of the volume")
    offline: bool = Field(
        False, description="Never contact the Hugging Face Hub. All weights must already be in the volume or folder"
    )
    hub_endpoint: Text | None = Field(
        None, pattern=r"^https?://", description="URL of a mirror of the Hugging Face Hub"
    )
    user: Text | None = Field(None, description="uid:gid that owns the downloaded files in `path`. Default: 0:0")


class LoggingSpec(Strict):
    """Log rotation of every container."""

    max_size: str = Field("20m", pattern=r"^[1-9][0-9]*[kmg]$", description="Maximum size of a log file")
    max_file: int = Field(5, ge=1, le=100, description="Number of log files to keep for each container")


class EndpointSpec(Strict):
    """A named endpoint that this stack does not start: one URL, or all endpoints of another stack."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name to pass to `--provider`")
    provider: Provider | None = Field(
        None,
        description="Provider name (`stackgen providers` lists them). It sets the base URL, the dialect and the "
        "variable with the key",
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
        description="Known deviations of the server from the OpenAI API. Default: the provider's dialect, or detected "
        "from the server's responses",
    )
    stack: Text | None = Field(
        None,
        description="Another stack.yaml or its folder, instead of a URL. Adds all endpoints of that stack, with the "
        "key from its .env",
    )
    max_ttft: float | None = Field(
        None, gt=0, description="The check fails if the time to first token (TTFT) exceeds this many seconds"
    )
    min_tokens_per_second: float | None = Field(None, gt=0, description="The check fails below this many tokens/s")

    @model_validator(mode="after")
    def _require_one_address(self) -> EndpointSpec:
        own = [name for name in ("provider", "base_url", "api_key_env", "models", "dialect") if getattr(self, name)]
        if self.stack and own:
            raise PydanticCustomError(
                "address",
                "has both `stack` and {fields}. Remove one of the two: with `stack`, the other stack sets {fields}",
                {"fields": ", ".join(own)},
            )
        if not (self.stack or self.provider or self.base_url):
            raise PydanticCustomError("address", "needs one of `provider`, `base_url` and `stack`")
        return self


class EndpointsSpec(Strict):
    """The file `endpoints.yaml`: endpoints that `stackgen check` and `stackgen ask` can find by name."""

    endpoints: tuple[EndpointSpec, ...] = Field(description="Endpoints, each with a unique name")
