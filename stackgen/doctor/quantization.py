"""Checks that vLLM knows the quantization, the weights use it, and the GPUs support it.

Compute capabilities are those of vLLM 0.32.0 (`get_min_capability` of each method). `render` checks the methods in
stack.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.doctor.facts import Gpu
from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.doctor.gpus import requested_gpus
from stackgen.doctor.parallel import EXPERTS, split_models
from stackgen.fit.config import read_block_size
from stackgen.flags.arguments import suggest_value
from stackgen.flags.releases import flags_of

__all__ = ["MIN_CAPABILITY", "check_quantization"]

# method -> the lowest compute capability; below it, vLLM refuses to start
MIN_CAPABILITY = {"awq": (7, 5), "awq_marlin": (7, 5), "auto_awq": (7, 5), "fp8": (7, 5), "fp8_per_tensor": (7, 5),
                  "modelopt": (8, 0), "modelopt_fp4": (7, 5), "modelopt_mxfp8": (8, 0), "mxfp4": (8, 0),
                  "gpt_oss_mxfp4": (8, 0), "experts_int8": (8, 0), "fbgemm_fp8": (8, 0), "fp_quant": (10, 0),
                  "compressed-tensors": (7, 0), "torchao": (7, 5)}  # fmt: skip
# below these, the weights stay compressed but the arithmetic is 16-bit (Marlin kernels)
NATIVE_CAPABILITY = {"fp8": (8, 9), "fp8_per_tensor": (8, 9), "modelopt": (8, 9), "modelopt_fp4": (10, 0)}
# these need weights that are quantized already; the others quantize while loading
PREQUANTIZED = ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto_awq", "auto_gptq", "compressed-tensors", "mxfp4",
            "modelopt", "modelopt_fp4")  # fmt: skip


def check_quantization(inputs: DoctorInputs) -> Results:
    """The model uses the requested quantization, and the GPUs support it."""
    gpus_of = {place: gpus for place, _, _, gpus in requested_gpus(inputs)}
    for place, model in inputs.model_specs():
        facts = inputs.models.get(model.model)
        own, field = facts.quantization() if facts else "", f"{place}.quantization"
        method = (getattr(model, "quantization", None) or own).lower()
        if model.engine != "vllm":
            continue
        gpus = gpus_of.get(place, ())
        if not method and gpus != () and (facts is None or facts.config is None):
            yield unknown("can't tell whether the model is quantized", evidence="config.json is not available",
                          place=field)  # fmt: skip
        if not method:
            continue
        known = flags_of(model)
        # another image may know other methods
        hint = None if model.image or known is None else suggest_value(known.by_name["--quantization"], method)
        if hint:
            yield fail(
                f"vLLM {known.version if known else ''} does not know the quantization method {method}",
                evidence="config.json: quantization_config",
                fix=hint
                if hint.startswith("did")
                else "use a variant of the model that is quantized with fp8, awq or gptq",
                place=field,
            )
        elif facts and facts.config is not None and method in PREQUANTIZED and not own:
            yield fail(
                f"`quantization` is {method}, but the model is not quantized",
                evidence="config.json: no quantization_config",
                fix=f"remove `quantization`, or use a variant of the model whose name ends in -{method.upper()}",
                place=field,
            )
        # each of these three formats includes several methods, so another name is not an error
        elif own and _family(own) != _family(method) and not {own, method} & {"compressed-tensors", "modelopt", "inc"}:
            yield fail(
                f"`quantization` is {method}, but the model is quantized as {own}",
                evidence="config.json: quantization_config",
                fix=f"set `quantization: {own}`, or remove `quantization`",
                place=field,
            )
        else:
            if gpus is None:
                yield unknown(f"can't tell whether the GPUs support {method}",
                              evidence="this machine's GPUs are unknown", place=field)  # fmt: skip
            yield from _check_capability(method, gpus or (), field)
    yield from _check_blocks(inputs)


def _check_blocks(inputs: DoctorInputs) -> Iterator[Result]:
    """The blocks of FP8 weights can be split across the GPUs: `validate_fp8_block_shape` in vLLM and SGLang."""
    for place, model, tensor, _, facts in split_models(inputs):
        block = read_block_size(facts.config or {}) if facts else 0
        size = facts.number("intermediate_size") if facts else None
        if tensor == 1 or not size or not block or (facts and facts.number(*EXPERTS)):
            continue
        if size % tensor == 0 and (size // tensor) % block:
            fixed = max((one for one in range(1, tensor) if tensor % one == 0 and size % (one * block) == 0), default=1)
            report = warn if model.image else fail
            yield report(
                f"the FP8 weights of {model.model} can't be split across {tensor} GPUs",
                evidence=f"config.json: intermediate_size {size} / {tensor} = {size // tensor}, which is no multiple "
                f"of the block size {block}",
                fix=f"set `tensor_parallel_size: {fixed}`, and reduce `gpus` accordingly (SG-V025)",
                place=f"{place}.tensor_parallel_size" if model.tensor_parallel_size else f"{place}.gpus",
            )


def _family(method: str) -> str:
    """`awq` for awq_marlin and auto_awq: vLLM chooses the kernel among these itself."""
    return method.removeprefix("auto_").partition("_")[0]


def _check_capability(method: str, gpus: tuple[Gpu, ...], field: str) -> Iterator[Result]:
    minimum, native = MIN_CAPABILITY.get(method), NATIVE_CAPABILITY.get(method)
    for gpu in gpus if minimum else ():
        evidence = f"compute capability {gpu.compute[0]}.{gpu.compute[1]}" if gpu.compute else ""
        if gpu.compute is None or minimum is None:
            yield unknown(f"can't tell whether {gpu.name} supports {method}", place=field)
        elif gpu.compute < minimum:
            yield fail(
                f"{gpu.name} does not support {method}",
                evidence=f"{evidence}, but {method} needs {minimum[0]}.{minimum[1]} or higher",
                fix="use a model that is not quantized, or a model that is quantized with another method",
                place=field,
            )
        elif native and gpu.compute < native:
            yield warn(
                f"{gpu.name} has no {method} arithmetic: the weights stay compressed in memory, but vLLM computes with "
                "16 bits (Marlin kernels)",
                evidence=f"{evidence}, but {method} needs compute capability {native[0]}.{native[1]} or higher",
                fix="no change is needed, but vLLM is faster on a newer GPU, or with a model in awq or gptq",
                place=field,
            )
        else:
            yield ok(f"{gpu.name} supports {method}", evidence=evidence, place=field)
