"""The rule for requests that need more tokens than the context has; llama-server divides its context into slots."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import recent_lines, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

SLOT, TOO_LONG = "n_ctx_slot", "the request exceeds the available context size"
SLOT_SIZES = re.compile(r"n_ctx_slot = (?P<limit>\d+).{0,80}?(?:n_prompt_tokens|task\.n_tokens) = (?P<prompt>\d+)")
# how vLLM 0.9 and later versions write the shares of the prompt and of the answer
SHARES = re.compile(
    r"maximum context length is (?P<limit>\d+) tokens.{0,80}?(?:\(|your prompt contains(?: at least)? )(?P<prompt>\d+) "
    r"(?:in the messages|input tokens)"
)
LESS = (
    "lower max_tokens (max_completion_tokens) in the client, or remove it, so that vLLM uses the tokens that the "
    "prompt leaves free; or shorten the prompt, or raise max_model_len"
)


def _find_context(evidence: Evidence) -> Iterator[Hit]:
    """A server refused a prompt that is too long even without an answer, or llama-server's log has both lengths."""
    yield from _find_slot_context(evidence)
    for service in evidence.services:
        for line in recent_lines(service.log) if "maximum context length is" in service.log else ():
            found = SHARES.search(line)
            if found and int(found["prompt"]) >= int(found["limit"]):
                yield Hit(service.service, (line.strip(),), found.groupdict(), found[0], variant=PROMPT_ALONE)
                break


def _find_slot_context(evidence: Evidence) -> Iterator[Hit]:
    """llama-server refused a prompt, and earlier lines name the context of the slot and the length of the prompt."""
    for service in evidence.services:
        lines = [strip_prefix(line).strip() for line in service.log.splitlines()] if SLOT in service.log else []
        places = [index for index, line in enumerate(lines) if TOO_LONG in line]
        before = lines[: places[0]] if places else []
        slot = next((one for line in reversed(before) if (one := SLOT_SIZES.search(line))), None)
        if slot and int(slot["prompt"]) >= int(slot["limit"]):
            model = (evidence.find_model(service.service) or (0, None))[1]
            wanted = getattr(model, "max_model_len", None)
            is_less = isinstance(wanted, int) and wanted > int(slot["limit"])
            values = {"limit": slot["limit"], "prompt": slot["prompt"], **({"wanted": str(wanted)} if is_less else {})}
            yield Hit(service.service, (slot.string, lines[places[0]]), values, variant=OF_A_SLOT)


OF_A_SLOT = Variant(
    (),
    cause="the prompt of a request has {prompt} tokens, but a slot of the server has a context of only {limit}[[, "
    "although stack.yaml sets max_model_len to {wanted}]]. The server itself works",
    fix="[[find out why {wanted} did not reach the server: `docker inspect` shows the arguments of its command, and "
    "llama-server divides --ctx-size by --parallel; otherwise ]]raise max_model_len to more than {prompt}, or "
    "shorten the prompt; don't change max_tokens, because the prompt alone is too long",
    condition="llama-server's log names the context of the slot",
)

PROMPT_ALONE = Variant(
    compile_patterns(
        r"prompt \(length (?P<prompt>\d+)\) is longer than the maximum model length of (?P<limit>\d+)",
    ),
    cause="the prompt of a request alone has {prompt} tokens, but the context of the server has only "
    "{limit}. The server itself works",
    fix="shorten the prompt, for example send fewer earlier messages; or raise max_model_len to more "
    "than {prompt}, as far as the model and the KV cache allow; don't change max_tokens, because the "
    "prompt alone is too long",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-V017",
        title="a request needs more tokens than the context has",
        cause="the prompt and the answer of a request together need more tokens than the server accepts[[ "
        "({limit})]]. The server itself works",
        fix="shorten the prompt, lower max_tokens, or raise max_model_len as far as the model and the KV cache allow",
        source="The messages come from vLLM 0.32.0 (renderers/params.py), FastChat 0.2.36 (openai_api_server.py, code "
        "40303) and llama-server b11434. agentscope-ai/AgentTeams issue 346 (2026-03) quotes the message about "
        "characters.",
        explain="max_model_len limits the length of prompt and answer together. max_model_len is not a batch size.",
        patterns=compile_patterns(
            r"maximum context length is (?P<limit>\d+) tokens",
            r"max_tokens=\d+ cannot be greater than max_model_len=(?P<limit>\d+)",
            r"the request exceeds the available context size",
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"requested (?P<wanted>\d+) output tokens\. However, the model's context length is only "
                    r"(?P=wanted) tokens",
                    r"maximum context length is (?P<wanted>\d+) tokens\. However, you requested \d+ tokens "
                    r"\(\d+ in the messages, (?P=wanted) in the completion\)",
                ),
                cause="a client asks for {wanted} output tokens (max_tokens), which is the whole context, so no token "
                "is left for the prompt. The server itself works",
                fix="lower max_tokens (max_completion_tokens) in the client so that prompt and answer together fit, or "
                "remove it; or raise max_model_len, as far as the model and the KV cache allow; don't shorten the "
                "prompt, because no prompt is short enough",
            ),
            Variant(
                compile_patterns(
                    r"You passed (?P<prompt>\d+) input (?P<unit>characters|tokens) and requested (?P<wanted>\d+) "
                    r"output tokens\. However, the model's context length is only (?P<limit>\d+) tokens"
                ),
                cause="a request has a prompt of {prompt} {unit} and asks for {wanted} output tokens (max_tokens). "
                "Together, this is more than the context of {limit} tokens. The server itself works",
                fix=LESS,
            ),
            Variant(
                compile_patterns(
                    r"maximum context length is (?P<limit>\d+) tokens\. However, you requested \d+ tokens "
                    r"\((?P<prompt>\d+) in the messages, (?P<wanted>\d+) in the completion\)"
                ),
                cause="a request has a prompt of {prompt} tokens and asks for {wanted} output tokens (max_tokens). "
                "Together, this is more than the context of {limit} tokens. The server itself works",
                fix=LESS,
            ),
            Variant(
                compile_patterns(
                    r"maximum context length is (?P<limit>\d+) tokens.{0,40}you requested (?P<wanted>\d+) output "
                    r"tokens "
                    r"and your prompt contains(?: at least)? (?P<prompt>\d+)"
                ),
                cause="a request has a prompt of {prompt} tokens and asks for {wanted} output tokens (max_tokens). "
                "Together, this is more than the context of {limit} tokens. The server itself works",
                fix=LESS,
            ),
            Variant(
                compile_patterns(
                    r"request \((?P<prompt>\d+) tokens\) exceeds the available context size \((?P<limit>\d+) tokens\)",
                ),
                cause="the prompt of a request alone has {prompt} tokens, but a slot of llama-server has a context of "
                "only {limit}. The server itself works",
                fix="shorten the prompt; or give each slot a longer context; in stack.yaml, raise max_model_len, which "
                "is the context of one slot, to more than {prompt} (if memory is short, lower max_num_seqs); outside "
                "stackgen, raise --ctx-size or lower --parallel, because llama-server divides --ctx-size by "
                "--parallel; don't change max_tokens, because the prompt alone is too long",
            ),
            PROMPT_ALONE,
        ),
        inputs=("log", "check"),
        refusal=True,
        find=_find_context,
    ),
)
