"""Checks that models from the Hugging Face Hub exist and can be downloaded, or are already in the storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from stackgen.check.huggingface import HubLookup
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.spec import is_local
from stackgen.spec.types import is_loopback

__all__ = ["check_cached", "check_hub_reachable", "check_hub_token", "check_repository"]

# openai-harmony 0.0.8, src/tiktoken_ext/public_encodings.rs
OPENAI_VOCABULARY = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"


def _looked_up(inputs: DoctorInputs) -> Iterator[tuple[str, Any, HubLookup]]:
    for place, model in inputs.model_specs():
        lookup = inputs.hub.get(model.model)
        # None: doctor is offline and sent no request
        if lookup is not None and not is_local(model.model):
            yield place, model, lookup


def check_hub_reachable(inputs: DoctorInputs) -> Results:
    """The Hub answers, if anything must be downloaded."""
    if not inputs.hub:
        return
    stack = inputs.stack
    name = urlsplit((stack.spec.storage.hub_endpoint if stack else "") or "").hostname or ""
    if is_loopback(name) and any(one.role == "download" for one in inputs.services()):
        yield warn(
            f"the mirror of the Hub is on {name}, which in the download container is the container itself",
            fix="write this machine's IP address in the local network, where the mirror must listen",
            place="storage.hub_endpoint",
        )
        return
    lookups = [lookup for lookup in inputs.hub.values() if lookup is not None]
    if not lookups:
        yield unknown("the Hub was not queried", evidence="--offline" if inputs.offline else "storage.offline")
    # one finding is enough, because the problem is the same for all models
    elif problem := next((one for one in lookups if one.state in ("unreachable", "unexpected")), None):
        yield unknown(
            "this machine can't reach the Hub, so the models on the Hub could not be checked",
            evidence=problem.detail,
            fix="check the network, HTTPS_PROXY and storage.hub_endpoint. If every model is in the storage, you "
            "can set `storage.offline: true`",
        )
    # a warning: the download retries after a while
    elif limited := next((one for one in lookups if one.state == "rate_limited"), None):
        yield warn(
            "the Hub rate-limits this machine",
            evidence=limited.detail,
            fix="wait a few minutes, or set HF_TOKEN_FILE",
        )
    else:
        yield ok("the Hub answers", evidence=f"models that were looked up: {len(lookups)}")


def check_hub_token(inputs: DoctorInputs) -> Results:
    """The token is valid, and its account accepted the model's license."""
    for place, model, lookup in _looked_up(inputs):
        has_token = bool(inputs.env and inputs.env.has_token)
        field, page = f"{place}.model", f"https://huggingface.co/{model.model}"
        if lookup.state == "token":
            yield fail(
                "the Hub rejects the token",
                evidence=lookup.detail,
                fix="create a new token with `hf auth login`, and set HF_TOKEN_FILE in .env to the path of the token's "
                "file",
                place=field,
            )
        # a new login would not help: the token exists, but its account has not accepted the license
        elif lookup.state == "gated" and has_token:
            yield fail(
                f"{model.model} is gated, and the token's account has not accepted the license",
                evidence=lookup.detail,
                fix=f"accept the license at {page}",
                place=field,
            )
        elif lookup.state == "gated":
            yield fail(
                f"{model.model} is gated and needs a token",
                evidence=lookup.detail,
                fix=f"accept the license at {page}, run `hf auth login`, and add "
                "`HF_TOKEN_FILE=~/.cache/huggingface/token` to .env",
                place=field,
            )
        elif lookup.state == "ok":
            access = "gated, access granted" if lookup.gated else "public"
            yield ok(f"{model.model} can be downloaded", evidence=access, place=place)


def check_repository(inputs: DoctorInputs) -> Results:
    """The repository, revision and file exist on the Hub."""
    for place, model, lookup in _looked_up(inputs):
        name = getattr(model, "file", None)
        # without a token, the Hub answers 401 for private and for nonexistent repositories
        if lookup.state == "missing":
            yield fail(
                f"{model.model} is not on the Hub, or is private",
                evidence=lookup.detail,
                fix="check the spelling of the organization and the name (including upper and lower case) at "
                "https://huggingface.co/models",
                place=f"{place}.model",
            )
        elif lookup.state == "revision":
            yield fail(
                f"the repository {model.model} has no revision {model.revision}",
                evidence=lookup.detail,
                fix="use a branch, tag or commit that the model's page lists",
                place=f"{place}.revision",
            )
        elif lookup.state == "ok" and name and name not in lookup.files:
            # a repository may have dozens of quantizations: five show what the names look like
            near = [one for one in lookup.files if one.endswith(".gguf")][:5]
            yield fail(
                f"the repository {model.model} has no file {name}",
                evidence=f"the repository has {', '.join(near) or 'no GGUF file'}",
                fix="set `file` to the name of a GGUF file in the repository",
                place=f"{place}.file",
            )
        # llama.cpp reads the GGUF's own metadata; the other engines can't start without config.json
        elif lookup.state == "ok" and model.engine != "llamacpp" and "config.json" not in lookup.files:
            yield fail(
                f"{model.model} has no config.json, so {model.engine} can't serve it",
                evidence=f"files in the repository: {len(lookup.files)}, e.g. {', '.join(lookup.files[:3])}",
                fix="use a repository with safetensors, or set `engine: llamacpp` for a GGUF file",
                place=f"{place}.model",
            )
        elif lookup.state == "ok":
            size = f", {format_bytes(lookup.download_bytes)}" if lookup.download_bytes else ""
            yield ok(f"{model.model} exists on the Hub", evidence=f"commit {lookup.commit[:12]}{size}", place=place)


def check_cached(inputs: DoctorInputs) -> Results:
    """With storage.offline, every model and the vocabulary of gpt-oss are already in the storage.

    A model that the storage contains in another layout is reported in any case.
    """
    if inputs.stack is None:
        return
    storage = inputs.stack.spec.storage
    # online, a missing model is downloaded at the start
    if not storage.offline:
        for place, model in inputs.model_specs():
            if fix := inputs.elsewhere.get(model.model):
                yield warn(f"{model.model} is downloaded into the storage, which already seems to contain it in "
                           "another layout", evidence=storage.path or "", fix=fix, place=f"{place}.model")  # fmt: skip
        return
    for place, model in inputs.model_specs():
        if is_local(model.model):
            continue
        is_cached = inputs.cached.get(model.model)
        # None: a volume that only root can read
        if is_cached is None:
            yield unknown(
                f"can't tell whether {model.model} is in the storage: this user can't read the storage",
                evidence="storage.offline: true",
                place=f"{place}.model",
            )
        elif is_cached:
            yield ok(f"{model.model} is in the storage", place=place)
        else:
            yield fail(
                f"{model.model} is not in the storage, and storage.offline forbids the download",
                evidence=storage.path or f"volume {storage.volume}",
                fix=inputs.elsewhere.get(model.model)
                or "start the stack once with `storage.offline: false`, or copy the model into the storage as "
                f"hub/models--{model.model.replace('/', '--')}. For a plain folder with the model, set `model` to its "
                "path instead",
                place="storage.offline",
            )
    for path, exists in inputs.vocabularies.items():
        place = storage.path or f"volume {storage.volume}"
        if exists:
            yield ok("the vocabulary of gpt-oss is in the storage", evidence=path)
        elif exists is None:
            yield unknown(
                "can't tell whether the vocabulary of gpt-oss is in the storage: this user can't read the storage",
                evidence="storage.offline: true",
                place="storage.offline",
            )
        else:
            yield fail(
                "the vocabulary of gpt-oss is not in the storage, and storage.offline forbids the download",
                evidence=f"the engine reads {path}, which is in {place}",
                fix="start the stack once with `storage.offline: false`, which downloads the vocabulary, or copy "
                f"{OPENAI_VOCABULARY} into the storage as {path.removeprefix('/models/')}",
                place="storage.offline",
            )
