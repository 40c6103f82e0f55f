"""Invalid requests, the response that each request should get, and the problems of a response."""

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
    "LONG_PROMPT",
    "MAX_CONTEXT",
    "Probe",
    "Problem",
    "context_length",
    "find_problems",
    "length_from_error",
    "long_prompt",
    "probes",
]

# the name of the probe that is sent last
LONG_PROMPT = "prompt too long"
# larger than any context, but within 32 bits: more than 32 bits would cause another error
TOO_MANY_TOKENS = 100_000_000
# a server takes seconds to count a longer prompt, and a proxy may refuse it for its size in bytes
MAX_CONTEXT = 200_000
# A path on the server (/usr/…, /home/…, C:\…) or a Python traceback. The names of model folders also appear in URLs
# (/models/NAME), so in these folders only files and cache folders count.
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
PROMPT_COUNTER_PATH = "/api/v1/token_check"


@dataclass(frozen=True, slots=True)
class Probe:
    """An invalid request. `body` is JSON, or raw bytes. `must_refuse` is False if the server may answer the request."""

    name: str
    body: Mapping[str, Any] | bytes
    must_refuse: bool = True


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a response. `text` starts with the probe's name, so that deviations can match both.

    `severe` problems fail the check, others are warnings.
    """

    text: str
    severe: bool
    evidence: str = ""


def probes(model: str) -> tuple[Probe, ...]:
    """Returns all probes except the long prompt, which needs the context length first.

    No probe sends null, which is valid for most fields of OpenAI's API. If a lenient server answers a probe, the answer
    ends after one token, or at the first of four common characters.
    """

    def chat(**changes: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        return {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0, **changes}

    return (
        Probe("unknown model", chat(model="stackgen-check-no-such-model")),
        Probe("malformed JSON", b'{"model": "stackgen-check", "messages": ['),
        Probe("messages as a string", chat(messages="hi")),
        Probe("temperature as a string", chat(temperature="hot")),
        Probe("negative max_tokens", chat(max_tokens=-5)),
        Probe("max_tokens too large", chat(max_tokens=TOO_MANY_TOKENS, stop=[" ", "e", "a", "\n"])),
        # valid in OpenAI's API, but many servers accept plain strings only
        Probe("list-style content", chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
              must_refuse=False),
        Probe("unsupported role", chat(messages=[{"role": "stackgen-no-such-role", "content": "hi"}])),
    )  # fmt: skip


def long_prompt(model: str, length: int) -> Probe:
    """A prompt that is 25% longer than a context of `length` tokens: each separate letter is one token."""
    text = "a b c d " * (length * 5 // 16 + 16)
    messages = [{"role": "user", "content": text}]
    return Probe(LONG_PROMPT, {"model": model, "messages": messages, "max_tokens": 1, "temperature": 0})


def context_length(context: Context, model: str) -> int | None:
    """Returns the context length of `model` in tokens, from the model list or FastChat's token_check; None if unknown.

    The field is `max_model_len` in vLLM, `context_length` in Together, and `meta.n_ctx` in llama.cpp, where
    `meta.n_ctx_train` is the length that the model was trained with.
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
        # the first field wins: n_ctx is the limit of the server, n_ctx_train is only the limit of the model
        if lengths := [length for length in map(_valid_length, named) if length]:
            return lengths[0]
    return _length_from_token_check(context, model)


def _length_from_token_check(context: Context, model: str) -> int | None:
    """Returns the context length from FastChat's token_check, because FastChat's model list does not contain it."""
    if context.dialect.name != "fastchat":
        return None
    body = {"prompts": [{"model": model, "prompt": "hi", "max_tokens": 1}]}
    try:
        reply = context.session.post(context.session.target.root + PROMPT_COUNTER_PATH, body)
    except Fault:
        return None
    data = reply.json() if reply.status == 200 else None
    prompts = data.get("prompts") if isinstance(data, dict) else None
    first = prompts[0] if isinstance(prompts, list) and prompts else None
    return _valid_length(first.get("contextLength")) if isinstance(first, dict) else None


def _valid_length(value: Any) -> int | None:
    # in Python, a bool is an int
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def length_from_error(reply: Reply) -> int | None:
    """The context length that an error message contains; None if there is none."""
    match = LENGTH.search(reply.body.decode("utf-8", "replace"))
    return int(next(group for group in match.groups() if group)) if match else None


def find_problems(context: Context, probe: Probe, reply: Reply) -> list[Problem]:
    """Returns the problems of a response, which should be a 4xx with a message in the dialect's field."""
    problems, evidence = list[tuple[str, bool]](), f"{probe.name}: {context.excerpt(reply)}"
    crash = reply.status >= 500
    if crash:
        problems.append((reply.summary, True))
    elif reply.status == 200 and not probe.must_refuse:
        return []
    elif reply.status < 400:
        problems.append((f"accepted with {reply.status}" if reply.status < 300 else reply.summary, False))
        return [Problem(f"{probe.name}: {text}", severe, evidence) for text, severe in problems]
    elif reply.status == 429:
        # a rate limit was reached, so nothing is known about the invalid request
        problems.append(("HTTP 429, so the result is unknown", False))
    elif reply.json() is None:
        problems.append((f"HTTP {reply.status} with {reply.content_type or 'nothing'} instead of JSON", False))
    elif not _error_message(context, reply):
        problems.append((f"HTTP {reply.status} without a message in {'.'.join(context.dialect.error_path)}", False))
    # a model may be served under its path; then that path is no secret
    named = str(probe.body.get("model", "")) if isinstance(probe.body, Mapping) else ""
    if leak := LEAK.search(_unescaped_text(reply).replace(named, "") if "/" in named else _unescaped_text(reply)):
        problems.append((f"the error exposes server internals: {leak[0]}", crash))
    return [Problem(f"{probe.name}: {text}", severe, evidence) for text, severe in problems]


def _error_message(context: Context, reply: Reply) -> str:
    body = reply.json()
    for name in context.dialect.error_path:
        body = body.get(name) if isinstance(body, dict) else None
    return body.strip() if isinstance(body, str) else ""


def _unescaped_text(reply: Reply) -> str:
    # JSON escapes quotes and backslashes, which would hide the start of a path
    return reply.body.decode("utf-8", "replace").replace('\\"', '"').replace("\\n", "\n")
