"""Flags of `vllm serve` (0.32.0) and of older versions, as fields of a model.

Where a removed flag has a successor with the same meaning, the value moves there; `stackgen.flags.REMOVED_FLAGS` says
what to do about the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from stackgen.flags import REMOVED_FLAGS, suggest_flag
from stackgen.flags.arguments import BREAKING_FLAGS
from stackgen.importing.config_file import expand_config
from stackgen.importing.container import Container, find_host_path, local
from stackgen.importing.flags import Flag, add_argument, read_flags, take
from stackgen.importing.keys import take_api_keys
from stackgen.importing.ledger import Draft, Ledger, Word
from stackgen.importing.model_source import set_model
from stackgen.importing.vllm_fields import keep_local_part, take_field
from stackgen.importing.vllm_removed import RENAMED, join_speculation, translate_removed
from stackgen.spec import is_local

__all__ = ["read_vllm"]

SEVERAL = frozenset(
    {"--served-model-name", "--lora-modules", "--api-key", "--middleware", "--cudagraph-capture-sizes",
     "--cuda-graph-sizes", "--compile-sizes", "--limit-mm-per-prompt", "--allowed-origins", "--prompt-adapters"}
)  # fmt: skip
TEXT = {
    "--revision": "revision", "--quantization": "quantization", "--kv-cache-dtype": "kv_cache_dtype",
    "--tool-call-parser": "tool_call_parser", "--reasoning-parser": "reasoning_parser",
}  # fmt: skip
NUMBERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--tensor-parallel-size": ("tensor_parallel_size", int),
    "--pipeline-parallel-size": ("pipeline_parallel_size", int),
    "--max-num-seqs": ("max_num_seqs", int), "--gpu-memory-utilization": ("gpu_memory_utilization", float),
    "--max-lora-rank": ("max_lora_rank", int), "--max-loras": ("max_loras", int),
}  # fmt: skip
# fields that need lora_adapters
LIMITS = {"max_lora_rank": "--max-lora-rank", "max_loras": "--max-loras"}
SWITCHES = {"--enforce-eager": "enforce_eager", "--trust-remote-code": "trust_remote_code"}
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
# flags whose value is another repository, which the download service does not fetch
MORE_REPOSITORIES = ("--tokenizer", "--hf-config-path", "--speculative-config", "--spec-model")


def read_vllm(words: list[Word], container: Container, draft: Draft, ledger: Ledger) -> None:
    """Puts the arguments of `vllm serve` into `draft`. Every word gets an outcome."""
    words = expand_config(words, container, ledger)
    flags, positional = read_flags("vllm", words, SEVERAL)
    flags = keep_local_part(flags, draft, ledger)
    models = [flag for flag in flags if _is(flag, "--model")]
    for word in positional:
        if "model" in draft.fields or models:
            word.item.drop("this argument belongs to no flag, and the model is given elsewhere")
        else:
            set_model(word, [word.item], container, draft, ledger)
    drafts: dict[str, Flag] = {}
    for flag in flags:
        if flag in models:
            source = flag.values[0] if flag.values else flag.word
            text = Word(flag.text, source.item, flag.unknown)
            set_model(text, [flag.word.item, *(one.item for one in flag.values)], container, draft, ledger)
        else:
            _read(flag, container, draft, ledger, drafts)
    join_speculation(drafts, draft)
    _name_local_model(words, models, draft)
    _settle(flags, draft, ledger)


def _name_local_model(words: list[Word], models: list[Flag], draft: Draft) -> None:
    """Without a name, clients of vLLM use the model's path, and clients of a stack the name of its folder."""
    source = models[-1].text if models else next((word.text for word in words if word.item.field == "model"), "")
    if (source and not draft.fields.get("served_names") and source != draft.fields.get("model", source)) or (
        source and not draft.fields.get("served_names") and is_local(source)
    ):
        draft.fields["served_names"] = [source]


def _is(flag: Flag, name: str) -> bool:
    return name in flag.names or "--" + flag.written.lstrip("-").replace("_", "-") == name


def _read(flag: Flag, container: Container, draft: Draft, ledger: Ledger, drafts: dict[str, Flag]) -> None:
    plain = "--" + flag.written.lstrip("-").replace("_", "-")
    name = next((one for one in (*flag.names, plain) if one in KNOWN), "")
    if plain in REMOVED_FLAGS["vllm"] or plain in RENAMED:
        translate_removed(flag, plain, draft, ledger, drafts)
    elif name:
        KNOWN[name](flag, container, draft, ledger)
    elif flag.names and (breaking := next((one for one in flag.names if one in BREAKING_FLAGS["vllm"]), "")):
        flag.drop(f"{breaking} {BREAKING_FLAGS['vllm'][breaking][0]}")
    elif not flag.names:
        hint = suggest_flag("vllm", plain)
        flag.drop(f"vLLM 0.32.0 has no flag {flag.written}" + (f": {hint}" if hint else ""))
    else:
        _add(flag, draft, ledger)


def _add(flag: Flag, draft: Draft, ledger: Ledger) -> None:
    """Other flags: `extra_args`. Switches with a value, which old versions accepted, lose it."""
    value = flag.text.lower()
    if not flag.has_value and value in ("true", "false"):
        name = next(
            (one for one in flag.names if one.startswith("--") and one.startswith("--no-") == (value == "false")), ""
        )
        if not name and value == "false":
            flag.build_in("this is vLLM's default")
            return
        draft.fields.setdefault("extra_args", []).append(name or flag.names[0])
        flag.carry("extra_args", draft, f"written as {name or flag.names[0]}: the flag no longer takes a value")
        return
    if take_field(flag, draft, ledger):
        return
    # `image=4 video=1` is the form of versions before 0.10
    if _is(flag, "--limit-mm-per-prompt") and flag.texts and all(re.fullmatch(r"\w+=\d+", one) for one in flag.texts):
        pairs = {one.partition("=")[0]: int(one.partition("=")[2]) for text in flag.texts for one in text.split(",")}
        draft.fields.setdefault("extra_args", []).extend(["--limit-mm-per-prompt", json.dumps(pairs)])
        flag.carry("extra_args", draft, "written as JSON, which vLLM needs since 0.10")
        return
    for name in MORE_REPOSITORIES:
        if _is(flag, name) and "/" in flag.text and not is_local(flag.text):
            ledger.warn(flag.word.item.place, f"{name} names another repository, which the download service does not "
                                              "fetch: download this repository into the storage before the start, "
                                              "for example with `hf download`")  # fmt: skip
    if (_is(flag, "--nnodes") and flag.text not in ("", "1")) or _is(flag, "--data-parallel-address"):
        ledger.warn(
            flag.word.item.place,
            f"{flag.written} divides the model among several machines: a stack starts the part of this one",
        )
    add_argument(flag, draft, ledger)


def _switch(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    field = next(value for name, value in SWITCHES.items() if _is(flag, name))
    if flag.written.replace("_", "-").startswith("--no-") or flag.text.lower() == "false":
        flag.build_in("this is the default")
        return
    draft.fields[field] = True
    flag.carry(field, draft)
    if field == "trust_remote_code":
        ledger.warn(
            flag.word.item.place,
            "--trust-remote-code runs Python code from the model's repository. Most models no longer need it",
        )


def _names(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    if flag.unknown:
        flag.drop(f"the source does not set {', '.join(flag.unknown)}: set `served_names`")
        return
    # argparse keeps the last flag; people who repeat it mean all names
    draft.fields["served_names"] = [*draft.fields.get("served_names", ()), *flag.texts]
    flag.carry("served_names", draft)


def _length(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    take(flag, draft, "max_model_len", lambda text: int(text) if text.isdecimal() else text)


def _dtype(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    if value := DTYPES.get(flag.text.lower()):
        draft.fields["dtype"] = value
        flag.carry("dtype", draft, f"vLLM's name is {value}")
    else:
        take(flag, draft, "dtype")


def _text(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    field = next(value for name, value in TEXT.items() if _is(flag, name))
    if flag.text.lower() in ("none", "null", "auto") and field in ("quantization",):
        flag.build_in("without the flag, vLLM reads the value from the model's config")
        return
    take(flag, draft, field)


def _number(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    field, convert = next(value for name, value in NUMBERS.items() if _is(flag, name))
    take(flag, draft, field, convert)


def _template(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    path, mount = find_host_path(container, flag.text) if not flag.unknown else ("", None)
    if flag.unknown or "\n" in flag.text or "{" in flag.text or not path:
        # a template of the image, or the template itself
        if flag.text.startswith("/") and not flag.text.startswith("/vllm-workspace/"):
            ledger.warn(
                flag.word.item.place, f"{flag.text} is in no mount of the source: the file must be in the image"
            )
        add_argument(flag, draft, ledger)
        return
    if mount:
        mount.used = True
    draft.fields["chat_template"] = local(path)
    flag.carry("chat_template", draft, "" if local(path) == flag.text else "the file's path on this machine")


def _adapters(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    adapters: list[dict[str, str]] = []
    for text in flag.texts:
        if text.startswith("{"):
            adapters += _read_adapter(text)
        elif "=" in text:
            adapters.append({"name": text.partition("=")[0], "path": text.partition("=")[2]})
    for adapter in adapters:
        # a path of the container, or an id of the Hub
        if adapter["path"].startswith("/") or (container.is_bare and is_local(adapter["path"])):
            path, mount = find_host_path(container, adapter["path"])
            adapter["path"] = local(path) if path else adapter["path"]
            if mount:
                mount.used = True
    if not adapters:
        flag.drop("no adapter: `lora_adapters` needs NAME=PATH")
        return
    draft.fields["lora_adapters"] = adapters
    flag.carry("lora_adapters", draft, "one entry for each adapter" if container.mounts else "")


def _read_adapter(text: str) -> list[dict[str, str]]:
    """The JSON form of an adapter: `{"name": …, "path": …}`."""
    try:
        data = json.loads(text)
    except ValueError:
        return []
    known = isinstance(data, dict) and data.get("name") and data.get("path")
    return [{"name": str(data["name"]), "path": str(data["path"])}] if known else []


def _keys(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    words = flag.values or [Word(flag.inline or "", flag.word.item, flag.word.unknown)]
    flag.word.item.build_in("stackgen sets the key")
    take_api_keys(words, ledger)


def _address(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    # `settings.py` decides about the address
    draft.fields[f"_{'host' if _is(flag, '--host') else 'port'}"] = flag


def _download_dir(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    draft.fields.setdefault("_download_dir", flag)


def _later(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    draft.fields.setdefault("_later", []).append(flag)


def _settle(flags: list[Flag], draft: Draft, ledger: Ledger) -> None:
    """Flags that another field implies."""
    if flag := draft.fields.pop("_download_dir", None):
        if is_local(str(draft.fields.get("model", ""))):
            flag.build_in("the weights are in a folder: nothing is downloaded")
        else:
            flag.drop(
                "stackgen downloads weights into its storage: set `storage` to use a folder that has the Hub "
                "cache's layout"
            )
    for flag in draft.fields.pop("_later", []):
        if _is(flag, "--enable-auto-tool-choice") and draft.fields.get("tool_call_parser"):
            flag.build_in("`tool_call_parser` sets it")
        elif _is(flag, "--enable-lora") and draft.fields.get("lora_adapters"):
            flag.build_in("`lora_adapters` sets it")
        else:
            _add(flag, draft, ledger)
    for field, name in LIMITS.items() if not draft.fields.get("lora_adapters") else ():
        if field in draft.fields:
            draft.fields.setdefault("extra_args", []).extend([name, str(draft.fields.pop(field))])
            next(flag for flag in flags if _is(flag, name)).carry("extra_args", draft)


KNOWN: dict[str, Callable[[Flag, Container, Draft, Ledger], None]] = {
    **dict.fromkeys(TEXT, _text), **dict.fromkeys(NUMBERS, _number), **dict.fromkeys(SWITCHES, _switch),
    "--served-model-name": _names, "--max-model-len": _length, "--dtype": _dtype, "--chat-template": _template,
    "--lora-modules": _adapters, "--api-key": _keys, "--host": _address, "--port": _address,
    "--download-dir": _download_dir, "--enable-auto-tool-choice": _later, "--enable-lora": _later,
}  # fmt: skip
