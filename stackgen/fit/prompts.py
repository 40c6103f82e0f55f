"""The longest prompt that FastChat can compute: no field limits the context, and a long prompt needs much memory.

FastChat 0.2.36 computes a whole prompt in one step (`stackgen.fit.others`), so the memory grows with its length.
"""

from __future__ import annotations

from stackgen.fit.estimate import FITS, Estimate
from stackgen.fit.others import LOGITS

__all__ = ["describe_prompts", "longest_prompt"]


def longest_prompt(found: Estimate, requests: int = 1, memory: int | None = None) -> int:
    """Tokens with which `requests` requests at the same time fit for certain; 0 if not even the weights fit.

    `memory`: bytes that FastChat may use on each GPU, by default those of the estimate.
    """
    constant = sum(term.high for term in found.terms if term.name != LOGITS) + requests * found.plan.fixed
    # each request has a thread of its own, so prompts may be computed at the same time
    step = requests * sum(term.high for term in found.terms if term.name == LOGITS) / found.length
    room = (found.budget if memory is None else memory) - constant
    tokens = int(room / (step + requests * found.token_bytes)) if step + found.token_bytes else found.length
    return max(0, min(found.length, tokens))


def describe_prompts(found: Estimate) -> str:
    """Which prompts fit although the whole context does not; "" for other engines, and if the whole context fits."""
    if found.settings.engine != "fastchat" or found.verdict == FITS or not (alone := longest_prompt(found)):
        return ""
    requests = found.settings.max_num_seqs or 1
    text = f"one request of up to {alone:,} tokens"
    if requests > 1:
        text = f"{requests} requests of up to {longest_prompt(found, requests):,} tokens at the same time, or {text} "
        text += "(`worker_concurrency: 1`)"
    return (f"FastChat has no field that limits the context. What fits for certain: {text}. A longer prompt can fail "
            "with CUDA out of memory")  # fmt: skip
