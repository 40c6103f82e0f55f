"""Reads a values file of vLLM's production-stack: one model for each entry of `servingEngineSpec.modelSpec`.

Fields: helm/values.yaml of vllm-project/production-stack at 00c38d1a (2026).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stackgen.errors import Mistake, SpecError
from stackgen.importing.container import Container, GpuAsk, Value, parse_size
from stackgen.importing.ledger import Item, Ledger, Secret, Word
from stackgen.stack.envfile import API_KEY

__all__ = ["is_values", "read_values"]

# field of vllmConfig -> flag of vLLM with a value
FLAGS = {
    "maxModelLen": "--max-model-len", "dtype": "--dtype", "tensorParallelSize": "--tensor-parallel-size",
    "maxNumSeqs": "--max-num-seqs", "maxLoras": "--max-loras", "gpuMemoryUtilization": "--gpu-memory-utilization",
    "runner": "--runner", "convert": "--convert", "pipelineParallelSize": "--pipeline-parallel-size",
}  # fmt: skip
SWITCHES = {"enablePrefixCaching": "--enable-prefix-caching", "enableChunkedPrefill": "--enable-chunked-prefill"}
BUILT_IN = {
    "name": "stackgen names services by their models", "enabled": "the value is true",
    "runtimeClassName": "Docker needs no runtime class",
    "imagePullPolicy": "stackgen pulls images that are missing", "pvcStorage": "the storage grows as needed",
    "pvcAccessMode": "the storage is on this machine", "storageClass": "the storage is on this machine",
}  # fmt: skip
CLUSTER = "this setting is for a cluster, but this stack runs on one machine"
REQUESTS = ("requestCPU", "requestMemory", "requestGPUType")
KUBERNETES = ("limitCPU", "limitMemory", "nodeSelectorTerms", "tolerations", "affinity",
              "annotations", "podAnnotations", "serviceAccountName",
              "priorityClassName", "nodeName", "labels", "pvcMatchLabels",
              "pvcLabels", "pvcAnnotations", "imagePullSecret", "tolerationsPolicy", "resources")  # fmt: skip


def is_values(data: dict[str, Any]) -> bool:
    """Whether `data` is a values file of production-stack."""
    return isinstance(data.get("servingEngineSpec"), dict)


def read_values(
    data: dict[str, Any], folder: Path, source: str, ledger: Ledger
) -> tuple[list[Container], dict[str, Any]]:
    """The models as containers, and fields of the stack. Raises SpecError if the file has no models."""
    spec = data["servingEngineSpec"]
    models = spec.get("modelSpec")
    if not isinstance(models, list) or not models:
        raise SpecError(
            source, [Mistake("servingEngineSpec.modelSpec", "lists no model", hint="import the file with your models")]
        )
    wrong = [f"servingEngineSpec.modelSpec[{index}]" for index, one in enumerate(models) if not isinstance(one, dict)]
    if wrong:
        raise SpecError(source, [Mistake(place, "must be a mapping with `modelURL`") for place in wrong])
    containers = [
        _read_model(f"servingEngineSpec.modelSpec[{index}]", model, folder, ledger)
        for index, model in enumerate(models)
        if isinstance(model, dict)
    ]
    stack: dict[str, Any] = {"gateway": True}
    for key, value in spec.items():
        if key == "vllmApiKey" and isinstance(value, str):
            item = ledger.add("servingEngineSpec.vllmApiKey", value)
            ledger.keep_secret(Secret(API_KEY, value))
            item.hide(value, f".env: {API_KEY}", "moved into .env, which only you can read")
        elif key != "modelSpec":
            _walk(f"servingEngineSpec.{key}", value, ledger, CLUSTER)
    for key, value in data.items():
        if key == "routerSpec":
            stack["gateway"] = _read_router(value, ledger)
        elif key != "servingEngineSpec":
            _walk(str(key), value, ledger, CLUSTER)
    return [one for one in containers if one is not None], stack


def _read_model(path: str, model: dict[str, Any], folder: Path, ledger: Ledger) -> Container | None:
    if model.get("enabled") == "false":
        _walk(path, model, ledger, "`enabled` is false")
        return None
    container = Container(str(model.get("name", "")), path, folder)
    # the URL of the model is its id on the Hub, or a path in the storage
    container.entrypoint = [Word("vllm", Item(path, "vllm")), Word("serve", Item(path, "serve"))]
    for key, value in model.items():
        _read_field(f"{path}.{key}", str(key), value, container, ledger)
    image = [model.get("repository"), model.get("tag")]
    if image[0]:
        item = ledger.add(f"{path}.repository", str(image[0]))
        container.image = Word(":".join(str(one) for one in image if one), item)
        if image[1]:
            ledger.add(f"{path}.tag", str(image[1])).build_in("part of the image's name")
    return container


def _read_field(path: str, key: str, value: Any, container: Container, ledger: Ledger) -> None:
    if key in ("repository", "tag"):
        return
    if key == "modelURL":
        container.command.insert(0, ledger.word(path, str(value)))
    elif key == "vllmConfig" and isinstance(value, dict):
        for name, inner in value.items():
            container.command += _read_config(f"{path}.{name}", str(name), inner, ledger)
    elif key == "replicaCount" and str(value).isdecimal() and int(value) > 0:
        container.replicas, container.replicas_item = int(value), ledger.add(path, str(value))
    elif key == "requestGPU" and str(value).isdecimal():
        container.gpus.append(GpuAsk(ledger.add(path, str(value)), count=int(value)))
    elif key == "shmSize" and (size := parse_size(str(value))):
        container.options["shm_size"] = Value(size, ledger.add(path, str(value)))
    elif key == "hf_token" and isinstance(value, str):
        container.environment["HF_TOKEN"] = Value(value, ledger.add(path, value))
    elif key == "env" and isinstance(value, list):
        for index, entry in enumerate(value):
            _read_variable(f"{path}[{index}]", entry, container, ledger)
    elif key == "chatTemplate" and value:
        # the text of a template, or a path in a volume of the cluster
        ledger.add(path, str(value)).drop("save the template as a file of this machine, and set `chat_template`")
    elif key == "enableTool":
        item = ledger.add(path, str(value))
        if str(value).lower() == "true":
            container.command.append(Word("--enable-auto-tool-choice", item))
        else:
            item.build_in("this is the default")
    elif key == "toolCallParser" and value:
        container.command.append(ledger.word(path, str(value), f"--tool-call-parser={value}"))
    elif key == "enableLoRA":
        _walk(path, value, ledger, "list the adapters in `lora_adapters`")
    elif key == "extraVolumeMounts":
        _walk(path, value, ledger, "use `mounts` with folders of this machine")
    elif key in BUILT_IN:
        for place, inner in _leaves(path, value):
            ledger.add(place, inner).build_in(BUILT_IN[key])
    elif key in REQUESTS:
        for place, inner in _leaves(path, value):
            ledger.add(place, inner).build_in(
                "a request to the scheduler of a cluster, but this stack can use the whole machine"
            )
    elif key in KUBERNETES:
        _walk(path, value, ledger, CLUSTER)
    else:
        reason = (
            "LMCache: set vLLM's --kv-transfer-config in `extra_args`"
            if key == "lmcacheConfig"
            else "stack.yaml has no field for this setting"
        )
        _walk(path, value, ledger, reason)


def _read_config(path: str, name: str, value: Any, ledger: Ledger) -> Iterator[Word]:
    if name == "extraArgs" and isinstance(value, list):
        for index, one in enumerate(value):
            yield ledger.word(f"{path}[{index}]", str(one))
    elif name in FLAGS:
        yield ledger.word(path, str(value), f"{FLAGS[name]}={value}")
    elif name in SWITCHES:
        # the chart passes --no-enable-prefix-caching
        flag = SWITCHES[name] if str(value).lower() == "true" else "--no-" + SWITCHES[name][2:]
        word = ledger.word(path, str(value), flag)
        word.item.note = f"{name} is vLLM's {flag}"
        yield word
    elif name == "v0" or name == "v1":
        ledger.add(path, str(value)).build_in("vLLM has only one engine now")
    else:
        _walk(path, value, ledger, "stackgen does not know this field of vllmConfig")


def _read_variable(path: str, entry: Any, container: Container, ledger: Ledger) -> None:
    name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
    if name and "value" in entry:
        ledger.add(f"{path}.name", name).build_in("the name of the variable")
        container.environment[name] = Value(str(entry["value"]), ledger.add(f"{path}.value", str(entry["value"])))
    elif name:
        # a reference to a secret of the cluster
        for place, inner in _leaves(path, entry):
            ledger.add(place, inner).build_in("a secret of the cluster: its value comes from .env")
        container.environment[name] = Value(f"${{{name}}}", ledger.add(path, name), (name,))
    else:
        _walk(path, entry, ledger, "no variable")


def _read_router(spec: Any, ledger: Ledger) -> Any:
    """The gateway of the stack, which is the router of the source."""
    gateway: Any = True
    for place, value in _leaves("routerSpec", spec):
        item = ledger.add(place, value)
        if place == "routerSpec.routingLogic" and value == "prefixaware":
            gateway = {"routing": "prefix"}
            item.carry("gateway", None, "the gateway calls it `routing: prefix`")
        elif place == "routerSpec.routingLogic" and value == "roundrobin":
            item.build_in("the gateway chooses the least busy replica")
        elif place == "routerSpec.routingLogic":
            item.drop("the gateway does not support this routing")
        elif place in ("routerSpec.repository", "routerSpec.tag", "routerSpec.enableRouter"):
            item.build_in("stackgen's gateway is the router")
        else:
            item.drop("stackgen's gateway has its own settings")
    return gateway


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(f"{path}[{index}]", inner)
    else:
        yield path, "" if value is None else str(value)


def _walk(path: str, value: Any, ledger: Ledger, reason: str) -> None:
    for place, inner in _leaves(path, value):
        item = ledger.add(place, inner)
        if inner:
            item.drop(reason)
        else:
            item.build_in("empty")
