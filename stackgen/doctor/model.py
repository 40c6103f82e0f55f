"""The model itself: its files, and whether its type and size suit the cards.

As in vLLM 0.32.0: bfloat16 from compute capability 8.0 (`CudaPlatform.supported_dtypes`), else it falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stackgen.doctor.capacity import weight_bytes
from stackgen.doctor.finding import Case, Results, fail, good, size, unknown, warn
from stackgen.doctor.gpus import UTILIZATION, wanted
from stackgen.doctor.model_facts import ModelFacts
from stackgen.doctor.parallel import sizes
from stackgen.spec import is_local

__all__ = ["chat_template", "config", "dtype", "extras", "fit", "readable", "tokenizer", "weights"]


def _local(case: Case) -> Iterator[tuple[str, Any, ModelFacts]]:
    for place, model in case.specs():
        facts = case.models.get(model.model)
        if is_local(model.model) and facts:
            yield place, model, facts


def config(case: Case) -> Results:
    """The folder is there, and its config.json says what it is."""
    for place, model, facts in _local(case):
        if not facts.exists:
            yield fail(
                f"{model.model} does not exist",
                facts.path,
                "correct the path (relative ones start at stack.yaml), or write a Hub id",
                f"{place}.model",
            )
        elif model.engine == "llamacpp":
            named = model.file or facts.is_file
            if not named:
                yield fail("llama.cpp loads one GGUF file, and this is a folder", facts.path,
                           "name the file: file: NAME.gguf", f"{place}.file")  # fmt: skip
            else:
                yield good("the GGUF is named", facts.path, place)
        elif facts.is_file:
            yield fail(
                f"{model.model} is a file, and {model.engine} wants a folder",
                facts.path,
                "name the folder that holds config.json, or use engine: llamacpp for a GGUF",
                f"{place}.model",
            )
        elif facts.config is None:
            yield fail(
                f"config.json {facts.config_error}",
                facts.path,
                "fetch the file again, from the repository that the weights come from",
                f"{place}.model",
            )
        elif not facts.config.get("architectures") and not facts.config.get("model_type"):
            yield fail("config.json names no architecture", "neither `architectures` nor `model_type`",
                       "fetch the file again: it belongs to something else", f"{place}.model")  # fmt: skip
        else:
            told = facts.config.get("architectures") or [facts.config.get("model_type")]
            yield good("config.json can be read", str(told[0] if isinstance(told, list) else told), place)


def _folders(case: Case) -> Iterator[tuple[str, Any, ModelFacts]]:
    for place, model, facts in _local(case):
        if facts.exists and not facts.is_file and model.engine != "llamacpp":
            yield place, model, facts


def tokenizer(case: Case) -> Results:
    """A tokenizer lies beside the weights."""
    for place, _model, facts in _folders(case):
        if facts.tokenizer:
            yield good("the tokenizer is there", place=place)
        else:
            yield fail(
                "the tokenizer is missing",
                f"{facts.path} holds neither tokenizer.json nor tokenizer.model",
                "copy tokenizer.json and tokenizer_config.json from the model's repository",
                f"{place}.model",
            )


def chat_template(case: Case) -> Results:
    """A chat template, without which /v1/chat/completions answers 400."""
    for place, model, facts in _folders(case):
        if model.engine != "vllm":
            continue
        if facts.chat_template or model.chat_template:
            yield good("there is a chat template", place=place)
        else:
            yield warn(
                "there is no chat template: chat completions will be refused, plain completions work",
                "neither chat_template.jinja nor `chat_template` in tokenizer_config.json",
                "set chat_template to a Jinja file, or take the model's Instruct variant",
                f"{place}.chat_template",
            )


def weights(case: Case) -> Results:
    """Every file of the weights is there and whole."""
    for place, _model, facts in _local(case):
        if not facts.exists:
            continue
        if facts.problems:
            more = f", and {len(facts.problems) - 3} more" if len(facts.problems) > 3 else ""
            yield fail(
                "the weights are not complete",
                "; ".join(facts.problems[:3]) + more,
                "fetch these files again: hf download REPOSITORY --local-dir FOLDER",
                f"{place}.model",
            )
        else:
            yield good("the weights are complete", f"{facts.weight_files} files, {size(facts.weight_bytes)}", place)


def readable(case: Case) -> Results:
    """The user that the container runs as may read the files."""
    for place, model, facts in _local(case):
        if not facts.exists:
            continue
        service = next((s for s in case.services() if any(word == _mounted(s, facts.path) for word in s.command)), None)
        engine = next((s for s in case.services() if s.engine == model.engine and s.role in ("engine", "worker")), None)
        user = (service or engine).user if (service or engine) else ""  # type: ignore[union-attr]
        # every capability is dropped, so root inside may read no more than anybody else; numbers only, as a name's
        # uid is known to the image alone
        uid = int(user.partition(":")[0] or 0) if user.partition(":")[0].isdecimal() else 0 if not user else None
        closed = [(name, owner, mode) for name, owner, mode in facts.unreadable if owner != uid]
        if closed:
            name, owner, mode = closed[0]
            yield fail(
                f"the container's user can't read {len(closed)} file{'s' if len(closed) > 1 else ''} of the model",
                f"{name} belongs to uid {owner} with mode {mode:04o}; the container runs as {user or 'root'}",
                f"chmod -R a+rX {facts.path}",
                f"{place}.model",
            )
        else:
            yield good("the container's user may read the model", place=place)


def _mounted(service: Any, path: str) -> str:
    return next((m.target for m in service.mounts if getattr(m, "source", "") == path), "")


def dtype(case: Case) -> Results:
    """The cards compute in the type that is asked for."""
    for place, model, _request, cards in wanted(case):
        facts, field = case.models.get(model.model), f"{place}.dtype"
        if model.engine not in ("vllm", "fastchat") or not cards:
            continue
        # FastChat computes in float16 on a GPU, whatever the weights are (0.2.36, `load_model`)
        own = (facts.dtype() if facts else "") if model.engine == "vllm" else "float16"
        asked = model.dtype if model.dtype not in (None, "auto") else own
        old = next((gpu for gpu in cards if gpu.compute and gpu.compute < (8, 0)), None)
        if old is None and all(gpu.compute for gpu in cards):
            yield good(f"the cards compute in {asked or 'every type'}", place=field)
        elif old is None:
            yield unknown("which types the cards compute in is unknown", place=field)
        elif model.dtype in ("bfloat16", "bfloat"):
            told = f"compute capability {old.compute[0]}.{old.compute[1]}, wanted 8.0 or newer"  # type: ignore[index]
            if model.engine == "vllm":
                yield fail(f"{old.name} does not compute in bfloat16", told, "dtype: float16", field)
            else:
                yield warn(f"{old.name} does not compute in bfloat16: PyTorch does it by slow detours", told,
                           "dtype: float16", field)  # fmt: skip
        elif asked == "bfloat16":
            yield warn(f"{old.name} does not compute in bfloat16, the model's type: vLLM falls back to float16",
                       "config.json: dtype", "dtype: float16 says so openly", field)  # fmt: skip
        elif not asked:
            yield unknown("the type of the weights is unknown", "no config.json at hand", place=field)
        else:
            yield good(f"{old.name} computes in {asked}", place=field)


def extras(case: Case) -> Results:
    """Chat templates, adapters and token files that stack.yaml names are there."""
    for place, path in case.missing:
        yield fail(f"{path} does not exist", "", "correct the path (relative ones start at stack.yaml)", place)
    if case.stack and not case.missing:
        yield good("all files that stack.yaml names are there")


def fit(case: Case) -> Results:
    """The weights alone fit the memory of the cards."""
    for place, model, request, cards in wanted(case):
        # some of the weights stay in the host's memory then
        if not cards or any(getattr(model, name, None) for name in ("cpu_offloading", "gpu_layers")):
            continue
        weight, how = weight_bytes(case, model.model)
        least = min((gpu.memory_total for gpu in cards if gpu.memory_total), default=None)
        if weight is None or least is None:
            yield unknown(f"whether {model.model} fits the cards is unknown", "its size is unknown", place=place)
            continue
        tensor, pipeline = sizes(case, model, request) if model.engine == "vllm" else (len(cards), 1)
        share = (model.gpu_memory_utilization or UTILIZATION) if model.engine == "vllm" else 1
        need, have = weight / (tensor * pipeline), least * share
        if getattr(model, "load_8bit", False):
            need, how = need / 2, f"{how}, halved by load_8bit"
        told = (
            f"{size(weight)} of weights ({how}) over {tensor * pipeline}: {size(need)} a card; {size(have)} may be used"
        )
        fix = "more gpus, a quantized variant of the model, or a smaller one"
        if need > have and "guessed" not in how:
            yield fail("the weights don't fit the cards", told, fix, f"{place}.gpus")
        elif need > have * 0.95:
            yield warn("the weights leave no room for the KV cache", told, fix, f"{place}.gpus")
        else:
            yield good("the weights fit the cards", told, place)
