"""The types of single fields: GPUs, token counts, names and URLs, each with its validator and its JSON Schema."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, StringConstraints, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

__all__ = [
    "NAME", "PROVIDERS", "BaseUrl", "ByteSize", "EnvName", "EnvValue", "Gpus", "KeyName", "ModelSource", "Provider",
    "Text", "TokenCount", "is_local", "parse_token_count",
]  # fmt: skip

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
# capitals only: otherwise the keys of many providers, which are letters and digits, would be valid names
KEY_NAME = r"^[A-Z][A-Z0-9_]{1,63}$"
# used as the key of the validation context and as the type of the validation error
PROVIDERS = "providers"
# no credentials, query or fragment: reports print the URL
BASE_URL = r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"
GPU_ID = re.compile(r"0|[1-9]\d{0,2}|(GPU|MIG)-[0-9A-Za-z/-]+|[\w.-]+/[\w.-]+=[\w.:-]+", re.ASCII)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def is_local(model: str) -> bool:
    """Returns whether `model` is a local folder or file (starts with `/`, `./`, `../` or `~`), not a Hub id."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def parse_token_count(text: str) -> int:
    """Parses a number of tokens: `32k` is 32,000 and `32K` is 32,768.

    Source: human_readable_int in vLLM's `vllm/engine/arg_utils.py`.
    """
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1] in factors else int(text)


def _check_gpus(value: Any) -> Any:
    """Accepts a count, `all`, `none`, or a list of indices, UUIDs or CDI names."""
    # a validator instead of a union: pydantic would report one error for each member of the union
    if value is None or value == "none":
        return 0
    # type() and not isinstance(): YAML's `yes` is a bool, which is an int in Python
    if value == "all" or (type(value) is int and 0 <= value <= 64):
        return value
    if isinstance(value, (list, tuple)) and value:
        ids = [str(one) if type(one) is int else one for one in value]
        if all(isinstance(one, str) and GPU_ID.fullmatch(one) for one in ids):
            if len(set(ids)) == len(ids):
                return tuple(ids)
            raise PydanticCustomError("gpus", "lists a GPU twice. List each GPU once")
    raise PydanticCustomError("gpus", "must be a count (2), `all`, `none`, or a list of indices or UUIDs ([0, 1])")


def _check_model(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("model", "must be a Hugging Face id (organization/name) or a local path (./folder)")
    if not is_local(value) and not HUB_ID.fullmatch(value):
        raise PydanticCustomError(
            "model", "is not a Hugging Face id (organization/name). Start a local path with /, ./ or ~"
        )
    return value


def _check_env_value(value: Any) -> Any:
    # YAML reads 1.50 as a float and yes as a boolean: str() would not give back what the user wrote
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise PydanticCustomError("env", "must be text. Put the value in quotes")
    return value


def _check_key_name(value: Any) -> Any:
    # users paste the key itself here, so no message may repeat the value
    if not isinstance(value, str) or not re.fullmatch(KEY_NAME, value):
        raise PydanticCustomError(
            "key_name",
            "must be the name of a variable in capital letters (TOGETHER_API_KEY). Put the key itself into .env",
        )
    return value


def _check_provider(value: Any, info: ValidationInfo) -> Any:
    # the caller passes the known names, because engines are providers too and this module must not import engines
    known = (info.context or {}).get(PROVIDERS)
    if isinstance(value, str) and known and value not in known:
        raise PydanticCustomError(PROVIDERS, "is not known", {PROVIDERS: known})
    return value


def _check_base_url(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(BASE_URL, value):
        raise PydanticCustomError(
            "base_url", "must look like http://127.0.0.1:8000/v1, without credentials, query or fragment"
        )
    return value


def _check_token_count(value: Any) -> Any:
    # re.ASCII: otherwise \d also matches digits of other scripts
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not re.fullmatch(
        r"auto|-1|[1-9]\d{0,11}|\d{1,9}(\.\d{1,9})?[kKmM]", text, re.ASCII
    ):
        raise PydanticCustomError("token_count", "must be a number of tokens (8192, 32k) or `auto`")
    return text


Gpus = Annotated[
    int | Literal["all"] | tuple[str, ...],
    BeforeValidator(_check_gpus),
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
TokenCount = Annotated[
    str,
    BeforeValidator(_check_token_count),
    WithJsonSchema({"oneOf": [{"type": "integer", "minimum": -1}, {"type": "string"}]}),
]
EnvValue = Annotated[str, BeforeValidator(_check_env_value), WithJsonSchema({"type": ["string", "integer"]})]
Text = Annotated[str, StringConstraints(min_length=1)]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME)]
Provider = Annotated[str, BeforeValidator(_check_provider), StringConstraints(min_length=1)]
KeyName = Annotated[str, BeforeValidator(_check_key_name), WithJsonSchema({"type": "string", "pattern": KEY_NAME})]
BaseUrl = Annotated[str, BeforeValidator(_check_base_url), WithJsonSchema({"type": "string", "pattern": BASE_URL})]
ByteSize = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[kmg]b?$")]
ModelSource = Annotated[str, BeforeValidator(_check_model)]
