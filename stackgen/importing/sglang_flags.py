"""Flags of SGLang, as fields of a model. The table of flags says which field each one sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackgen.flags.arguments import BREAKING_FLAGS, FIELD_OF_FLAG
from stackgen.importing.container import Container, find_host_path, local
from stackgen.importing.flags import Flag, add_argument, read_flags, take
from stackgen.importing.keys import take_api_keys
from stackgen.importing.ledger import Draft, Ledger, Word
from stackgen.importing.model_source import set_model
from stackgen.spec import is_local

__all__ = ["read_sglang"]

CONVERT: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "max_num_seqs",
                     "chunked_prefill_size", "max_model_len"), int),
    "mem_fraction_static": float,
}  # fmt: skip
SWITCHES = ("enforce_eager", "trust_remote_code")


def read_sglang(words: list[Word], container: Container, draft: Draft, ledger: Ledger) -> None:
    """Puts the arguments of `sglang serve` or `sglang.launch_server` into `draft`. Every word gets an outcome."""
    flags, positional = read_flags("sglang", words)
    for word in positional:
        if "model" in draft.fields or any(_field(flag) == "model" for flag in flags):
            word.item.drop("this argument belongs to no flag")
        else:
            set_model(word, [word.item], container, draft, ledger)
            _name(word.text, draft)
    for flag in flags:
        _read(flag, container, draft, ledger)


def _field(flag: Flag) -> str:
    known = FIELD_OF_FLAG.get("sglang", {})
    return next((known[name] for name in flag.names if name in known), "")


def _read(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    field = _field(flag)
    if field == "model":
        word = flag.values[0] if flag.values else flag.word
        items = [flag.word.item, *(one.item for one in flag.values)]
        set_model(Word(flag.text, word.item, flag.unknown), items, container, draft, ledger)
        _name(flag.text, draft)
    elif field == "served_names":
        take(flag, draft, field, lambda text: [text])
    elif field in ("bind", "port"):
        draft.fields["_host" if field == "bind" else "_port"] = flag
    elif field == "gpus":
        draft.fields["_device"] = flag
    elif field.startswith("STACKGEN_API_KEY"):
        flag.word.item.build_in("stackgen sets the key")
        take_api_keys(flag.values or [Word(flag.text, flag.word.item, flag.unknown)], ledger)
    elif field in SWITCHES:
        draft.fields[field] = True
        flag.carry(field, draft)
    elif field == "chat_template":
        _set_template(flag, container, draft, ledger)
    elif field:
        take(flag, draft, field, CONVERT.get(field, str))
    elif "--enable-metrics" in flag.names:
        flag.build_in("stackgen sets it")
    elif breaking := next((one for one in flag.names if one in BREAKING_FLAGS.get("sglang", {})), ""):
        flag.drop(f"{breaking} {BREAKING_FLAGS['sglang'][breaking][0]}")
    elif not flag.names:
        flag.drop(f"SGLang has no flag {flag.written}")
    else:
        add_argument(flag, draft, ledger)


def _name(text: str, draft: Draft) -> None:
    # without a name, clients of SGLang use the model's whole path
    if is_local(text) and "served_names" not in draft.fields:
        draft.fields["served_names"] = [text]


def _set_template(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    # a file, or the name of a template that SGLang has
    path, mount = find_host_path(container, flag.text) if flag.text.startswith("/") else ("", None)
    if not path:
        add_argument(flag, draft, ledger)
        return
    if mount:
        mount.used = True
    draft.fields["chat_template"] = local(path)
    flag.carry("chat_template", draft, "" if local(path) == flag.text else "the file's path on this machine")
