"""Rules for errors inside the engine's own code, and for features that the engine has only for some GPUs.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.messages import find_messages
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns
from stackgen.diagnose.tracebacks import has_request_frame

__all__ = ["RULES"]

# Python's messages for a name that the code itself should have set
OWN_NAME = re.compile(
    r"^(?:AttributeError: '(?P<owner>[A-Z]\w*)' object has no attribute '(?P<name>\w+)'|"
    r"UnboundLocalError: cannot access local variable '(?P<local>\w+)' where it is not associated|"
    r"UnboundLocalError: local variable '(?P<local2>\w+)' referenced before assignment|"
    r"KeyError: '(?P<key>[a-z]\w{2,60})'$)"
)
# objects of a model's files and of Transformers, which other rules read
FOREIGN = re.compile(
    r"^(?:NoneType$|AsyncLLM|LLMEngine|EngineArgs|PreTrained|Auto)|Config$|Tokenizer|Processor|"
    r"For(?:CausalLM|ConditionalGeneration)$|Model$"
)
# folder of a package → its name. The last frame decides
PACKAGES = {
    "vllm": "vLLM", "fastchat": "FastChat", "vllm_ascend": "vLLM Ascend", "sglang": "SGLang",
    "ray/llm": "Ray Serve LLM", "aiter": "AITER",
}  # fmt: skip
ENGINE_FRAME = re.compile(rf'File "(?:[^"]{{0,200}}/)?(?P<package>{"|".join(PACKAGES)})/[^"]{{1,200}}\.py", line \d+')


def _find_own_error(evidence: Evidence) -> Iterator[Hit]:
    """A start ended because code of the engine uses a name that an object of the engine does not have."""
    for message in find_messages(evidence):
        found = OWN_NAME.match(message.text)
        if not found or FOREIGN.search(found["owner"] or "") or has_request_frame(message.before):
            continue
        lines = [strip_prefix(line) for line in lines_since_ready(message.service.log)]
        frames = [(line.strip(), one["package"]) for line in lines if (one := ENGINE_FRAME.search(line))]
        if frames:
            name = next(found[one] for one in ("local", "local2", "key", "name") if found[one])
            owner = f"the object {found['owner']}" if found["owner"] else "its own code"
            values = {"package": PACKAGES[frames[-1][1]], "name": name, "owner": owner}
            variant = NO_ENTRY if found["key"] else None
            # only the frame just above the message shows whose entry is missing
            if variant and not any(map(ENGINE_FRAME.search, message.before[-4:])):
                continue
            yield Hit(message.service.service, (message.text,), values, highlight=found[0], variant=variant)


NO_ENTRY = Variant(
    (),
    cause="the code of {package} looks up the entry `{name}`, which does not exist. Most often, this version does not "
    "fit this model, its quantization or a setting, or it has a bug",
    condition="the message is a KeyError in the engine's code",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V043",
        title="vLLM does not accept a GPU id in CUDA_VISIBLE_DEVICES",
        cause="this version of vLLM accepts only numbers in CUDA_VISIBLE_DEVICES, but the variable contains the id "
        "{id}",
        fix="let the container runtime choose the GPU or the MIG slice: set NVIDIA_VISIBLE_DEVICES={id}, or use "
        "`--gpus` with device={id}; leave CUDA_VISIBLE_DEVICES unset in the "
        "container[[?extra_env.CUDA_VISIBLE_DEVICES| (remove it from extra_env)]]: the device then has the "
        "number 0 in the container; otherwise try another version of vLLM",
        source="The message comes from vLLM (platforms/interface.py, device_id_to_physical_device_id), and is quoted "
        "in vllm-project/vllm issues 13815 (2025-02), 20939 (2025-07) and 41848 (2026-05).",
        explain="CUDA itself accepts the ids of GPUs and of MIG slices. Sometimes vLLM reports this error as `Model "
        "architectures failed to be inspected`. The model, the GPU and MIG are not the cause.",
        patterns=compile_patterns(r"invalid literal for int\(\) with base 10: '(?P<id>(?:MIG|GPU)-[\w/-]+)"),
    ),
    Rule(
        "SG-V044",
        title="attention sinks need FlashAttention 3, which this GPU does not have",
        cause="the model uses attention sinks. vLLM's FlashAttention backend supports attention sinks only with "
        "FlashAttention 3 or newer, which needs a GPU of the Hopper generation. On this GPU, vLLM uses an older "
        "FlashAttention",
        fix="use the Triton attention backend: set extra_args to [--attention-backend, TRITON_ATTN]; with vLLM "
        "0.10, which does not have this flag, set VLLM_ATTENTION_BACKEND=TRITON_ATTN_VLLM_V1 in extra_env instead; "
        "or try a newer image, which may choose a working backend by itself; don't install FlashAttention 3, "
        "because it does not run on this GPU",
        source="The message comes from vLLM (v1/attention/backends/flash_attn.py), and is quoted in vllm-project/vllm "
        "issues 22279, 22325 and 22331 (2025-08).",
        explain="gpt-oss and MiMo-V2 are models with attention sinks. The line `might cause deadlock in distributed "
        "execution` above the error is a consequence.",
        patterns=compile_patterns(r"Sinks are only supported in FlashAttention 3"),
    ),
    Rule(
        "SG-V045",
        title="the error is in the engine's own code",
        cause="the code of {package} uses `{name}`, which does not exist in {owner}. Most often, this "
        "version has a bug with this model, GPU or setting",
        fix="search the release notes and issues of {package} for this message; as a test, set `image:` to another "
        "release of {package}, newer or older; don't change memory settings or the driver, because they do not "
        "affect this error",
        source="The messages come from Python, and are quoted in vllm-project/vllm issues 18302 (2025-05), 25826 "
        "(2025-09) and 50064 (2026-07).",
        explain="stackgen reports this cause only if no other rule matches the message, and if the traceback ends in "
        "the engine. The model's files are not damaged.",
        find=_find_own_error,
        fallback=True,
        names_settings=True,
        variants=(NO_ENTRY,),
    ),
)
