"""Reads the errors that ended a start, and the settings that their words name. For rules that read any such message."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stackgen.diagnose.error_lines import find_error_lines, find_root_lines
from stackgen.diagnose.evidence import Evidence, ServiceEvidence
from stackgen.diagnose.log_lines import has_crashed, has_served, lines_since_ready, strip_prefix
from stackgen.diagnose.templates import has_field
from stackgen.flags import load_flags, normalize_flag
from stackgen.spec import ModelSpec

__all__ = [
    "REMEDY", "SETTING", "Message", "find_advice", "find_messages", "find_settings", "name_setting", "parallel_size",
    "strip_quoted",
]  # fmt: skip

# fields of stack.yaml that vLLM's messages name with the same words
FIELDS = frozenset((
    "dtype", "enforce_eager", "gpu_memory_utilization", "kv_cache_dtype", "max_model_len", "max_num_seqs",
    "pipeline_parallel_size", "quantization", "reasoning_parser", "tensor_parallel_size", "tool_call_parser",
))  # fmt: skip
# words of messages, and the fields and flags that turn the feature on
WORDS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern, re.I), settings)
    for pattern, settings in (
        (r"tensor.parallel|\btp(?:_size)?\b", ("tensor_parallel_size",)),
        (r"pipeline.parallel|\bpp(?:_size)?\b", ("pipeline_parallel_size",)),
        (r"expert.parallel|\bep(?:_size)?\b", ("--enable-expert-parallel",)),
        (r"data.parallel|\bdp(?:_size)?\b", ("--data-parallel-size",)),
        (r"speculative|draft(?:ing| model)|\bmtp\b|eagle", ("--speculative-config",)),
        (r"\blora\b|adapter", ("--enable-lora", "--lora-modules", "--lora")),
        (r"split.?mode", ("--split-mode",)),
        (
            r"\bk?[kv].?cache (?:quant|dtype|type)|quantized kv|fp8 kv",
            ("kv_cache_dtype", "--cache-type-k", "--cache-type-v"),
        ),
        (r"flash.?att(?:n|ention)", ("--flash-attn", "--attention-backend")),
        (r"prefix.cach", ("--enable-prefix-caching",)),
        (r"chunked.prefill", ("--enable-chunked-prefill",)),
        (r"cuda.?graph|torch.compile|eager", ("enforce_eager", "--compilation-config")),
        (r"async.schedul", ("--async-scheduling",)),
        (r"cpu.offload", ("--cpu-offload-gb",)),
        (r"quantiz", ("quantization",)),
        (r"attention|flash.?infer|\bfa[23]\b|\bmla\b", ("--attention-backend",)),
        (r"structured.output|grammar", ("--structured-outputs-config",)),
        (r"sleep.mode", ("--enable-sleep-mode",)),
        (r"context.shift", ("--context-shift",)),
    )
)
ARGUMENT = re.compile(r"'tensor_parallel_size': (?P<size>\d+)")

REMEDY = re.compile(
    r"(?P<remedy>(?:[Pp]lease|[Rr]e-?run with|[Tt]ry|[Cc]onsider|[Yy]ou (?:can|may|need to|must|should)) (?:to )?"
    r"(?:set|setting|increas\w+|decreas\w+|reduc\w+|us\w+|enabl\w+|disabl\w+|specify\w*|pass\w*|lower\w*|rais\w+|"
    r"add\w*|adjust\w*|chang\w+|remov\w+|choos\w+|run\w*|-) ?.{2,200}?)"
    # also the end of a sentence in the quoted answer of a server
    r"(?:\. |\.?$|; |\.[\"'])"
)
# what nobody should do because of one line of a log
RISKY = re.compile(
    r"(?i)\b(?:pip3?|install\w*|upgrad\w+|delet\w+|remov\w+ (?!(?:the "
    r"(?:flag|option|argument)|[`'\"]?--))|rm|trust_remote_code|reboot|restart\w*|download\w*|force\w*|"
    r"privileged|allow_|skip\w*|ignor\w+|unsafe|insecure|root|sudo|chmod|issue|report|from source|rebuild\w*)"
)
# what opens a server to others, or switches a protection off: never repeated, whoever advises it
EXPOSING = re.compile(
    r"(?i)\bshar(?:e|es|ed|ing|eable)\b(?! "
    r"?(?:memory|lib))|\bpublic\w*|\btunnel\w*|\bngrok\b|\bexpos\w+|\b0\.0\.0\.0\b|"
    r"\bhost network|--net(?:work)?\b|\btrust\w*|\bcors\b|\bsetenforce|"
    r"\b(?:disabl\w+|turn\w* off|without|no|bypass\w*|remov\w+|stop\w*)[ _-](?:the |your |any )?"
    r"(?:auth\w*|security|ssl|tls|verif\w+|check\w*|cert\w*|firewall|selinux|apparmor|seccomp|api[ "
    r"_-]?keys?|password\w*)|"
    r"\bverify ?= "
    r"?(?:false|0|none)|SSL_?VERIFY|DISABLE_(?:SSL|TLS|AUTH|VERIF)|VERIFY_?SSL|\bCURL_CA_BUNDLE\b|\bPYTHONHTTPSVERIFY\b|\bunconfined\b|\bcap.?add\b"
)
# values and names of Python, which contain the words of settings by chance
QUOTED = re.compile(r"\binput_value=.*?(?:, input_type=\w+|$)|(?<=cannot import name )'\w+'", re.M)
SETTING = re.compile(r"--?[a-z][\w-]{2,60}|\b[a-z]+(?:_[a-z0-9]+)+\b|\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b")


@dataclass(frozen=True, slots=True)
class Message:
    """An error that ended a start: its `text`, and the lines of the log `before` it, without prefixes."""

    service: ServiceEvidence
    text: str
    before: Sequence[str]


def find_messages(evidence: Evidence, hints: bool = False) -> Iterator[Message]:
    """The errors of the deepest process of each service that failed, the earliest first.

    A server that runs is skipped: an error in its log may be about one request. With `hints`, a log without any certain
    error yields the lines that have only the words of errors.
    """
    for service in evidence.services:
        if service.is_working or (has_served(service.log) and not has_crashed(service.log)):
            continue
        yield from (Message(service, text, before) for text, before in _read_messages(service.log, hints))


# cached because several rules read the same errors
@lru_cache(maxsize=32)
def _read_messages(log: str, hints: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The text of each error, and the lines before it."""
    lines = lines_since_ready(log)
    words = [one for one in find_error_lines(lines) if not one.below_error] if hints else []
    # only without any certain error may words alone show one
    errors = find_root_lines(lines) or words
    # more errors than these repeat the first ones
    starts = ((one.text, max(0, one.index - 40), one.index) for one in errors[:200])
    return tuple((text, tuple(map(strip_prefix, lines[start:end]))) for text, start, end in starts)


def find_advice(text: str) -> str:
    """What the message `text` itself advises; "" if it advises nothing, or something that one line can't justify."""
    found = REMEDY.search(text)
    if not found or RISKY.search(found["remedy"]) or EXPOSING.search(found["remedy"]):
        return ""
    return found["remedy"].rstrip(". ")


def name_setting(word: str, engine: str, model: ModelSpec | None = None) -> str:
    """How stack.yaml sets `word`: a field, or a flag in extra_args. "" if no flag and no field has this name."""
    name = word.lstrip("-").replace("-", "_")
    fields = type(model).model_fields if model else FIELDS
    if name in fields:
        return f"`{name}`"
    known = load_flags(engine or "vllm", getattr(model, "engine_version", None)) or load_flags(engine or "vllm")
    flag = normalize_flag(word)
    return f"{flag} in extra_args" if known and flag in known.by_name else ""


def strip_quoted(text: str) -> str:
    """`text` without the input that pydantic shows, and without names that Python could not import."""
    return QUOTED.sub("", text)


def find_settings(text: str, engine: str, model: ModelSpec | None) -> tuple[str, ...]:
    """The settings that `text` is about, in words of stack.yaml; with `model`, only those that it sets."""
    found: list[str] = []
    text = strip_quoted(text)
    # names in the message itself come first
    found += [shown for word in SETTING.findall(text) if (shown := name_setting(word, engine, model))]
    for pattern, settings in WORDS:
        # without an engine, a word is no evidence for a flag of one
        for setting in settings if (engine or model) and pattern.search(text) else ():
            is_flag = setting.startswith("-")
            if model and not has_field(model, f"extra_args.{setting}" if is_flag else setting):
                continue
            shown = name_setting(setting, engine, model)
            if shown and (model or shown not in found):
                found.append(shown)
    return tuple(dict.fromkeys(found))


def parallel_size(service: ServiceEvidence, model: ModelSpec | None) -> int:
    """The tensor parallel size of the service, from stack.yaml or vLLM's log of its arguments; 0 if unknown."""
    logged = ARGUMENT.search(service.log)
    if logged:
        return int(logged["size"])
    size = getattr(model, "tensor_parallel_size", None)
    gpus = getattr(model, "gpus", None)
    return size or (gpus if isinstance(gpus, int) else 0)
