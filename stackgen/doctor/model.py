"""Checks the model's files on disk, and whether its dtype and size suit the GPUs.

As in vLLM 0.32.0, bfloat16 needs compute capability 8.0 (`CudaPlatform.supported_dtypes`); else vLLM falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.doctor.gpus import VLLM_UTILIZATION, requested_gpus
from stackgen.doctor.model_facts import ModelFacts
from stackgen.doctor.parallel import parallel_sizes
from stackgen.spec import is_local

__all__ = [
    "check_chat_template", "check_dtype", "check_model_config", "check_named_files", "check_readable",
    "check_tokenizer", "check_weights", "check_weights_fit",
]  # fmt: skip


def _local_models(inputs: DoctorInputs) -> Iterator[tuple[str, Any, ModelFacts]]:
    for place, model in inputs.model_specs():
        facts = inputs.models.get(model.model)
        if is_local(model.model) and facts:
            yield place, model, facts


def check_model_config(inputs: DoctorInputs) -> Results:
    """The model's folder exists, and its config.json contains the architecture."""
    for place, model, facts in _local_models(inputs):
        field = f"{place}.model"
        if not facts.exists:
            yield fail(
                f"{model.model} does not exist",
                evidence=facts.path,
                fix="correct the path (paths are relative to stack.yaml), or use a Hub id",
                place=field,
            )
        # a GGUF file contains its config, so no config.json is needed
        elif model.engine == "llamacpp" and not (model.file or facts.is_file):
            yield fail(
                "llama.cpp loads one GGUF file, but this is a folder",
                evidence=facts.path,
                fix="set file: NAME.gguf",
                place=f"{place}.file",
            )
        elif model.engine == "llamacpp":
            yield ok("stack.yaml sets the GGUF file", evidence=facts.path, place=place)
        elif facts.is_file:
            yield fail(
                f"{model.model} is a file, but {model.engine} needs a folder",
                evidence=facts.path,
                fix="set model: to the folder that contains config.json, or use engine: llamacpp for a GGUF file",
                place=field,
            )
        elif facts.config is None:
            yield fail(
                f"config.json {facts.config_error}",
                evidence=facts.path,
                fix="download config.json again, from the repository of the weights",
                place=field,
            )
        elif not facts.config.get("architectures") and not facts.config.get("model_type"):
            yield fail(
                "config.json contains no architecture",
                evidence="config.json has neither `architectures` nor `model_type`",
                fix="download config.json again: the current file is not a model's config.json",
                place=field,
            )
        else:
            names = facts.config.get("architectures") or [facts.config.get("model_type")]
            architecture = str(names[0] if isinstance(names, list) else names)
            yield ok("config.json is readable", evidence=architecture, place=place)


def _model_folders(inputs: DoctorInputs) -> Iterator[tuple[str, Any, ModelFacts]]:
    for place, model, facts in _local_models(inputs):
        # a GGUF file contains its tokenizer and chat template
        if facts.exists and not facts.is_file and model.engine != "llamacpp":
            yield place, model, facts


def check_tokenizer(inputs: DoctorInputs) -> Results:
    """The tokenizer is next to the weights."""
    for place, _model, facts in _model_folders(inputs):
        if facts.tokenizer:
            yield ok("the tokenizer is present", place=place)
        else:
            yield fail(
                "the tokenizer is missing",
                evidence=f"{facts.path} has neither tokenizer.json nor tokenizer.model",
                fix="copy tokenizer.json and tokenizer_config.json from the model's repository",
                place=f"{place}.model",
            )


def check_chat_template(inputs: DoctorInputs) -> Results:
    """The model has a chat template. Without a template, vLLM answers /v1/chat/completions with 400."""
    for place, model, facts in _model_folders(inputs):
        # FastChat has its own conversation templates
        if model.engine != "vllm":
            continue
        if facts.chat_template or model.chat_template:
            yield ok("the model has a chat template", place=place)
        else:
            yield warn(
                "the model has no chat template: chat completions will fail, but plain completions work",
                evidence="chat_template.jinja does not exist, and tokenizer_config.json has no `chat_template`",
                fix="set chat_template to a Jinja file, or use the model's Instruct variant",
                place=f"{place}.chat_template",
            )


def check_weights(inputs: DoctorInputs) -> Results:
    """Every weight file exists and is complete."""
    for place, _model, facts in _local_models(inputs):
        if not facts.exists:
            continue
        if facts.problems:
            # an interrupted download may lack dozens of shards
            more = f", and {len(facts.problems) - 3} more" if len(facts.problems) > 3 else ""
            yield fail(
                "the weights are incomplete",
                evidence="; ".join(facts.problems[:3]) + more,
                fix="download the incomplete files again: hf download REPOSITORY --local-dir FOLDER",
                place=f"{place}.model",
            )
        else:
            evidence = f"{facts.weight_files} files, {format_bytes(facts.weight_bytes)}"
            yield ok("the weights are complete", evidence=evidence, place=place)


def check_readable(inputs: DoctorInputs) -> Results:
    """The container's user may read the model's files."""
    for place, model, facts in _local_models(inputs):
        if not facts.exists:
            continue
        services = inputs.services()
        mounting = next((s for s in services if any(word == _mount_target(s, facts.path) for word in s.command)), None)
        engine = next((s for s in services if s.engine == model.engine and s.role in ("engine", "worker")), None)
        user = (mounting or engine).user if (mounting or engine) else ""  # type: ignore[union-attr]
        # all capabilities are dropped, so root in the container can't read more than others; only numeric users count,
        # because only the image knows the uid of a name
        uid = int(user.partition(":")[0] or 0) if user.partition(":")[0].isdecimal() else 0 if not user else None
        # `unreadable` are files with an owner-only mode: only their owner can read them
        closed = [(name, owner, mode) for name, owner, mode in facts.unreadable if owner != uid]
        if closed:
            name, owner, mode = closed[0]
            files = f"{len(closed)} file{'s' if len(closed) > 1 else ''}"
            yield fail(
                f"the container's user can't read {files} of the model",
                evidence=f"{name} belongs to uid {owner} with mode {mode:04o}; the container runs as {user or 'root'}",
                fix=f"chmod -R a+rX {facts.path}",
                place=f"{place}.model",
            )
        else:
            yield ok("the container's user can read the model", place=place)


def _mount_target(service: Any, path: str) -> str:
    return next((m.target for m in service.mounts if getattr(m, "source", "") == path), "")


def check_dtype(inputs: DoctorInputs) -> Results:
    """The GPUs support the dtype that is requested."""
    for place, model, _request, gpus in requested_gpus(inputs):
        facts, field = inputs.models.get(model.model), f"{place}.dtype"
        if model.engine not in ("vllm", "fastchat") or not gpus:
            continue
        # FastChat computes in float16 on a GPU, whatever the weights are (0.2.36, `load_model`)
        default = (facts.dtype() if facts else "") if model.engine == "vllm" else "float16"
        dtype = model.dtype if model.dtype not in (None, "auto") else default
        # the oldest GPU of a replica decides for all
        old = next((gpu for gpu in gpus if gpu.compute and gpu.compute < (8, 0)), None)
        if old is None and all(gpu.compute for gpu in gpus):
            yield ok(f"the GPUs support {dtype or 'every dtype'}", place=field)
        elif old is None:
            yield unknown("can't tell which dtypes the GPUs support", place=field)
        # vLLM refuses an explicit bfloat16 and replaces an implicit one
        elif model.dtype in ("bfloat16", "bfloat"):
            evidence = f"compute capability {old.compute[0]}.{old.compute[1]}; 8.0 or higher is needed"  # type: ignore[index]
            if model.engine == "vllm":
                yield fail(f"{old.name} does not support bfloat16",
                           evidence=evidence, fix="dtype: float16", place=field)  # fmt: skip
            else:
                yield warn(f"{old.name} does not support bfloat16: PyTorch emulates it slowly",
                           evidence=evidence, fix="dtype: float16", place=field)  # fmt: skip
        elif dtype == "bfloat16":
            yield warn(
                f"{old.name} does not support bfloat16, the model's dtype: vLLM falls back to float16",
                evidence="config.json: dtype",
                fix="set dtype: float16 to make this explicit",
                place=field,
            )
        elif not dtype:
            yield unknown("the dtype of the weights is unknown", evidence="config.json is not available", place=field)
        else:
            yield ok(f"{old.name} supports {dtype}", place=field)


def check_named_files(inputs: DoctorInputs) -> Results:
    """The chat templates, adapters and storage folder in stack.yaml exist."""
    for place, path in inputs.missing:
        yield fail(f"{path} does not exist", fix="correct the path (paths are relative to stack.yaml)", place=place)
    if inputs.stack and not inputs.missing:
        yield ok("all files in stack.yaml exist")


def check_weights_fit(inputs: DoctorInputs) -> Results:
    """The weights alone fit into the GPUs' memory."""
    for place, model, request, gpus in requested_gpus(inputs):
        # with these, some of the weights stay in host memory
        if not gpus or any(getattr(model, name, None) for name in ("cpu_offloading", "gpu_layers")):
            continue
        weight, source = weight_bytes(inputs, model.model)
        # tensor parallelism splits evenly, so the smallest GPU decides
        smallest = min((gpu.memory_total for gpu in gpus if gpu.memory_total), default=None)
        if weight is None or smallest is None:
            yield unknown(f"can't tell whether {model.model} fits into the GPUs' memory",
                          evidence="the size of the weights is unknown", place=place)  # fmt: skip
            continue
        tensor, pipeline = parallel_sizes(inputs, model, request) if model.engine == "vllm" else (len(gpus), 1)
        share = (model.gpu_memory_utilization or VLLM_UTILIZATION) if model.engine == "vllm" else 1
        need, usable = weight / (tensor * pipeline), smallest * share
        if getattr(model, "load_8bit", False):
            need, source = need / 2, f"{source}, halved by load_8bit"
        evidence = f"{format_bytes(weight)} of weights ({source}) across {tensor * pipeline} GPUs: "
        evidence += f"{format_bytes(need)} on each; {format_bytes(usable)} usable"
        fix, field = "use more gpus, a quantized variant of the model, or a smaller model", f"{place}.gpus"
        # a guessed size is never certain enough to fail
        if need > usable and "guessed" not in source:
            yield fail("the weights don't fit into the GPUs' memory", evidence=evidence, fix=fix, place=field)
        elif need > usable * 0.95:
            yield warn("the weights leave no memory for the KV cache", evidence=evidence, fix=fix, place=field)
        else:
            yield ok("the weights fit into the GPUs' memory", evidence=evidence, place=place)
