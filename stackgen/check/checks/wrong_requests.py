"""Wrong requests, what should come back, and what is wrong with a reply to one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stackgen.check.checks.verdict import QUESTION, Context
from stackgen.check.transport.faults import Fault
from stackgen.check.transport.openai_schema import card_names
from stackgen.check.transport.session import Reply

__all__ = [
    "LONGEST_CONTEXT", "Probe", "Problem", "context_length", "judge", "long_prompt", "probes", "told_length",
]  # fmt: skip

# more than any context holds, and within 32 bits: a larger one is another mistake
TOO_MANY = 100_000_000
# a longer prompt takes a server seconds to count, and a proxy may refuse it for its bytes
LONGEST_CONTEXT = 200_000
# A path of the server's machine, or a Python traceback: /usr/…, /home/…, C:\…. Models and data lie under names that
# are parts of URLs too (/models/NAME): there it takes a file, or the folders of a cache.
LEAK = re.compile(
    r"site-packages|dist-packages|Traceback \(most recent call last\)|(?<![\w/.:])/(usr|home|opt|root|srv|app|etc|var"
    r"|tmp|workspace|mnt|stackgen)/[\w.+-]+/|(?<![\w/.:])/(models?|data|stackgen|cache|weights|checkpoints?)/([\w.+-]+/)*"
    r"([\w.+-]+\.(py|sh|json|jinja|gguf|safetensors|bin|pt|pth|model|txt)\b|(blobs|snapshots|hub)/)"
    r"|\b[A-Z]:\\{1,2}[\w.-]+\\"
)
# vLLM: "maximum context length is 2048 tokens", "max_model_len=2048"; llama.cpp: "context size (8192 tokens)"
LENGTH = re.compile(
    r"maximum context length (?:is|of) (\d{1,12})\b|max_model_len=(\d{1,12})\b|context size \((\d{1,12}) tokens"
)
# recorded from FastChat 0.2.36
COUNTER = "/api/v1/token_check"


@dataclass(frozen=True, slots=True)
class Probe:
    """A wrong request. `body` is JSON, or bytes as they are; `refuse` is False where an answer is right as well."""

    name: str
    body: Mapping[str, Any] | bytes
    refuse: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a reply. `text` begins with the probe's name, so that deviations can name both.

    `severe` problems fail, others warn.
    """

    text: str
    severe: bool
    evidence: str = ""


def probes(model: str) -> tuple[Probe, ...]:
    """All probes but the prompt that is too long, whose length must be found out first.

    None of them sends null: a FastChat worker loses a slot for ever by each `"temperature": null`. Those that a lax
    server may answer end after one token, or at the first of four common letters.
    """

    def chat(**changes: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        return {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0, **changes}

    return (
        Probe("unknown model", chat(model="stackgen-check-no-such-model")),
        Probe("malformed JSON", b'{"model": "stackgen-check", "messages": ['),
        Probe("messages as a text", chat(messages="hi")),
        Probe("temperature as a text", chat(temperature="hot")),
        Probe("negative max_tokens", chat(max_tokens=-5)),
        Probe("too large max_tokens", chat(max_tokens=TOO_MANY, stop=[" ", "e", "a", "\n"])),
        # valid in OpenAI's API, and many servers read plain texts only
        Probe("list-style content", chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
              refuse=False),
        Probe("unsupported role", chat(messages=[{"role": "stackgen-no-such-role", "content": "hi"}])),
    )  # fmt: skip


def long_prompt(model: str, length: int) -> Probe:
    """A prompt that is a quarter longer than a context of `length` tokens: letters apart are a token each."""
    text = "a b c d " * (length * 5 // 16 + 16)
    return Probe("too long prompt", {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1,
                                     "temperature": 0})  # fmt: skip


def context_length(context: Context, model: str) -> int | None:
    """The context length in tokens that the list of models tells of `model`, else FastChat's counter.

    VLLM calls it `max_model_len`, Together `context_length`, llama.cpp `n_ctx` in `meta` (the model's own length is
    `n_ctx_train`).
    """
    body = context.listing.json() if context.listing else None
    cards = body.get("data") if isinstance(body, dict) else body
    for card in cards if isinstance(cards, list) else ():
        if not isinstance(card, dict):
            continue
        if model not in card_names(card):
            continue
        meta = card.get("meta")
        inner = meta if isinstance(meta, dict) else {}
        named = (card.get("max_model_len"), card.get("context_length"), inner.get("n_ctx"), inner.get("n_ctx_train"))
        if found := [length for length in map(_length, named) if length]:
            return found[0]
    return _counted(context, model)


def _counted(context: Context, model: str) -> int | None:
    """The context length by FastChat's own counter of prompts, which its list of models leaves out."""
    if COUNTER not in context.dialect.open_paths:
        return None
    body = {"prompts": [{"model": model, "prompt": "hi", "max_tokens": 1}]}
    try:
        reply = context.session.post(context.session.target.root + COUNTER, body)
    except Fault:
        return None
    data = reply.json() if reply.status == 200 else None
    prompts = data.get("prompts") if isinstance(data, dict) else None
    first = prompts[0] if isinstance(prompts, list) and prompts else None
    return _length(first.get("contextLength")) if isinstance(first, dict) else None


def _length(value: Any) -> int | None:
    # a bool is an int to Python
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def told_length(reply: Reply) -> int | None:
    """The context length that an error tells; None where it tells none."""
    found = LENGTH.search(reply.body.decode("utf-8", "replace"))
    return int(next(group for group in found.groups() if group)) if found else None


def judge(context: Context, probe: Probe, reply: Reply) -> list[Problem]:
    """What is wrong with a reply: it should be a 4xx whose message stands where the dialect has it."""
    found, evidence = list[tuple[str, bool]](), f"{probe.name}: {context.excerpt(reply)}"
    crash = reply.status >= 500
    if crash:
        found.append((reply.what, True))
    elif reply.status == 200 and not probe.refuse:
        return []
    elif reply.status < 400:
        found.append((f"accepted with {reply.status}" if reply.status < 300 else reply.what, False))
        return [Problem(f"{probe.name}: {text}", severe, evidence) for text, severe in found]
    elif reply.status == 429:
        # a limit was reached, so nothing is known of the mistake
        found.append(("HTTP 429, so it can't be told", False))
    elif reply.json() is None:
        found.append((f"HTTP {reply.status} with {reply.content_type or 'nothing'} instead of JSON", False))
    elif not _message(context, reply):
        found.append((f"HTTP {reply.status} without a message at {'.'.join(context.dialect.error_path)}", False))
    # a model may be named by its path, and then its name is no secret
    named = str(probe.body.get("model", "")) if isinstance(probe.body, Mapping) else ""
    if leak := LEAK.search(_plain(reply).replace(named, "") if "/" in named else _plain(reply)):
        found.append((f"the error tells of the server's inside: {leak[0]}", crash))
    return [Problem(f"{probe.name}: {text}", severe, evidence) for text, severe in found]


def _message(context: Context, reply: Reply) -> str:
    body = reply.json()
    for name in context.dialect.error_path:
        body = body.get(name) if isinstance(body, dict) else None
    return body.strip() if isinstance(body, str) else ""


def _plain(reply: Reply) -> str:
    # JSON writes \" and \\, which would hide a path's beginning
    return reply.body.decode("utf-8", "replace").replace('\\"', '"').replace("\\n", "\n")
