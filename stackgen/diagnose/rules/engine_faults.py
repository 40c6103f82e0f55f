"""Rules for errors inside the engine's own code, and for features that the engine has only for some GPUs.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.messages import find_messages
from stackgen.diagnose.rule import Hit, Rule, compile_patterns
from stackgen.diagnose.tracebacks import has_request_frame

__all__ = ["RULES"]

# Python's messages for a name that the code itself should have set
OWN_NAME = re.compile(
    r"^(?:AttributeError: '(?P<owner>[A-Z]\w*)' object has no attribute '(?P<name>\w+)'|"
    r"UnboundLocalError: cannot access local variable '(?P<local>\w+)' where it is not associated|"
    r"UnboundLocalError: local variable '(?P<local2>\w+)' referenced before assignment)"
)
# objects of a model's files and of Transformers, which other rules read
FOREIGN = re.compile(
    r"^(?:NoneType$|AsyncLLM|LLMEngine|EngineArgs|PreTrained|Auto)|Config$|Tokenizer|Processor|"
    r"For(?:CausalLM|ConditionalGeneration)$|Model$"
)
ENGINE_FRAME = re.compile(r'File "(?:[^"]{0,200}/)?(?P<package>vllm|fastchat)/[^"]{1,200}\.py", line \d+')


def _find_own_error(evidence: Evidence) -> Iterator[Hit]:
    """A start ended because code of the engine uses a name that an object of the engine does not have."""
    for message in find_messages(evidence):
        found = OWN_NAME.match(message.text)
        if not found or FOREIGN.search(found["owner"] or "") or has_request_frame(message.before):
            continue
        lines = [strip_prefix(line) for line in lines_since_ready(message.service.log)]
        frames = [(line.strip(), one["package"]) for line in lines if (one := ENGINE_FRAME.search(line))]
        if frames:
            name = found["name"] or found["local"] or found["local2"]
            owner = f"the object {found['owner']}" if found["owner"] else "its own code"
            values = {"package": {"vllm": "vLLM", "fastchat": "FastChat"}[frames[-1][1]], "name": name, "owner": owner}
            yield Hit(message.service.service, (message.text,), values, highlight=found[0])


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V043",
        title="vLLM does not accept the id of a GPU in CUDA_VISIBLE_DEVICES",
        cause="this version of vLLM reads CUDA_VISIBLE_DEVICES as numbers, but the variable contains the id {id}",
        fix="let the container runtime choose the GPU or the MIG slice (NVIDIA_VISIBLE_DEVICES={id}, or `--gpus` with "
        "device={id}), and leave CUDA_VISIBLE_DEVICES unset in the container[[?extra_env.CUDA_VISIBLE_DEVICES| (remove "
        "it from extra_env)]]: inside, the device has the number 0; or try another version of vLLM",
        source="The message comes from vLLM (platforms/interface.py, device_id_to_physical_device_id), and is quoted "
        "in vllm-project/vllm issues 13815 (2025-02), 20939 (2025-07) and 41848 (2026-05).",
        explain="CUDA itself accepts the ids of GPUs and of MIG slices. On some ways the same error is reported as "
        "`Model architectures failed to be inspected`. The model, the GPU and MIG are not the reason.",
        patterns=compile_patterns(r"invalid literal for int\(\) with base 10: '(?P<id>(?:MIG|GPU)-[\w/-]+)"),
    ),
    Rule(
        "SG-V044",
        title="attention sinks need FlashAttention 3, which this GPU does not have",
        cause="the model uses attention sinks, which vLLM's FlashAttention backend supports only with FlashAttention 3 "
        "(GPUs of the generation Hopper) or newer; on this GPU it uses an older FlashAttention",
        fix="use another attention backend, Triton: [--attention-backend, TRITON_ATTN] in extra_args, or in a version "
        "without this flag (0.10) VLLM_ATTENTION_BACKEND=TRITON_ATTN_VLLM_V1 in extra_env; or try a newer image, which "
        "may choose it by itself; installing FlashAttention 3 does not help on another GPU",
        source="The message comes from vLLM (v1/attention/backends/flash_attn.py), and is quoted in vllm-project/vllm "
        "issues 22279, 22325 and 22331 (2025-08).",
        explain="gpt-oss and MiMo-V2 are models with attention sinks. The line `might cause deadlock in distributed "
        "execution` above the error is a consequence.",
        patterns=compile_patterns(r"Sinks are only supported in FlashAttention 3"),
    ),
    Rule(
        "SG-V045",
        title="the error is in the engine's own code",
        cause="code of {package} uses `{name}`, which {owner} does not have at this place; this is most often a fault "
        "of this version with this model, GPU or setting",
        fix="set `image:` to another release of {package}, newer or older, as a test: look for the message in its "
        "release notes and issues; memory settings and the driver do not change this error, whatever the functions in "
        "the traceback are called",
        source="The messages come from Python, and are quoted in vllm-project/vllm issues 18302 (2025-05), 25826 "
        "(2025-09) and 50064 (2026-07).",
        explain="The rule counts only if no other rule knows the message, and if the traceback is that of the engine. "
        "The model's files are not damaged.",
        find=_find_own_error,
        fallback=True,
        names_settings=True,
    ),
)
