"""llama.cpp's server: GGUF files, flags, memory, templates.

Ids start with SG-A, because SG-L are the model files of all engines. Texts of llama-server, build 11434, all reproduced
in containers unless said otherwise. An unknown model name is not a failure here: llama-server answers to any name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import recent_lines, strip_prefix
from stackgen.diagnose.rule import Change, Hit, Rule, compile_patterns
from stackgen.flags import is_removal, normalize_flag, suggest_flag

__all__ = ["LAST_RULES", "RULES"]

SERVER = "llama-server, build 11434"
UNKNOWN_FLAG = re.compile(r"^error: invalid argument: (?P<flag>\S+)")
ALLOCATION = re.compile(r"failed to allocate (?P<device>\w+) buffer of size (?P<bytes>\d+)")
IGNORED_FLAG = re.compile(r"no usable GPU found, (?P<flag>--[\w-]+) option will be ignored")
# vLLM flag -> what to use in llama.cpp instead
VLLM_FLAGS = {
    "--max-model-len": "use the field max_model_len: it becomes --ctx-size",
    "--max-num-seqs": "use the field max_num_seqs: it becomes --parallel",
    "--served-model-name": "use the field served_names: it becomes --alias",
    "--gpu-memory-utilization": "remove it: llama.cpp takes what it needs; gpu_layers limits what goes to the GPU",
    "--tensor-parallel-size": "use --split-mode and --tensor-split",
    "--enforce-eager": "remove it: there are no CUDA graphs to turn off",
    "--quantization": "remove it: the GGUF file is already quantized",
    "--dtype": "remove it: the GGUF file defines its types",
    "--kv-cache-dtype": "use --cache-type-k and --cache-type-v",
}
DOWNLOAD_AGAIN = "download or copy it again; `stackgen down --volumes` deletes all weights of the stack"


def _find_unknown_flag(evidence: Evidence) -> Iterator[Hit]:
    """An argument in extra_args that llama-server's parser does not know."""
    for service in evidence.services:
        match = next((found for line in recent_lines(service.log) if (found := UNKNOWN_FLAG.match(line))), None)
        if match:
            flag = match["flag"]
            similar = suggest_flag("llamacpp", flag) or "remove it, or see `llama-server --help`"
            remedy = VLLM_FLAGS.get(normalize_flag(flag), similar)
            # the only removable flag of vLLM that takes no value
            is_switch = normalize_flag(flag) == "--enforce-eager"
            change = Change("extra_args", flag, safe=False, remove=True, with_value=not is_switch)
            yield Hit(service.service, (match[0],), {"flag": flag, "remedy": remedy},
                      change=change if is_removal(remedy) else None)  # fmt: skip


def _find_large_context(evidence: Evidence) -> Iterator[Hit]:
    """The KV cache of the whole context, which llama.cpp allocates at startup, does not fit."""
    for service in evidence.services:
        lines = recent_lines(service.log)
        failure = next((line for line in lines if "failed to allocate buffer for kv cache" in line), None)
        if failure:
            # the size is on a line of its own
            size = next((found for line in lines if (found := ALLOCATION.search(line))), None)
            values = {"size": f"{int(size['bytes']) / 2**30:.1f} GiB", "device": size["device"]} if size else {}
            yield Hit(service.service, (failure.strip(), *([size[0]] if size else [])), values)


def _find_missing_gpu(evidence: Evidence) -> Iterator[Hit]:
    """Layers are configured for a GPU, but llama-server found none. It reports this only at startup."""
    for service in evidence.services:
        # the whole log, because the line comes before the server is ready
        match = IGNORED_FLAG.search(service.log) if service.engine in ("llamacpp", "") else None
        if match and (service.is_working or not service.state):
            line = strip_prefix(match.string[match.start() :].partition("\n")[0])
            yield Hit(service.service, (line,), match.groupdict())


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A001",
        title="llama.cpp does not know a flag",
        cause="llama-server has no flag {flag}",
        fix="{remedy} (in extra_args)",
        source=f"{SERVER}, common/arg.cpp; reproduced",
        explain="vLLM's flags have other names here: "
        + "; ".join(f"`{flag}`: {to}" for flag, to in VLLM_FLAGS.items())
        + ".",
        find=_find_unknown_flag,
    ),
    Rule(
        "SG-A002",
        title="llama.cpp can't open the chat template file",
        cause="{path} does not exist in the container, or is not readable",
        fix="use the path as it is mounted: in the model's own folder, with `model: ./folder` and `file: NAME.gguf`",
        source=f"{SERVER}, common/arg.cpp; reproduced",
        explain="A path in extra_args is a path inside the container. stackgen mounts the model's folder at /srv/host "
        "followed by its path on the host.",
        patterns=compile_patterns(
            r'handling argument "--chat-template-file": error: failed to open file \'(?P<path>[^\']+)\''
        ),
    ),
    Rule(
        "SG-A003",
        title="a llama.cpp flag has an invalid value",
        cause="{flag}: {problem}",
        fix="correct it in extra_args; the log shows the flag's own help",
        source=f"{SERVER}, common/arg.cpp; reproduced",
        explain="`stoi` is C++'s way of saying that a number was expected. Write plain numbers: 8192, not 8k.",
        patterns=compile_patterns(r'error while handling argument "(?P<flag>[^"]+)": (?:error: )?(?P<problem>.+)'),
    ),
    Rule(
        "SG-A004",
        title="a GGUF file does not exist",
        cause="llama.cpp finds no file {path} in its container",
        fix="correct `model:` and `file:` (names are case-sensitive); a path in extra_args (--lora, --mmproj, "
        "--model-draft) is a path inside the container",
        source=f"{SERVER}, ggml/src/gguf.cpp and src/llama-adapter.cpp; reproduced",
        explain="With `model: ./folder`, the field `file:` names the GGUF file in it; without `file:`, `model:` is "
        "the file itself. Large models come in parts (-00001-of-00003.gguf): name the first, and keep the others next "
        "to it.",
        patterns=compile_patterns(
            r"failed to open GGUF file '(?P<path>[^']+)' \(No such file or directory\)",
            r"llama_adapter_lora_init: failed to open '(?P<path>[^']+)': No such file",
        ),
    ),
    Rule(
        "SG-A005",
        title="the file is not a GGUF file",
        cause="the file does not start with 'GGUF'[[, but with '{magic}']]",
        fix=f"{DOWNLOAD_AGAIN}; a model in safetensors needs engine: vllm or a GGUF version of it",
        source=f"{SERVER}, ggml/src/gguf.cpp; reproduced with a Git LFS pointer and with safetensors",
        explain="'vers' is the start of `version https://git-lfs`: the repository was cloned without `git lfs pull`. "
        "'<!DO' or '<htm' is a web page that was saved in place of the file.",
        # bytes that are not text are printed as `?`, and are not worth showing
        patterns=compile_patterns(r"invalid magic characters: '(?:(?P<magic>[^?']+)|[^']*)', expected 'GGUF'"),
    ),
    Rule(
        "SG-A006",
        title="the GGUF file is empty, or a folder",
        cause="llama.cpp can't read the first bytes of its model",
        fix=f"if it is a folder, add `file: NAME.gguf`; otherwise {DOWNLOAD_AGAIN}",
        source=f"{SERVER}, ggml/src/gguf.cpp; reproduced with both",
        explain="A download that was interrupted at its start leaves an empty file. So does a full disk.",
        patterns=compile_patterns(r"gguf_init_from_reader: failed to read magic"),
    ),
    Rule(
        "SG-A007",
        title="the GGUF file needs a newer llama.cpp",
        cause="the file has format version {found}, and this build reads up to {known}",
        fix="use an `image:` with a newer build, or another file",
        source=f"{SERVER}, ggml/src/gguf.cpp; reproduced with a patched file",
        explain="A file that is damaged or has swapped bytes can also state an absurd version.",
        patterns=compile_patterns(
            r"this GGUF file is version (?P<found>\d+) but this software only supports up to version (?P<known>\d+)"
        ),
    ),
    Rule(
        "SG-A008",
        title="the GGUF file is truncated",
        cause="the file ends early[[, within {tensor}]]: a download or a copy was interrupted",
        fix=DOWNLOAD_AGAIN,
        source=f"{SERVER}, ggml/src/gguf.cpp and src/llama-model-loader.cpp; reproduced",
        explain="The header of a GGUF file states where each tensor is. Compare the file's size with the one on the "
        "Hub.",
        patterns=compile_patterns(
            r"tensor '(?P<tensor>[^']+)' data is not within the file bounds",
            r"gguf_init_from_\w+: failed to read (?:key-value pairs|tensor info|tensor data|header)",
        ),
    ),
    Rule(
        "SG-A009",
        title="llama.cpp does not know the model's architecture",
        cause="the file has architecture '{architecture}', which this build can't run",
        fix="use an `image:` with a newer build of llama.cpp, or another model",
        source=f"{SERVER}, src/llama-model.cpp; reproduced with a patched file",
        explain="A new architecture needs a build that is newer than it. Files of other programs (image models, "
        "adapters) have architectures that no language model has.",
        patterns=compile_patterns(r"unknown model architecture: '(?P<architecture>[^']*)'"),
    ),
    Rule(
        "SG-A010",
        title="the context's KV cache does not fit in memory",
        cause="the KV cache of the whole context is allocated at startup, and it does not fit[[: {size} on {device}]]",
        fix="lower max_model_len (llama.cpp holds max_model_len × max_num_seqs tokens), or use a smaller cache: "
        "extra_args: [--cache-type-k, q8_0, --cache-type-v, q8_0]",
        source=f"{SERVER}, src/llama-context.cpp, ggml/src/ggml.c; reproduced on the CPU",
        explain="Without max_model_len, llama.cpp takes the context length that the model was made for, or less if "
        "memory is short. A context beyond the model's own (n_ctx_train) gives garbage, however much memory there is.",
        find=_find_large_context,
        shows_gpus=True,
    ),
    Rule(
        "SG-A011",
        title="the model does not fit on the GPU",
        cause="{wanted} MiB do not fit on device {device}[[; its memory is held by {holders}]]",
        fix="put fewer layers on the GPU (gpu_layers: 20), use a smaller quantization (Q4 instead of Q8), or free the "
        "GPU",
        source="ggml/src/ggml-cuda/ggml-cuda.cu, ggml_backend_cuda_buffer_type_alloc_buffer, as public reports "
        "print it",
        explain="Layers that stay on the CPU are slower, but the model runs. All layers on the GPU need about the "
        "file's own size, plus the KV cache.",
        patterns=compile_patterns(
            r"allocating (?P<wanted>[\d.]+) MiB on device (?P<device>\d+): cudaMalloc failed: out of memory"
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-A012",
        title="the chat template can't be parsed",
        cause="llama.cpp can't parse the chat template: {problem}",
        fix="correct the Jinja file: every {% for %} and {% if %} needs its end; or remove it, because the GGUF file "
        "has its own",
        source=f"{SERVER}, common/chat.cpp; reproduced",
        explain="llama.cpp has its own Jinja implementation, which supports less than Python's. `--no-jinja` accepts "
        "only the built-in templates.",
        patterns=compile_patterns(r"common_chat_templates_init: error: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A013",
        title="llama.cpp has no chat template of that name",
        cause="there is no built-in template '{name}'",
        fix="remove --chat-template: the GGUF file contains its model's own; `llama-server --help` lists the names",
        source=f"{SERVER}, common/arg.cpp; reproduced",
        explain="A whole template as text works only with --jinja, which is the default now.",
        patterns=compile_patterns(r"error: the supplied chat template is not supported: (?P<name>[\w.-]+)$"),
    ),
    Rule(
        "SG-A014",
        title="a quantized KV cache needs flash attention",
        cause="--cache-type-v is quantized, but flash attention is off",
        fix="remove either `--flash-attn off` or --cache-type-v from extra_args",
        source=f"{SERVER}, src/llama-context.cpp; reproduced",
        explain="Keys can be quantized without flash attention, values can't.",
        patterns=compile_patterns(r"quantized V cache requires flash_attn"),
    ),
    Rule(
        "SG-A015",
        title="the LoRA adapter can't be used",
        cause="the adapter can't be loaded: {problem}",
        fix="use a GGUF file that was converted from an adapter (convert_lora_to_gguf.py), of this exact model",
        source=f"{SERVER}, src/llama-adapter.cpp; reproduced with a whole model in its place",
        explain="Adapters on the Hub are safetensors: they must be converted first.",
        patterns=compile_patterns(r"failed to apply lora adapter: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A016",
        title="the file for --mmproj is not a projector",
        cause="{path} contains no projector for images or audio",
        fix="use the mmproj file of this model's repository (its name starts with mmproj-), not the model itself",
        source=f"{SERVER}, tools/mtmd/clip.cpp; reproduced",
        explain="Vision models come in two files: the model and the projector.",
        patterns=compile_patterns(r"Failed to load CLIP model from (?P<path>\S+)"),
    ),
    Rule(
        "SG-A017",
        title="this llama.cpp has no TLS support",
        cause="--ssl-key-file and --ssl-cert-file are set, but the server was built without SSL",
        fix="remove them, and put a gateway with the certificate in front of it",
        source=f"{SERVER}, tools/server; reproduced",
        explain="Send keys over plain HTTP only on this machine or on a private network.",
        patterns=compile_patterns(r"the server is built without SSL support"),
    ),
    Rule(
        "SG-A018",
        title="the server was not started for this kind of request",
        cause="llama-server does not do {what} unless a flag enables it at startup",
        fix='extra_args: ["{flag}"], best in a model entry of its own',
        source=f"{SERVER}, tools/server, HTTP 501; reproduced",
        explain="With --embeddings or --reranking the server does only that: chat needs another model entry.",
        patterns=compile_patterns(
            r"This server does not support (?P<what>embeddings|reranking)\. Start it with `(?P<flag>--\w+)`"
        ),
        inputs=("check",),
    ),
    Rule(
        "SG-A019",
        title="tools or images are not enabled",
        cause="the client sends {what}, but the server was started without what it needs for that",
        fix="tools: remove --no-jinja from extra_args; images: extra_args: [--mmproj, /path/of/mmproj.gguf]",
        source=f"{SERVER}, tools/server, HTTP 500; reproduced",
        explain="Tool calls are parsed by the chat template's own rules, which only Jinja runs.",
        patterns=compile_patterns(
            r"(?P<what>tools) param requires --jinja flag", r"(?P<what>image|audio) input is not supported - hint"
        ),
        inputs=("check",),
    ),
)

LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A020",
        title="layers stay on the CPU: llama.cpp sees no GPU",
        cause="{flag} is set but ignored: the program was built without GPU support, or sees no GPU",
        fix="with a GPU: give the model GPUs (gpus: 1), which selects the CUDA image; without one: remove gpu_layers",
        source=f"{SERVER}, common/arg.cpp; reproduced",
        explain="The warning appears only in the first lines of the log, and the server runs, but slowly.",
        find=_find_missing_gpu,
        shows_gpus=True,
    ),
)
