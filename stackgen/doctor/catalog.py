"""Checks models against the catalog: the parsers, the first version of vLLM, and gated models.

The catalog is data of others, with a date. So these checks warn, and never say that a stack can't start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from stackgen.catalog import find_access, find_model, find_parser, find_sglang_parsers
from stackgen.catalog.flags import why_not
from stackgen.doctor.finding import DoctorInputs, Results, ok, warn
from stackgen.flags import PINNED, load_flags
from stackgen.flags.arguments import parse_arguments
from stackgen.spec import is_local
from stackgen.stack.names import find_better_parser, find_non_thinking

__all__ = ["check_first_version", "check_gated", "check_reasoning_parser", "check_tool_parser"]

# the engines that need a parser, and what happens to tool calls without one
NAMES = {"vllm": "vLLM refuses requests with `tools`", "sglang": "SGLang returns the calls as text in `content`"}


def _models(inputs: DoctorInputs, *engines: str) -> Iterator[tuple[str, Any, str]]:
    """Each model of these engines with the engine's version; one that the image's tag does not name is ""."""
    for place, model in inputs.model_specs():
        if model.engine in engines:
            tag = re.search(r":v?(\d+\.\d+\.\d+)", model.image or "")
            version = (
                (tag[1] if tag else "")
                if model.image
                else getattr(model, "engine_version", None) or PINNED[model.engine]
            )
            yield place, model, version


def check_tool_parser(inputs: DoctorInputs) -> Results:
    """A model whose parser for tool calls the catalog knows has one."""
    for place, model, version in _models(inputs, *NAMES):
        names = (model.model, *(model.served_names or ()))
        if model.engine == "sglang":
            fact = next((one for name in names for one in find_sglang_parsers("tool_call_parser", name)), None)
        else:
            fact = find_parser("tool_call_parser", *names, version=version or PINNED["vllm"])
        if fact is None:
            continue
        evidence, path = f"{fact.origin}, {fact.date}", f"{place}.tool_call_parser"
        if known := model.tool_call_parser or _find_flag(model):
            if better := find_better_parser(model, "tool_call_parser", known):
                yield warn(
                    f"{known} is the tool call parser of other models, not of {model.model}",
                    evidence=f"{better.origin}, {better.date}: {better.value}",
                    fix=f"set `tool_call_parser: {better.value}`", place=path,
                )  # fmt: skip
                continue
            yield ok("tool calls have a parser", evidence=f"{known}; {evidence} names {fact.value}", place=path)
        else:
            yield warn(
                f"{model.model} has no parser for tool calls, so {NAMES[model.engine]}",
                evidence=evidence, fix=f"set `tool_call_parser: {fact.value}` if clients send tools, as agents do",
                place=path,
            )  # fmt: skip


def check_reasoning_parser(inputs: DoctorInputs) -> Results:
    """The reasoning parser of a model reads the model's format, as far as the catalog knows it."""
    for place, model, _ in _models(inputs, *NAMES):
        given, path = model.reasoning_parser, f"{place}.reasoning_parser"
        if given and (source := find_non_thinking(model)):
            yield warn(
                f"{model.model} is not a reasoning model, so the reasoning parser {given} may treat its whole answer "
                f"as reasoning",
                evidence=source, fix="remove `reasoning_parser`", place=path,
            )  # fmt: skip
            continue
        known = find_sglang_parsers if model.engine == "sglang" else find_parser
        if not given or not known("reasoning_parser", model.model):
            continue
        fact = find_better_parser(model, "reasoning_parser")
        if fact is None:
            yield ok(f"the reasoning parser {given} fits {model.model}", place=path)
        else:
            fix = f"set `reasoning_parser: {fact.value}`"
            yield warn(
                f"{given} is the reasoning parser of other models, not of {model.model}",
                evidence=f"{fact.origin}, {fact.date}: {fact.value}",
                fix=f"remove `reasoning_parser`: vLLM sets {fact.value} itself" if fact.automatic else fix, place=path,
            )  # fmt: skip


def _find_flag(model: Any) -> str:
    """The parser for tool calls that `extra_args` sets; "" without one."""
    known = load_flags(model.engine)
    arguments = parse_arguments(model.engine, model.extra_args, known) if known else ()
    flag = frozenset({"--tool-call-parser"})
    return next((one.value or "" for one in arguments if one.find_name(flag)), "")


def check_first_version(inputs: DoctorInputs) -> Results:
    """The version of vLLM is not older than the version that the model's recipe names."""
    for place, model, version in _models(inputs, "vllm"):
        match = find_model(model.model)
        if match is None or not version:
            continue
        evidence = f"vLLM's recipe for {match.entry.model}, {match.entry.updated}"
        if reason := why_not(match.entry, match.variant, version):
            field = "image" if model.image else "engine_version"
            fix = "" if match.entry.omni else f"choose a newer vLLM with `{field}`"
            yield warn(f"{model.model}: {reason}", evidence=evidence, fix=fix, place=f"{place}.model")
        else:
            yield ok(f"the recipe of {model.model} allows vLLM {version}", evidence=evidence, place=f"{place}.model")


def check_gated(inputs: DoctorInputs) -> Results:
    """A gated model has a token, if the Hub was not asked and the model is not downloaded yet."""
    has_token = bool(inputs.env and inputs.env.has_token)
    for place, model in inputs.model_specs():
        lookup = inputs.hub.get(model.model)
        asked = lookup is not None and lookup.state not in ("unreachable", "unexpected", "rate_limited")
        if is_local(model.model) or asked or inputs.cached.get(model.model) or has_token:
            continue
        access = find_access(model.model)
        if access.gated:
            yield warn(
                f"{model.model} is gated, and .env names no token", evidence=f"{access.source}, read {access.date}",
                fix=f"accept the license at https://huggingface.co/{model.model}, run `hf auth login`, and add "
                "`HF_TOKEN_FILE=~/.cache/huggingface/token` to .env", place=f"{place}.model",
            )  # fmt: skip
