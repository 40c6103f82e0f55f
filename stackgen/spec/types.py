"""The types of single fields: GPUs, token counts, names and URLs, each with its validator and its JSON Schema."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainValidator, StringConstraints, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from stackgen.plan import EnvRef

__all__ = [
    "NAME", "PROVIDERS", "Address", "BaseUrl", "ByteSize", "EngineValue", "EnvName", "EnvValue", "Gpus", "KeyName",
    "ModelSource", "Provider", "RepositoryFile", "Text", "TokenCount", "guess_parameters", "is_exposed", "is_local",
    "is_loopback", "parse_token_count",
]  # fmt: skip

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
# capitals only: otherwise the keys of many providers, which are letters and digits, would be valid names
KEY_NAME = r"^[A-Z][A-Z0-9_]{1,63}$"
SIZE = r"^[1-9][0-9]*[kmg]b?$"
# used as the key of the validation context and as the type of the validation error
PROVIDERS = "providers"
# no credentials, query or fragment: reports print the URL
BASE_URL = r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$"
# a UUID or a CDI name
GPU_NAME = r"(GPU|MIG)-[0-9A-Za-z/-]+|[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+=[A-Za-z0-9_.:-]+"
GPU_ID = re.compile(rf"0|[1-9]\d{{0,2}}|{GPU_NAME}", re.ASCII)
ADDRESS = r"^(\d{1,3}(\.\d{1,3}){3}|\[?[0-9a-fA-F:]+\]?)$"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def is_exposed(address: str) -> bool:
    """Returns whether other machines can reach a port that is bound to `address`: it is not a loopback address."""
    # 127.0.0.0/8 is loopback as a whole (RFC 1122, 3.2.1.3)
    return not address.startswith("127.") and address not in ("::1", "[::1]")


def is_loopback(host: str) -> bool:
    """Returns whether `host` is the loopback address or 0.0.0.0: in a container, the container itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() in ("localhost", "localhost.localdomain")
    return address.is_loopback or address.is_unspecified


def is_local(model: str) -> bool:
    """Returns whether `model` is a local folder or file (starts with `/`, `./`, `../` or `~`), not a Hub id."""
    return model.startswith(("/", "./", "../", "~")) or model in (".", "..")


def guess_parameters(model: str) -> float | None:
    """Returns the number of parameters in a model's name (`8B`, `0.5b`, `8x7B`, `135M`), or None if it has none.

    `17B-16E` is the active part of a model with 16 experts (Llama-4-Scout has 109B), so it says nothing about the size.
    """
    # only between separators: other letters and digits of a name are not a size
    match = re.search(r"(?:^|[-_/])(?:(\d+)x)?(\d+(?:\.\d+)?)([bBmM])(?=$|[-_./])(?!-\d+E(?:$|[-_./]))", model)
    return float(match[2]) * int(match[1] or 1) * (1e9 if match[3] in "bB" else 1e6) if match else None


def parse_token_count(text: str) -> int:
    """Parses a number of tokens: `32k` is 32,000 and `32K` is 32,768.

    Source: human_readable_int in vLLM's `vllm/engine/arg_utils.py`.
    """
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    return int(float(text[:-1]) * factors[text[-1]]) if text[-1] in factors else int(text)


def _check_gpus(value: Any) -> Any:
    """Accepts a count, `all`, `auto`, `none`, or a list of indices, UUIDs or CDI names."""
    # a validator instead of a union: pydantic would report one error for each member of the union
    if value is None or value == "none":
        return 0
    # as every other number: Compose 2.40 also reads `count: "1"` as a count
    if isinstance(value, str) and re.fullmatch(r"0|[1-9]\d?", value, re.ASCII):
        value = int(value)
    # people write 0 for the GPU with index 0 as well as for no GPU, and the two differ too much to guess
    if type(value) is int and value == 0:
        raise PydanticCustomError(
            "gpus", "0 is ambiguous. Write `none` for no GPU, or the list [0] for the GPU with index 0"
        )
    # type() and not isinstance(): YAML's `yes` is a bool, which is an int in Python
    if (isinstance(value, str) and value in ("all", "auto")) or (type(value) is int and 0 <= value <= 64):
        return value
    # one UUID or CDI name can be no other form
    if isinstance(value, str) and GPU_ID.fullmatch(value) and not value.isdecimal():
        return (value,)
    if isinstance(value, (list, tuple)) and value:
        ids = [str(one) if type(one) is int else one for one in value]
        if all(isinstance(one, str) and GPU_ID.fullmatch(one) for one in ids):
            if len(set(ids)) == len(ids):
                return tuple(ids)
            raise PydanticCustomError("gpus", "lists a GPU twice. List each GPU once")
    message = "must be a count (2), `all`, `none`, `auto`, or a list of indices or UUIDs ([0, 1])"
    # as people write it for Docker: `0,1`, `device=0`, `GPU-5f1c,GPU-77aa`
    names = re.split(r",\s*", value.removeprefix("device=")) if isinstance(value, str) else []
    if names and all(re.fullmatch(rf"\d{{1,3}}|{GPU_ID.pattern}", one, re.ASCII) for one in names):
        message += f", not text. Write [{', '.join(names)}]"
    raise PydanticCustomError("gpus", "{message}", {"message": message})


def _check_address(value: Any) -> Any:
    # a pattern is not enough: 999.1.1.1, 1.2.3 and ::::: look like addresses
    text = value[1:-1] if isinstance(value, str) and value[:1] == "[" and value[-1:] == "]" else value
    try:
        if not isinstance(text, str) or "%" in text or ("[" in value and ":" not in text):
            raise ValueError
        ipaddress.ip_address(text)
    except ValueError:
        raise PydanticCustomError(
            "address",
            "must be an IP address, for example 127.0.0.1 (this machine only), 0.0.0.0 (all interfaces) or ::1",
        ) from None
    return value


def _check_model(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("model", "must be a Hugging Face id (organization/name) or a local path (./folder)")
    if not is_local(value) and not HUB_ID.fullmatch(value):
        from stackgen.spec.sources import explain_source

        if explanation := explain_source(value):
            raise PydanticCustomError("model", "{explanation}", {"explanation": explanation})
        raise PydanticCustomError(
            "model", "is not a Hugging Face id (organization/name). Start a local path with /, ./ or ~"
        )
    return value


def _check_file(value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("file", "must be the name of a file, for example model-Q4_K_M.gguf")
    # the path becomes part of a path in the container, from which `..` would lead out of the model
    if value.startswith(("/", "~")) or ".." in value.split("/") or "\\" in value or value.endswith("/"):
        raise PydanticCustomError(
            "file",
            "must be the path of a file inside the repository or folder of the model, for example Q4_K_M/model.gguf. "
            "For a file elsewhere on this machine, set `model` to its path",
        )
    return value


def _check_env_value(value: Any) -> Any:
    # YAML reads 1.50 as a float and yes as a boolean: str() would not give back what the user wrote
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise PydanticCustomError("env", "must be text. Put the value in quotes")
    return value


def _check_engine_value(value: Any) -> Any:
    """Text, or an EnvRef for `{from_env: NAME}`: a secret that no rendered file contains."""
    if not isinstance(value, dict):
        return _check_env_value(value)
    name = value.get("from_env")
    if set(value) != {"from_env"} or not isinstance(name, str) or not re.match(ENV_NAME, name):
        raise PydanticCustomError("env", "must be text or {from_env: NAME}, with the name of a variable in .env")
    return EnvRef(name, f"set {name} in .env: stack.yaml reads it with from_env")


def _check_key_name(value: Any) -> Any:
    # users paste the key itself here, so no message may repeat the value
    if not isinstance(value, str) or not re.fullmatch(KEY_NAME, value):
        raise PydanticCustomError(
            "key_name",
            "must be the name of a variable in capital letters, for example TOGETHER_API_KEY. Put the key itself into "
            ".env",
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


def _check_size(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(SIZE, value):
        return value
    example = "8g"
    if type(value) is int and value > 0:
        # bytes, as vLLM's own flag has them
        size = next(((value // size, unit) for size, unit in ((2**30, "g"), (2**20, "m"), (2**10, "k"))
                     if value % size == 0), None)  # fmt: skip
        example = f"{size[0]}{size[1]}" if size else example
    elif isinstance(value, str) and (match := re.fullmatch(r"([1-9]\d{0,9}) ?([kmg])i?b?", value, re.ASCII | re.I)):
        example = (match[1] + match[2]).lower()
    raise PydanticCustomError(
        "size", "must be a whole number with the unit k, m or g, for example {example}", {"example": example}
    )


def _check_token_count(value: Any) -> Any:
    # re.ASCII: otherwise \d also matches digits of other scripts
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not re.fullmatch(
        r"auto|-1|[1-9]\d{0,11}|\d{1,9}(\.\d{1,9})?[kKmM]", text, re.ASCII
    ):
        raise PydanticCustomError("token_count", "must be a number of tokens (8192, 32k) or `auto`")
    return text


Address = Annotated[str, BeforeValidator(_check_address), WithJsonSchema({"type": "string", "pattern": ADDRESS})]
Gpus = Annotated[
    int | Literal["all", "auto"] | tuple[str, ...],
    BeforeValidator(_check_gpus),
    WithJsonSchema(
        {
            "oneOf": [
                {"type": "integer", "minimum": 1, "maximum": 64},
                {"type": "string", "pattern": r"^([1-9]|[1-5][0-9]|6[0-4])$"},
                {"enum": ["all", "none", "auto"]},
                {"type": "string", "pattern": rf"^({GPU_NAME})$"},
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
EngineValue = Annotated[
    str | EnvRef,
    PlainValidator(_check_engine_value),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": ["string", "integer"]},
                {
                    "type": "object",
                    "properties": {"from_env": {"type": "string", "pattern": ENV_NAME}},
                    "required": ["from_env"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Text = Annotated[str, StringConstraints(min_length=1)]
EnvName = Annotated[str, StringConstraints(pattern=ENV_NAME)]
Provider = Annotated[str, BeforeValidator(_check_provider), StringConstraints(min_length=1)]
KeyName = Annotated[str, BeforeValidator(_check_key_name), WithJsonSchema({"type": "string", "pattern": KEY_NAME})]
BaseUrl = Annotated[str, BeforeValidator(_check_base_url), WithJsonSchema({"type": "string", "pattern": BASE_URL})]
ByteSize = Annotated[str, BeforeValidator(_check_size), WithJsonSchema({"type": "string", "pattern": SIZE})]
RepositoryFile = Annotated[str, BeforeValidator(_check_file)]
ModelSource = Annotated[str, BeforeValidator(_check_model)]
