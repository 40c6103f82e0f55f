"""Flags and model configurations that vLLM itself rejects.

The texts are those of vLLM 0.32.0. The failures were reproduced unless `source` says otherwise.
"""

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
    """This version of vLLM rejects a flag that older versions had."""
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
    """The engine rejects a flag that it does not have."""
    for service, flag, line in _unrecognized_flags(evidence):
        engine = service.engine or "vllm"
        removed = REMOVED_FLAGS[engine].get(normalize_flag(flag))
        # removed flags of vLLM are reported as SG-V003
        if engine != "vllm" or not removed:
            remedy = removed or suggest_flag(engine, flag) or "remove the flag, or see the engine's own --help"
            yield Hit(service.service, (line,), {"flag": flag, "remedy": remedy})


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V001",
        title="max_model_len is longer than the model's context",
        cause="max_model_len is {length}, but the model was made for contexts of {limit} tokens",
        fix="lower max_model_len to the model's limit, or remove it from stack.yaml",
        source="vLLM 0.32.0, config/model.py, _get_and_verify_max_len; failure reproduced",
        explain="max_model_len is the longest context of one request. max_model_len is not the batch size, whatever "
        "older advice says. Some models support a longer context with rope scaling: `extra_args: [--hf-overrides, "
        "…]`. VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 turns the check off, but the output beyond the limit is garbage.",
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
        title="the number of attention heads is not a multiple of tensor_parallel_size",
        cause="{heads} attention heads can't be divided evenly across {size} GPUs",
        fix="choose a tensor_parallel_size that divides {heads}; use the remaining GPUs for replicas or "
        "pipeline_parallel_size",
        source="vLLM 0.32.0, config/model.py, verify_with_parallel_config; failure reproduced",
        explain="Each GPU takes the same number of heads, so tensor_parallel_size must divide num_attention_heads in "
        "config.json. In practice, tensor_parallel_size must divide the vocabulary size as well. The sizes 2, 4 and 8 "
        "nearly always work. With three GPUs, use two GPUs and one replica less, or set pipeline_parallel_size: 3.",
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
        source="vLLM 0.32.0, `vllm serve --help`; failure reproduced with --disable-log-requests",
        explain="Removed flags and what to do instead: "
        + "; ".join(f"`{flag}`: {remedy}" for flag, remedy in REMOVED_FLAGS["vllm"].items())
        + ".",
        find=_find_removed_flag,
        engines=("vllm",),
    ),
    Rule(
        "SG-V004",
        title="the engine does not know a flag",
        cause="the engine has no flag {flag}",
        fix="change extra_args: {remedy}",
        source="argparse of Python 3.10 to 3.13 in vLLM 0.32.0 and FastChat 0.2.36; failure reproduced",
        explain="argparse stops the start with exit code 2 at the first unknown argument. stackgen passes extra_args "
        "to the engine unchanged. Write flags with dashes, because FastChat accepts no underscores.",
        find=_find_unknown_flag,
    ),
    Rule(
        "SG-V005",
        title="a flag has an invalid value",
        cause="the engine rejects {flag}: {problem}",
        fix="correct {flag} in stack.yaml",
        source="argparse of Python 3.10 to 3.13 in vLLM 0.32.0; failure reproduced",
        explain="The message contains the flag, and often the values that the flag accepts.",
        patterns=compile_patterns(
            # argparse prints all names of a flag, separated by slashes
            r"error: argument (?P<flag>--?[\w.-]+)(?:/\S+)?: (?P<problem>(?:invalid|expected|not allowed).*)"
        ),
    ),
    Rule(
        "SG-V006",
        title="vLLM does not know the model's architecture",
        cause="config.json has the architecture {architecture}, which this version of vLLM can't run",
        fix="set `image:` to a newer vLLM, use another model, or try `engine: fastchat`, which runs the architectures "
        "that Transformers supports",
        source="vLLM 0.32.0, model_executor/models/registry.py; failure reproduced",
        explain="A new architecture needs a newer vLLM. docs.vllm.ai lists the supported architectures.",
        patterns=compile_patterns(r"Model architectures \[(?P<architecture>[^\]]+)\] are not supported for now"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V007",
        title="Transformers does not know the model's type",
        cause="config.json has model_type {type}, which the version of Transformers in the image does not know",
        fix="set `image:` to a newer version of the engine, and check `model_type` in config.json",
        source="transformers 4.x and 5.x, models/auto/configuration_auto.py; failure reproduced with both engines",
        explain="The model is newer than the version of Transformers in the image. FastChat works only with "
        "Transformers 4.",
        patterns=compile_patterns(
            r"has model type `(?P<type>[^`]+)` but Transformers does not recognize this architecture"
        ),
    ),
    Rule(
        "SG-V008",
        title="the model comes with its own code",
        cause="the model can't be loaded without running Python code from its repository",
        fix="if you trust the repository and have pinned its revision, set trust_remote_code: true",
        source="transformers 5.x, dynamic_module_utils.py, resolve_trust_remote_code; vLLM 0.32.0, config/model.py",
        explain="trust_remote_code runs the repository's code with all of the container's permissions. Pin `revision` "
        "to a commit whose code you have read. stackgen never sets trust_remote_code for you.",
        patterns=compile_patterns(
            r"(?:requires|contains custom code).{0,80}(?:execute|must be executed).*",
            r"[Pp]lease pass the argument `trust_remote_code=True`",
        ),
        # it runs third-party code, so a person must decide
        change=Change("trust_remote_code", "true", safe=False),
    ),
    Rule(
        "SG-V009",
        title="the model is not quantized with the method in stack.yaml",
        cause="stack.yaml sets quantization: {method}, but the model is not quantized with {method}",
        fix="remove quantization (vLLM reads the method from the model), or use a repository with {method} weights",
        source="vLLM 0.32.0, model_executor/model_loader/weight_utils.py, get_quant_config; failure reproduced",
        explain="AWQ, GPTQ and others need weights that were quantized beforehand. With quantization: fp8 or "
        "bitsandbytes, vLLM quantizes the weights while loading them.",
        patterns=compile_patterns(r"Cannot find the config file for (?P<method>\w+)"),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V010",
        title="the quantization differs from the model's",
        cause="stack.yaml sets quantization: {given}, but the model's config.json has {found}",
        fix="remove quantization, because vLLM reads the method from the model",
        source="vLLM 0.32.0, config/model.py, _verify_quantization; failure reproduced",
        explain="A model is quantized with one method, and its config.json contains the name of this method.",
        patterns=compile_patterns(
            r"Quantization method specified in the model config \((?P<found>\w+)\) does not match the "
            r"quantization method specified in the `quantization` argument \((?P<given>\w+)\)"
        ),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V018",
        title="the machine has too few NUMA nodes for tensor parallelism on the CPU",
        cause="each rank of the model needs its own NUMA node, but the machine has only the nodes {nodes}",
        fix="on the CPU, remove tensor_parallel_size, or bind threads by hand: extra_env: {VLLM_CPU_OMP_THREADS_BIND: "
        '"0|1"}',
        source="vLLM 0.32.0, utils/ompmultiprocessing.py; failure reproduced",
        explain="On the CPU, vLLM binds each rank to a NUMA node. Most machines have one NUMA node.",
        patterns=compile_patterns(r"Not enough allowed NUMA nodes to bind threads.*?nodes are (?P<nodes>\[[^\]]*\])"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V019",
        title="the image has no C++ compiler",
        cause="torch.compile needs a C++ compiler, but the image has none",
        fix="turn off compilation with enforce_eager: true",
        source="torch 2.13, torch/_inductor/cpp_builder.py; failure reproduced",
        explain="On the CPU, torch.compile generates C++ code. vLLM's own CPU image contains g++. An image without a "
        "C++ compiler needs enforce_eager: true, which turns off compilation and CUDA graphs. enforce_eager does not "
        "turn on continuous batching, which is always on.",
        patterns=compile_patterns(r"InvalidCxxCompiler|No working C\+\+ compiler found"),
        engines=("vllm",),
        change=Change("enforce_eager", "true"),
    ),
    Rule(
        "SG-V021",
        title="vLLM's CPU build has no kernel for the model's attention",
        cause="no attention kernel in vLLM's CPU build supports heads of size {size}",
        fix="use a GPU, or engine: llamacpp",
        source="vLLM 0.32.0, csrc/cpu, cpu_attn; failure reproduced with head_dim 16",
        explain="The server starts, reports that it is ready, and dies at the first request.",
        patterns=compile_patterns(r"Unsupported CPU attention configuration: head_dim=(?P<size>\d+)"),
        engines=("vllm",),
    ),
)
