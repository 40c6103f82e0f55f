"""llama.cpp's server: GGUF files, flags, memory, templates. Ids are SG-A: SG-L are the model's files of all engines.

Texts of llama-server, build 11434, all provoked in containers unless said otherwise. An unknown model name is no
failure here: llama-server answers to any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import clean, recent
from stackgen.diagnose.rule import Change, Hit, Rule, patterns
from stackgen.flags import dashed, meant

__all__ = ["LAST", "RULES"]

SERVER = "llama-server, build 11434"
UNKNOWN = re.compile(r"^error: invalid argument: (?P<flag>\S+)")
ALLOCATION = re.compile(r"failed to allocate (?P<device>\w+) buffer of size (?P<bytes>\d+)")
IGNORED = re.compile(r"no usable GPU found, (?P<flag>--[\w-]+) option will be ignored")
# what vLLM calls it -> what llama.cpp has in its place
FOREIGN = {
    "--max-model-len": "use the field max_model_len: it becomes --ctx-size",
    "--max-num-seqs": "use the field max_num_seqs: it becomes --parallel",
    "--served-model-name": "use the field served_names: it becomes --alias",
    "--gpu-memory-utilization": "leave it out: llama.cpp takes what it needs; gpu_layers bounds what goes to the card",
    "--tensor-parallel-size": "use --split-mode and --tensor-split",
    "--enforce-eager": "leave it out: there are no CUDA graphs to turn off here",
    "--quantization": "leave it out: the GGUF file is quantized already",
    "--dtype": "leave it out: the GGUF file has its types",
    "--kv-cache-dtype": "use --cache-type-k and --cache-type-v",
}
AGAIN = "download or copy it again; `stackgen down --volumes` drops all weights of the stack"


def _unknown_flag(evidence: Evidence) -> Iterator[Hit]:
    """A word in extra_args that llama-server's parser does not know."""
    for service in evidence.services:
        match = next((found for line in recent(service.log) if (found := UNKNOWN.match(line))), None)
        if match:
            flag = match["flag"]
            other = meant("llamacpp", flag) or "take it out, or look at `llama-server --help`"
            remedy = FOREIGN.get(dashed(flag), other)
            bare = dashed(flag) == "--enforce-eager"
            change = Change("extra_args", flag, safe=False, remove=True, with_value=not bare)
            yield Hit(service.service, (match[0],), {"flag": flag, "remedy": remedy},
                      change=change if remedy.startswith("leave it out") else None)  # fmt: skip


def _context_memory(evidence: Evidence) -> Iterator[Hit]:
    """The KV cache of the whole context, which llama.cpp allocates at its start, does not fit."""
    for service in evidence.services:
        lines = recent(service.log)
        said = next((line for line in lines if "failed to allocate buffer for kv cache" in line), None)
        if said:
            size = next((found for line in lines if (found := ALLOCATION.search(line))), None)
            values = {"size": f"{int(size['bytes']) / 2**30:.1f} GiB", "device": size["device"]} if size else {}
            yield Hit(service.service, (said.strip(), *([size[0]] if size else [])), values)


def _no_gpu(evidence: Evidence) -> Iterator[Hit]:
    """Layers were to go to a card, and the program found none; it says so only when it starts."""
    for service in evidence.services:
        match = IGNORED.search(service.log) if service.engine in ("llamacpp", "") else None
        if match and (service.works or not service.state):
            yield Hit(service.service, (clean(match.string[match.start() :].partition("\n")[0]),), match.groupdict())


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A001",
        "llama.cpp does not know a flag",
        "llama-server has no flag {flag}",
        "{remedy} (in extra_args)",
        f"{SERVER}, common/arg.cpp; provoked for real",
        "Flags of vLLM have other names here: " + "; ".join(f"`{flag}`: {to}" for flag, to in FOREIGN.items()) + ".",
        find=_unknown_flag,
    ),
    Rule(
        "SG-A002",
        "llama.cpp can't open the chat template's file",
        "{path} is not there in the container, or may not be read",
        "name the file as it is mounted: in the model's own folder, with `model: ./folder` and `file: NAME.gguf`",
        f"{SERVER}, common/arg.cpp; provoked for real",
        "A path in extra_args is one inside the container. stackgen mounts the model's folder at /srv/host followed by "
        "its path on this machine.",
        patterns(r'handling argument "--chat-template-file": error: failed to open file \'(?P<path>[^\']+)\''),
    ),
    Rule(
        "SG-A003",
        "a flag of llama.cpp has a value that it can't take",
        "{flag}: {problem}",
        "correct it in extra_args; the log shows the flag's own help",
        f"{SERVER}, common/arg.cpp; provoked for real",
        "`stoi` is C++'s way of saying that a number was expected. Numbers are plain here: 8192, not 8k.",
        patterns(r'error while handling argument "(?P<flag>[^"]+)": (?:error: )?(?P<problem>.+)'),
    ),
    Rule(
        "SG-A004",
        "a GGUF file is not there",
        "llama.cpp finds no file {path} in its container",
        "correct `model:` and `file:` (names are case-sensitive); a path in extra_args (--lora, --mmproj, "
        "--model-draft) is one inside the container",
        f"{SERVER}, ggml/src/gguf.cpp and src/llama-adapter.cpp; provoked for real",
        "With `model: ./folder` the field `file:` names the GGUF in it; without it, `model:` is the file itself. Large "
        "models come in parts (-00001-of-00003.gguf): name the first, the others must lie beside it.",
        patterns(
            r"failed to open GGUF file '(?P<path>[^']+)' \(No such file or directory\)",
            r"llama_adapter_lora_init: failed to open '(?P<path>[^']+)': No such file",
        ),
    ),
    Rule(
        "SG-A005",
        "the file is no GGUF",
        "the file does not begin with 'GGUF'[[, but with '{magic}']]",
        f"{AGAIN}; a model in safetensors wants engine: vllm or a GGUF version of it",
        f"{SERVER}, ggml/src/gguf.cpp; provoked for real with a Git LFS pointer and with safetensors",
        "'vers' is the beginning of `version https://git-lfs`: the repository was cloned without `git lfs pull`. "
        "'<!DO' or '<htm' is a web page that was saved in place of the file.",
        patterns(r"invalid magic characters: '(?:(?P<magic>[^?']+)|[^']*)', expected 'GGUF'"),
    ),
    Rule(
        "SG-A006",
        "the GGUF file is empty, or a folder",
        "llama.cpp can't read the first bytes of its model",
        f"with a folder: add `file: NAME.gguf`; else {AGAIN}",
        f"{SERVER}, ggml/src/gguf.cpp; provoked for real with both",
        "A download that broke off at its start leaves an empty file. A disk that is full does so as well.",
        patterns(r"gguf_init_from_reader: failed to read magic"),
    ),
    Rule(
        "SG-A007",
        "the GGUF file was made for a newer llama.cpp",
        "the file has version {found} of the format, and this build reads up to {known}",
        "use an `image:` with a newer build, or another file",
        f"{SERVER}, ggml/src/gguf.cpp; provoked for real with a patched file",
        "A file whose bytes were swapped or damaged can say an absurd version too.",
        patterns(
            r"this GGUF file is version (?P<found>\d+) but this software only supports up to version (?P<known>\d+)"
        ),
    ),
    Rule(
        "SG-A008",
        "the GGUF file is cut off",
        "the file ends before it should[[, within {tensor}]]: a download or a copy broke off",
        AGAIN,
        f"{SERVER}, ggml/src/gguf.cpp and src/llama-model-loader.cpp; provoked for real",
        "The header of a GGUF file says where each tensor lies. Compare the size with the one on the Hub.",
        patterns(
            r"tensor '(?P<tensor>[^']+)' data is not within the file bounds",
            r"gguf_init_from_\w+: failed to read (?:key-value pairs|tensor info|tensor data|header)",
        ),
    ),
    Rule(
        "SG-A009",
        "llama.cpp does not know the model's architecture",
        "the file says architecture '{architecture}', which this build can't run",
        "use an `image:` with a newer build of llama.cpp, or another model",
        f"{SERVER}, src/llama-model.cpp; provoked for real with a patched file",
        "New architectures need a build newer than they are. Files of other programs (image models, adapters) have "
        "architectures that no language model has.",
        patterns(r"unknown model architecture: '(?P<architecture>[^']*)'"),
    ),
    Rule(
        "SG-A010",
        "the KV cache of the context does not fit the memory",
        "the whole context's KV cache is allocated at the start, and does not fit[[: {size} on {device}]]",
        "lower max_model_len (llama.cpp holds max_model_len × max_num_seqs tokens), or take a smaller cache: "
        "extra_args: [--cache-type-k, q8_0, --cache-type-v, q8_0]",
        f"{SERVER}, src/llama-context.cpp, ggml/src/ggml.c; provoked for real on the CPU",
        "Without max_model_len llama.cpp takes the context that the model was made for, or less where memory is short. "
        "A context beyond the model's own (n_ctx_train) gives garbage, however much memory there is.",
        find=_context_memory,
        cards=True,
    ),
    Rule(
        "SG-A011",
        "the model does not fit the card",
        "{wanted} MiB don't fit device {device}[[; it is held by {holders}]]",
        "put fewer layers on the card (gpu_layers: 20), take a smaller quantization (Q4 instead of Q8), or free the "
        "card",
        "ggml/src/ggml-cuda/ggml-cuda.cu, ggml_backend_cuda_buffer_type_alloc_buffer, as public reports print it",
        "Layers that stay on the CPU are slower, and the model runs. All layers on the card need about the file's own "
        "size, and the KV cache beside it.",
        patterns(r"allocating (?P<wanted>[\d.]+) MiB on device (?P<device>\d+): cudaMalloc failed: out of memory"),
        cards=True,
    ),
    Rule(
        "SG-A012",
        "the chat template can't be read",
        "llama.cpp can't parse the chat template: {problem}",
        "correct the Jinja file: every {% for %} and {% if %} needs its end; or leave it out, as the GGUF has its own",
        f"{SERVER}, common/chat.cpp; provoked for real",
        "llama.cpp has a Jinja of its own, which knows less than Python's. `--no-jinja` takes only the templates that "
        "are built in.",
        patterns(r"common_chat_templates_init: error: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A013",
        "llama.cpp has no chat template of that name",
        "there is no template '{name}' built in",
        "leave --chat-template out: the GGUF holds its model's own; `llama-server --help` lists the names",
        f"{SERVER}, common/arg.cpp; provoked for real",
        "A whole template as a text works only with --jinja, which is the default now.",
        patterns(r"error: the supplied chat template is not supported: (?P<name>[\w.-]+)$"),
    ),
    Rule(
        "SG-A014",
        "a quantized KV cache needs flash attention",
        "--cache-type-v is quantized, and flash attention is off",
        "take --flash-attn off out of extra_args, or --cache-type-v",
        f"{SERVER}, src/llama-context.cpp; provoked for real",
        "Keys may be quantized without it, values not.",
        patterns(r"quantized V cache requires flash_attn"),
    ),
    Rule(
        "SG-A015",
        "the LoRA adapter can't be used",
        "the adapter can't be loaded: {problem}",
        "name a GGUF that was made from an adapter (convert_lora_to_gguf.py), of this very model",
        f"{SERVER}, src/llama-adapter.cpp; provoked for real with a whole model in its place",
        "Adapters of the Hub are safetensors: they must be converted first.",
        patterns(r"failed to apply lora adapter: (?P<problem>.+)"),
    ),
    Rule(
        "SG-A016",
        "the file for --mmproj is no projector",
        "{path} holds no projector for images or sound",
        "name the mmproj file of this model's repository (its name begins with mmproj-), not the model itself",
        f"{SERVER}, tools/mtmd/clip.cpp; provoked for real",
        "Models that see come in two files: the model, and the projector.",
        patterns(r"Failed to load CLIP model from (?P<path>\S+)"),
    ),
    Rule(
        "SG-A017",
        "this llama.cpp speaks no TLS",
        "--ssl-key-file and --ssl-cert-file are set, and the server was built without SSL",
        "take them out, and put a gateway with the certificate before it",
        f"{SERVER}, tools/server; provoked for real",
        "Keys over plain HTTP belong on this machine or on a private network only.",
        patterns(r"the server is built without SSL support"),
    ),
    Rule(
        "SG-A018",
        "the server was not started for this kind of request",
        "llama-server does not do {what} unless it is told to at its start",
        'extra_args: ["{flag}"], best in a model of its own',
        f"{SERVER}, tools/server, HTTP 501; provoked for real",
        "With --embeddings or --reranking the server does only that: chat needs another model entry.",
        patterns(r"This server does not support (?P<what>embeddings|reranking)\. Start it with `(?P<flag>--\w+)`"),
        places=("check",),
    ),
    Rule(
        "SG-A019",
        "tools or images are not turned on",
        "the client sends {what}, and the server was started without what it needs for that",
        "tools: take --no-jinja out of extra_args; images: extra_args: [--mmproj, /path/of/mmproj.gguf]",
        f"{SERVER}, tools/server, HTTP 500; provoked for real",
        "Tool calls are parsed by the chat template's own rules, which only Jinja runs.",
        patterns(
            r"(?P<what>tools) param requires --jinja flag", r"(?P<what>image|audio) input is not supported - hint"
        ),
        places=("check",),
    ),
)

LAST: tuple[Rule, ...] = (
    Rule(
        "SG-A020",
        "layers stay on the CPU: llama.cpp sees no GPU",
        "{flag} is set and ignored: the program was built without GPU support, or sees no card",
        "with a card: give the model GPUs (gpus: 1), which chooses the CUDA image; without one: leave gpu_layers out",
        f"{SERVER}, common/arg.cpp; provoked for real",
        "The warning stands in the first lines of the log only, and the server runs: slowly.",
        find=_no_gpu,
        cards=True,
    ),
)
