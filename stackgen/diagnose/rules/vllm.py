"""Flags and model configurations that vLLM itself rejects.

The texts are those of vLLM 0.32.0. The failures were reproduced unless `source` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Change, Hit, Rule, Variant, compile_patterns
from stackgen.flags import REMOVED_FLAGS, REMOVED_SWITCHES, is_removal, normalize_flag, suggest_flag

__all__ = ["RULES"]

# a folder, or the name of a repository on the Hub
MODEL = re.compile(r"/[\w./-]+|[A-Za-z0-9][\w.-]*/[\w.-]+")
# stackgen knows no version of the engine with the flag
ADD_ON = (
    "if an add-on of the engine defines it (a plugin, or a package such as vllm-omni), the add-on is missing in the "
    "image, or it was made for another version of the engine"
)
UNRECOGNIZED = re.compile(r"error: unrecognized arguments: (?P<words>.*)")


def _unrecognized_flags(evidence: Evidence) -> Iterator[tuple[ServiceEvidence, list[str], str]]:
    """Service, flags and log line of the last arguments that argparse rejected."""
    for service in evidence.services:
        for line in reversed(lines_since_ready(service.log)):
            match = UNRECOGNIZED.search(strip_prefix(line))
            if match:
                flags = [word.partition("=")[0] for word in match["words"].split() if word.startswith("-")]
                yield service, list(dict.fromkeys(flags)) or [match["words"]], strip_prefix(line).strip()
                break


def _find_removed_flag(evidence: Evidence) -> Iterator[Hit]:
    """This version of vLLM rejects a flag that older versions had."""
    for service, (flag, *_), line in _unrecognized_flags(evidence):
        plain = normalize_flag(flag)
        remedy = REMOVED_FLAGS["vllm"].get(plain) if service.engine in ("vllm", "") else None
        if remedy:
            is_switch = plain in REMOVED_SWITCHES
            # a person must confirm the change if it also removes the value of the flag
            change = Change("extra_args", flag, safe=is_switch, remove=True, with_value=not is_switch)
            # a flag that needs another one in its place can't just be removed
            yield Hit(service.service, (line,), {"flag": flag, "remedy": remedy},
                      change=change if is_removal(remedy) else None)  # fmt: skip


def _find_unknown_flag(evidence: Evidence) -> Iterator[Hit]:
    """The engine rejects a flag that it does not have."""
    for service, (flag, *others), line in _unrecognized_flags(evidence):
        # a pasted log may not show its engine
        engine = service.engine or "vllm"
        removed = REMOVED_FLAGS[engine].get(normalize_flag(flag))
        # removed flags of vLLM are reported as SG-V003
        if not flag.startswith("-"):
            model = flag if MODEL.fullmatch(flag) else ""
            variant = MODEL_LEFT if model and engine == "vllm" else NO_FLAG
            yield Hit(service.service, (line,), {"flag": model or flag}, variant=variant)
        elif engine != "vllm" or not removed:
            similar = suggest_flag(engine, flag)
            otherwise = "remove the flag, or see the engine's own --help"
            remedy = removed or (
                f"{similar} Otherwise, {otherwise}" if similar.endswith("?") else similar or f"{otherwise}; {ADD_ON}"
            )
            yield Hit(service.service, (line,), {"flag": ", and no flag ".join((flag, *others)), "remedy": remedy})


MODEL_LEFT = Variant(
    (),
    title="the engine did not expect the model here",
    cause="the engine got two models: `{flag}` comes after the argument that it had already read as the model. Most "
    "often, the command begins with `serve`, although the image's ENTRYPOINT starts the server, so the word `serve` "
    "became the model",
    fix="remove `vllm` and `serve` from the beginning of the command, so that the model comes first (with older "
    "images, write `--model {flag}`); if the command does not begin with `vllm` or `serve`, write the model only once",
    condition="the argument looks like a model's name or folder",
)
NO_FLAG = Variant(
    (),
    title="a value belongs to no flag",
    cause="the engine got the argument `{flag}`, which belongs to no flag",
    fix="write a flag in front of the value, or remove the value; write a value with spaces as one list item in "
    "extra_args (in a shell, put it in quotes)",
    condition="the argument does not start with a dash",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V001",
        title="max_model_len is longer than the model's context",
        cause="max_model_len is {length}, but the model's own limit is {limit} tokens",
        fix="lower max_model_len to the model's limit, or remove max_model_len from stack.yaml",
        source="The message comes from vLLM 0.32.0 (config/model.py, _get_and_verify_max_len). The failure was "
        "reproduced.",
        explain="max_model_len is the longest context of one request, not the batch size. Some models support a "
        "longer context with rope scaling. To set rope scaling, pass --hf-overrides in extra_args. "
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 turns off vLLM's check of the length, but the output beyond the model's "
        "limit is garbage.",
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
        fix="choose a tensor_parallel_size that divides {heads}; use the remaining GPUs for replicas, or for "
        "pipeline_parallel_size",
        source="The message comes from vLLM 0.32.0 (config/model.py, verify_with_parallel_config). The failure was "
        "reproduced.",
        explain="Each GPU takes the same number of heads, so tensor_parallel_size must divide num_attention_heads in "
        "config.json. In practice, tensor_parallel_size must divide the vocabulary size as well. The sizes 2, 4 and 8 "
        "nearly always work. With three GPUs, use only two GPUs for the model, or set pipeline_parallel_size to 3.",
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
        page_fix="remove the flag from extra_args, or replace it with the flag in the following list",
        source="The flags come from vLLM 0.32.0 (`vllm serve --help`). The failure was reproduced with "
        "--disable-log-requests.",
        explain="Removed flags and what to do instead:\n\n"
        + "\n".join(f"- `{flag}`: {remedy}" for flag, remedy in REMOVED_FLAGS["vllm"].items()),
        find=_find_removed_flag,
        engines=("vllm",),
    ),
    Rule(
        "SG-V004",
        title="the engine does not know a flag",
        cause="the engine has no flag {flag}",
        fix="change extra_args: {remedy}",
        page_fix="correct the flag in extra_args, or remove it. `stackgen diagnose` suggests the most similar flag "
        "of the engine's pinned version",
        source="The message comes from argparse of Python 3.10 to 3.13 in vLLM 0.32.0 and FastChat 0.2.36. The "
        "failure was reproduced.",
        explain="argparse stops the start with exit code 2 at the first unknown argument. stackgen passes extra_args "
        "to the engine unchanged. Write flags with dashes, because FastChat accepts no underscores in flags.",
        find=_find_unknown_flag,
        consequence_of=("SG-D028",),
        variants=(MODEL_LEFT, NO_FLAG),
    ),
    Rule(
        "SG-V005",
        title="a flag has an invalid value",
        cause="the engine rejects {flag}: {problem}",
        fix="correct {flag} in stack.yaml",
        source="The message comes from argparse of Python 3.10 to 3.13 in vLLM 0.32.0. The failure was reproduced.",
        explain="The message contains the flag, and often the values that the flag accepts.",
        patterns=compile_patterns(
            # argparse prints all names of a flag, separated by slashes
            r"error: argument (?P<flag>--?[\w.-]+)(?:/\S+)?: (?P<problem>(?:invalid|expected|not allowed).*)"
        ),
    ),
    Rule(
        "SG-V007",
        title="Transformers does not know the model's type",
        cause="config.json has the model_type {type}, which the version of Transformers in the image does not know",
        fix="set `image:` to an image with a newer version of the engine; if that does not help, check `model_type` "
        "in config.json",
        source="The message comes from transformers 4.x and 5.x (models/auto/configuration_auto.py). The failure was "
        "reproduced with vLLM and FastChat.",
        explain="The model is newer than the version of Transformers in the image. FastChat works only with "
        "Transformers 4.",
        patterns=compile_patterns(
            # no `engines`: FastChat also loads models with Transformers
            r"has model type [`'\"]?(?P<type>[^`'\" ]+)[`'\"]?,? but Transformers does not recognize this architecture"
        ),
    ),
    Rule(
        "SG-V008",
        title="the model needs Python code from its repository",
        cause="the model can't be loaded without running Python code from its repository",
        fix="if you trust the repository and have pinned its revision, set trust_remote_code to true",
        source="The messages come from transformers 5.x (dynamic_module_utils.py, resolve_trust_remote_code) and vLLM "
        "0.32.0 (config/model.py).",
        explain="trust_remote_code runs the repository's code with all of the container's permissions. Set `revision` "
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
        cause="stack.yaml sets quantization to {method}, but the model is not quantized with {method}",
        fix="remove `quantization` from stack.yaml, because vLLM reads the method from the model; or use a "
        "repository with {method} weights",
        source="The message comes from vLLM 0.32.0 (model_executor/model_loader/weight_utils.py, get_quant_config). "
        "The failure was reproduced.",
        explain="AWQ, GPTQ and other methods need weights that were quantized beforehand. If `quantization` is `fp8` "
        "or `bitsandbytes`, vLLM quantizes the weights while loading them.",
        patterns=compile_patterns(r"Cannot find the config file for (?P<method>\w+)"),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V010",
        title="`quantization` in stack.yaml differs from the model's quantization",
        cause="stack.yaml sets quantization to {given}, but the model's config.json has the method {found}",
        fix="remove `quantization` from stack.yaml, because the engine reads the method from the model",
        source="The message comes from vLLM 0.32.0 (config/model.py, _verify_quantization). The failure was "
        "reproduced.",
        explain="A model is quantized with one method, and its config.json contains the name of this method.",
        patterns=compile_patterns(
            r"Quantization method specified in the model config \((?P<found>\w+)\) does not match the "
            r"quantization method specified in the `quantization` argument \((?P<given>\w+)\)"
        ),
        # SGLang has the same check with the same text (0.5.23, configs/model_config.py)
        engines=("vllm", "sglang"),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V018",
        title="the machine has too few NUMA nodes for tensor parallelism on the CPU",
        cause="each rank of the model needs its own NUMA node, but the machine has only the nodes {nodes}",
        fix="on the CPU, remove tensor_parallel_size, or set the CPU cores of each rank yourself: "
        'VLLM_CPU_OMP_THREADS_BIND in extra_env (for example "0|1")',
        source="The message comes from vLLM 0.32.0 (utils/ompmultiprocessing.py). The failure was reproduced.",
        explain="On the CPU, vLLM binds each rank to a NUMA node. Most machines have only one NUMA node.",
        patterns=compile_patterns(r"Not enough allowed NUMA nodes to bind threads.*?nodes are (?P<nodes>\[[^\]]*\])"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V019",
        title="the image has no C++ compiler",
        cause="torch.compile needs a C++ compiler, but the image has none",
        fix="set enforce_eager to true, which turns off compilation",
        source="The message comes from torch 2.13 (torch/_inductor/cpp_builder.py). The failure was reproduced.",
        explain="On the CPU, torch.compile generates C++ code. vLLM's own CPU image contains g++. An image without a "
        "C++ compiler needs enforce_eager, which turns off compilation and CUDA graphs. Continuous batching is always "
        "on and does not need enforce_eager.",
        patterns=compile_patterns(r"InvalidCxxCompiler|No working C\+\+ compiler found"),
        engines=("vllm",),
        change=Change("enforce_eager", "true"),
    ),
    Rule(
        "SG-V021",
        title="vLLM on the CPU has no kernel for the model's attention",
        cause="the attention of this model needs a kernel that vLLM's CPU build does not have",
        fix="run the model on a GPU, or use the engine llamacpp",
        source="The message comes from vLLM 0.32.0 (csrc/cpu, cpu_attn). The failure was reproduced.",
        explain="The server starts, reports that it is ready, and dies at the first request. The health check of the "
        "stack sends this request, so the service never becomes healthy.",
        patterns=compile_patterns(r"Unsupported CPU attention configuration"),
        engines=("vllm",),
    ),
)
