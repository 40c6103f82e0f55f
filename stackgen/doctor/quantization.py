"""Quantization: one that the engine knows, that the weights have, and that the cards compute with.

Methods and capabilities as in vLLM 0.32.0 (`QuantizationMethods`, `get_min_capability` of each).
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from stackgen.doctor.facts import Gpu
from stackgen.doctor.finding import Case, Result, Results, fail, good, unknown, warn
from stackgen.doctor.gpus import wanted

__all__ = ["METHODS", "NEEDS", "quantization"]

# `bitsandbytes` and `gguf` are known no more
METHODS = (
    "awq", "auto_awq", "fp8", "fbgemm_fp8", "fp_quant", "modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed",
    "auto_gptq", "gptq", "gptq_marlin", "awq_marlin", "humming", "compressed-tensors", "experts_int8", "quark",
    "moe_wna16", "torchao", "inc", "mxfp4", "gpt_oss_mxfp4", "deepseek_v4_fp8", "online", "fp8_per_tensor",
    "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token", "mxfp8",
)  # fmt: skip
# method -> compute capability without which vLLM refuses to start
NEEDS = {"awq": (7, 5), "awq_marlin": (7, 5), "auto_awq": (7, 5), "fp8": (7, 5), "fp8_per_tensor": (7, 5),
         "modelopt": (8, 0), "modelopt_fp4": (7, 5), "modelopt_mxfp8": (8, 0), "mxfp4": (8, 0),
         "gpt_oss_mxfp4": (8, 0), "experts_int8": (8, 0), "fbgemm_fp8": (8, 0), "fp_quant": (10, 0),
         "compressed-tensors": (7, 0), "torchao": (7, 5)}  # fmt: skip
# below these the weights stay small, and computing is done in 16 bits (Marlin)
NATIVE = {"fp8": (8, 9), "fp8_per_tensor": (8, 9), "modelopt": (8, 9), "modelopt_fp4": (10, 0)}
# these need weights that were quantized before; others are made while loading
PREPARED = ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto_awq", "auto_gptq", "compressed-tensors", "mxfp4",
            "modelopt", "modelopt_fp4")  # fmt: skip


def quantization(case: Case) -> Results:
    """The quantization is the model's, and the cards can compute with it."""
    requests = {place: cards for place, _, _, cards in wanted(case)}
    for place, model in case.specs():
        facts = case.models.get(model.model)
        own, field = facts.quantization() if facts else "", f"{place}.quantization"
        asked = (getattr(model, "quantization", None) or own).lower()
        if not asked or model.engine != "vllm":
            continue
        if asked not in METHODS and not model.image:
            close = get_close_matches(asked, METHODS, n=1, cutoff=0.6)
            yield fail(
                f"vLLM does not know the quantization {asked}",
                "asked for in stack.yaml" if model.quantization else "config.json: quantization_config",
                f"did you mean {close[0]}?" if close else "take a variant of the model in fp8, awq or gptq",
                field,
            )
        elif facts and facts.config is not None and asked in PREPARED and not own:
            yield fail(
                f"quantization is {asked}, and the model is not quantized",
                "config.json: no quantization_config",
                f"leave out quantization, or take a variant of the model that ends in -{asked.upper()}",
                field,
            )
        elif own and _family(own) != _family(asked) and not {own, asked} & {"compressed-tensors", "modelopt", "inc"}:
            yield fail(
                f"quantization is {asked}, and the model is quantized as {own}",
                "config.json: quantization_config",
                f"quantization: {own}, or leave it out",
                field,
            )
        else:
            yield from _cards(asked, requests.get(place) or (), field)


def _family(method: str) -> str:
    return method.removeprefix("auto_").partition("_")[0]


def _cards(asked: str, cards: tuple[Gpu, ...], field: str) -> Iterator[Result]:
    needs, native = NEEDS.get(asked), NATIVE.get(asked)
    for gpu in cards if needs else ():
        have = f"compute capability {gpu.compute[0]}.{gpu.compute[1]}" if gpu.compute else ""
        if gpu.compute is None or needs is None:
            yield unknown(f"whether {gpu.name} computes with {asked} is unknown", place=field)
        elif gpu.compute < needs:
            told = f"{have}, wanted {needs[0]}.{needs[1]} or newer"
            fix = "take a model that is not quantized, or quantized otherwise"
            yield fail(f"{gpu.name} can't compute with {asked}", told, fix, field)
        elif native and gpu.compute < native:
            yield warn(
                f"{gpu.name} can't compute in {asked}: weights stay small, computing is done in 16 bits (Marlin)",
                f"{have}, wanted {native[0]}.{native[1]} or newer",
                "it works; a newer card, or awq or gptq, is faster",
                field,
            )
        else:
            yield good(f"{gpu.name} computes with {asked}", have, field)
