"""Rules for llama.cpp's server: flags, memory, templates.

Ids start with SG-A, because SG-L are the model files of all engines. The texts are those of llama-server, build 11434.
Unless `source` says otherwise, they were reproduced in containers. llama-server answers to any model name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import recent_lines
from stackgen.diagnose.rule import Change, Hit, Rule, Variant, compile_patterns
from stackgen.diagnose.rules.gguf import REPRODUCED, SERVER
from stackgen.diagnose.rules.gguf import RULES as GGUF_RULES
from stackgen.diagnose.rules.llamacpp_gpu import COMPUTES, NO_FLASH_ATTENTION, find_large_weights, find_missing_gpu
from stackgen.flags import REMOVED_FLAGS, is_removal, normalize_flag, suggest_flag

__all__ = ["LAST_RULES", "RULES"]

UNKNOWN_FLAG = re.compile(r"^error: invalid argument: (?P<flag>\S+)")
ALLOCATION = re.compile(r"failed to allocate (?P<device>\w+) buffer of size (?P<bytes>\d+)")
# vLLM flag -> what to use in llama.cpp instead
VLLM_FLAGS = {
    "--max-model-len": "use the field max_model_len, which stackgen passes as --ctx-size",
    "--max-num-seqs": "use the field max_num_seqs, which stackgen passes as --parallel",
    "--served-model-name": "use the field served_names, which stackgen passes as --alias",
    "--gpu-memory-utilization": "remove the flag: llama.cpp uses only the memory that it needs (see gpu_layers)",
    "--tensor-parallel-size": "use --split-mode and --tensor-split",
    "--enforce-eager": "remove the flag: there are no CUDA graphs to turn off",
    "--quantization": "remove the flag: the GGUF file is already quantized",
    "--dtype": "remove the flag: the GGUF file defines the data types",
    "--kv-cache-dtype": "use --cache-type-k and --cache-type-v",
}


REMOVED = Variant(
    (),
    title="a flag was removed from llama.cpp",
    cause="this build of llama-server no longer has {flag}",
    fix="change extra_args: {remedy}",
    condition="an older build has the flag",
)
LEFT_OVER = Variant(
    (),
    title="llama.cpp got a value without a flag",
    cause="`{flag}` is a value that belongs to no flag. Either the flag before this value accepts no value, or an "
    "earlier flag lost its value and used the next flag as its value",
    fix="run `docker inspect --format '{{json .Args}}' CONTAINER`, which shows the arguments; look for an empty or "
    "missing value, for example of a variable that is not set",
    condition="the argument does not start with a dash",
)


def _find_unknown_flag(evidence: Evidence) -> Iterator[Hit]:
    """llama-server rejects an argument in extra_args."""
    for service in evidence.services:
        match = next((found for line in recent_lines(service.log) if (found := UNKNOWN_FLAG.match(line))), None)
        if match:
            flag = match["flag"]
            similar, otherwise = suggest_flag("llamacpp", flag), "remove the flag, or see `llama-server --help`"
            similar = f"{similar} Otherwise, {otherwise}" if similar.endswith("?") else similar or otherwise
            removed = REMOVED_FLAGS["llamacpp"].get(normalize_flag(flag))
            remedy = removed or VLLM_FLAGS.get(normalize_flag(flag), similar)
            # the only removable flag of vLLM that takes no value
            is_switch = normalize_flag(flag) == "--enforce-eager"
            change = Change("extra_args", flag, safe=False, remove=True, with_value=not is_switch)
            yield Hit(service.service, (match[0],), {"flag": flag, "remedy": remedy},
                      change=change if is_removal(remedy) else None,
                      variant=LEFT_OVER if not flag.startswith("-") else REMOVED if removed else None)  # fmt: skip


def _find_large_context(evidence: Evidence) -> Iterator[Hit]:
    """llama.cpp can't allocate the KV cache of the whole context at startup."""
    for service in evidence.services:
        lines = recent_lines(service.log)
        failure = next((line for line in lines if "failed to allocate buffer for kv cache" in line), None)
        if failure:
            # the size is on another line
            size = next((found for line in lines if (found := ALLOCATION.search(line))), None)
            values = {"size": f"{int(size['bytes']) / 2**30:.1f} GiB", "device": size["device"]} if size else {}
            yield Hit(service.service, (failure.strip(), *([size[0]] if size else [])), values)


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A001",
        title="llama.cpp does not know a flag",
        cause="llama-server has no flag {flag}",
        fix="change extra_args: {remedy}",
        page_fix="correct the flag in extra_args, or remove it. For a flag of vLLM, see the following list. For all "
        "other flags, `stackgen diagnose` suggests the most similar flag of llama-server",
        source=f"The message comes from {SERVER} (common/arg.cpp). {REPRODUCED}",
        explain="vLLM's flags have other names in llama.cpp:\n\n"
        + "\n".join(f"- `{flag}`: {to}" for flag, to in VLLM_FLAGS.items())
        + "\n\nBuild 10878 and newer no longer have these flags:\n\n"
        + "\n".join(f"- `{flag}`: {to}" for flag, to in REMOVED_FLAGS["llamacpp"].items()),
        find=_find_unknown_flag,
        variants=(REMOVED, LEFT_OVER),
    ),
    Rule(
        "SG-A002",
        title="llama.cpp can't open the chat template file",
        cause="{path} does not exist in the container, or is not readable",
        fix="put the template into the model's folder; set `model` to this folder, and `file` to the name of the "
        "GGUF file; set --chat-template-file in extra_args to the template's path inside the container",
        source=f"The message comes from {SERVER} (common/arg.cpp). {REPRODUCED}",
        explain="A path in extra_args is a path inside the container. stackgen mounts the model's folder below "
        "/srv/host: the host's folder /data/model is /srv/host/data/model in the container.",
        patterns=compile_patterns(
            r'handling argument "--chat-template-file": error: failed to open file \'(?P<path>[^\']+)\''
        ),
    ),
    Rule(
        "SG-A003",
        title="a llama.cpp flag has an invalid value",
        cause="llama-server rejects {flag}: {problem}[[. {flag} has no value, so llama-server read the next flag "
        "{next} as its value]]",
        fix="correct {flag} in extra_args[[: put a valid value between {flag} and {next}]]; for the correct values, "
        "see the help text of this flag in the log",
        source=f"The message comes from {SERVER} (common/arg.cpp). {REPRODUCED}",
        explain="`stoi` in the message means that llama-server expected a number. Write plain numbers: 8192, not 8k. "
        "Since August 2025, --flash-attn needs one of the values on, off and auto.",
        patterns=compile_patterns(
            r'error while handling argument "(?P<flag>[^"]+)": (?:error: )?(?P<problem>\w.* value for \S+: '
            r"'(?P<next>--?[a-z][\w-]+)'.*)",
            r'error while handling argument "(?P<flag>[^"]+)": (?:error: )?(?P<problem>.+)',
        ),
    ),
    *GGUF_RULES,
    Rule(
        "SG-A010",
        title="the context's KV cache does not fit in memory",
        cause="llama.cpp allocates the KV cache of the whole context at startup, but it does not fit in memory[[: "
        "{size} on {device}]]",
        fix="lower max_model_len, or use smaller data types for the KV cache (set extra_args to [--cache-type-k, "
        "q8_0, --cache-type-v, q8_0])",
        source=f"The messages come from {SERVER} (src/llama-context.cpp and ggml/src/ggml.c). The failure was "
        "reproduced on the CPU.",
        explain="The KV cache has space for max_model_len × max_num_seqs tokens. Without max_model_len, llama.cpp "
        "uses the model's own context length (n_ctx_train), or a shorter context if memory is short. With a context "
        "longer than n_ctx_train, the output is garbage, even if there is enough memory.",
        find=_find_large_context,
        shows_gpus=True,
    ),
    Rule(
        "SG-A011",
        title="the GPU's memory is too small for llama.cpp",
        cause="an allocation[[ of {wanted} MiB]] does not fit in the memory of the GPU[[ {device}]][[. Processes on "
        "the GPU: {holders}]]",
        fix="lower gpu_layers (for example to 20), use a smaller quantization (Q4 instead of Q8), or free GPU memory",
        source="The message comes from the file ggml/src/ggml-cuda/ggml-cuda.cu "
        "(ggml_backend_cuda_buffer_type_alloc_buffer). Public reports quote the message. "
        "ollama/ollama issue 3237 (2024-03) and ggml-org/llama.cpp issue 13085 (2025-04) report it while llama.cpp "
        "computes.",
        explain="With fewer layers on the GPU, the model still works, but layers on the CPU are slower. If all layers "
        "are on the GPU, these layers need about as much memory as the size of the GGUF file, plus memory for the KV "
        "cache.",
        patterns=compile_patterns(
            r"allocating (?P<wanted>[\d.]+) MiB on device (?P<device>\d+): cudaMalloc failed: out of memory",
            r"ggml_vulkan: .*(?:ErrorOutOfDeviceMemory|Device memory allocation of size \d+ failed)",
            r"unable to allocate (?:CUDA|ROCm|Vulkan|SYCL)\d* buffer",
            r"^cudaMalloc failed: out of memory",
        ),
        find=find_large_weights,
        variants=(
            COMPUTES,
            Variant(
                compile_patterns(
                    r"unable to allocate CPU\w* buffer",
                    r"ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size \d+",
                ),
                title="the machine's memory is too small for llama.cpp",
                cause="llama.cpp could not allocate memory of the machine. The memory of the GPU is not the cause",
                fix="compare the size of the GGUF file with `free -g`, and with the container's memory limit (`docker "
                "inspect --format '{{.HostConfig.Memory}}' CONTAINER`, 0 is no limit); use a smaller quantization, put "
                "more layers on the GPU (gpu_layers), or lower max_model_len",
            ),
        ),
        # the same allocations fail for the KV cache and for working memory, whose own lines follow
        consequence_of=("SG-A010", "SG-A025", "SG-A030", "SG-M018"),
        shows_gpus=True,
    ),
    Rule(
        "SG-A012",
        title="the chat template can't be parsed",
        cause="llama.cpp can't parse the chat template: {problem}",
        fix="correct the Jinja file (every `{% for %}` and `{% if %}` needs an end tag), or remove it, because the "
        "GGUF file contains a chat template",
        source=f"The message comes from {SERVER} (common/chat.cpp). {REPRODUCED}",
        explain="llama.cpp has its own Jinja implementation, which supports fewer features than Python's Jinja. With "
        "`--no-jinja`, llama.cpp accepts only its built-in templates.",
        patterns=compile_patterns(r"common_chat_templates_init: error: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A013",
        title="llama.cpp has no built-in chat template with this name",
        cause="llama.cpp has no built-in chat template '{name}'",
        fix="remove --chat-template, because the GGUF file has its own template; to see the names of the built-in "
        "templates, run `llama-server --help`",
        source=f"The message comes from {SERVER} (common/arg.cpp). {REPRODUCED}",
        explain="--chat-template accepts the text of a whole template only with --jinja, which llama.cpp now sets by "
        "default.",
        patterns=compile_patterns(r"error: the supplied chat template is not supported: (?P<name>[\w.-]+)$"),
    ),
    Rule(
        "SG-A014",
        title="a quantized KV cache needs flash attention",
        cause="--cache-type-v is quantized, but flash attention is turned off",
        fix="remove either `--flash-attn off` or --cache-type-v from extra_args",
        source=f"The message comes from {SERVER} (src/llama-context.cpp). {REPRODUCED}",
        explain="Without flash attention, the keys of the KV cache can be quantized, but the values can't. With "
        "--flash-attn auto, llama.cpp turns flash attention off if the GPU's backend has no kernel for the model and "
        "for these data types.",
        patterns=compile_patterns(r"quantized V cache requires flash_attn"),
        variants=(NO_FLASH_ATTENTION,),
    ),
    Rule(
        "SG-A015",
        title="the LoRA adapter can't be used",
        cause="the adapter can't be loaded: {problem}",
        fix="use a GGUF adapter of this exact model (`convert_lora_to_gguf.py` converts adapters to GGUF)",
        source=f"The message comes from {SERVER} (src/llama-adapter.cpp). The failure was reproduced with a whole "
        "model instead of an adapter.",
        explain="Adapters on the Hub are in safetensors format and must be converted to GGUF first.",
        patterns=compile_patterns(r"failed to apply lora adapter: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A016",
        title="the file for --mmproj is not a projector",
        cause="{path} contains no projector for images or audio",
        fix="use the mmproj file from the model's repository (its name starts with mmproj-), not the model file",
        source=f"The message comes from {SERVER} (tools/mtmd/clip.cpp). {REPRODUCED}",
        explain="Vision models consist of two files: the model and the projector.",
        patterns=compile_patterns(r"Failed to load CLIP model from (?P<path>\S+)"),
        # this line ends every failure to load the file
        consequence_of=("SG-A021", "SG-A022", "SG-A023", "SG-A004", "SG-A011", "*"),
    ),
    Rule(
        "SG-A017",
        title="this llama.cpp has no TLS support",
        cause="--ssl-key-file and --ssl-cert-file are set, but the server was built without SSL",
        fix="remove --ssl-key-file and --ssl-cert-file, and put a gateway with the certificate in front of the server",
        source=f"The message comes from {SERVER} (tools/server). {REPRODUCED}",
        explain="Send keys over plain HTTP only on this machine or on a private network.",
        patterns=compile_patterns(r"the server is built without SSL support"),
    ),
    Rule(
        "SG-A018",
        title="embedding or reranking requests are not enabled",
        cause="llama-server was started without the flag that enables {what}",
        fix='set extra_args to ["{flag}"], preferably in a separate entry of `models:`',
        source=f"The message is an answer of {SERVER} (tools/server) with HTTP status 501. {REPRODUCED}",
        explain="A server with --embeddings answers only embedding requests, and a server with --reranking answers "
        "only reranking requests. For chat, add another entry to `models:`.",
        patterns=compile_patterns(
            r"This server does not support (?P<what>embeddings|reranking)\. Start it with `(?P<flag>--\w+)`"
        ),
        inputs=("check",),
    ),
    Rule(
        "SG-A019",
        title="tools are not enabled",
        cause="the client sends {what}, but the server was started without support for {what}",
        fix="[[?extra_args.--no-jinja|remove --no-jinja from extra_args, or ]]set extra_args to [--jinja]",
        source=f"The messages are answers of {SERVER} (tools/server) with HTTP status 500. {REPRODUCED}",
        explain="llama-server uses the rules in the chat template to parse tool calls, and these rules need Jinja.",
        patterns=compile_patterns(r"(?P<what>tools) param requires --jinja flag"),
        inputs=("check",),
        variants=(
            Variant(
                compile_patterns(r"(?P<what>image|audio) input is not supported - hint"),
                title="images or audio are not enabled",
                cause="the client sends {what} input, but the server was started without a projector for it",
                fix="set extra_args to [--mmproj, /path/mmproj.gguf] with the projector of this model, or send "
                "text only",
            ),
        ),
    ),
)

LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A020",
        title="layers stay on the CPU because llama.cpp finds no GPU",
        cause="{flag} has no effect, because llama.cpp was built without GPU support, or finds no GPU",
        fix="with a GPU, [[!gpus|set `gpus` to 1, which selects the CUDA image; ]][[?image|check that `image:` is "
        "built for this GPU; ]]read the earlier lines of the log for the reason; without a GPU, remove gpu_layers",
        source=f"The message comes from {SERVER} (common/arg.cpp). {REPRODUCED}",
        explain="llama-server logs the warning only when it starts, so the warning is in the first lines of the log. "
        "The server runs, but slowly.",
        find=find_missing_gpu,
        consequence_of=("SG-A031", "SG-G048", "SG-G002", "SG-G003", "SG-G007", "SG-G029", "SG-G032", "*"),
        shows_gpus=True,
    ),
)
