"""Rules for requests that fail while the server works: tool calls that can't be read, of the model or of the client.

None of these failures was reproduced. `source` names the reports that quote the messages.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

# Python's json/decoder.py
BROKEN = (
    r"(?:Unterminated string starting at|Expecting (?:value|'.' delimiter|property name enclosed in double quotes)|"
    r"Extra data|Invalid control character at|Invalid \\+escape|Invalid \\+uXXXX escape)"
)
NOT_READ = r"Error in extracting tool call from response|Error trying to handle streaming tool call"
QWEN_CODER = re.compile(r"(?i)qwen3?[._-]?coder")


def _serves_qwen_coder(evidence: Evidence, service: str) -> bool:
    """Whether the stack or the log names a Qwen3-Coder, and another parser than its own."""
    model = (evidence.find_model(service) or (0, None))[1]
    log = evidence.read_log(service)
    parser = getattr(model, "tool_call_parser", None) or ""
    return not parser.startswith("qwen3") and bool(QWEN_CODER.search(f"{model.model if model else ''}\n{log}"))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V041",
        title="the tool call parser can't read the model's tool calls",
        cause="the server works, but its tool call parser failed to read an answer of the model: the parser is one of "
        "another model family, or the model wrote a broken tool call",
        fix="compare tool_call_parser with the parser that the model's page names; if they are the same, the model "
        "wrote something else than its format: a newer image may read it, and a larger max_tokens avoids that tool "
        "calls are cut; the client gets such an answer as text",
        source="The messages come from vLLM (entrypoints/openai/tool_parsers), and are quoted in vllm-project/vllm "
        "issue 26561 (2025-10) and QwenLM/Qwen3-Coder issue 537 (2025-10).",
        explain="Each model family writes tool calls in its own format: Hermes and Qwen 2.5 as JSON, Qwen3-Coder as "
        "XML. vLLM answers with status 200 also if its parser fails.",
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
        title="a request contains JSON that is cut or broken",
        cause="the server refused a request because JSON in it can't be read: {problem}; most often these are the "
        "arguments of an earlier tool call (tool_calls[].function.arguments), which the client sends back broken",
        fix="fix the client: it must send back only arguments that are valid JSON ({} if it can't repair them); start "
        "a new conversation as a workaround, and raise max_tokens in the client if answers are cut; the server and its "
        "tool_call_parser are not the reason",
        source="The texts come from Python (json/decoder.py) and llama.cpp (common/chat.cpp), and are quoted in "
        "vllm-project/vllm issues 43995 (2026-05) and 47761 (2026-07), and in NousResearch/hermes-agent issue 12643 "
        "(2026-04).",
        explain="vLLM and llama.cpp parse the tool calls of earlier turns for the chat template. A model whose answer "
        "was cut by max_tokens wrote half a JSON text, and every later request of this conversation repeats it.",
        patterns=compile_patterns(
            rf"\b400\b.{{0,60}}?['\"]message['\"]: ?['\"](?P<problem>{BROKEN}[^'\"]{{0,80}})",
            rf"['\"]message['\"]: ?\"(?P<problem>{BROKEN}[^\"]{{0,80}})\", ?['\"]type['\"]: ?\"BadRequestError\"",
        ),
        variants=(
            Variant(
                compile_patterns(r"Failed to parse tool call arguments as JSON"),
                cause="llama-server could not read the arguments of a tool call as JSON: either the client sends back "
                "a broken call of an earlier turn, or the model's answer was cut in the middle of a call",
                fix="raise max_tokens in the client, so that no call is cut, and let the client send back only "
                "arguments that are valid JSON; start a new conversation as a workaround, because the broken call is "
                "repeated with every request; the server itself works",
            ),
        ),
    ),
)
