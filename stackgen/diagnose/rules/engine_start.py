"""Rules for starts that vLLM ends because of a setting: JSON values, CUDA graphs, caches of state, vocabulary files.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Change, Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

GIB = 2**30
# llama.cpp goes on without pinned memory
BUFFER_LIMIT = re.compile(
    r"^(?!.*pinned memory).*Requested buffer size exceeds device (?:memory allocation|buffer size)"
)
BUFFER_SIZE = re.compile(r"(?:Device memory allocation of size|failed to allocate \w+ buffer of size) (?P<bytes>\d+)")


def _find_large_buffer(evidence: Evidence) -> Iterator[Hit]:
    """llama.cpp's Vulkan backend logs that a buffer is larger than the driver's limit for one buffer."""
    for service in evidence.services:
        lines = [] if service.is_working else [strip_prefix(one).strip() for one in lines_since_ready(service.log)]
        place = next((index for index, line in enumerate(lines) if BUFFER_LIMIT.match(line)), None)
        if place is not None:
            near = [(line, found) for line in lines[max(0, place - 2) : place + 3]
                    if (found := BUFFER_SIZE.search(line))]  # fmt: skip
            values = {"size": f"{int(near[0][1]['bytes']) / GIB:.1f}"} if near else {}
            shown = dict.fromkeys((lines[place], *(line for line, _ in near)))
            yield Hit(service.service, tuple(shown), values)


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V026",
        title="a flag needs a value in JSON",
        cause="{flag} needs JSON, but vLLM got `{value}`, which is not valid JSON. A shell or a YAML file removed "
        "quotes or braces, or added backslashes",
        fix="in extra_args, write the whole JSON value, with braces and double quotes, as one list item in single "
        "quotes; in a shell, quote the value in the same way",
        source="The message comes from argparse with the type json.loads in vLLM (engine/arg_utils.py), and is quoted "
        "in wtdcode/vllm-backport issue 16 (2026-08). The failure was not reproduced.",
        explain="YAML reads an unquoted {…} as a mapping, and shells remove double quotes. The message does not mean "
        "that the image lacks a feature.",
        patterns=compile_patterns(
            r"error: argument (?P<flag>--[\w.-]+)(?:/\S+)?: Value (?P<value>.+) cannot be converted to <function loads",
            r"error: argument (?P<flag>--[\w.-]+)(?:/\S+)?: invalid (?:json\.)?loads value: (?P<value>.+)",
        ),
    ),
    Rule(
        "SG-V027",
        title="an operation is not possible while CUDA graphs are captured",
        cause="vLLM records CUDA graphs at startup, and an operation of the model can't be recorded on this machine",
        fix="set enforce_eager to true, which turns CUDA graphs off; or try a newer image, which may support the "
        "operation",
        source="The message is the text of CUDA error 900 (cudaErrorStreamCaptureUnsupported), quoted in xencon/aixcl "
        "issue 669 (2026-04) under WSL 2. The failure was not reproduced.",
        explain="`operation not permitted` is about CUDA streams, not about permissions of the container. Eager mode "
        "makes decoding slower.",
        patterns=compile_patterns(
            r"(?:CUDA|HIP) error: operation not permitted when stream is capturing|(?<!`)cudaErrorStreamCapture\w+",
        ),
        change=Change("enforce_eager", "true", safe=False),
        variants=(
            Variant(
                compile_patterns(r"operation failed due to a previous error during capture"),
                cause="vLLM records CUDA graphs at startup, and an operation failed during the recording",
                fix="look for an earlier error of this start; if there is none, set enforce_eager to true, which "
                "turns CUDA graphs off",
            ),
        ),
    ),
    Rule(
        "SG-V028",
        title="the GPU has too little memory for max_num_seqs requests",
        cause="max_num_seqs is {seqs}, but the GPU's memory holds the state of only {blocks} requests",
        fix="lower max_num_seqs to at most {blocks}, or raise gpu_memory_utilization",
        source="The message comes from vLLM (v1/worker/gpu_model_runner.py), and is quoted in vllm-project/recipes "
        "pull "
        "request 551 (2026-06). The failure was not reproduced.",
        explain="Models with Mamba layers keep one block of state for each running request. max_num_seqs is the "
        "maximum number of running requests, and is 1024 by default on large GPUs. A shorter max_model_len does not "
        "help.",
        patterns=compile_patterns(
            r"max_num_seqs \((?P<seqs>\d+)\) exceeds available Mamba cache blocks \((?P<blocks>\d+)\)"
        ),
        engines=("vllm",),
        change=Change("max_num_seqs", "{blocks}"),
    ),
    Rule(
        "SG-V055",
        title="the engine was not ready in time",
        cause="the API server of vLLM waited {seconds} s for the engine, and then ended it. The engine was still "
        "loading or compiling, or it hung",
        fix="look at the engine's last line above this message; if the engine was loading weights or compiling, set "
        "VLLM_ENGINE_READY_TIMEOUT_S in extra_env to more seconds, and put the weights on faster storage; if the last "
        "line is about NCCL or the network, see SG-G033",
        source="The message comes from vLLM 0.33 (v1/engine/core_client.py). The failure was not reproduced.",
        explain="Weights on a network file system, a first start that compiles kernels, and a full disk cache make a "
        "start slow. By default, the API server waits 600 s.",
        patterns=compile_patterns(
            r"Timed out waiting for engine core processes to start\..{0,80}? Waited (?P<seconds>[\d.]+) ?s"
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-V051",
        title="num_speculative_tokens does not fit tensor_parallel_size",
        cause="with sequence parallelism, vLLM captures CUDA graphs only for batch sizes that are multiples of both "
        "num_speculative_tokens + 1 ({tokens}) and tensor_parallel_size ({size}). No batch size meets both conditions",
        fix="set num_speculative_tokens so that num_speculative_tokens + 1 is a multiple of {size}; or turn sequence "
        "parallelism off (`enable_sp` of pass_config in `--compilation-config`; on Ascend NPUs, "
        "VLLM_ASCEND_ENABLE_FLASHCOMM1); before you change the number, read the page of the draft model, because some "
        "draft models allow only one number of tokens",
        source="The message comes from vLLM (config/compilation.py, adjust_cudagraph_sizes_for_spec_decode). "
        "vllm-project/vllm pull request 29036 (2025-11) quotes it: vLLM 0.11.1 printed it even without sequence "
        "parallelism. The failure was not reproduced.",
        explain="The larger of the two numbers must be a multiple of the smaller one: 8 and 4 work, but 6 and 4 do "
        "not.",
        patterns=compile_patterns(
            r"Can't determine cudagraph shapes that are both a multiple of (?P<tokens>\d+) .{0,60}? and (?P<size>\d+) "
        ),
    ),
    Rule(
        "SG-V029",
        title="a setting asks for a data type of activations that the weights do not support",
        cause="a setting asks for INT8 or FP8 activations, which NVFP4 weights do not support: {problem}",
        fix="in extra_env, remove VLLM_MARLIN_INPUT_DTYPE and other settings for the data type of activations",
        source="The message comes from vLLM (quantization/utils/marlin_utils_fp4.py), and is quoted in "
        "noonghunna/club-3090 issue 609 (2026-07). The failure was not reproduced.",
        explain="Neither the image nor the model is damaged. Without the setting, the same weights work.",
        patterns=compile_patterns(r"(?P<problem>NVFP4 weight \+ \S+ activation is not supported)"),
    ),
    Rule(
        "SG-V030",
        title="the vocabulary of gpt-oss can't be loaded",
        cause="gpt-oss needs the vocabulary o200k_base, which is not in the model's repository. vLLM found it "
        "neither in TIKTOKEN_ENCODINGS_BASE nor on OpenAI's server",
        fix="run `stackgen render` and `stackgen up`: the download service then puts the vocabulary into the model "
        "storage; if storage.offline is set, copy o200k_base.tiktoken into the folder `tiktoken` of the storage; in "
        "a container that stackgen did not render, set TIKTOKEN_ENCODINGS_BASE to a folder with this file",
        source="The message comes from openai_harmony, and is quoted in vllm-project/vllm issue 22525 (2025-08) and "
        "openai/harmony issues 95 and 101 (2026). The failure was reproduced with a missing and a damaged file, with "
        "openai-harmony 0.0.8.",
        explain="openai-harmony reads o200k_base.tiktoken from the folder in TIKTOKEN_ENCODINGS_BASE, and accepts "
        "only a file with the right checksum. Without the variable, it downloads the file at each start of a new "
        "container. stackgen sets the variable for models whose name contains gpt-oss, and for models with the "
        "parser openai or openai_gptoss.",
        patterns=compile_patterns(r"error downloading or loading vocab file", r"invalid tiktoken vocab file"),
    ),
    Rule(
        "SG-F009",
        title="the controller did not accept the worker",
        cause="the worker tried to register with the controller, but the answer was not HTTP 200. Often a proxy from "
        "the environment (HTTP_PROXY) answered instead of the controller",
        fix="set NO_PROXY in extra_env to the name of the controller's service, localhost and 127.0.0.1; if that "
        "does not help, read the controller's log",
        source="The line comes from FastChat 0.2.36 (serve/base_model_worker.py, register_to_controller), and is "
        "quoted "
        "in lm-sys/FastChat issue 1282. The failure was not reproduced.",
        explain="Docker's client passes the proxies of ~/.docker/config.json to every container. "
        "`docker compose exec SERVICE env` shows them.",
        # the assertion's own line has no text, so the code line of the frame shows it
        patterns=compile_patterns(r"^\s*assert r\.status_code == 200$"),
        engines=("fastchat",),
    ),
    Rule(
        "SG-V034",
        title="the KV cache is too small for the context",
        cause="max_model_len is {length}, but only {limit} tokens fit in the KV cache",
        fix="lower max_model_len to {limit}, or raise gpu_memory_utilization, set kv_cache_dtype to fp8, or use more "
        "GPUs",
        source="The message comes from vLLM before 0.9 (worker/worker.py, raise_if_cache_size_invalid). The failure "
        "was not reproduced. SG-V012 is the same cause in newer versions.",
        explain="vLLM starts only if one request of the full context fits in its KV cache. max_model_len is not a "
        "batch "
        "size.",
        patterns=compile_patterns(
            r"model's max seq len \((?P<length>\d+)\) is larger than the maximum number of tokens that can be stored "
            r"in KV "
            r"cache \((?P<limit>\d+)\)"
        ),
        engines=("vllm",),
        change=Change("max_model_len", "{limit}"),
        shows_gpus=True,
    ),
    Rule(
        "SG-A025",
        title="llama.cpp's working memory does not fit on the GPU",
        cause="the weights fit on the GPU, but the memory that is left is too small for the compute buffers of a batch",
        fix='lower max_model_len or gpu_layers, or use a smaller batch (set extra_args to [--ubatch-size, "256"])',
        source="The message comes from build 11434 of llama-server (src/llama-context.cpp), and is quoted in "
        "ggml-org/llama.cpp pull request 16748 (2025-10). The failure was not reproduced.",
        explain="The size of these buffers depends on --ubatch-size and on the context. Models for images need "
        "larger buffers.",
        patterns=compile_patterns(r"failed to allocate compute (?:pp |tg )?buffers"),
        consequence_of=("SG-A010", "SG-A030"),
        shows_gpus=True,
    ),
    Rule(
        "SG-A030",
        title="one buffer is larger than the GPU's driver allows",
        cause="llama.cpp needs one buffer[[ of {size} GiB]] that is larger than the Vulkan driver allows. The memory "
        "is not full",
        fix='make the largest buffer smaller: turn on flash attention (set extra_args to [--flash-attn, "on"]), use '
        'a smaller batch (--ubatch-size "256" or "128"), or lower max_model_len; or use an image with a higher '
        "limit: one with newer llama.cpp and Mesa, or one for ROCm or CUDA",
        source="The message comes from llama.cpp (ggml/src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_create_buffer), and is "
        "quoted in ggml-org/llama.cpp issues 15009 (2025-08) and 12817 (2025-04). The failure was not reproduced.",
        explain="Many drivers allow at most 4 GiB for one buffer (maxMemoryAllocationSize and maxBufferSize in "
        "`vulkaninfo`), regardless of the GPU's memory. Fewer layers on the GPU do not make the buffer of a batch "
        "smaller.",
        find=_find_large_buffer,
    ),
    Rule(
        "SG-A041",
        title="llama-server can't read the model's chat template",
        cause="llama-server ended because it can't make a parser from the chat template in the GGUF file: {problem}. "
        "Either the template is not for chats (such as one for translation), or this build does not know a part of it",
        fix="set `image:` to a newer build of llama.cpp; or set chat_template to a template that llama.cpp can read, "
        "for example from `models/templates` of its repository; if the model only completes or translates, set "
        "extra_args to [--no-jinja, --chat-template, chatml], and write the model's own format in the prompt",
        source="The messages come from llama-server (tools/server/server-context.cpp and common/chat.cpp), and are "
        "quoted in ggml-org/llama.cpp issue 20305 (2026-03). The failure was not reproduced.",
        explain="The weights are not damaged. llama-server tests the template with an example before it answers "
        "requests.",
        patterns=compile_patterns(
            # what the template itself refuses is SG-V031
            r"init: chat template parsing error: (?P<problem>(?!.*Jinja Exception)\S.{0,300})",
        ),
        engines=("llamacpp",),
    ),
)
