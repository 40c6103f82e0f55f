"""Flags of FastChat 0.2.36: the worker is a model, the controller and the API server are part of every stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stackgen.flags.arguments import FIELD_OF_FLAG
from stackgen.importing.container import Container
from stackgen.importing.flags import Flag, add_argument, read_flags, take
from stackgen.importing.keys import take_api_keys
from stackgen.importing.ledger import Draft, Ledger, Word
from stackgen.importing.model_source import set_model

__all__ = ["read_api_server", "read_controller", "read_worker"]

CONVERT: dict[str, Callable[[str], Any]] = {"worker_concurrency": int, "gpus": int}
SWITCHES = ("load_8bit", "cpu_offloading")
NETWORK = "services of a stack find each other by name, on an internal network"


def read_worker(words: list[Word], container: Container, draft: Draft, ledger: Ledger) -> None:
    """Puts the arguments of a worker into `draft`."""
    flags, positional = read_flags("fastchat", words)
    for word in positional:
        word.item.drop("this argument belongs to no flag")
    for flag in flags:
        name = next((one for one in flag.names if one.startswith("--")), flag.written)
        field = FIELD_OF_FLAG["fastchat"].get(name, "")
        if name == "--model-path":
            word = flag.values[0] if flag.values else flag.word
            set_model(Word(flag.text, word.item, flag.unknown), [flag.word.item, *(one.item for one in flag.values)],
                      container, draft, ledger)  # fmt: skip
        elif name == "--model-names":
            draft.fields["served_names"] = [one for one in flag.text.split(",") if one]
            if flag.unknown:
                flag.drop(f"the source does not set {', '.join(flag.unknown)}: set `served_names`")
                del draft.fields["served_names"]
            else:
                flag.carry("served_names", draft)
        elif name in ("--num-gpus", "--gpus", "--device"):
            draft.fields[f"_{name[2:].replace('-', '_')}"] = flag
        elif name in ("--host", "--port", "--worker-address", "--controller-address"):
            flag.build_in(NETWORK)
        elif field in SWITCHES:
            draft.fields[field] = True
            flag.carry(field, draft)
        elif field:
            take(flag, draft, field, CONVERT.get(field, str))
        elif not flag.names:
            flag.drop(f"FastChat 0.2.36 has no flag {flag.written}")
        else:
            add_argument(flag, draft, ledger)


def read_controller(words: list[Word], drafts: list[Draft], ledger: Ledger) -> None:
    """The controller: only its dispatch method is a field."""
    flags, positional = read_flags("controller", words)
    for word in positional:
        word.item.drop("this argument belongs to no flag")
    for flag in flags:
        if flag.written in ("--host", "--port"):
            flag.build_in(NETWORK)
        elif flag.written == "--dispatch-method" and not flag.unknown:
            for draft in drafts:
                draft.fields["dispatch_method"] = flag.text
                flag.carry("dispatch_method", draft)
        else:
            flag.drop("the controller in a stack does not have this setting")


def read_api_server(words: list[Word], container: Container, ledger: Ledger) -> dict[str, Flag]:
    """The API server: its address, and its keys. Returns the flags `host` and `port`."""
    flags, positional = read_flags("api", words, ("--api-keys",))
    for word in positional:
        word.item.drop("this argument belongs to no flag")
    address = {}
    for flag in flags:
        if flag.written in ("--host", "--port"):
            address[flag.written[2:]] = flag
        elif flag.written == "--controller-address":
            flag.build_in(NETWORK)
        elif flag.written == "--expect-models":
            flag.build_in("stackgen's launcher waits for the models of the stack")
        elif flag.written == "--api-keys":
            flag.word.item.build_in("stackgen sets the key")
            take_api_keys(flag.values or [Word(flag.text, flag.word.item, flag.unknown)], ledger)
        else:
            flag.drop("stackgen's launcher does not have this setting; `gateway: {cors: …}` allows web pages")
    return address
