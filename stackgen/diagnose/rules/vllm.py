"""vLLM's own refusals: flags, model configuration, requests. Texts: vLLM 0.32.0, provoked unless said otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import clean, since_ready
from stackgen.diagnose.rule import Change, Hit, Rule, patterns
from stackgen.flags import REMOVED, VALUELESS, dashed, meant

__all__ = ["RULES"]

UNRECOGNIZED = re.compile(r"error: unrecognized arguments: (?P<words>.*)")


def _flags(evidence: Evidence) -> Iterator[tuple[ServiceEvidence, str, str]]:
    for service in evidence.services:
        for line in reversed(since_ready(service.log)):
            match = UNRECOGNIZED.search(clean(line))
            if match:
                flag = next((word for word in match["words"].split() if word.startswith("-")), match["words"])
                yield service, flag.partition("=")[0], clean(line).strip()
                break


def _removed(evidence: Evidence) -> Iterator[Hit]:
    """A flag that vLLM had once."""
    for service, flag, line in _flags(evidence):
        plain = dashed(flag)
        remedy = REMOVED["vllm"].get(plain) if service.engine in ("vllm", "") else None
        if remedy:
            # what needs another flag in its place is no matter of taking a word out
            needless, bare = remedy.startswith("leave it out"), plain in VALUELESS
            change = Change("extra_args", flag, safe=bare, remove=True, with_value=not bare) if needless else None
            yield Hit(service.service, (line,), {"flag": flag, "remedy": remedy}, change=change)


def _unknown(evidence: Evidence) -> Iterator[Hit]:
    """A flag that the engine never had."""
    for service, flag, line in _flags(evidence):
        engine = service.engine or "vllm"
        gone = REMOVED[engine].get(dashed(flag))
        if engine != "vllm" or not gone:
            remedy = gone or meant(engine, flag) or "take it out, or look at the engine's own --help"
            yield Hit(service.service, (line,), {"flag": flag, "remedy": remedy})


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V001",
        "the context is longer than the model's",
        "max_model_len is {length}, and the model was made for {limit} tokens",
        "lower it to the model's own, or leave it out",
        "vLLM 0.32.0, config/model.py, _get_and_verify_max_len; provoked for real",
        "max_model_len is the longest context of one request, and not the batch size, as older advice says. Models "
        "that can be stretched need rope scaling, by `extra_args: [--hf-overrides, …]`; "
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 silences the check and gives garbage beyond the limit.",
        patterns(
            r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
            # the same as a warning: the user has allowed it
            r"\(\w+=(?P<limit>\d+)(?:\.0)?(?!.*config\.json\)\. VLLM_ALLOW_LONG_MAX_MODEL_LEN must)"
        ),
        engines=("vllm",),
        change=Change("max_model_len", "{limit}"),
    ),
    Rule(
        "SG-V002",
        "tensor parallel does not divide the model's heads",
        "{heads} attention heads can't be shared out over {size} GPUs",
        "choose a tensor_parallel_size that divides {heads}; use the remaining GPUs for replicas or "
        "pipeline_parallel_size",
        "vLLM 0.32.0, config/model.py, verify_with_parallel_config; provoked for real",
        "Each card takes the same number of heads, so the size must divide num_attention_heads of config.json, and in "
        "practice the vocabulary as well: 2, 4 and 8 nearly always do. Three cards serve as one of two and one "
        "replica less, or by pipeline_parallel_size: 3.",
        patterns(
            r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
            r"\((?P<size>\d+)\)"
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-V003",
        "a flag was removed from vLLM",
        "{flag} is gone from this version of vLLM",
        "{remedy}",
        "vLLM 0.32.0, `vllm serve --help`; provoked for real with --disable-log-requests",
        "Flags: " + "; ".join(f"`{flag}`: {remedy}" for flag, remedy in REMOVED["vllm"].items()) + ".",
        find=_removed,
        engines=("vllm",),
    ),
    Rule(
        "SG-V004",
        "an unknown flag",
        "the engine does not know {flag}",
        "{remedy} (in extra_args)",
        "argparse of Python 3.10 to 3.13, as vLLM 0.32.0 and FastChat 0.2.36 print it; provoked for real",
        "argparse ends the start with code 2 at the first unknown word. What stands in extra_args is handed over as it "
        "is. Flags are written with dashes; FastChat takes no underscores.",
        find=_unknown,
    ),
    Rule(
        "SG-V005",
        "a flag has a value that it can't take",
        "{flag}: {problem}",
        "correct it in stack.yaml",
        "argparse of Python 3.10 to 3.13, as vLLM 0.32.0 prints it; provoked for real",
        "The message names the flag, and often the values that it takes.",
        patterns(r"error: argument (?P<flag>--?[\w.-]+)(?:/\S+)?: (?P<problem>(?:invalid|expected|not allowed).*)"),
    ),
    Rule(
        "SG-V006",
        "vLLM does not know the model's architecture",
        "config.json names {architecture}, which this version of vLLM can't run",
        "use an `image:` of a newer vLLM, or another model; engine: fastchat runs what Transformers knows",
        "vLLM 0.32.0, model_executor/models/registry.py; provoked for real",
        "New architectures need a vLLM newer than they are. docs.vllm.ai lists the supported ones.",
        patterns(r"Model architectures \[(?P<architecture>[^\]]+)\] are not supported for now"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V007",
        "Transformers does not know the model's type",
        "config.json says model_type {type}, which the image's Transformers does not know",
        "use an `image:` with a newer engine; check `model_type` in config.json",
        "transformers 4.x and 5.x, models/auto/configuration_auto.py; provoked for real with both engines",
        "The model is newer than the Transformers in the image. FastChat is tied to Transformers 4.",
        patterns(r"has model type `(?P<type>[^`]+)` but Transformers does not recognize this architecture"),
    ),
    Rule(
        "SG-V008",
        "the model brings code of its own",
        "the model can't be loaded without running Python code from its repository",
        "if you trust the repository, and have pinned its revision: trust_remote_code: true",
        "transformers 5.x, dynamic_module_utils.py, resolve_trust_remote_code; vLLM 0.32.0, config/model.py",
        "trust_remote_code runs the repository's code with all that the container may do. Pin `revision` to a commit "
        "that you have read. stackgen never sets it for you.",
        patterns(
            r"(?:requires|contains custom code).{0,80}(?:execute|must be executed).*",
            r"[Pp]lease pass the argument `trust_remote_code=True`",
        ),
        # runs foreign code: a person must decide it
        change=Change("trust_remote_code", "true", safe=False),
    ),
    Rule(
        "SG-V009",
        "the quantization has no configuration",
        "quantization: {method} is set, and the model holds no configuration for it: it is not quantized that way",
        "leave quantization out (vLLM reads it from the model), or name a repository that holds {method} weights",
        "vLLM 0.32.0, model_executor/model_loader/weight_utils.py, get_quant_config; provoked for real",
        "AWQ, GPTQ and others need weights that were quantized beforehand. quantization: fp8 and bitsandbytes "
        "quantize while loading.",
        patterns(r"Cannot find the config file for (?P<method>\w+)"),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V010",
        "the quantization is another than the model's",
        "stack.yaml says one quantization method, and the model's config.json another ({found})",
        "leave quantization out: vLLM reads it from the model",
        "vLLM 0.32.0, config/model.py, _verify_quantization; provoked for real",
        "A model is quantized in one way, which its config.json names.",
        patterns(
            r"Quantization method specified in the model config \((?P<found>\w+)\) does not match the "
            r"quantization method specified in the `quantization` argument \((?P<given>\w+)\)"
        ),
        engines=("vllm",),
        change=Change("quantization", safe=False, remove=True),
    ),
    Rule(
        "SG-V018",
        "too few memory nodes for tensor parallel on the CPU",
        "each part of the model wants a memory node of its own, and the machine has {nodes}",
        'leave tensor parallel out on the CPU, or bind threads by hand: extra_env: {VLLM_CPU_OMP_THREADS_BIND: "0|1"}',
        "vLLM 0.32.0, utils/ompmultiprocessing.py; provoked for real",
        "On the CPU vLLM binds each rank to a NUMA node. Most machines have one.",
        patterns(r"Not enough allowed NUMA nodes to bind threads.*?nodes are (?P<nodes>\[[^\]]*\])"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V019",
        "no C++ compiler in the image",
        "torch.compile needs a C++ compiler, and the image has none",
        "turn compilation off",
        "torch 2.13, torch/_inductor/cpp_builder.py; provoked for real",
        "On the CPU torch.compile makes C++. vLLM's own CPU image holds g++; a slim one needs enforce_eager: true, "
        "which turns compilation and CUDA graphs off. It does not turn continuous batching on: that is always on.",
        patterns(r"InvalidCxxCompiler|No working C\+\+ compiler found"),
        engines=("vllm",),
        change=Change("enforce_eager", "true"),
    ),
    Rule(
        "SG-V021",
        "the CPU has no kernel for the model's attention",
        "heads of {size} values are computed by no attention kernel of the CPU build",
        "use a GPU, or engine: llamacpp",
        "vLLM 0.32.0, csrc/cpu, cpu_attn; provoked for real with head_dim 16",
        "The server starts, says that it is ready, and dies at its first request.",
        patterns(r"Unsupported CPU attention configuration: head_dim=(?P<size>\d+)"),
        engines=("vllm",),
    ),
)
