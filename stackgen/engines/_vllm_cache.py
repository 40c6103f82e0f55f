"""Where vLLM keeps compiled code: a folder for each model, image, and set of flags that may change the code.

vLLM 0.32.0 has a key of its own inside VLLM_CACHE_ROOT. docs/decisions/compile-cache.md says what that key lacks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from stackgen.flags import normalize_flag
from stackgen.plan import Asset, Site

__all__ = ["CACHE_ASSETS", "FOLDER", "cache_environment"]

# below the site's cache folder; `stackgen storage` lists what is in it
FOLDER = "code"
CACHE_ASSETS = (Asset("engines/vllm_cache.py", "scripts/vllm_cache.py"),)
# flags that change no compiled code: addresses, names, logs, and what vLLM's own key leaves out (`compute_hash` in
# vllm/config/model.py, cache.py and load.py of 0.32.0). Any other flag gets a folder of its own
IGNORED = frozenset(
    {
        "--host", "--port", "--uds", "--served-model-name", "--api-key", "--root-path", "--shutdown-timeout",
        "--enable-scale-out", "--chat-template", "--chat-template-content-format", "--default-chat-template-kwargs",
        "--response-role", "--enable-auto-tool-choice", "--tool-call-parser", "--tool-parser-plugin",
        "--reasoning-parser", "--reasoning-parser-plugin", "--lora-modules", "--uvicorn-log-level",
        "--disable-uvicorn-access-log", "--enable-log-requests", "--enable-log-outputs", "--disable-log-stats",
        "--max-log-len", "--allow-credentials", "--allowed-origins", "--allowed-methods", "--allowed-headers",
        "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--enable-ssl-refresh", "--ssl-cert-reqs",
        "--enable-prompt-tokens-details", "--enable-server-load-tracking", "--enable-request-id-headers", "--seed",
        "--gpu-memory-utilization", "--kv-cache-memory-bytes", "--enable-prefix-caching",
        "--no-enable-prefix-caching", "--load-format",
        "--model-loader-extra-config", "--max-logprobs", "--tokenizer", "--tokenizer-mode", "--tokenizer-revision",
        "--master-addr", "--master-port", "--node-rank", "--headless",
    }
)  # fmt: skip
# variables of the user that may change compiled code
PREFIXES = ("VLLM_", "TORCH", "PYTORCH_", "TRITON_", "FLASHINFER_", "CUDA_", "CXX", "CC")


def cache_environment(model: Any, site: Site, image: str, command: Sequence[str]) -> dict[str, str]:
    """The variables for the caches of one replica. `command` is the whole command of the service.

    A VLLM_CACHE_ROOT in `extra_env` takes precedence.
    """
    root = f"{site.cache_dir()}/{FOLDER}/{_folder(model, image, command)}"
    values = {
        "VLLM_CACHE_ROOT": root,
        # PyTorch's and Triton's own caches, which would be in /tmp or shared by all models
        "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor",
        "TRITON_CACHE_DIR": f"{root}/triton",
    }
    # local processes have no supervise.sh, and their packages are those of vLLM's environment
    if site.uses_containers and not values.keys() & model.extra_env.keys():
        values["STACKGEN_SETUP"] = f"python3 {site.script('vllm_cache.py')}"
    return values


def _folder(model: Any, image: str, command: Sequence[str]) -> str:
    """The name of the folder: the model's name for people, and a hash of everything that may change the code."""
    variables = {name: str(value) for name, value in model.extra_env.items() if name.startswith(PREFIXES)}
    key = json.dumps([image, _relevant(command), sorted(variables.items())])
    name = re.sub(r"[^a-z0-9.]+", "-", model.model.rstrip("/").rpartition("/")[2].lower()).strip("-.")[:40]
    return f"{name or 'model'}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _relevant(command: Sequence[str]) -> list[str]:
    """The command without the flags that change no code, and without their values."""
    kept: list[str] = []
    keep = True
    for word in command:
        # -O3 is a flag, and -1 is a value
        if re.match(r"-\D", word):
            keep = normalize_flag(word.partition("=")[0]) not in IGNORED
        if keep:
            kept.append(word)
    return kept
