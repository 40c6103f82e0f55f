"""What vLLM itself rejects: flags and model configuration. Texts of vLLM 0.32.0, reproduced unless said otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Change, Hit, Rule, compile_patterns
from stackgen.flags import REMOVED_FLAGS, REMOVED_SWITCHES, is_removal, normalize_flag, suggest_flag

__all__ = ["RULES"]

UNRECOGNIZED = re.compile(r"error: unrecognized arguments: (?P<words>.*)")


def _unrecognized_flags(evidence: Evidence) -> Iterator[tuple[ServiceEvidence, str, str]]:
    """Service, flag and log line of the last argument that argparse rejected."""
    for service in evidence.services:
        for line in reversed(lines_since_ready(service.log)):
            match = UNRECOGNIZED.search(strip_prefix(line))
            if match:
                flag = next((word for word in match["words"].split() if word.startswith("-")), match["words"])
                yield service, flag.partition("=")[0], strip_prefix(line).strip()
                break


def _find_removed_flag(evidence: Evidence) -> Iterator[Hit]:
    """A flag that older versions of vLLM had."""
    for service, flag, line in _unrecognized_flags(evidence):
        plain = normalize_flag(flag)
        remedy = REMOVED_FLAGS["vllm"].get(plain) if service.engine in ("vllm", "") else None
        if remedy:
            is_switch = plain in REMOVED_SWITCHES
            change = Change("extra_args", flag, safe=is_switch, remove=True, with_value=not is_switch)
            # a flag that needs another one in its place can't just be removed
            yield Hit(service.service, (line,), {"flag": flag, "remedy": remedy},
                      change=change if is_removal(remedy) else None)  # fmt: skip


def _find_unknown_flag(evidence: Evidence) -> Iterator[Hit]:
    """A flag that the engine never had."""
    for service, flag, line in _unrecognized_flags(evidence):
        engine = service.engine or "vllm"
        removed = REMOVED_FLAGS[engine].get(normalize_flag(flag))
        # removed flags of vLLM are reported as SG-V003
        if engine != "vllm" or not removed:
            remedy = removed or suggest_flag(engine, flag) or "remove it, or see the engine's own --help"
            yield Hit(service.service, (line,), {"flag": flag, "remedy": remedy})


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V001",
        title="the context is longer than the model's",
        cause="max_model_len is {length}, but the model was made for {limit} tokens",
        fix="lower it to the model's own, or remove it",
        source="vLLM 0.32.0, config/model.py, _get_and_verify_max_len; reproduced",
        explain="max_model_len is the longest context of one request. It is not the batch size, whatever older advice "
        "says. Models that can be stretched need rope scaling: `extra_args: [--hf-overrides, …]`. "
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 silences the check and gives garbage beyond the limit.",
        patterns=compile_patterns(
            r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
            # not the warning of the same text, which vLLM logs if the user has allowed it
            r"\(\w+=(?P<limit>\d+)(?:\.0)?(?!.*config\.json\)\. VLLM_ALLOW_LONG_MAX_MODEL_LEN must)"
        ),
        engines=("vllm",),
        change=Change("max_model_len", "{limit}"),
    ),
    Rule(
        "SG-V002",
        title="tensor parallel does not divide the model's heads",
        cause="{heads} attention heads can't be divided over {size} GPUs",
        fix="choose a tensor_parallel_size that divides {heads}; use the remaining GPUs for replicas or "
        "pipeline_parallel_size",
        source="vLLM 0.32.0, config/model.py, verify_with_parallel_config; reproduced",
        explain="Each GPU takes the same number of heads, so the size must divide num_attention_heads in config.json, "
        "and in practice the vocabulary as well: 2, 4 and 8 nearly always do. With three GPUs, use two and one "
        "replica less, or set pipeline_parallel_size: 3.",
        patterns=compile_patterns(
            r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
            r"\((?P<size>\d+)\)"
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-V003",
        title="a flag was removed from vLLM",
        cause="this version of vLLM no longer has {flag}",
        fix="{remedy}",
        source="vLLM 0.32.0, `vllm serve --help`; reproduced with --disable-log-requests",
        explain="Flags: " + "; ".join(f"`{flag}`: {remedy}" for flag, remedy in REMOVED_FLAGS["vllm"].items()) + ".",
        find=_find_removed_flag,
        engines=("vllm",),
    ),
    Rule(
        "SG-V004",
        title="an unknown flag",
        cause="the engine does not know {flag}",
        fix="{remedy} (in extra_args)",
        source="argparse of Python 3.10 to 3.13, as vLLM 0.32.0 and FastChat 0.2.36 print it; reproduced",
        explain="argparse ends the start with exit code 2 at the first unknown argument. extra_args are passed on "
        "unchanged. Flags are written with dashes; FastChat accepts no underscores.",
        find=_find_unknown_flag,
    ),
    Rule(
        "SG-V005",
        title="a flag has an invalid value",
        cause="{flag}: {problem}",
        fix="correct it in stack.yaml",
        source="argparse of Python 3.10 to 3.13, as vLLM 0.32.0 prints it; reproduced",
        explain="The message names the flag, and often the values that it accepts.",
        patterns=compile_patterns(
            # argparse prints all names of a flag, separated by slashes
            r"error: argument (?P<flag>--?[\w.-]+)(?:/\S+)?: (?P<problem>(?:invalid|expected|not allowed).*)"
        ),
    ),
    Rule(
        "SG-V006",
        title="vLLM does not know the model's architecture",
        cause="config.json names {architecture}, which this version of vLLM can't run",
        fix="use an `image:` with a newer vLLM, or another model; engine: fastchat runs what Transformers supports",
        source="vLLM 0.32.0, model_executor/models/registry.py; reproduced",
        explain="A new architecture needs a vLLM that is newer than it. docs.vllm.ai lists the supported ones.",
        patterns=compile_patterns(r"Model architectures \[(?P<architecture>[^\]]+)\] are not supported for now"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V007",
        title="Transformers does not know the model's type",
        cause="config.json says model_type {type}, which the image's Transformers does not know",
        fix="use an `image:` with a newer engine; check `model_type` in config.json",
        source="transformers 4.x and 5.x, models/auto/configuration_auto.py; reproduced with both engines",
        explain="The model is newer than Transformers in the image. FastChat is tied to Transformers 4.",
        patterns=compile_patterns(
            r"has model type `(?P<type>[^`]+)` but Transformers does not recognize this architecture"
        ),
    ),
    Rule(
        "SG-V008",
        title="the model comes with its own code",
        cause="the model can't be loaded without running Python code from its repository",
        fix="if you trust the repository, and have pinned its revision: trust_remote_code: true",
        source="transformers 5.x, dynamic_module_utils.py, resolve_trust_remote_code; vLLM 0.32.0, config/model.py",
        explain="trust_remote_code runs the repository's code with all of the container's permissions. Pin `revision` "
        "to a commit that you have read. stackgen never sets it for you.",
        patterns=compile_patterns(
            r"(?:requires|contains custom code).{0,80}(?:execute|must be executed).*",
            r"[Pp]lease pass the argument `trust_remote_code=True`",
        ),
        # it runs third-party code, so a person must decide
        change=Change("trust_remote_code", "true", safe=False),
    ),
    Rule(
        "SG-V009",
        title="the quantization has no configuration",
        cause="quantization: {method} is set, but the model has no configuration for it: it is not quantized that way",
        fix="remove quantization (vLLM reads it from the model), or use a repository with {method} weights",
        source="vLLM 0.32.0, model_executor/model_loader/weight_utils.py, get_quant_config; reproduced",
        explain="AWQ, GPTQ and others need weights that were quantized beforehand. quantization: fp8 and bitsandbytes "
        "quantize while loading.",
        patterns=compile_patterns(r"Cannot find the config file for (?P<method>\w+)"),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V010",
        title="the quantization differs from the model's",
        cause="stack.yaml names one quantization method, but the model's config.json names another ({found})",
        fix="remove quantization: vLLM reads it from the model",
        source="vLLM 0.32.0, config/model.py, _verify_quantization; reproduced",
        explain="A model is quantized in one way, which its config.json names.",
        patterns=compile_patterns(
            r"Quantization method specified in the model config \((?P<found>\w+)\) does not match the "
            r"quantization method specified in the `quantization` argument \((?P<given>\w+)\)"
        ),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V018",
        title="too few NUMA nodes for tensor parallel on the CPU",
        cause="each rank of the model needs its own NUMA node, and the machine has {nodes}",
        fix="remove tensor_parallel_size on the CPU, or bind threads by hand: extra_env: {VLLM_CPU_OMP_THREADS_BIND: "
        '"0|1"}',
        source="vLLM 0.32.0, utils/ompmultiprocessing.py; reproduced",
        explain="On the CPU vLLM binds each rank to a NUMA node. Most machines have one.",
        patterns=compile_patterns(r"Not enough allowed NUMA nodes to bind threads.*?nodes are (?P<nodes>\[[^\]]*\])"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V019",
        title="no C++ compiler in the image",
        cause="torch.compile needs a C++ compiler, and the image has none",
        fix="turn off compilation",
        source="torch 2.13, torch/_inductor/cpp_builder.py; reproduced",
        explain="On the CPU torch.compile generates C++. vLLM's own CPU image contains g++; a slim one needs "
        "enforce_eager: true, which turns off compilation and CUDA graphs. It does not turn on continuous batching, "
        "which is always on.",
        patterns=compile_patterns(r"InvalidCxxCompiler|No working C\+\+ compiler found"),
        engines=("vllm",),
        change=Change("enforce_eager", "true"),
    ),
    Rule(
        "SG-V021",
        title="the CPU has no kernel for the model's attention",
        cause="no attention kernel of the CPU build computes heads of size {size}",
        fix="use a GPU, or engine: llamacpp",
        source="vLLM 0.32.0, csrc/cpu, cpu_attn; reproduced with head_dim 16",
        explain="The server starts, reports that it is ready, and dies at its first request.",
        patterns=compile_patterns(r"Unsupported CPU attention configuration: head_dim=(?P<size>\d+)"),
        engines=("vllm",),
    ),
)
