"""What requests need beside a model: chat templates, parsers, adapters, room in the context. Texts of vLLM 0.32.0."""

from __future__ import annotations

from stackgen.diagnose.rule import Rule, patterns

__all__ = ["RULES"]

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V011",
        "no such tool parser",
        "vLLM knows no tool call parser {parser}",
        "set tool_call_parser to one of {known}",
        "vLLM 0.32.0, tool_parsers; provoked for real",
        "The parser follows the model's family: hermes (Qwen 2.5), llama3_json, mistral, … docs.vllm.ai, Tool Calling.",
        patterns(r"invalid tool call parser: (?P<parser>\S+) \(chose from \{ ?(?P<known>[^}]+)"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V013",
        "no such reasoning parser",
        "vLLM knows no reasoning parser {parser}",
        "set reasoning_parser to one of {known}",
        "vLLM 0.32.0, reasoning; provoked for real",
        "--enable-reasoning is gone: the parser alone turns it on. Many model families have one.",
        patterns(r"Reasoning parser '(?P<parser>[^']+)' not found\. Available parsers: (?P<known>[^\"]+)"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V014",
        "the chat template's file is not there",
        "the chat template[[ {path}]] does not exist in the container",
        "name a file of this machine in chat_template: stackgen mounts it",
        "vLLM 0.32.0, renderers/chat_utils.py, validate_chat_template; provoked for real",
        "A path in extra_args is one inside the container. The field chat_template is mounted.",
        patterns(
            r"The supplied chat template string \((?P<path>[^)]+)\) appears path-like, but doesn't exist",
            r"the supplied chat template path doesn't exist",
        ),
    ),
    Rule(
        "SG-V015",
        "the model has no chat template",
        "/v1/chat/completions needs a chat template, and the tokenizer brings none: it is a base model",
        "use the instruction-tuned version of the model, or set chat_template to a Jinja file",
        "transformers 4.44 and later, tokenization_utils_base.py; provoked for real",
        "Base models continue text and know no roles: /v1/completions works. Newer repositories keep the template in "
        "chat_template.jinja beside tokenizer_config.json: it may not have been downloaded.",
        patterns(
            r"default chat template is no longer allowed, so you must provide a chat template",
            r"tokenizer\.chat_template is not set",
        ),
        places=("log", "check"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V016",
        "tool calls are not turned on",
        "the client sends tools, and the server was started without a tool call parser",
        "set tool_call_parser to the model's family: it also turns automatic tool choice on",
        "vLLM 0.32.0, renderers/online_renderer.py; provoked for real",
        "vLLM needs --enable-auto-tool-choice and --tool-call-parser; stackgen writes both for tool_call_parser.",
        patterns(
            r'auto\\?"? tool choice requires --enable-auto-tool-choice',
            r"tool_choice=.{1,80} requires --tool-call-parser to be set",
        ),
        places=("log", "check"),
        engines=("vllm",),
    ),
    Rule(
        "SG-V017",
        "the prompt is longer than the context",
        "the server takes {limit} tokens for prompt and answer, and was asked for more",
        "shorten the prompt or lower max_tokens; or raise max_model_len as far as the model and the KV cache allow",
        "vLLM 0.32.0, renderers/params.py; FastChat 0.2.36, openai_api_server.py (code 40303); llama-server b11434",
        "max_model_len counts prompt and answer together. It is no batch size.",
        patterns(
            r"maximum context length is (?P<limit>\d+) tokens",
            r"max_tokens=\d+ cannot be greater than max_model_len=(?P<limit>\d+)",
            r"request \(\d+ tokens\) exceeds the available context size \((?P<limit>\d+) tokens\)",
        ),
        places=("check",),
    ),
    Rule(
        "SG-V020",
        "a LoRA adapter can't be loaded",
        "the adapter[[ {adapter}]] can't be loaded[[ from {path}]][[: its rank {rank} is above {limit}]]",
        "correct `path` in lora_adapters: a folder with adapter_config.json, or a Hugging Face id",
        "vLLM 0.32.0, lora; entrypoints/openai/models",
        "The adapter must have been trained for this very base model, with a rank up to --max-lora-rank (16).",
        patterns(
            r"Loading lora (?P<adapter>\S+) failed: No adapter found for (?P<path>\S+)",
            r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<limit>\d+)",
        ),
        engines=("vllm",),
    ),
)
