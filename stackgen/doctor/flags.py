"""Checks `extra_args`: does the pinned engine version know the flags and accept their values? See `stackgen.flags`."""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.doctor.finding import DoctorInputs, Result, Results, fail, ok, unknown, warn
from stackgen.flags import REMOVED_FLAGS, REMOVED_IN, Flags, normalize_flag, suggest_flag
from stackgen.flags.arguments import (
    FIELD_OF_FLAG,
    FORCED_USAGE_EFFECT,
    FORCED_USAGE_REMEDY,
    PLAIN_FIELDS,
    Argument,
    find_forced_usage,
    find_plugin,
    parse_arguments,
    suggest_value,
)
from stackgen.flags.releases import flags_of

__all__ = ["check_extra_args", "check_flags"]


def check_extra_args(inputs: DoctorInputs) -> Results:
    """Every flag in every model's `extra_args` is known, and its value accepted."""
    for place, model in inputs.model_specs():
        if not model.extra_args:
            continue
        known, path = flags_of(model), f"{place}.extra_args"
        # another image may contain another version of the engine
        if known is None or model.image:
            yield unknown(
                f"can't tell whether {model.engine} knows the flags in extra_args",
                evidence=f"custom image: {model.image}"
                if model.image
                else f"stackgen has no table of {model.engine} {model.engine_version}",
                place=path,
            )
            continue
        problems = list(check_flags(model.engine, model.extra_args, known, path))
        yield from problems
        if not problems:
            # names only: a value may be a secret
            names = " ".join(one.partition("=")[0] for one in model.extra_args if one.startswith("-"))
            yield ok(f"{model.engine} {known.version} knows the flags in extra_args", evidence=names, place=path)


def check_flags(engine: str, arguments: tuple[str, ...], known: Flags, path: str) -> Iterator[Result]:
    """The problems in `arguments`, parsed as the engine's own parser would.

    `path` is their path in stack.yaml; each result names its argument as `PATH[INDEX]`.
    """
    for argument in parse_arguments(engine, arguments, known):
        place, flag = f"{path}[{argument.index}]", argument.flag
        if argument.entry is None:
            yield _explain_unknown_flag(engine, flag, known, place)
            continue
        name = argument.find_name(FIELD_OF_FLAG[engine])
        if argument.entry.get("removed"):
            yield fail(
                f"{flag} was removed",
                evidence=f"{engine} {known.version}",
                fix=f"use {argument.entry['removed']}",
                place=place,
            )
        elif name and FIELD_OF_FLAG[engine][name] not in PLAIN_FIELDS:
            yield warn(
                f"{flag} overrides the value that stackgen sets, but stackgen still uses its own value to plan ports, "
                "GPUs and names",
                evidence=f"the flags in extra_args come after all other flags of {engine}",
                fix=f"set {FIELD_OF_FLAG[engine][name]} instead",
                place=place,
            )
        yield from _check_value(engine, argument, arguments, known, f"{path}[{argument.value_index}]")
    if engine == "vllm" and (forced := find_forced_usage(arguments, known)):
        yield warn(f"with {forced.flag}, some clients count several times too many tokens",
                   evidence=FORCED_USAGE_EFFECT, fix=FORCED_USAGE_REMEDY, place=f"{path}[{forced.index}]")  # fmt: skip


def _explain_unknown_flag(engine: str, flag: str, known: Flags, place: str) -> Result:
    plain = normalize_flag(flag)
    instead = REMOVED_FLAGS[engine].get(plain)
    if instead:
        since = f" in {engine} {REMOVED_IN[plain]}" if engine == "vllm" and plain in REMOVED_IN else ""
        evidence = f"{engine} {known.version} does not know {flag}"
        return fail(f"{flag} was removed{since}", evidence=evidence, fix=instead, place=place)
    # the flag is right except for its underscores, which only vLLM and llama.cpp accept
    if engine in ("fastchat", "sglang") and plain in known.by_name:
        evidence = f"{'FastChat' if engine == 'fastchat' else 'SGLang'} accepts dashes only"
        return fail(f"{flag} is unknown", evidence=evidence, fix=f"did you mean {plain}?", place=place)
    name, _, value = flag.partition(" ")
    if value and normalize_flag(name) in known.by_name:
        field = FIELD_OF_FLAG[engine].get(normalize_flag(name))
        fix = f"write two items, `{name}` and its value" + (f", or use the field {field}" if field else "")
        return fail(
            f"{flag} is a single item of extra_args, so {engine} reads all of it as the name of a flag",
            fix=fix,
            place=place,
        )
    error = "invalid argument" if engine == "llamacpp" else "unrecognized arguments"
    return fail(
        f"{flag} is unknown",
        evidence=f"{engine} {known.version} exits with `{error}`",
        fix=suggest_flag(engine, flag) or f"remove {flag}",
        place=place,
    )


def _check_value(
    engine: str, argument: Argument, arguments: tuple[str, ...], known: Flags, place: str
) -> Iterator[Result]:
    entry, value = argument.entry or {}, argument.value
    if value is None or any(find_plugin(name, arguments) for name in entry["names"]):
        return
    if fix := suggest_value(entry, value):
        error = " exits with `invalid choice`" if entry.get("choices") else " does not know the value"
        yield fail(
            f"{entry['names'][0]} does not accept {value!r}",
            evidence=f"{engine} {known.version}{error}",
            fix=fix,
            place=place,
        )
