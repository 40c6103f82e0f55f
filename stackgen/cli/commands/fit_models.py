"""The models of `stackgen fit`: from a folder, a file, the Hub cache on this machine, or the Hugging Face Hub."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

from stackgen.check.hub_weights import HubError, read_hub_headers, read_hub_start
from stackgen.check.huggingface import HUB, HubLookup, look_up_model
from stackgen.doctor.collect import read_env_facts, read_hub_token
from stackgen.errors import MachineError, StackgenError
from stackgen.fit import Model, Weights
from stackgen.fit.config import read_config
from stackgen.fit.gguf import parse_gguf
from stackgen.fit.source import find_snapshot, read_model
from stackgen.fit.weights import parse_header
from stackgen.spec import StackSpec, is_local
from stackgen.spec.sources import explain_ollama

__all__ = ["Hub", "find_model", "make_hub"]

# the header of a GGUF file is as long as its vocabulary
GGUF_STEPS = (2**23, 2**26)
REASONS = {
    "token": ("the token was refused, or is missing", "set HF_TOKEN to a token with permission to read the model"),
    "gated": ("the model is gated", "accept its license on its page on the Hub, and set HF_TOKEN"),
    "missing": ("there is no such model, or it is private", "check the name; for a private model, set HF_TOKEN"),
    "revision": ("there is no such revision", "check `revision`"),
    "rate_limited": ("the Hub's rate limit is reached", "try again later, or set HF_TOKEN"),
    "unexpected": ("the server does not answer like a Hub", "check HF_ENDPOINT and the proxy"),
}


@dataclass(frozen=True)
class Hub:
    """How the Hub is reached. `caches`: folders that may have the model already."""

    endpoint: str = HUB
    token: str = ""
    offline: bool = False
    caches: tuple[Path, ...] = ()


def make_hub(spec: StackSpec | None, folder: Path, offline: bool) -> Hub:
    """How the models of the stack `spec` in `folder` are found; None: of no stack."""
    storage = spec.storage if spec else None
    caches: tuple[Path, ...] = ()
    if storage and storage.path:
        caches = (folder / os.path.expanduser(storage.path) / "hub",)
    token = read_hub_token(read_env_facts(folder)) if spec else os.environ.get("HF_TOKEN", "")
    endpoint = (storage.hub_endpoint if storage else None) or os.environ.get("HF_ENDPOINT") or HUB
    return Hub(endpoint, token, offline or bool(storage and storage.offline), caches)


def default_caches() -> tuple[Path, ...]:
    """The Hub cache of this user (huggingface_hub 2.4.0, constants.py)."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return (Path(os.environ.get("HF_HUB_CACHE") or home / "hub"),)


def find_model(name: str, base: Path, hub: Hub, revision: str | None = None, file: str = "") -> Model:
    """The model that `model:` in stack.yaml or an argument names. Raises StackgenError with the reason and the fix."""
    path = Path(os.path.normpath(base / os.path.expanduser(name)))
    if is_local(name) or path.exists():
        return read_model(path / file if file and path.is_dir() else path, name)
    for cache in (*hub.caches, *default_caches()):
        if snapshot := find_snapshot(cache, name, revision or "main"):
            return read_model(snapshot / file if file else snapshot, name)
    if explanation := explain_ollama(name):
        raise StackgenError(f"{name} {explanation}")
    if hub.offline:
        raise StackgenError(f"{name} is not on this machine, and --offline forbids asking the Hub",
                            "download the model first, or run the command without --offline")  # fmt: skip
    return _read_from_hub(name, hub, revision, file)


def _read_from_hub(name: str, hub: Hub, revision: str | None, file: str) -> Model:
    lookup = look_up_model(name, revision, hub.token, hub.endpoint, file=file)
    if lookup.state == "unreachable":
        raise MachineError(f"the Hugging Face Hub does not answer, so the size of {name} is unknown: {lookup.detail}",
                           "check the network and the proxy, or pass a local folder. To download the model on "
                           "another machine, see the how-to `serve-without-internet`")  # fmt: skip
    if lookup.state != "ok":
        reason, hint = REASONS[lookup.state]
        raise StackgenError(f"{name} can't be read from the Hub: {reason} ({lookup.detail})", hint)
    if file:
        return _read_gguf_from_hub(name, file, hub, revision, lookup)
    if lookup.config is None:
        found = next((one for one in lookup.files if one.endswith(".gguf")), "")
        raise StackgenError(f"{name} has no config.json on the Hub",
                            f"for llama.cpp, add --file {found}" if found else "pass a model for vLLM")  # fmt: skip
    architecture = read_config(lookup.config, f"config.json of {name}")
    return Model(architecture, _read_hub_weights(name, hub, revision, lookup), name)


def _read_hub_weights(name: str, hub: Hub, revision: str | None, lookup: HubLookup) -> Weights:
    total = lookup.download_bytes or 0
    try:
        headers = read_hub_headers(name, lookup.files, revision, hub.token, hub.endpoint)
    except HubError as error:
        if not total:
            raise MachineError(f"the weights of {name} can't be read from the Hub: {error}", "try again") from error
        return Weights(total, (), f"sizes of the files on the Hub ({error})")
    tensors = tuple(one for file, data in headers.items() for one in parse_header(data, f"{name}/{file}"))
    if not tensors:
        return Weights(total, (), "sizes of the files on the Hub")
    files = f"{len(headers)} file{'s' * (len(headers) > 1)}"
    return Weights(sum(one.bytes for one in tensors), tensors, f"headers of {files} on the Hub")


def _read_gguf_from_hub(name: str, file: str, hub: Hub, revision: str | None, lookup: HubLookup) -> Model:
    if file not in lookup.files:
        listed = ", ".join(one for one in lookup.files if one.endswith(".gguf")) or "none"
        raise StackgenError(f"{name} has no file {file}", f"its GGUF files: {listed}")
    for size in GGUF_STEPS:
        try:
            data = read_hub_start(name, file, size, revision, hub.token, hub.endpoint)
            return parse_gguf(io.BytesIO(data), f"{name}/{file}")
        except HubError as error:
            raise MachineError(f"{file} can't be read from the Hub: {error}", "try again") from error
        except EOFError:
            continue
    raise StackgenError(
        f"{name}/{file}: the header is longer than {GGUF_STEPS[-1]} bytes", "download the file, and pass its path"
    )
