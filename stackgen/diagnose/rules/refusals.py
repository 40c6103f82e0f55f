"""Rules for requests that a running server refuses. Such a finding describes a client, not a failed stack.

The texts are those of the programs that `source` names. They are read from logs and from the answers to the check.
"""

from __future__ import annotations

from stackgen.diagnose.rule import Input, Rule, Variant, compile_patterns

__all__ = ["RULES"]

ANSWERS: tuple[Input, ...] = ("log", "check")

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V031",
        title="the chat template refuses the messages",
        cause="the server works, but the model's chat template refuses a client's messages: {problem}",
        fix="change the messages in the client, for example merge all system messages into one at the beginning, and "
        "alternate user and assistant messages; or set chat_template to a template that accepts the client's messages",
        source="The messages come from templates (raise_exception), as llama-server and vLLM print them. "
        "Mangi-11/Eta issue 59 (2026-08) quotes one. The messages about roles come from mistral_common "
        "(protocol/instruct/validator.py), and are quoted in mistralai/mistral-vibe issues 454 (2026-03) and 578 "
        "(2026-04) and 0xPlaygrounds/rig pull request 1130 (2025-12). The failure was not reproduced.",
        explain="A chat template can refuse roles or their order. Neither the model nor the image is broken, and a "
        "restart does not help.",
        patterns=compile_patterns(
            r"Jinja Exception: (?P<problem>[^\"\\]+)",
            r"jinja2\.exceptions\.TemplateError: (?P<problem>.+)",
        ),
        inputs=ANSWERS,
        refusal=True,
        variants=(
            Variant(
                compile_patterns(r"(?P<problem>You have passed a message containing <\|channel\|> tags)"),
                title="a client sends the raw answer of gpt-oss back",
                cause="the server works, but the template of gpt-oss refuses a message of the conversation: an earlier "
                "answer still contains the tags of its format (`<|channel|>`). So the server did not separate "
                "reasoning and answer, and the client sent both back as one text",
                fix="let the server separate reasoning and answer: for llama-server, use --jinja, and remove "
                "--reasoning-format none (the default auto is right); for other engines, use a current image; then "
                "start a new conversation, because the old one keeps the tags",
            ),
            Variant(
                compile_patterns(r"(?P<problem>Unexpected role '(?:Roles\.)?user' after role '(?:Roles\.)?tool')"),
                title="a Mistral model does not accept a user message after a tool's result",
                cause="the server works, but mistral_common, which prepares the messages of Mistral's models, refuses "
                "a client's messages: {problem}. In this version, an assistant message must follow the result of a "
                "tool. Often, the user had cancelled the tool",
                fix="in the client, insert an assistant message after the last message with the role `tool` (a new "
                "session also avoids the messages), or update the client; or use a newer image, because newer "
                "versions of mistral_common accept a user message there",
            ),
            Variant(
                compile_patterns(
                    r"(?P<problem>Unexpected role '(?:Roles\.)?\w+' after role '(?:Roles\.)?\w+')",
                    r"(?P<problem>Expected last role \w+ (?:or \w+ )?(?:\(or Assistant with prefix(?: True)?\) )?"
                    r"for \w+ but got (?:Roles\.)?\w+)",
                ),
                title="a Mistral model does not accept the order of the messages",
                cause="the server works, but mistral_common, which prepares the messages of Mistral's models, refuses "
                "a client's messages: {problem}",
                fix="change the order in the client, or update the client: a message with the role `tool` must follow "
                "the assistant message that called the tool, an assistant message must follow the tool's results, and "
                "the last message must be the user's or a tool's",
            ),
        ),
    ),
    Rule(
        "SG-V069",
        title="the chat template fails on the form of a client's messages",
        cause="the server works, but the model's chat template fails while it reads a client's messages: {problem}. A "
        "message has another form than the template expects. In the reports, it is a message without content, or an "
        "earlier tool call whose arguments are a text instead of an object",
        fix="use a newer `image:`, because newer servers bring messages into the form that templates expect; or set "
        "chat_template to the newest template of the model's page; as a test, start a new conversation, which has no "
        'earlier tool calls; in the client, send "" instead of null as content, and update the client',
        source="The messages come from Jinja (UndefinedError, items) and from the template readers of llama.cpp. They "
        "are quoted in ggml-org/llama.cpp issues 13178 (2025-04), 18463 (2025-12) and 19905 (2026-02), and "
        "QwenLM/Qwen3-Coder issue 444 (2025-07). The failure was not reproduced.",
        explain="OpenAI's API writes the arguments of a tool call as a text with JSON. Many templates read them as an "
        "object, so the server must convert them. The model, its weights and the GPU are not the cause.",
        patterns=compile_patterns(
            r"(?P<problem>Unknown \(built-in\) filter '\w+' for type \w+)",
            r"(?P<problem>(?:Value is not an array or object: null|Cannot subscript null) at row \d+, column \d+)",
            r"jinja2\.exceptions\.UndefinedError: (?P<problem>.+)",
            r"TypeError: (?P<problem>Can only get item pairs from a mapping)",
        ),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-A052",
        title="this build of llama.cpp lacks something that the chat template calls",
        cause="the server works, but at row {row} the model's chat template calls a function that the template reader "
        "of this llama.cpp does not have. The template is newer than this build. The marked column shows the call "
        "(for Qwen3, `rstrip`)",
        fix="use a newer build of llama.cpp (a newer image, or a newer version of the program that contains it); until "
        "then, set chat_template to a template without this call; leave the client as it is",
        source="The message comes from minja, the template reader of older builds of llama.cpp, and is quoted in "
        "janhq/jan issue 6123 (2025-08), gpustack/gpustack issue 3641 (2025-12), QwenLM/qwen-code issue 48 (2025-07) "
        "and ggml-org/llama.cpp issue 14915 (2025-08), where a change of the reader fixed the failure. The failure was "
        "not reproduced.",
        explain="The template comes with the model's file. The same template works in vLLM, because Python's Jinja "
        "has all functions of strings.",
        patterns=compile_patterns(
            r"(?:Value|Object) is not callable: null at row (?P<row>\d+), column \d+",
            r"Unknown (?:method|type for 'is' operator): \w+ at row (?P<row>\d+), column \d+",
        ),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-A042",
        title="the Anthropic API refuses a system message between other messages",
        cause="the server works, but a client sent a message with the role `system` in the list `messages` to "
        "/v1/messages. This version of the server accepts only the roles `user` and `assistant` there",
        fix="set `image:` or engine_version to vLLM 0.23.0 or newer, which accepts such messages; or use a client that "
        "sends the system prompt only in the field `system`, such as Claude Code 2.1.153",
        source="vllm-project/vllm issue 44000 (2026-05) quotes the message, and its pull request 44283 accepts the "
        "role. The failure was not reproduced.",
        explain="Claude Code sends such messages since 2.1.154. A restart of the server does not help.",
        patterns=compile_patterns(r"Input should be 'user' or 'assistant'\W{1,4}'input': 'system'"),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-A024",
        title="a request names no model",
        cause="the server is a router for several models, and a client sent a request without `model`",
        fix="set the model in the client; to see the names of the models, request `/v1/models`",
        source="The message comes from llama-server in router mode, and is quoted in itigges22/ATLAS issue 146 "
        "(2026-07). The failure was not reproduced.",
        explain="A llama-server with one model ignores the model name in a request. A router needs the name to "
        "choose the model.",
        patterns=compile_patterns(r"model name is missing from the request"),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-V065",
        title="requests in flight together need more tokens than the context has",
        cause="the slots of llama-server share one context, and the requests in flight did not fit into it together. "
        "llama-server then ended all of them with status 500, even the short ones. The server itself works",
        fix="set max_num_seqs to the number of concurrent requests (outside stackgen: `--parallel N` with N times the "
        "`--ctx-size`): each request then has its own context of max_model_len tokens, and the KV cache needs memory "
        "for all of these contexts; or raise max_model_len, as far as the memory allows",
        source="The messages come from llama-server b11434 (tools/server). The failure was reproduced, and is also "
        "reported in ggml-org/llama.cpp issue 23652 (2026-05) and lemonade-sdk/lemonade issue 3276 (2026-08).",
        explain="Without --parallel, llama-server has 4 slots with a unified KV cache. Each slot may use the whole "
        "context, but all slots together have no more than one context.",
        patterns=compile_patterns(
            r"Context size has been exceeded\.",
            r"failed to find free space in the KV cache, retrying with smaller batch size, .{0,40}n_batch = 1,",
        ),
        engines=("llamacpp",),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-V032",
        title="the model does not accept images or audio",
        cause="the server works, but a client sent input that the model or its configured limit does not allow: "
        "{problem}",
        fix="send fewer images or other files in a request, or raise the limit with `--limit-mm-per-prompt` in "
        "extra_args; if the limit is 0, remove the flag that starts the model for text only",
        source="The messages come from vLLM (multimodal/processing.py and entrypoints/chat_utils.py). "
        "bytedance/UI-TARS-desktop issue 180 (2025-03) quotes the one for a request. The failure was not reproduced.",
        explain="The limit is 0 if the model was started for text only (`--language-model-only`).",
        patterns=compile_patterns(
            r"(?P<problem>At most \d+ \w+\(s\) may be provided in one (?:prompt|request))",
        ),
        inputs=ANSWERS,
        refusal=True,
        variants=(
            Variant(
                compile_patterns(
                    r"(?P<problem>At most [1-9]\d* \w+\(s\) may be provided in one (?:prompt|request))",
                    r"(?P<problem>You set .{1,60} in `--limit-mm-per-prompt`, but (?:passed|found) \d+ .{0,20}items in "
                    r"the same prompt)",
                ),
                title="a request has more images or files than the limit",
                cause="the server works, but a client sent more images, videos or sounds in one request than the "
                "server's limit allows: {problem}",
                fix="send fewer of these inputs in one request (many chat clients send earlier images again with each "
                "message); or raise the limit with `--limit-mm-per-prompt` in extra_args, for example '{\"image\": 4}' "
                "(older versions: image=4), if the model accepts several",
            ),
            Variant(
                compile_patterns(r"(?P<problem>(?<!\S)\S{1,100} is not a multimodal model)"),
                cause="the server works, but a client sent an image or audio to a text-only model: {problem}",
                fix="send text only, or serve a model that accepts images or audio",
            ),
        ),
    ),
    Rule(
        "SG-A028",
        title="a request arrived while the model was loading",
        cause="llama-server is still loading the model. Until the model is loaded, it refuses requests with HTTP 503",
        fix="wait until `/health` answers with HTTP 200; let clients retry requests that get HTTP 503",
        source="The message comes from llama-server, and is quoted in mostlygeek/llama-swap issue 146 (2025-05). The "
        "failure was not reproduced.",
        explain="Large models take minutes to load. `stackgen check --wait 600` waits for the server.",
        patterns=compile_patterns(r'"code":503,"message":"Loading model"'),
        inputs=ANSWERS,
        refusal=True,
    ),
    Rule(
        "SG-V063",
        title="the JSON schema or grammar of a request can't be compiled",
        cause="the server works, but a client's schema (response_format, structured_outputs or the parameters of a "
        "tool) contains something that the library for structured outputs does not support: {problem}",
        fix="change the schema in the client: remove the keyword that the message names (often `format`, `pattern`, "
        "`uniqueItems` or `additionalProperties`), and check the values of this field in the client; or try another "
        'library (vLLM: `--structured-outputs-config \'{"backend": "guidance"}\'` or xgrammar, SGLang: '
        "`--grammar-backend`), because each library supports different keywords",
        source="The messages come from vLLM (v1/structured_output/backend_guidance.py and backend_xgrammar.py), and "
        "are quoted in z-lab/paroquant issue 31 (2026-04) and vllm-project/vllm issue 26421 (2025-10). The failure was "
        "not reproduced.",
        explain="Agents and SDKs create schemas from types, so such a keyword may come from a library of the client. "
        "Requests without this schema work.",
        patterns=compile_patterns(
            r"ValueError: Grammar error: (?P<problem>\S.{2,160})",
            r"(?P<problem>The provided JSON schema contains features not supported by xgrammar)",
        ),
        engines=("vllm", "sglang"),
        inputs=ANSWERS,
        refusal=True,
    ),
)
