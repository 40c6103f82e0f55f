"""Rules for requests that fail while the server works: tool calls and answers that can't be read, missing images.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# Python's json/decoder.py
BROKEN = (
    r"(?:Unterminated string starting at|Expecting (?:value|'.' delimiter|property name enclosed in double quotes)|"
    r"Extra data|Invalid control character at|Invalid \\+escape|Invalid \\+uXXXX escape)"
)
NOT_READ = r"Error in extracting tool call from response|Error trying to handle streaming tool call"
UNREAD_TEMPLATE = re.compile(r"failed to parse chat template \(defaulting to chatml\)")
GO_WORDS = re.compile(r"\{\{-? ?(?:(?:if|range|with) )?(?:and |or |eq )?\.[A-Z$]|currentDate \}\}|\.IsThinkSet")
QWEN_CODER = re.compile(r"(?i)qwen3?[._-]?coder")


def _serves_qwen_coder(evidence: Evidence, service: str) -> bool:
    """Whether the stack or the log names a Qwen3-Coder, and another parser than its own."""
    model = (evidence.find_model(service) or (0, None))[1]
    log = evidence.read_log(service)
    parser = getattr(model, "tool_call_parser", None) or ""
    return not parser.startswith("qwen3") and bool(QWEN_CODER.search(f"{model.model if model else ''}\n{log}"))


def _find_unread_template(evidence: Evidence) -> Iterator[Hit]:
    """llama-server can't read the chat template at its start, and goes on with another one."""
    for service in evidence.services:
        if service.is_working or "defaulting to chatml" not in service.log:
            continue
        lines = service.log.splitlines()
        at = next((index for index, line in enumerate(lines) if UNREAD_TEMPLATE.search(line)), None)
        if at is not None:
            near = "\n".join(lines[at : at + 8])
            yield Hit(service.service, (strip_prefix(lines[at]).strip(),), {},
                      variant=GO_TEMPLATE if GO_WORDS.search(near) else None)  # fmt: skip


GO_TEMPLATE = Variant(
    (),
    cause="the chat template is written for Ollama, in Go's template language (`{{ .System }}`), which llama-server "
    "can't read: it needs Jinja. So llama-server uses the template of ChatML instead, and answers may be poor or never "
    "end",
    fix="remove --chat-template-file (chat_template), so that llama-server uses the template in the GGUF file; if the "
    "file has none, use the file chat_template.jinja of the original model on the Hub, or a GGUF file of the Hub "
    "instead of Ollama's; RamaLama: update it, or pull the model from the Hub (hf://…)",
    condition="the lines after the message contain words of Go's templates",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-A044",
        title="llama-server can't read the chat template",
        cause="llama-server can't read the model's chat template, so it uses the template of ChatML instead. Answers "
        "may be poor, or never end, and tools may not work",
        fix="use a newer `image:`, because newer versions read more templates; or set chat_template to a template "
        "that it can read (the newest chat_template.jinja of the model's page)",
        source="The message comes from llama.cpp (common/chat.cpp, common_chat_templates_init). containers/ramalama "
        "issues 1855 and 1882 (2025-08) quote it for templates of Ollama. The failure was not reproduced.",
        explain="The server starts nevertheless. The message quotes the place that it could not read.",
        find=_find_unread_template,
        fallback=True,
        variants=(GO_TEMPLATE,),
    ),
    Rule(
        "SG-V041",
        title="the tool call parser can't read the model's tool calls",
        cause="the server works, but its tool call parser could not read a tool call of the model. Either the parser "
        "is for another model family, or the tool call is broken",
        fix="compare tool_call_parser with the parser on the model's page; if they are the same, the model did not "
        "follow its own format: try a newer image, and raise max_tokens in the client if tool calls are cut off; "
        "until then, let clients handle tool calls that arrive as plain text",
        source="The messages come from vLLM (entrypoints/openai/tool_parsers), and are quoted in vllm-project/vllm "
        "issue 26561 (2025-10) and QwenLM/Qwen3-Coder issue 537 (2025-10).",
        explain="Each model family writes tool calls in its own format: Hermes and Qwen 2.5 as JSON, Qwen3-Coder as "
        "XML. vLLM answers with HTTP 200 even if its parser fails.",
        patterns=compile_patterns(NOT_READ),
        variants=(
            Variant(
                compile_patterns(NOT_READ),
                cause="the server works, but its tool call parser can't read the tool calls of Qwen3-Coder, which are "
                "XML and not JSON",
                fix="set tool_call_parser to qwen3_coder",
                applies=_serves_qwen_coder,
                condition="the stack or the log names a Qwen3-Coder",
            ),
        ),
    ),
    Rule(
        "SG-V042",
        title="a request contains incomplete or invalid JSON",
        cause="the server refused a request because it can't parse the JSON in it: {problem}. Most often, the client "
        "sent back incomplete arguments of an earlier tool call (tool_calls[].function.arguments)",
        fix="fix the client: it must send back arguments only if they are valid JSON, and {} otherwise; as a "
        "workaround, start a new conversation; if answers are cut off, raise max_tokens in the client; leave the "
        "server and tool_call_parser as they are, because they are not the cause",
        source="The texts come from Python (json/decoder.py) and llama.cpp (common/chat.cpp), and are quoted in "
        "vllm-project/vllm issues 43995 (2026-05) and 47761 (2026-07), and in NousResearch/hermes-agent issue 12643 "
        "(2026-04).",
        explain="vLLM and llama.cpp parse the tool calls of earlier turns for the chat template. If max_tokens cut "
        "off an answer in the middle of a tool call, the JSON is incomplete. Every later request of the conversation "
        "repeats this incomplete JSON.",
        patterns=compile_patterns(
            rf"\b400\b.{{0,60}}?['\"]message['\"]: ?['\"](?P<problem>{BROKEN}[^'\"]{{0,80}})",
            rf"['\"]message['\"]: ?\"(?P<problem>{BROKEN}[^\"]{{0,80}})\", ?['\"]type['\"]: ?\"BadRequestError\"",
        ),
        variants=(
            Variant(
                compile_patterns(r"Failed to parse tool call arguments as JSON"),
                cause="llama-server can't parse the arguments of a tool call as JSON. Either the client sent back a "
                "broken tool call of an earlier turn, or the model's answer was cut off in the middle of a tool call",
                fix="raise max_tokens in the client, so that tool calls are not cut off; fix the client: it must "
                "send back arguments only if they are valid JSON; as a workaround, start a new conversation, because "
                "each request repeats the broken tool call; leave the server as it is, because it works",
            ),
        ),
    ),
    Rule(
        "SG-V061",
        title="the answer of gpt-oss does not follow its own format",
        cause="the server works, but the model's answer to a request does not follow OpenAI's Harmony format, so the "
        "parser refused it: {problem}. Known causes are an old version of the engine or of openai_harmony, model files "
        "that were downloaded before OpenAI corrected them, and clients that set ignore_eos",
        fix="use a newer `image:`; compare the dates of the model's small files (generation_config.json, "
        "chat_template.jinja, tokenizer_config.json) with the dates on the model's page, and download files that are "
        "newer there (the weights are not the cause); remove ignore_eos, stop tokens and a high temperature from the "
        "requests; let the client retry failed requests, because most answers follow the format",
        source="The messages come from openai_harmony (StreamableParser), and are quoted in vllm-project/vllm issues "
        "22519 (2025-08 to 2025-10) and 23567 (2025-08), openai/harmony issues 60 and 38 (2025-08) and "
        "tenstorrent/vllm issues 334 (2026-03) and 386 (2026-05). The failure was not reproduced.",
        explain="gpt-oss writes its reasoning, tool calls and answers in channels. The server splits them with a "
        "strict parser. Format errors are most frequent in tool calls and in long conversations.",
        patterns=compile_patterns(
            r"HarmonyError(?:\(['\"]|: )(?P<problem>Unexpected token \d+ while expecting start token \d+|unexpected "
            r"tokens remaining in message header.{0,80}|Unknown role: .{0,40}|channel marker present but .{0,60})",
        ),
    ),
    Rule(
        "SG-V062",
        title="the prompt has no place for an image, a video or audio",
        cause="the server works, but a request has {kind} data whose placeholder is not in the prompt: {problem}. "
        "Only the model's chat template puts placeholders into a prompt",
        fix="send images, audio and video as parts of a message to /v1/chat/completions (`image_url` and so on), "
        "not with a prompt to /v1/completions; in a client that builds the prompt itself, apply the model's chat "
        "template, or write one placeholder of the model for each image; if chat requests fail too, remove "
        "chat_template from stack.yaml, or set it to the template of the model's page",
        source="The messages come from vLLM (multimodal/processing/processor.py). vllm-project/vllm-ascend pull "
        "request 9829 (2026-06) and vllm-project/vllm issue 23238 (2025-08) quote them. The failure was not "
        "reproduced.",
        explain="The model, its files and the GPU are not the cause. Text requests work.",
        patterns=compile_patterns(
            r"(?P<problem>Failed to apply prompt (?:replacement|insertion) for mm_items\['(?P<kind>\w+)'\]\[\d+\])",
            r"(?P<problem>Expected there to be \d+ prompt (?:updates|placeholders) corresponding to \d+ (?P<kind>\w+) "
            r"items, but instead found \d+)",
        ),
        # at the start, vLLM itself builds the prompt
        unless=compile_patterns(r"in (?:profile_run|_get_mm_dummy_batch|get_dummy_\w+|compute_mm_encoder_budget)$"),
    ),
)
