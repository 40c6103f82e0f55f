"""Flags of vLLM whose fields have another form: JSON, sizes in bytes, switches, and parts of several machines.

A flag whose field this version of stackgen does not have goes into `extra_args`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from stackgen.engines.vllm import VllmModel
from stackgen.importing.container import parse_size
from stackgen.importing.flags import Flag, take
from stackgen.importing.ledger import Draft, Ledger
from stackgen.spec import parse_token_count

__all__ = ["keep_local_part", "take_field"]

LOCAL, SIZE = "--data-parallel-size-local", "--data-parallel-size"
# flags that join the processes of several machines
JOINING = ("--data-parallel-address", "--data-parallel-rpc-port", "--data-parallel-start-rank",
           "--data-parallel-hybrid-lb")  # fmt: skip
ONE_MACHINE = "the stack starts only the part on this machine, and does not connect it to other machines"


def _size(text: str) -> str:
    if not (size := parse_size(text)):
        raise ValueError(text)
    return size


def _object(text: str) -> Any:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


FIELDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    SIZE: ("data_parallel_size", int), "--enable-expert-parallel": ("expert_parallel", bool),
    "--max-num-batched-tokens": ("max_num_batched_tokens", parse_token_count),
    "--enable-prefix-caching": ("prefix_caching", bool), "--kv-cache-memory-bytes": ("kv_cache_memory", _size),
    "--cpu-offload-gb": ("cpu_offload_gib", float), "--load-format": ("load_format", str),
    "--speculative-config": ("speculative", _object), "--limit-mm-per-prompt": ("limit_mm_per_prompt", _object),
    "--enable-sleep-mode": ("sleep_mode", bool),
}  # fmt: skip


def take_field(flag: Flag, draft: Draft, ledger: Ledger) -> bool:
    """Puts `flag` into its field. Returns False for a flag without a field, and for a value that the field can't "
    "have.
    """
    name = next((one for one in flag.names if one in FIELDS), "")
    field, convert = FIELDS.get(name, ("", str))
    # `--speculative-config.method x` sets one key of the value
    if field not in VllmModel.model_fields or "." in flag.written:
        return False
    if convert is bool:
        draft.fields[field] = not flag.written.replace("_", "-").startswith("--no-")
        if draft.fields[field] is False and field != "prefix_caching":
            del draft.fields[field]
            flag.build_in("this is the default")
        else:
            flag.carry(field, draft, "" if draft.fields[field] else "written as false")
        return True
    if field == "speculative":
        return _take_speculation(flag, draft)
    if convert is _object and not flag.unknown:
        try:
            convert(flag.text)
        except ValueError:
            return False
        draft.fields[field] = convert(flag.text)
        flag.carry(field, draft, "the keys of the JSON value became fields")
        return True
    take(flag, draft, field, convert)
    if field in draft.fields and str(draft.fields[field]) not in flag.text:
        flag.carry(field, draft, f"written as {draft.fields[field]}")
    return True


def _take_speculation(flag: Flag, draft: Draft) -> bool:
    """The JSON of speculative decoding, if the field has all of its keys and values."""
    from pydantic import TypeAdapter, ValidationError

    annotation: Any = VllmModel.model_fields["speculative"].annotation
    try:
        value = _object(flag.text)
        TypeAdapter(annotation).validate_python(value)
    except (ValueError, ValidationError):
        # stackgen refuses the flag in extra_args, because the download has to know the draft model
        flag.drop("the field `speculative` has no such setting: compare it with the stack file's reference")
        return True
    draft.fields["speculative"] = value
    flag.carry("speculative", draft, "the keys of the JSON value became fields")
    return True


def keep_local_part(flags: list[Flag], draft: Draft, ledger: Ledger) -> list[Flag]:
    """The flags without those that join several machines; the number of copies is that of this machine."""
    local = next((flag for flag in flags if LOCAL in flag.names), None)
    if local is None:
        return flags
    ledger.warn(local.word.item.place, f"several machines share the copies of the model: {ONE_MACHINE}")
    kept = []
    for flag in flags:
        if flag is local:
            # written as the number of all copies, which there are on this machine
            value = [*local.values] if local.inline is None else []
            word = local.word
            kept.append(Flag(word, SIZE, value, local.inline, (SIZE, "-dp"), True))
            for item in (word.item, *(one.item for one in value)):
                item.note = "the copies on this machine"
        elif any(name in (SIZE, *JOINING) for name in flag.names):
            flag.drop(ONE_MACHINE)
        else:
            kept.append(flag)
    return kept
