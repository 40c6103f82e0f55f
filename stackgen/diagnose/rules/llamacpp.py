"""Rules for llama.cpp's server: GGUF files, flags, memory, templates.

Ids start with SG-A, because SG-L are the model files of all engines. The texts are those of llama-server, build 11434.
Unless `source` says otherwise, they were reproduced in containers. llama-server answers to any model name.
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
    "--max-model-len": "use the field max_model_len, which becomes --ctx-size",
    "--max-num-seqs": "use the field max_num_seqs, which becomes --parallel",
    "--served-model-name": "use the field served_names, which becomes --alias",
    "--gpu-memory-utilization": "remove the flag: llama.cpp takes only the memory it needs (see gpu_layers)",
    "--tensor-parallel-size": "use --split-mode and --tensor-split",
    "--enforce-eager": "remove the flag: there are no CUDA graphs to turn off",
    "--quantization": "remove the flag: the GGUF file is already quantized",
    "--dtype": "remove the flag: the GGUF file defines the data types",
    "--kv-cache-dtype": "use --cache-type-k and --cache-type-v",
}
DOWNLOAD_AGAIN = "download or copy the file again; `stackgen down --volumes` deletes all weights of the stack"


def _find_unknown_flag(evidence: Evidence) -> Iterator[Hit]:
    """llama-server rejects an argument in extra_args."""
    for service in evidence.services:
        match = next((found for line in recent_lines(service.log) if (found := UNKNOWN_FLAG.match(line))), None)
        if match:
            flag = match["flag"]
            similar = suggest_flag("llamacpp", flag) or "remove the flag, or see `llama-server --help`"
            remedy = VLLM_FLAGS.get(normalize_flag(flag), similar)
            # the only removable flag of vLLM that takes no value
            is_switch = normalize_flag(flag) == "--enforce-eager"
            change = Change("extra_args", flag, safe=False, remove=True, with_value=not is_switch)
            yield Hit(service.service, (match[0],), {"flag": flag, "remedy": remedy},
                      change=change if is_removal(remedy) else None)  # fmt: skip


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


def _find_missing_gpu(evidence: Evidence) -> Iterator[Hit]:
    """llama-server logs at startup that it ignores a flag for GPU layers, because it found no GPU."""
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
        fix="change extra_args: {remedy}",
        source=f"{SERVER}, common/arg.cpp; failure reproduced",
        explain="vLLM's flags have other names in llama.cpp: "
        + "; ".join(f"`{flag}`: {to}" for flag, to in VLLM_FLAGS.items())
        + ".",
        find=_find_unknown_flag,
    ),
    Rule(
        "SG-A002",
        title="llama.cpp can't open the chat template file",
        cause="{path} does not exist in the container, or is not readable",
        fix="put the template into the model's folder, set `model: ./folder` and `file: NAME.gguf`, and use the "
        "template's path inside the container",
        source=f"{SERVER}, common/arg.cpp; failure reproduced",
        explain="A path in extra_args is a path inside the container. stackgen mounts the model's folder at /srv/host "
        "followed by the folder's path on the host.",
        patterns=compile_patterns(
            r'handling argument "--chat-template-file": error: failed to open file \'(?P<path>[^\']+)\''
        ),
    ),
    Rule(
        "SG-A003",
        title="a llama.cpp flag has an invalid value",
        cause="llama-server rejects {flag}: {problem}",
        fix="correct {flag} in extra_args; the log shows the help of this flag",
        source=f"{SERVER}, common/arg.cpp; failure reproduced",
        explain="`stoi` in the message means that llama-server expected a number. Write plain numbers: 8192, not 8k.",
        patterns=compile_patterns(r'error while handling argument "(?P<flag>[^"]+)": (?:error: )?(?P<problem>.+)'),
    ),
    Rule(
        "SG-A004",
        title="a GGUF file does not exist",
        cause="llama.cpp finds no file {path} in its container",
        fix="correct `model:` and `file:` (names are case-sensitive); a path in extra_args (--lora, --mmproj, "
        "--model-draft) is a path inside the container",
        source=f"{SERVER}, ggml/src/gguf.cpp and src/llama-adapter.cpp; failure reproduced",
        explain="With `model: ./folder`, set `file:` to the name of the GGUF file in that folder. Without `file:`, "
        "set `model:` to the GGUF file itself. Large models come in parts (-00001-of-00003.gguf). Specify the first "
        "part, and keep the other parts in the same folder.",
        patterns=compile_patterns(
            r"failed to open GGUF file '(?P<path>[^']+)' \(No such file or directory\)",
            r"llama_adapter_lora_init: failed to open '(?P<path>[^']+)': No such file",
        ),
    ),
    Rule(
        "SG-A005",
        title="the file is not a GGUF file",
        cause="the file does not start with 'GGUF'[[, but with '{magic}']]",
        fix=f"{DOWNLOAD_AGAIN}; for a model in safetensors format, use engine: vllm or a GGUF version of the model",
        source=f"{SERVER}, ggml/src/gguf.cpp; failure reproduced with a Git LFS pointer and with safetensors",
        explain="A file that starts with 'vers' (`version https://git-lfs`) is a Git LFS pointer: the repository was "
        "cloned without `git lfs pull`. A file that starts with '<!DO' or '<htm' is a web page that was saved in "
        "place of the model file.",
        # bytes that are not text are printed as `?`, and are not worth showing
        patterns=compile_patterns(r"invalid magic characters: '(?:(?P<magic>[^?']+)|[^']*)', expected 'GGUF'"),
    ),
    Rule(
        "SG-A006",
        title="the GGUF file is empty, or is a folder",
        cause="llama.cpp can't read the first bytes of the model file",
        fix=f"if the path is a folder, add `file: NAME.gguf`; otherwise {DOWNLOAD_AGAIN}",
        source=f"{SERVER}, ggml/src/gguf.cpp; failure reproduced with an empty file and with a folder",
        explain="A download that was interrupted at its start leaves an empty file. A full disk can also leave an "
        "empty file.",
        patterns=compile_patterns(r"gguf_init_from_reader: failed to read magic"),
    ),
    Rule(
        "SG-A007",
        title="the GGUF file needs a newer llama.cpp",
        cause="the GGUF file has format version {found}, but this build of llama.cpp reads versions up to {known}",
        fix="set `image:` to a newer build of llama.cpp, or use another GGUF file",
        source=f"{SERVER}, ggml/src/gguf.cpp; failure reproduced with a patched file",
        explain="A file that is damaged or has swapped bytes can also contain a meaningless version number.",
        patterns=compile_patterns(
            r"this GGUF file is version (?P<found>\d+) but this software only supports up to version (?P<known>\d+)"
        ),
    ),
    Rule(
        "SG-A008",
        title="the GGUF file is truncated",
        cause="the GGUF file ends too early[[, within tensor {tensor}]]: a download or a copy was interrupted",
        fix=DOWNLOAD_AGAIN,
        source=f"{SERVER}, ggml/src/gguf.cpp and src/llama-model-loader.cpp; failure reproduced",
        explain="The header of a GGUF file contains the position of each tensor. Compare the size of the local file "
        "with its size on the Hub.",
        patterns=compile_patterns(
            r"tensor '(?P<tensor>[^']+)' data is not within the file bounds",
            r"gguf_init_from_\w+: failed to read (?:key-value pairs|tensor info|tensor data|header)",
        ),
    ),
    Rule(
        "SG-A009",
        title="llama.cpp does not know the model's architecture",
        cause="the GGUF file has architecture '{architecture}', which this build of llama.cpp can't run",
        fix="set `image:` to a newer build of llama.cpp, or use another model",
        source=f"{SERVER}, src/llama-model.cpp; failure reproduced with a patched file",
        explain="A new architecture needs a newer build of llama.cpp. GGUF files for other programs (image models, "
        "adapters) have architectures that no language model has.",
        patterns=compile_patterns(r"unknown model architecture: '(?P<architecture>[^']*)'"),
    ),
    Rule(
        "SG-A010",
        title="the context's KV cache does not fit in memory",
        cause="llama.cpp allocates the KV cache of the whole context at startup, and this KV cache does not fit in "
        "memory[[: {size} on {device}]]",
        fix="lower max_model_len, or use smaller cache types: extra_args: [--cache-type-k, q8_0, --cache-type-v, q8_0]",
        source=f"{SERVER}, src/llama-context.cpp, ggml/src/ggml.c; failure reproduced on the CPU",
        explain="The KV cache has space for max_model_len × max_num_seqs tokens. Without max_model_len, llama.cpp "
        "uses the model's own context length (n_ctx_train), or less if memory is short. A context longer than "
        "n_ctx_train gives garbage, however much memory there is.",
        find=_find_large_context,
        shows_gpus=True,
    ),
    Rule(
        "SG-A011",
        title="the model does not fit on the GPU",
        cause="{wanted} MiB do not fit on GPU {device}[[; processes on the GPU: {holders}]]",
        fix="lower gpu_layers (for example to 20), use a smaller quantization (Q4 instead of Q8), or free GPU memory",
        source="ggml/src/ggml-cuda/ggml-cuda.cu, ggml_backend_cuda_buffer_type_alloc_buffer, quoted in public reports",
        explain="Layers that stay on the CPU are slower, but the model runs. All layers on the GPU need about as much "
        "memory as the size of the GGUF file, plus the KV cache.",
        patterns=compile_patterns(
            r"allocating (?P<wanted>[\d.]+) MiB on device (?P<device>\d+): cudaMalloc failed: out of memory"
        ),
        shows_gpus=True,
    ),
    Rule(
        "SG-A012",
        title="the chat template can't be parsed",
        cause="llama.cpp can't parse the chat template: {problem}",
        fix="correct the Jinja file (every {% for %} and {% if %} needs an end tag), or remove the Jinja file, "
        "because the GGUF file contains a chat template",
        source=f"{SERVER}, common/chat.cpp; failure reproduced",
        explain="llama.cpp has its own Jinja implementation, which supports less than Python's Jinja. With "
        "`--no-jinja`, llama.cpp accepts only its built-in templates.",
        patterns=compile_patterns(r"common_chat_templates_init: error: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A013",
        title="llama.cpp has no chat template of that name",
        cause="llama.cpp has no built-in chat template '{name}'",
        fix="remove --chat-template, as the GGUF file has its own template; see the names in `llama-server --help`",
        source=f"{SERVER}, common/arg.cpp; failure reproduced",
        explain="--chat-template accepts the text of a whole template only with --jinja, which is the default now.",
        patterns=compile_patterns(r"error: the supplied chat template is not supported: (?P<name>[\w.-]+)$"),
    ),
    Rule(
        "SG-A014",
        title="a quantized KV cache needs flash attention",
        cause="--cache-type-v is quantized, but flash attention is off",
        fix="remove either `--flash-attn off` or --cache-type-v from extra_args",
        source=f"{SERVER}, src/llama-context.cpp; failure reproduced",
        explain="Without flash attention, the keys of the KV cache can be quantized, but the values can't.",
        patterns=compile_patterns(r"quantized V cache requires flash_attn"),
    ),
    Rule(
        "SG-A015",
        title="the LoRA adapter can't be used",
        cause="the adapter can't be loaded: {problem}",
        fix="use an adapter of this exact model that was converted to GGUF (convert_lora_to_gguf.py)",
        source=f"{SERVER}, src/llama-adapter.cpp; failure reproduced with a whole model instead of an adapter",
        explain="Adapters on the Hub are in safetensors format and must be converted to GGUF first.",
        patterns=compile_patterns(r"failed to apply lora adapter: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A016",
        title="the file for --mmproj is not a projector",
        cause="{path} contains no projector for images or audio",
        fix="use the mmproj file from the model's repository (its name starts with mmproj-), not the model file",
        source=f"{SERVER}, tools/mtmd/clip.cpp; failure reproduced",
        explain="Vision models consist of two files: the model and the projector.",
        patterns=compile_patterns(r"Failed to load CLIP model from (?P<path>\S+)"),
    ),
    Rule(
        "SG-A017",
        title="this llama.cpp has no TLS support",
        cause="--ssl-key-file and --ssl-cert-file are set, but the server was built without SSL",
        fix="remove --ssl-key-file and --ssl-cert-file, and put a gateway with the certificate in front of the server",
        source=f"{SERVER}, tools/server; failure reproduced",
        explain="Send keys over plain HTTP only on this machine or on a private network.",
        patterns=compile_patterns(r"the server is built without SSL support"),
    ),
    Rule(
        "SG-A018",
        title="the server was not started for this kind of request",
        cause="llama-server was started without the flag that enables {what}",
        fix='set extra_args: ["{flag}"], preferably in a separate model entry',
        source=f"{SERVER}, tools/server, HTTP 501; failure reproduced",
        explain="With --embeddings or --reranking, the server does only that. For chat, add another model entry.",
        patterns=compile_patterns(
            r"This server does not support (?P<what>embeddings|reranking)\. Start it with `(?P<flag>--\w+)`"
        ),
        inputs=("check",),
    ),
    Rule(
        "SG-A019",
        title="tools or images are not enabled",
        cause="the client sends {what}, but the server was started without support for {what}",
        fix="for tools, remove --no-jinja from extra_args; for images, set extra_args: [--mmproj, /path/mmproj.gguf]",
        source=f"{SERVER}, tools/server, HTTP 500; failure reproduced",
        explain="llama-server parses tool calls by the rules in the chat template, and these rules need Jinja.",
        patterns=compile_patterns(
            r"(?P<what>tools) param requires --jinja flag", r"(?P<what>image|audio) input is not supported - hint"
        ),
        inputs=("check",),
    ),
)

LAST_RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A020",
        title="layers stay on the CPU because llama.cpp finds no GPU",
        cause="{flag} is set but ignored: llama.cpp was built without GPU support, or finds no GPU",
        fix="with a GPU, set gpus: 1, which selects the CUDA image; without a GPU, remove gpu_layers",
        source=f"{SERVER}, common/arg.cpp; failure reproduced",
        explain="The warning appears only in the first lines of the log. The server runs, but slowly.",
        find=_find_missing_gpu,
        shows_gpus=True,
    ),
)
