"""Parses arguments of an engine as the engine's own parser does, and finds values that the pinned version refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from stackgen.flags import REMOVED_FLAGS, Flags, normalize_flag

__all__ = [
    "BREAKING_FLAGS", "FIELD_OF_FLAG", "FORCED_USAGE", "FORCED_USAGE_EFFECT", "FORCED_USAGE_REMEDY", "OWN_FLAGS",
    "PLAIN_FIELDS", "Argument", "find_forced_usage", "find_plugin", "list_values", "parse_arguments", "suggest_value",
]  # fmt: skip

# engine -> flag -> the field of stack.yaml that sets it
FIELD_OF_FLAG: dict[str, dict[str, str]] = {
    "vllm": {
        "--model": "model", "--revision": "revision", "--served-model-name": "served_names", "--port": "port",
        "--tensor-parallel-size": "tensor_parallel_size", "--pipeline-parallel-size": "pipeline_parallel_size",
        "--max-model-len": "max_model_len", "--dtype": "dtype", "--quantization": "quantization",
        "--kv-cache-dtype": "kv_cache_dtype", "--gpu-memory-utilization": "gpu_memory_utilization",
        "--max-num-seqs": "max_num_seqs", "--trust-remote-code": "trust_remote_code", "--host": "bind",
        "--enforce-eager": "enforce_eager", "--chat-template": "chat_template", "--api-key": "STACKGEN_API_KEY in .env",
        "--tool-call-parser": "tool_call_parser", "--reasoning-parser": "reasoning_parser",
        "--lora-modules": "lora_adapters", "--max-lora-rank": "max_lora_rank", "--max-loras": "max_loras",
        "--data-parallel-size": "data_parallel_size", "--enable-expert-parallel": "expert_parallel",
        "--max-num-batched-tokens": "max_num_batched_tokens", "--enable-prefix-caching": "prefix_caching",
        "--kv-cache-memory-bytes": "kv_cache_memory", "--cpu-offload-gb": "cpu_offload_gib",
        "--load-format": "load_format", "--speculative-config": "speculative",
        "--spec-method": "speculative", "--spec-model": "speculative", "--spec-tokens": "speculative",
        "--limit-mm-per-prompt": "limit_mm_per_prompt", "--enable-sleep-mode": "sleep_mode",
    },
    "fastchat": {
        "--model-path": "model", "--model-names": "served_names", "--revision": "revision", "--num-gpus": "gpus",
        "--gpus": "gpus", "--device": "gpus", "--conv-template": "conv_template", "--dtype": "dtype",
        "--limit-worker-concurrency": "worker_concurrency", "--load-8bit": "load_8bit",
        "--cpu-offloading": "cpu_offloading", "--max-gpu-memory": "max_gpu_memory",
    },
    "sglang": {
        "--model-path": "model", "--revision": "revision", "--served-model-name": "served_names", "--port": "port",
        "--host": "bind", "--tp-size": "tensor_parallel_size", "--pp-size": "pipeline_parallel_size",
        "--dp-size": "data_parallel_size", "--context-length": "max_model_len", "--dtype": "dtype",
        "--quantization": "quantization", "--kv-cache-dtype": "kv_cache_dtype",
        "--mem-fraction-static": "mem_fraction_static", "--max-running-requests": "max_num_seqs",
        "--chunked-prefill-size": "chunked_prefill_size", "--chat-template": "chat_template",
        "--tool-call-parser": "tool_call_parser", "--reasoning-parser": "reasoning_parser",
        "--trust-remote-code": "trust_remote_code", "--device": "gpus", "--api-key": "STACKGEN_API_KEY in .env",
        "--disable-cuda-graph": "enforce_eager",
    },
    "llamacpp": {
        "--model": "model", "--alias": "served_names", "--port": "port", "--host": "bind",
        "--ctx-size": "max_model_len", "--parallel": "max_num_seqs", "--gpu-layers": "gpu_layers",
        "--models-dir": "models_dir", "--models-max": "models_max",
        "--api-key": "STACKGEN_API_KEY in .env",
    },
}  # fmt: skip
# fields that only set their flag: in extra_args, the flag does the same
PLAIN_FIELDS = frozenset({
    "expert_parallel", "max_num_batched_tokens", "prefix_caching", "kv_cache_memory", "load_format",
    "limit_mm_per_prompt", "sleep_mode", "speculative",
})  # fmt: skip
# findings/vllm-forced-usage-inflates-counts.sh
FORCED_USAGE = "--enable-force-include-usage"
FORCED_USAGE_EFFECT = (
    "vLLM adds the usage so far to every chunk of every stream. pydantic-ai and langchain-openai add up all of these "
    "numbers, so the tokens that they report, and their token limits, are several times too high"
)
FORCED_USAGE_REMEDY = (
    "remove it, and set `stream_options: {include_usage: true}` in clients that need the usage. Keep it only if no "
    "client adds up chunks, and the gateway must count the tokens of all streams exactly"
)
# engine -> flags whose values other parts of a stack use: health checks, ports, the gateway, the download, placement.
# In extra_args, they would change the engine alone
OWN_FLAGS: dict[str, frozenset[str]] = {
    "vllm": frozenset({
        "--model", "--revision", "--served-model-name", "--port", "--host", "--api-key", "--tensor-parallel-size",
        "--pipeline-parallel-size", "--lora-modules", "--data-parallel-size", "--speculative-config",
        "--spec-model",
    }),
    "fastchat": frozenset({
        "--model-path", "--revision", "--model-names", "--num-gpus", "--gpus", "--host", "--port",
        "--worker-address", "--controller-address",
    }),
    "sglang": frozenset({
        "--model-path", "--revision", "--served-model-name", "--port", "--host", "--api-key", "--device", "--tp-size",
        "--pp-size", "--dp-size",
    }),
    "llamacpp": frozenset({
        "--model", "--alias", "--port", "--host", "--api-key", "--models-dir", "--ctx-size", "--parallel",
    }),
}  # fmt: skip
_TLS = ("serves HTTPS, but the health check and the gateway use HTTP", "remove the flag, and set `gateway: {tls: …}`")
_PREFIX = ("changes the paths, but the health check and the gateway use the usual paths", "remove the flag")
_MODEL = (
    "loads a model other than the one that `model` and `file` name",
    "remove the flag, and set `model` and `file`",
)
# engine -> flags that stackgen doesn't set, and that break the rest of a stack -> what they change, and the remedy
BREAKING_FLAGS: dict[str, dict[str, tuple[str, str]]] = {
    "vllm": {
        "--ssl-keyfile": _TLS, "--ssl-certfile": _TLS,
        "--uds": ("listens on a socket file, but the health check and the gateway use a port", "remove the flag"),
        "--root-path": _PREFIX,
        "--headless": ("starts no HTTP server",
                       "remove the flag. To run a model on several machines, set `split_hosts`"),
        "--grpc": ("serves gRPC, but the health check and the gateway use HTTP", "remove the flag"),
        "--config": ("reads flags from a file, which stackgen does not read",
                     "remove the flag. Move the file's settings into stack.yaml: into fields of the model where a "
                     "field exists, otherwise into extra_args"),
    },
    "fastchat": {
        "--ssl": _TLS,
        "--no-register": ("hides the worker from the controller, so no request reaches the worker", "remove the flag"),
    },
    "sglang": {
        "--ssl-keyfile": _TLS, "--ssl-certfile": _TLS,
        "--config": ("reads flags from a file, which stackgen does not read",
                     "remove the flag. Move the file's settings into stack.yaml: into fields of the model where a "
                     "field exists, otherwise into extra_args"),
        "--admin-api-key": ("is visible in the process list, and SGLang writes it into its log",
                            "remove the flag: then the administration paths need STACKGEN_API_KEY"),
        "--fastapi-root-path": _PREFIX,
        "--smg-grpc-mode": ("serves gRPC, but the health check and the gateway use HTTP", "remove the flag"),
        "--grpc-mode": ("serves gRPC, but the health check and the gateway use HTTP", "remove the flag"),
        "--encoder-only": ("does not serve text models", "remove the flag"),
    },
    "llamacpp": {
        "--hf-repo": _MODEL, "--model-url": _MODEL, "--ssl-key-file": _TLS, "--ssl-cert-file": _TLS,
        "--api-prefix": _PREFIX,
        "--models-preset": ("starts a router with models that stackgen does not know", "remove the flag, and set "
                            "`models_dir` to a folder with the GGUF files"),
    },
}  # fmt: skip
# flags whose values the program compares without regard to case (vLLM 0.32.0: config/model.py, load.py, attention.py)
CASELESS = frozenset({"--quantization", "--load-format", "--attention-backend"})
# flag -> the flag with which a plugin registers further values
PLUGIN_FLAGS = {"--tool-call-parser": "--tool-parser-plugin", "--reasoning-parser": "--reasoning-parser-plugin"}
# values that stackgen's own launcher adds (templates/images/fastchat/conversations.py)
LAUNCHER_VALUES = {"--conv-template": ("chat-template",)}
CONVERSATION_HINT = (
    "remove it: FastChat then chooses a template by the model's name, or uses the tokenizer's chat template. "
    "`chat-template` always uses the tokenizer's chat template. The names of FastChat's templates are in "
    "fastchat/conversation.py"
)


@dataclass(frozen=True, slots=True)
class Argument:
    """One flag in a list of arguments, at `index`, with its value at `value_index`.

    `flag` is as the user wrote it. `entry` is the flag's entry in the table of flags, None if the engine does not know
    the flag. `value` is None if the flag has no value.
    """

    index: int
    flag: str
    entry: dict[str, Any] | None
    value: str | None = None
    value_index: int = 0

    def find_name(self, names: Sequence[str] | frozenset[str] | dict[str, str]) -> str:
        """The name of this flag that is in `names`; "" if none is."""
        return next((one for one in self.entry["names"] if one in names), "") if self.entry else ""


def parse_arguments(engine: str, arguments: Sequence[str], known: Flags) -> Iterator[Argument]:
    """The flags in `arguments`, in their order."""
    for index, argument in enumerate(arguments):
        # a value, also a negative number such as -1
        if not re.match(r"--?[A-Za-z]", argument):
            continue
        flag, equals, value = argument.partition("=")
        entry = _find_entry(engine, flag, known)
        after = arguments[index + 1] if index + 1 < len(arguments) else "--x"
        if equals:
            yield Argument(index, flag, entry, value, index)
        elif entry and entry.get("value") and not re.match(r"--?[A-Za-z]", after):
            yield Argument(index, flag, entry, after, index + 1)
        else:
            yield Argument(index, flag, entry)


def find_forced_usage(arguments: Sequence[str], known: Flags) -> Argument | None:
    """The argument that makes vLLM send the usage with every chunk; None if there is none, or a later one ends this."""
    found = None
    for argument in parse_arguments("vllm", arguments, known):
        if argument.find_name({FORCED_USAGE: ""}):
            is_off = normalize_flag(argument.flag).startswith(("--no-", "--disable-"))
            found = None if is_off else argument
    return found


def find_plugin(flag: str, arguments: Sequence[str]) -> str:
    """The flag in `arguments` that loads a plugin with further values of `flag`; "" if there is none."""
    plugin = PLUGIN_FLAGS.get(flag, "")
    return plugin if plugin and any(one.partition("=")[0].replace("_", "-") == plugin for one in arguments) else ""


def list_values(entry: dict[str, Any]) -> tuple[str, ...]:
    """The values that a flag accepts; empty if any value may be valid.

    An entry has `choices`, which the program's parser compares, or `values`, which the program compares later.
    """
    more = next((LAUNCHER_VALUES[name] for name in entry["names"] if name in LAUNCHER_VALUES), ())
    found = tuple(entry.get("choices") or entry.get("values") or ())
    return found + more if found else ()


def suggest_value(entry: dict[str, Any], value: str) -> str | None:
    """What to do about a value that a flag does not accept; None if the flag accepts the value."""
    values = list_values(entry)
    if not values or value in values:
        return None
    folded = {one.lower(): one for one in values}
    if value.lower() in folded and CASELESS & set(entry["names"]):
        return None
    # people write `deepseek-r1` and `Hermes` for `deepseek_r1` and `hermes`
    for same in (value.lower(), value.lower().replace("-", "_"), value.lower().replace("_", "-")):
        if same in folded:
            return f"did you mean {folded[same]}?"
    # vLLM's name; SGLang's mxfp8 is another format
    if value.lower() == "fp8" and {"fp8_e4m3", "fp8_e5m2"} <= set(values):
        return "did you mean fp8_e4m3 or fp8_e5m2?"
    if value.lower() in ("none", "null"):
        return "remove it: without a value, the engine uses its default"
    # a template for another model gives wrong answers without an error, so a similar name is no suggestion
    if "--conv-template" in entry["names"]:
        return CONVERSATION_HINT
    if close := _find_close(value.lower(), list(folded)):
        return f"did you mean {folded[close]}?"
    # some flags have dozens of values
    return f"use one of {', '.join(values) if len(values) <= 60 else ', '.join(values[:60]) + ', …'}"


def _find_close(value: str, names: Sequence[str]) -> str:
    """The name that `value` probably stands for; "" if there is none. Other digits are another model or version."""
    # the rest of a name that was cut off, as `fp8_e5` for `fp8_e5m2`, before a name of similar length
    # glm4 is not the beginning of glm45
    rest = r"(?!\d)" if value[-1:].isdigit() else ""
    longer = [name for name in names if len(value) >= 2 and re.match(re.escape(value) + rest, name)]
    if len(longer) == 1:
        return longer[0]
    digits = re.findall(r"\d+", value)
    same = [name for name in names if re.findall(r"\d+", name) == digits]
    return next(iter(get_close_matches(value[:100], same, n=1, cutoff=0.65)), "")


def _find_entry(engine: str, flag: str, known: Flags) -> dict[str, Any] | None:
    """The entry of a flag. Accepts the same underscores, short forms and abbreviations as each program (tested)."""
    if engine in ("vllm", "llamacpp"):
        flag = flag if flag.startswith("--") is False else "--" + flag[2:].replace("_", "-")
    if engine == "vllm":
        # --speculative-config.method and --compilation-config.sizes+ set one key of a JSON value
        flag = flag.partition(".")[0].rstrip("+")
        flag = "-O" if re.fullmatch(r"-O\d", flag) else flag
    if flag in known.by_name:
        return known.by_name[flag]
    if flag == "-O" and engine == "vllm":
        return {"names": ["-O"]}
    # llama.cpp has a parser of its own, which accepts no abbreviations
    # a removed flag must not count as the abbreviation of another flag
    if engine == "llamacpp" or not flag.startswith("--") or flag in REMOVED_FLAGS[engine]:
        return None
    # argparse accepts a prefix that only one flag has
    found = [entry for name, entry in known.by_name.items() if name.startswith(flag)]
    return found[0] if found and all(entry is found[0] for entry in found) else None
