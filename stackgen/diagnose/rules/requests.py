"""Rules for what requests need besides a model: chat templates, parsers, adapters, context length.

The texts are those of vLLM 0.32.0.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, compile_patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V011",
        title="the tool call parser does not exist",
        cause="vLLM has no tool call parser {parser}",
        fix="set tool_call_parser to one of {known}",
        source="vLLM 0.32.0, tool_parsers; failure reproduced",
        explain="The right parser depends on the model's family, for example hermes for Qwen 2.5, llama3_json, or "
        "mistral. See Tool Calling on docs.vllm.ai.",
        patterns=compile_patterns(r"invalid tool call parser: (?P<parser>\S+) \(chose from \{ ?(?P<known>[^}]+)"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V013",
        title="the reasoning parser does not exist",
        cause="vLLM has no reasoning parser {parser}",
        fix="set reasoning_parser to one of {known}",
        source="vLLM 0.32.0, reasoning; failure reproduced",
        explain="vLLM no longer has the flag --enable-reasoning: reasoning_parser alone enables reasoning. Many model "
        "families have their own reasoning parser.",
        patterns=compile_patterns(
            r"Reasoning parser '(?P<parser>[^']+)' not found\. Available parsers: (?P<known>[^\"]+)"
        ),
        engines=("vllm",),
    ),
    Rule(
        "SG-V014",
        title="the chat template file does not exist",
        cause="the chat template[[ {path}]] does not exist in the container",
        fix="set chat_template to a file on this machine; stackgen mounts the file into the container",
        source="vLLM 0.32.0, renderers/chat_utils.py, validate_chat_template; failure reproduced",
        explain="A path in extra_args is a path inside the container. stackgen mounts the file that you set in "
        "chat_template.",
        patterns=compile_patterns(
            r"The supplied chat template string \((?P<path>[^)]+)\) appears path-like, but doesn't exist",
            r"the supplied chat template path doesn't exist",
        ),
    ),
    Rule(
        "SG-V015",
        title="the model has no chat template",
        cause="/v1/chat/completions needs a chat template, but the tokenizer of this base model has none",
        fix="use the instruction-tuned version of the model, or set chat_template to a Jinja file",
        source="transformers 4.44 and later, tokenization_utils_base.py; failure reproduced",
        explain="Base models continue text and know no chat roles, but /v1/completions works. Newer repositories keep "
        "the chat template in chat_template.jinja next to tokenizer_config.json. Maybe chat_template.jinja was not "
        "downloaded.",
        patterns=compile_patterns(
            r"default chat template is no longer allowed, so you must provide a chat template",
            r"tokenizer\.chat_template is not set",
        ),
        inputs=("log", "check"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V016",
        title="tool calls are not enabled",
        cause="the client sends tools, but the server was started without a tool call parser",
        fix="set tool_call_parser to the parser of the model's family; this field also enables automatic tool choice",
        source="vLLM 0.32.0, renderers/online_renderer.py; failure reproduced",
        explain="For tool calls, vLLM needs --enable-auto-tool-choice and --tool-call-parser. If tool_call_parser is "
        "set, stackgen writes both flags.",
        patterns=compile_patterns(
            # the check quotes the answer as JSON, in which the quotes are escaped
            r'auto\\?"? tool choice requires --enable-auto-tool-choice',
            r"tool_choice=.{1,80} requires --tool-call-parser to be set",
        ),
        inputs=("log", "check"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V017",
        title="the prompt is longer than the context",
        cause="the server accepts {limit} tokens for prompt and answer together, but the request needs more",
        fix="shorten the prompt or lower max_tokens; or raise max_model_len as far as the model and the KV cache allow",
        source="vLLM 0.32.0, renderers/params.py; FastChat 0.2.36, openai_api_server.py (code 40303); "
        "llama-server b11434",
        explain="max_model_len limits prompt and answer together. max_model_len is not a batch size.",
        patterns=compile_patterns(
            r"maximum context length is (?P<limit>\d+) tokens",
            r"max_tokens=\d+ cannot be greater than max_model_len=(?P<limit>\d+)",
            r"request \(\d+ tokens\) exceeds the available context size \((?P<limit>\d+) tokens\)",
        ),
        inputs=("check",),
    ),
    Rule(
        "SG-V020",
        title="a LoRA adapter can't be loaded",
        cause="the adapter[[ {adapter}]] can't be loaded[[ from {path}]][[: its rank {rank} is above the limit "
        "{limit}]]",
        fix="set `path` in lora_adapters to a folder with adapter_config.json, or to a Hugging Face id",
        source="vLLM 0.32.0, lora; entrypoints/openai/models",
        explain="The adapter must have been trained for this exact base model. The adapter's rank must be at most "
        "--max-lora-rank (16).",
        patterns=compile_patterns(
            r"Loading lora (?P<adapter>\S+) failed: No adapter found for (?P<path>\S+)",
            r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<limit>\d+)",
        ),
        engines=("vllm",),
    ),
)
