"""The warning about a vLLM model that can chat, but has no parser for tool calls."""

from __future__ import annotations

import re

from stackgen.catalog import find_parser
from stackgen.check.checks.verdict import Context, Verdict, warn

__all__ = ["lacks_parser", "warn_no_parser"]

# recorded from vLLM 0.32.0: `tool_choice="required" requires --tool-call-parser to be set`
NO_PARSER = re.compile(r"requires? .{0,60}--tool-call-parser")
CLIENTS_FAIL = (
    "agents and coding clients send tools with each request, sometimes as an empty list, and vLLM refuses these "
    "requests"
)
PARSERS_HINT = "the page Tool Calling on docs.vllm.ai lists the parsers of the model families"


def lacks_parser(refused: Verdict) -> bool:
    """Whether vLLM itself has refused tools for this reason; behind a gateway, the dialect does not show vLLM."""
    return refused.status == "skip" and bool(NO_PARSER.search(refused.message))


def warn_no_parser(context: Context, model: str, refused: Verdict) -> Verdict:
    """Names the field of the stack file, and its value if the catalog has one for the model."""
    fact = find_parser("tool_call_parser", *_model_names(context, model))
    message = f"{refused.message}; to enable tools, set `tool_call_parser` in the stack file"
    message += f" to `{fact.value}`" if fact else ""
    hint = f"{fact.origin} names `{fact.value}`" if fact else PARSERS_HINT
    return warn(message, hint=f"{CLIENTS_FAIL}; {hint}", evidence=refused.evidence, support=refused.support)


def _model_names(context: Context, model: str) -> list[str]:
    """The repository or folder that vLLM lists as `root` of the model, then its name, then those of its base model."""
    body = context.listing.json() if context.listing else None
    cards = body.get("data") if isinstance(body, dict) else None
    by_name = {card.get("id"): card for card in cards if isinstance(card, dict)} if isinstance(cards, list) else {}
    card = by_name.get(model, {})
    base = by_name.get(card.get("parent"), {})
    # the root of a LoRA adapter is the adapter, and its parent is the base model
    names = [card.get("root"), model, base.get("root"), card.get("parent")]
    return [name for name in names if isinstance(name, str)]
