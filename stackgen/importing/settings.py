"""Puts image, variables, mounts and options of a container into the fields of its model and of the stack."""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any

from stackgen.engines import sglang, vllm
from stackgen.importing.container import Container, MountMap, Value, local
from stackgen.importing.flags import is_secret
from stackgen.importing.keys import take_api_keys, take_hub_token
from stackgen.importing.ledger import Draft, Ledger, Secret, Word
from stackgen.importing.variables import is_reference
from stackgen.stack.envfile import HUB_TOKENS

__all__ = ["apply_environment", "apply_image", "apply_mounts", "apply_options", "mount_arguments"]

# images that stackgen's pinned image replaces: the same program, in the version that stackgen is tested with
OFFICIAL = re.compile(
    r"(?:docker\.io/)?(?:vllm/vllm-openai(?:-cpu|-rocm)?|(?:public\.ecr\.aws/q9t5s3a7/)vllm-cpu-release-repo|"
    r"ghcr\.io/gg(?:ml-org|erganov)/llama\.cpp|lmsysorg/sglang)(?:[:@]|$)"
)
PINNED = (vllm.VERSION, sglang.VERSION)
KEYS = ("VLLM_API_KEY", "LLAMA_API_KEY", "SGLANG_API_KEY", "STACKGEN_API_KEY")
OWN_CACHES = (
    "VLLM_CACHE_ROOT",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "XDG_CACHE_HOME",
)
# variable -> why no field is needed
BUILT_IN = {
    **dict.fromkeys(OWN_CACHES, "stackgen keeps compile caches in a shared volume"),
    **dict.fromkeys(("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE",
                     "HF_XET_CACHE", "HF_DATASETS_CACHE"),
                    "stackgen decides where the weights are stored"),
    "NVIDIA_DRIVER_CAPABILITIES": "stackgen requests the capability gpu", "HOME": "stackgen sets it",
    "USER": "stackgen sets it",
    "LLAMA_CACHE": "stackgen decides where the weights are stored", "VLLM_NO_USAGE_STATS": "stackgen sets it",
    "DO_NOT_TRACK": "stackgen sets VLLM_NO_USAGE_STATS",
    "HF_HUB_ENABLE_HF_TRANSFER": "this setting no longer has an effect, because downloads use Xet",
    "VLLM_USE_V1": "vLLM has only this engine now",
    "PYTHONUNBUFFERED": "vLLM's log needs no such setting", "LOGDIR": "stackgen sets it",
    "FASTCHAT_CONTROLLER_HEART_BEAT_EXPIRATION": "stackgen sets it",
    "FASTCHAT_WORKER_HEART_BEAT_INTERVAL": "stackgen sets it",
    **dict.fromkeys(("PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"),
                    "the image has its own paths"),
    "CUDA_DEVICE_ORDER": "stackgen uses the GPU indices of nvidia-smi",
}  # fmt: skip
# flags whose value is a file or folder (`--help` of vLLM 0.32.0 and llama-server 11434)
FILE_FLAGS = frozenset({
    "--chat-template", "--tool-parser-plugin", "--reasoning-parser-plugin", "--tokenizer", "--hf-config-path",
    "--log-config-file", "--allowed-local-media-path", "-mm", "--mmproj", "--chat-template-file", "--grammar-file",
    "-jf", "--json-schema-file", "--lora", "--control-vector", "-md", "--model-draft", "--spec-draft-model",
    "--lookup-cache-static", "-lcs", "--mcp-servers-config",
})  # fmt: skip
PROXY = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
OWN_CACHE_TARGETS = re.compile(
    r"(?:/root|/home/\w+)/(?:\.cache/(?:vllm|torch|triton|flashinfer|torch_extensions)|\.triton|\.config/vllm)(?:/|$)|/tmp$|/dev/shm$"
)
HUB_CACHE = re.compile(r"(?:/root|/home/\w+|~)/\.cache(?:/huggingface(?:/hub)?)?$")


def apply_image(container: Container, draft: Draft, ledger: Ledger) -> None:
    """The image: stackgen's own version of the same program, or the field `image`."""
    word = container.image
    if word is None or word.item.outcome:
        return
    if word.unknown:
        word.item.drop(f"the source does not set {', '.join(word.unknown)}: stackgen uses its pinned image")
        return
    text = word.text
    tag = re.search(r":([^/]+)$", text)
    if not tag or tag[1].startswith("latest"):
        ledger.warn(word.item.place, f"{text} is not pinned to a version: the engine can change at any time")
    if OFFICIAL.match(text):
        if tag and re.search(r"\d", tag[1]) and not any(one in tag[1] for one in PINNED):
            ledger.warn(word.item.place, f"{text} becomes stackgen's pinned version of the same image")
        word.item.build_in(
            f"stackgen uses its pinned version of the same image. To keep this one, write `image: {text}`"
        )
    else:
        draft.fields["image"] = text
        word.item.carry("image", draft)


def apply_environment(container: Container, draft: Draft, stack: dict[str, Any], ledger: Ledger) -> None:
    """The variables of the engine, each as a field, in `extra_env`, in `.env`, or with a reason why not."""
    for name, value in container.environment.items():
        item, text = value.item, str(value.value)
        if name in HUB_TOKENS:
            take_hub_token(text, value.unknown, item, ledger)
        elif name in KEYS:
            take_api_keys([Word(text, item, value.unknown)], ledger)
        elif name in BUILT_IN:
            item.build_in(BUILT_IN[name])
        elif name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            _set_offline(text, item, draft, stack)
        elif name == "HF_ENDPOINT" and re.match(r"https?://", text):
            stack.setdefault("storage", {})["hub_endpoint"] = text
            item.carry("storage.hub_endpoint")
        elif name == "VLLM_CPU_KVCACHE_SPACE" and text.isdecimal() and int(text) > 0 and draft.engine == "vllm":
            draft.fields["cpu_kv_cache_gib"] = int(text)
            item.carry("cpu_kv_cache_gib", draft)
        elif name in PROXY and re.fullmatch(r"https?://[^\s@]+", text) and not value.unknown:
            stack["proxy"] = text
            item.carry("proxy")
        elif name.upper() == "NO_PROXY":
            item.build_in("stackgen lists the services of the stack itself")
        elif not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            item.drop("not a valid name of a variable")
        else:
            _add_variable(name, text, value, draft, ledger)


def _set_offline(text: str, item: Any, draft: Draft, stack: dict[str, Any]) -> None:
    if text.lower() not in ("1", "true", "yes", "on"):
        item.build_in("only the download service contacts the Hub, and engines never do")
    elif str(draft.fields.get("model", "/")).startswith(("/", ".", "~")):
        item.build_in("engines never contact the Hub")
    else:
        stack.setdefault("storage", {})["offline"] = True
        item.carry("storage.offline", None, "the download does not contact the Hub either")


def _add_variable(name: str, text: str, value: Value, draft: Draft, ledger: Ledger) -> None:
    extra = draft.fields.setdefault("extra_env", {})
    if reference := is_reference(text, value.unknown):
        extra[name] = {"from_env": reference}
        value.item.carry("extra_env", draft, f"the value comes from .env: write {reference}=… there")
    elif value.unknown:
        value.item.drop(f"the source does not set {', '.join(value.unknown)}: set `extra_env.{name}`")
    elif is_secret(name, text):
        if ledger.keep_secret(Secret(name, text)):
            extra[name] = {"from_env": name}
            value.item.hide(
                text, f".env: {name}", "moved into .env, which only you can read; `extra_env` reads it from there"
            )
        else:
            value.item.hide(
                text, "", f"two services set {name} to different secrets, but .env can contain only one of them"
            )
            value.item.outcome = "dropped"
    else:
        extra[name] = text
        value.item.carry("extra_env", draft)
    if not extra:
        del draft.fields["extra_env"]


def apply_mounts(container: Container, draft: Draft, stack: dict[str, Any], project: str, ledger: Ledger) -> None:
    """The mounts: storage of weights, caches that stackgen has itself, or the field `mounts`."""
    caches = _cache_folders(container)
    for mount in container.mounts:
        if mount.item.outcome:
            continue
        if mount.source == "/var/run/docker.sock":
            ledger.warn(
                mount.item.place,
                "with this mount, the container could control Docker, and with Docker the whole machine",
            )
        if OWN_CACHE_TARGETS.search(mount.target):
            mount.item.build_in("stackgen keeps compile caches in a shared volume, and /tmp in memory")
        elif mount.target in caches or HUB_CACHE.match(mount.target):
            _set_storage(mount, caches.get(mount.target, mount.target), stack, project)
        elif mount.used and not _is_needed(mount, draft):
            mount.item.build_in("stackgen mounts the files that the model uses")
        elif mount.named:
            mount.item.drop(f"stackgen mounts folders, and {mount.source} is a Docker volume")
        elif "${" in mount.source:
            mount.item.drop("the source does not set the variable in this path: use `mounts`")
        else:
            entry: dict[str, Any] = {"source": local(mount.source), "target": mount.target}
            # stack.yaml mounts read-only by default
            draft.fields.setdefault("mounts", []).append(entry if mount.read_only else entry | {"read_only": False})
            mount.item.carry("mounts", draft)


def mount_arguments(container: Container, draft: Draft, ledger: Ledger) -> None:
    """Files that the arguments of a process name: in a container, they need a mount."""
    if not container.is_bare:
        return
    texts = [str(one) for one in draft.fields.get("extra_args", ())]
    for before, text in zip(["", *texts], texts, strict=False):
        flag, _, value = text.partition("=") if text.startswith("-") else (before, "", text)
        if not re.fullmatch(r"/[\w./@+-]+", value) or value.startswith(str(draft.fields.get("model", "")) + "/"):
            continue
        if flag in FILE_FLAGS or os.path.exists(value):
            entry = {"source": value, "target": value}
            if entry not in (mounts := draft.fields.setdefault("mounts", [])):
                mounts.append(entry)
        else:
            ledger.warn(
                container.place, f"if {value}, the value of {flag}, is a path on this machine, add it to `mounts`"
            )


def _is_needed(mount: MountMap, draft: Draft) -> bool:
    """Whether another argument names a path in the mount."""
    texts = [*draft.fields.get("extra_args", ()), *draft.fields.get("extra_env", {}).values()]
    prefix = mount.target.rstrip("/") + "/"
    return any(text == mount.target or prefix in text for text in texts if isinstance(text, str))


def _cache_folders(container: Container) -> dict[str, str]:
    """Targets of mounts that hold the Hub's cache, by the variables of the source, and the cache's own folder."""
    found = {}
    for name, value in container.environment.items():
        if name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
            folder = posixpath.normpath(str(value.value))
            found[folder] = folder if name == "HF_HOME" else f"{folder}/hub"
    return found


def _set_storage(mount: MountMap, cache: str, stack: dict[str, Any], project: str) -> None:
    """Weights that the source has downloaded are used again: stackgen's storage has the same layout as HF_HOME."""
    storage = stack.setdefault("storage", {})
    source = mount.source
    if "${" in source:
        mount.item.drop("the source does not set the variable in this path: set `storage.path`")
    elif mount.named:
        name = project_volume(project, source)
        if cache.endswith("/hub") or storage.get("volume", name) != name or "path" in storage:
            mount.item.drop(
                "stackgen downloads the weights into its own storage: this volume has another layout, or a second place"
            )
        elif re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name):
            storage["volume"] = name
            mount.item.carry(
                "storage.volume", None, "" if name == source else f"the name of the volume in Docker is {name}"
            )
        else:
            mount.item.drop("not a valid name of a volume: stackgen downloads the weights into its own volume")
    else:
        path = local(source)
        # the layout of HF_HOME: its `hub` is the cache
        if cache.endswith("/hub"):
            path = os.path.dirname(path.rstrip("/")) if path.rstrip("/").endswith("/hub") else ""
        elif cache.endswith("/.cache"):
            path = os.path.join(path, "huggingface")
        if not path or storage.get("path", path) != path or "volume" in storage:
            mount.item.drop(
                "stackgen downloads the weights into its own storage: this folder has another layout, or is a "
                "second place"
            )
        else:
            storage["path"] = path
            mount.item.carry(
                "storage.path", None, "" if path == source else "the folder above the cache, as in HF_HOME"
            )
    if not storage:
        del stack["storage"]


def project_volume(project: str, name: str) -> str:
    """The name of a volume in Docker: Compose puts the project's name before it. "" is `docker run`."""
    return f"{project}_{name}" if project and not name.startswith("=") else name.removeprefix("=")


def apply_options(container: Container, draft: Draft, stack: dict[str, Any], ledger: Ledger) -> None:
    """Labels, users, groups, networks and sizes."""
    for name, value in container.options.items():
        if value.unknown:
            value.item.drop(f"the source does not set {', '.join(value.unknown)}: set `{name}`")
        elif name == "restart":
            stack["restart"] = value.value
            value.item.carry("restart")
        elif name.startswith("logging."):
            stack.setdefault("logging", {})[name.partition(".")[2]] = value.value
            value.item.carry(name)
        else:
            draft.fields[name] = value.value
            value.item.carry(name, draft)
    if container.options.get("user") and str(container.options["user"].value).split(":")[0] in ("0", "root"):
        ledger.warn(container.options["user"].item.place, "the engine runs as root in its container")
    for name, label in container.labels.items():
        if name.startswith("com.docker.compose."):
            label.item.build_in("Compose sets it")
        elif re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_./-]*", name):
            draft.fields.setdefault("labels", {})[name] = str(label.value)
            label.item.carry("labels", draft)
        else:
            label.item.drop("stack.yaml does not accept this name of a label")
