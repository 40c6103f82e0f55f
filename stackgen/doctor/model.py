"""Checks a model's folder on disk: config, tokenizer, chat template, weights, dtype and size.

As in vLLM 0.32.0, bfloat16 needs compute capability 8.0 (`CudaPlatform.supported_dtypes`); else vLLM falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.facts import GIB
from stackgen.doctor.finding import DoctorInputs, Results, fail, format_bytes, ok, unknown, warn
from stackgen.doctor.gguf_template import check_gguf_template
from stackgen.doctor.gpus import VLLM_UTILIZATION, report_unknown_gpus, requested_gpus
from stackgen.doctor.model_facts import OUTSIDE, ModelFacts
from stackgen.doctor.models_dir import check_models_dir
from stackgen.doctor.parallel import SPLITTING, parallel_sizes
from stackgen.spec import is_local

__all__ = [
    "check_chat_template", "check_dtype", "check_model_config", "check_named_files", "check_tokenizer", "check_weights",
    "check_weights_fit", "local_models", "report_unread",
]  # fmt: skip


def local_models(inputs: DoctorInputs) -> Iterator[tuple[str, Any, ModelFacts]]:
    """Each model in a folder that doctor could list, as (path in stack.yaml, spec, facts)."""
    for place, model in inputs.model_specs():
        facts = inputs.models.get(model.model)
        if is_local(model.model) and facts and facts.listed:
            yield place, model, facts


def report_unread(inputs: DoctorInputs, question: str) -> Results:
    """One result for each local model whose files doctor could not see."""
    for place, model in inputs.model_specs():
        facts = inputs.models.get(model.model)
        if is_local(model.model) and (facts is None or not facts.listed):
            evidence = facts.problems[0] if facts and facts.problems else "the model's files were not read"
            fix = "run doctor as a user who can read the folder" if facts else ""
            yield unknown(f"can't tell whether {question}", evidence=evidence, fix=fix, place=f"{place}.model")


def check_model_config(inputs: DoctorInputs) -> Results:
    """The model's folder exists, and its config.json contains the architecture."""
    yield from report_unread(inputs, "config.json is valid")
    for place, model, facts in local_models(inputs):
        field = f"{place}.model"
        if not facts.exists:
            yield fail(
                f"{model.model} does not exist",
                evidence=facts.path,
                fix="correct the path (paths are relative to stack.yaml), or use a Hub id",
                place=field,
            )
        elif getattr(model, "models_dir", None):
            yield check_models_dir(model, facts, place)
        # a GGUF file contains its config, so no config.json is needed
        elif model.engine == "llamacpp" and not (model.file or facts.is_file):
            yield fail(
                f"llama.cpp loads one GGUF file, but {model.model} is a folder",
                evidence=facts.path,
                fix="set `file: NAME.gguf`",
                place=f"{place}.file",
            )
        elif model.engine == "llamacpp":
            yield ok("stack.yaml sets the GGUF file", evidence=facts.path, place=place)
        elif facts.is_file:
            yield fail(
                f"{model.model} is a file, but {model.engine} needs a folder",
                evidence=facts.path,
                fix="set `model` to the folder that contains config.json, or set `engine: llamacpp` for a GGUF file",
                place=field,
            )
        elif facts.config_error.startswith("can't be read"):
            yield unknown(f"config.json {facts.config_error}", evidence=facts.path,
                          fix="run doctor as a user who can read the file", place=field)  # fmt: skip
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
    for place, model, facts in local_models(inputs):
        # a GGUF file contains its tokenizer and chat template
        if facts.exists and not facts.is_file and model.engine != "llamacpp":
            yield place, model, facts


def check_tokenizer(inputs: DoctorInputs) -> Results:
    """The tokenizer is next to the weights."""
    yield from report_unread(inputs, "the tokenizer is present")
    for place, _model, facts in _model_folders(inputs):
        if facts.tokenizer:
            yield ok("a tokenizer file is present", evidence="doctor does not read its content", place=place)
        else:
            yield fail(
                "the tokenizer is missing",
                evidence=f"{facts.path} has neither tokenizer.json nor tokenizer.model",
                fix="copy tokenizer.json and tokenizer_config.json from the model's repository",
                place=f"{place}.model",
            )


def check_chat_template(inputs: DoctorInputs) -> Results:
    """The model has a chat template. Without a template, vLLM answers /v1/chat/completions with 400."""
    yield from report_unread(inputs, "the model has a chat template")
    for place, model, facts in local_models(inputs):
        yield from check_gguf_template(model, facts, place) if model.engine == "llamacpp" else ()
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
    yield from report_unread(inputs, "the weights are complete")
    for place, _model, facts in local_models(inputs):
        if not facts.exists:
            continue
        # a file that this user can't read may be complete
        unread = [one for one in facts.problems if "can't be read" in one]
        if facts.problems and len(unread) == len(facts.problems):
            yield unknown("can't tell whether the weights are complete", evidence="; ".join(unread[:3]),
                          fix="run doctor as a user who can read the files", place=f"{place}.model")  # fmt: skip
        elif facts.problems:
            # an interrupted download may lack dozens of shards
            more = f"; further problems: {len(facts.problems) - 3}" if len(facts.problems) > 3 else ""
            yield fail(
                "the weights are incomplete",
                evidence="; ".join(facts.problems[:3]) + more,
                fix="replace each link by a copy of its file (`cp -rL FOLDER COPY` copies the whole folder)"
                if all(OUTSIDE in one for one in facts.problems)
                else "download the incomplete files again: `hf download REPOSITORY --local-dir FOLDER`",
                place=f"{place}.model",
            )
        else:
            evidence = f"files: {facts.weight_files}, {format_bytes(facts.weight_bytes)}"
            if facts.complete:
                yield ok("the weights are complete", evidence=evidence, place=place)
            else:
                evidence += "; only the headers of safetensors files contain the length of the file"
                yield ok("no weight file is missing or empty, and each GGUF file starts with `GGUF`", evidence=evidence,
                         place=place)  # fmt: skip


def check_dtype(inputs: DoctorInputs) -> Results:
    """The GPUs support the dtype that is requested."""
    yield from report_unknown_gpus(inputs, "whether the GPUs support the dtype")
    for place, model, _request, gpus in requested_gpus(inputs):
        facts, field = inputs.models.get(model.model), f"{place}.dtype"
        if model.engine == "llamacpp" or not gpus:
            continue
        # FastChat computes in float16 on a GPU, whatever the weights are (0.2.36, `load_model`)
        default = (facts.dtype() if facts else "") if model.engine in SPLITTING else "float16"
        dtype = model.dtype if model.dtype not in (None, "auto") else default
        # the oldest GPU of a replica decides for all
        old = next((gpu for gpu in gpus if gpu.compute and gpu.compute < (8, 0)), None)
        if old is None and all(gpu.compute for gpu in gpus):
            yield ok(f"the GPUs support {dtype or 'every dtype'}", place=field)
        elif old is None:
            yield unknown("can't tell which dtypes the GPUs support", place=field)
        # vLLM refuses an explicit bfloat16 and replaces an implicit one
        elif model.dtype in ("bfloat16", "bfloat"):
            has = f"{old.compute[0]}.{old.compute[1]}"  # type: ignore[index]
            evidence = f"compute capability {has}, but bfloat16 needs 8.0 or higher"
            if model.engine in SPLITTING:
                yield fail(f"{old.name} does not support bfloat16",
                           evidence=evidence, fix="set `dtype: float16`", place=field)  # fmt: skip
            else:
                yield warn(f"{old.name} does not support bfloat16: PyTorch emulates bfloat16 slowly",
                           evidence=evidence, fix="set `dtype: float16`", place=field)  # fmt: skip
        elif dtype == "bfloat16":
            yield warn(
                f"{old.name} does not support bfloat16, the model's dtype: "
                f"{'SGLang' if model.engine == 'sglang' else 'vLLM'} falls back to float16",
                evidence="config.json: dtype",
                fix="set `dtype: float16` to choose float16 explicitly",
                place=field,
            )
        elif not dtype:
            yield unknown("the dtype of the weights is unknown", evidence="config.json is not available", place=field)
        else:
            yield ok(f"{old.name} supports {dtype}", place=field)


def check_named_files(inputs: DoctorInputs) -> Results:
    """The chat templates, adapters, certificates and storage folder in stack.yaml exist."""
    for place, path in inputs.missing:
        yield fail(f"{path} does not exist", fix="correct the path (paths are relative to stack.yaml)", place=place)
    place, problem = inputs.tls_problem
    if problem:
        fix = "set `certificate` to a file with the server's own certificate first, and `key` to its private key"
        yield fail(problem, fix=fix, place=place)
    if inputs.stack and not inputs.missing:
        yield ok("every file and folder with a path in stack.yaml exists")


def check_weights_fit(inputs: DoctorInputs) -> Results:
    """The weights alone fit into the GPUs' memory."""
    yield from report_unknown_gpus(inputs, "whether the weights fit into the GPUs' memory")
    for place, model, request, gpus in requested_gpus(inputs):
        # with these, some of the weights stay in host memory
        if not gpus or any(getattr(model, name, None) for name in ("cpu_offloading", "gpu_layers")):
            continue
        weight, source = weight_bytes(inputs, model.model)
        # tensor parallelism splits evenly, so the smallest GPU decides
        smallest = min((gpu.memory_total for gpu in gpus if gpu.memory_total), default=None)
        if weight is None or smallest is None:
            yield unknown(f"can't tell whether {model.model} fits into the GPUs' memory",
                          evidence=f"the size of the {'weights' if weight is None else 'GPU memory'} is unknown",
                          place=place)  # fmt: skip
            continue
        # the other engines spread the weights over all GPUs of a replica
        tensor, pipeline = parallel_sizes(inputs, model, request) if model.engine in SPLITTING else (len(gpus), 1)
        share = (model.gpu_memory_utilization or VLLM_UTILIZATION) if model.engine == "vllm" else 1
        share = getattr(model, "mem_fraction_static", None) or share
        need, usable = weight / (tensor * pipeline), smallest * share
        if offload := getattr(model, "cpu_offload_gib", None):
            need, source = max(0, need - offload * GIB), f"{source}, {offload:g} GiB of it per GPU in host memory"
        if getattr(model, "load_8bit", False):
            need, source = need / 2, f"{source}, halved by load_8bit"
        evidence = f"{format_bytes(weight)} of weights ({source}) across {tensor * pipeline} GPUs: "
        evidence += f"{format_bytes(need)} are needed on each GPU, and {format_bytes(usable)} are usable"
        fix, field = "use more GPUs, a quantized variant of the model, or a smaller model", f"{place}.gpus"
        # a guessed size is never certain enough to fail
        if need > usable and "guessed" not in source:
            yield fail("the weights don't fit into the GPUs' memory", evidence=evidence, fix=fix, place=field)
        elif need > usable * 0.95:
            yield warn("the weights leave no memory for the KV cache", evidence=evidence, fix=fix, place=field)
        else:
            yield ok("the weights fit into the GPUs' memory", evidence=evidence, place=place)
