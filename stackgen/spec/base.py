"""The types of the fields, and what every model, the storage and the named endpoints have.

Each engine adds its own fields in its own file (`stackgen/engines/`). All models are frozen and refuse
unknown fields; messages about mistakes are made in `stackgen.stack.load`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "NAME", "PROVIDERS", "EndpointSpec", "EndpointsSpec", "EnvValue", "FallbackSpec", "Gpus", "LoggingSpec",
    "ModelSpec", "Size", "StorageSpec", "Strict", "Text", "human_int", "is_local", "short_form",
]  # fmt: skip

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
# capitals only: many clouds' keys are letters and digits, and would pass for a variable's name otherwise
KEY_NAME = r"^[A-Z][A-Z0-9_]{1,63}$"
# key of the validation context, and the type of the error
PROVIDERS = "providers"
# no credentials, query or fragment: they would end up in reports
BASE_URL = r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"
GPU_ID = re.compile(r"0|[1-9]\d{0,2}|(GPU|MIG)-[0-9A-Za-z/-]+|[\w.-]+/[\w.-]+=[\w.:-]+", re.ASCII)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def is_local(model: str) -> bool:
    """Whether `model` is a folder or file of this machine (starts with `/`, `./`, `../` or `~`), not a Hub id."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def human_int(text: str) -> int:
    """`32k` is 32,000 and `32K` is 32,768, as vLLM reads them (`vllm/engine/arg_utils.py`, human_readable_int)."""
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1] in factors else int(text)


def _gpus(value: Any) -> Any:
    """A count, `all`, `none`, or a list of indices, UUIDs or CDI names; one message for all that is wrong."""
    if value is None or value == "none":
        return 0
    if value == "all" or (type(value) is int and 0 <= value <= 64):
        return value
    if isinstance(value, (list, tuple)) and value:
        ids = [str(one) if type(one) is int else one for one in value]
        if all(isinstance(one, str) and GPU_ID.fullmatch(one) for one in ids):
            if len(set(ids)) == len(ids):
                return tuple(ids)
            raise PydanticCustomError("gpus", "names a GPU twice")
    raise PydanticCustomError("gpus", "must be a count (2), `all`, `none`, or a list of indices or UUIDs ([0, 1])")


def _model(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("model", "must be a Hugging Face id (organization/name) or a local path (./folder)")
    if not is_local(value) and not HUB_ID.fullmatch(value):
        raise PydanticCustomError(
            "model", "is no Hugging Face id (organization/name); a local folder starts with / or ./ or ~"
        )
    return value


def _env_value(value: Any) -> Any:
    # YAML reads 1e-5 or yes as a float or a boolean; turning them back into text would change them
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise PydanticCustomError("env", "must be text: put it in quotes")
    return value


def _key_name(value: Any) -> Any:
    # what stands here by mistake is the key itself: no message may repeat it
    if not isinstance(value, str) or not re.fullmatch(KEY_NAME, value):
        raise PydanticCustomError(
            "key_name",
            "must be the name of a variable, in capitals (TOGETHER_API_KEY); the key itself belongs into .env",
        )
    return value


def _provider(value: Any, info: ValidationInfo) -> Any:
    # which there are, the caller knows: an engine is a provider, and this module knows no engine
    known = (info.context or {}).get(PROVIDERS)
    if isinstance(value, str) and known and value not in known:
        raise PydanticCustomError(PROVIDERS, "is not known", {PROVIDERS: known})
    return value


def _base_url(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(BASE_URL, value):
        raise PydanticCustomError(
            "base_url", "must look like http://127.0.0.1:8000/v1, without credentials, query or fragment"
        )
    return value


def _size(value: Any) -> Any:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not re.fullmatch(
        r"auto|-1|[1-9]\d{0,11}|\d{1,9}(\.\d{1,9})?[kKmM]", text, re.ASCII
    ):
        raise PydanticCustomError("size", "must be a number of tokens (8192, 32k) or `auto`")
    return text


Gpus = Annotated[
    int | Literal["all"] | tuple[str, ...],
    BeforeValidator(_gpus),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "integer", "minimum": 0, "maximum": 64},
                {"enum": ["all", "none"]},
                {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": ["integer", "string"]}},
            ]
        }
    ),
]
Size = Annotated[
    str,
    BeforeValidator(_size),
    WithJsonSchema({"oneOf": [{"type": "integer", "minimum": -1}, {"type": "string"}]}),
]
EnvValue = Annotated[str, BeforeValidator(_env_value), WithJsonSchema({"type": ["string", "integer"]})]
Text = Annotated[str, StringConstraints(min_length=1)]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME)]
Provider = Annotated[str, BeforeValidator(_provider), StringConstraints(min_length=1)]
KeyName = Annotated[str, BeforeValidator(_key_name), WithJsonSchema({"type": "string", "pattern": KEY_NAME})]
BaseUrl = Annotated[str, BeforeValidator(_base_url), WithJsonSchema({"type": "string", "pattern": BASE_URL})]
ByteSize = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[kmg]b?$")]


def short_form(schema: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Tells a field's JSON Schema of a short form that is read beside its mapping."""
    return lambda field: field["anyOf"].insert(0, schema)


class Strict(BaseModel):
    """Frozen, and unknown fields are mistakes."""

    # built when first used: a base class never is, nor an engine that the stack leaves out
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class FallbackSpec(Strict):
    """Who answers when no replica of a model can: `together:<model id>`, or any OpenAI-compatible URL."""

    model: Text = Field(description="Model id there")
    provider: Provider | None = Field(None, description="A name that `stackgen providers` prints")
    base_url: BaseUrl | None = Field(None, description="Base URL with its /v1; default: the provider's")
    api_key_env: KeyName | None = Field(None, description="Name of the variable in .env that holds its key")

    @model_validator(mode="after")
    def _address(self) -> FallbackSpec:
        if not (self.provider or self.base_url):
            raise PydanticCustomError("fallback", "needs `provider` or `base_url`")
        return self


def _fallback(value: Any) -> Any:
    """`together:org/model` in short."""
    if isinstance(value, str):
        provider, colon, model = value.partition(":")
        if not colon or not provider or not model:
            raise PydanticCustomError("fallback", "must look like together:<model id>")
        return {"provider": provider, "model": model}
    return value


Fallback = Annotated[
    FallbackSpec | None,
    BeforeValidator(_fallback),
    Field(json_schema_extra=short_form({"type": "string"})),
]


class ModelSpec(Strict):
    """One model and how it is served; the fields that every engine understands."""

    model: Annotated[str, BeforeValidator(_model)] = Field(
        description="Hugging Face id (organization/name), or a local folder (for llamacpp: file) starting with / or ./"
    )
    revision: Text | None = Field(None, description="Branch, tag or commit of the Hub repository; a commit is safest")
    served_names: tuple[Text, ...] = Field(
        (), description="Names under which clients ask for the model, the first one leading; default: the id itself"
    )
    gpus: Gpus = Field(
        0,
        description="GPUs of each replica as a count, `all`, or `none` for the CPU; or a list of indices or UUIDs, "
        "shared out evenly among the replicas",
    )
    share_gpus: bool = Field(
        False,
        description="Allow another model that says so too on the same GPUs; needs gpu_memory_utilization on both",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of each GPU's memory that this model may use (vLLM's default is 0.92)"
    )
    replicas: int = Field(1, ge=1, le=64, description="Copies of the model: one service each, with GPUs of its own")
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float", "bfloat"] | None = Field(
        None, description="Type of weights and activations; default: the model's own"
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model: only for repositories that you trust"
    )
    port: int | None = Field(None, ge=1, le=65535, description="Port on this machine; default: the next free one")
    extra_args: tuple[str, ...] = Field((), description="Flags handed to the engine as they are, after all others")
    extra_env: dict[EnvName, EnvValue] = Field({}, description="Environment variables for the engine")
    image: Text | None = Field(None, description="Image instead of the engine's pinned one; name a version")
    user: Text | None = Field(None, description="uid:gid that the engine runs as; default: what its image allows")
    read_only: bool = Field(True, description="Mount the container's own files read-only (/tmp stays writable)")
    shm_size: ByteSize | None = Field(None, description="Size of /dev/shm, e.g. 8g; default by parallel size")
    ipc: Literal["host", "private", "shareable"] | None = Field(None, description="IPC mode, instead of shm_size")
    cpuset: Text | None = Field(None, pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$", description="CPU cores, e.g. 0-7")
    start_timeout: int | None = Field(
        None, ge=10, le=86400, description="Seconds a start may take before it counts as failed; default by model size"
    )
    fallback: Fallback = Field(
        None,
        description="Who answers when no replica can: together:<model id>, or provider, base_url and model; its use is "
        "told in the header x-stackgen-served-by. Needs the gateway",
    )


class StorageSpec(Strict):
    """Where the weights live: one place for all models, mounted into every engine."""

    volume: str = Field(
        "stackgen-models", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$", description="Named volume, shared by all stacks"
    )
    path: Text | None = Field(None, description="Folder of this machine instead of the volume")
    offline: bool = Field(False, description="Never ask the Hub: everything is in the volume or folder already")
    hub_endpoint: Text | None = Field(None, pattern=r"^https?://", description="A mirror of the Hugging Face Hub")
    user: Text | None = Field(None, description="uid:gid that downloaded files belong to (host folder); default 0:0")


class LoggingSpec(Strict):
    """Log rotation, for every container."""

    max_size: str = Field("20m", pattern=r"^[1-9][0-9]*[kmg]$", description="Size of one log file")
    max_file: int = Field(5, ge=1, le=100, description="Log files kept for each container")


class EndpointSpec(Strict):
    """An endpoint under a name of one's own: one that a stack does not start, or all of another stack."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="What `--provider` calls it")
    provider: Provider | None = Field(
        None, description="A name that `stackgen providers` prints: gives base URL, dialect and where the key is found"
    )
    base_url: BaseUrl | None = Field(None, description="Base URL with its /v1; default: the provider's")
    api_key_env: KeyName | None = Field(
        None, description="Name of the variable (environment or .env) that holds the key; default: the provider's"
    )
    models: tuple[Text, ...] = Field((), description="Served names that must be there, the first one asked by default")
    dialect: Provider | None = Field(
        None, description="How the server deviates; default: the provider's, else recognized from its responses"
    )
    stack: Text | None = Field(
        None,
        description="Another stack.yaml or its folder instead of a URL: all its endpoints, with the key of its .env",
    )
    max_ttft: float | None = Field(None, gt=0, description="Seconds to the first token above which the check fails")
    min_tokens_per_second: float | None = Field(None, gt=0, description="Tokens/s below which the check fails")

    @model_validator(mode="after")
    def _one_address(self) -> EndpointSpec:
        own = [name for name in ("provider", "base_url", "api_key_env", "models", "dialect") if getattr(self, name)]
        if self.stack and own:
            raise PydanticCustomError("address", "`stack` says it all: leave out {fields}", {"fields": ", ".join(own)})
        if not (self.stack or self.provider or self.base_url):
            raise PydanticCustomError("address", "needs one of `provider`, `base_url` and `stack`")
        return self


class EndpointsSpec(Strict):
    """A file `endpoints.yaml`: endpoints that `check` and `ask` know by name."""

    endpoints: tuple[EndpointSpec, ...] = Field(description="The endpoints, each with a name")
