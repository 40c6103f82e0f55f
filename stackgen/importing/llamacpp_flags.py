"""Flags and variables of llama-server (build 11434), as fields of a model.

`--ctx-size` is the context of all slots together, and `max_model_len` that of one. Variables: `LLAMA_ARG_…` in
`llama-server --help`; a flag takes precedence over its variable.
"""

from __future__ import annotations

import posixpath
import re

from stackgen.flags.arguments import BREAKING_FLAGS
from stackgen.importing.container import Container, Value, find_host_path, local
from stackgen.importing.flags import Flag, add_argument, read_flags, take
from stackgen.importing.keys import take_api_keys, take_hub_token
from stackgen.importing.ledger import Draft, Ledger, Word
from stackgen.importing.model_source import set_model

__all__ = ["VARIABLES", "read_llamacpp"]

# variables whose flag is a field; the others are carried as variables
VARIABLES = {
    "LLAMA_ARG_MODEL": "--model", "LLAMA_ARG_ALIAS": "--alias", "LLAMA_ARG_CTX_SIZE": "--ctx-size",
    "LLAMA_ARG_N_GPU_LAYERS": "--gpu-layers", "LLAMA_ARG_N_PARALLEL": "--parallel", "LLAMA_ARG_HOST": "--host",
    "LLAMA_ARG_PORT": "--port", "LLAMA_ARG_HF_REPO": "--hf-repo", "LLAMA_ARG_HF_FILE": "--hf-file",
    "LLAMA_API_KEY": "--api-key",
}  # fmt: skip
# values for these need a file that is mounted
FILES = ("--mmproj", "--chat-template-file", "--grammar-file", "--lora", "--spec-draft-model")
# flags of older builds -> values of --load-mode
LOAD_MODES = {"--no-mmap": "none", "--mlock": "mlock", "--mmap": "mmap"}
QUANT = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?::(?P<quant>[\w.-]+))?$")


def read_llamacpp(words: list[Word], container: Container, draft: Draft, ledger: Ledger) -> None:
    """Puts the arguments of `llama-server` into `draft`. Every word gets an outcome."""
    flags, positional = read_flags("llamacpp", words)
    given = {name for flag in flags for name in flag.names}
    for variable, name in VARIABLES.items():
        # a flag of the command overrides its variable
        if (value := container.environment.pop(variable, None)) and name not in given:
            flags.append(_as_flag(name, value))
        elif value:
            value.item.drop(f"the flag {name} overrides it")
    for word in positional:
        word.item.drop("this argument belongs to no flag of llama-server")
    by_name = {name: flag for flag in flags for name in flag.names}
    for flag in flags:
        _read(flag, by_name, container, draft, ledger)
    _set_context(by_name.get("--ctx-size"), draft)


def _as_flag(name: str, value: Value) -> Flag:
    flag, _ = read_flags("llamacpp", [Word(f"{name}={value.value}", value.item, value.unknown)])
    return flag[0]


def _read(flag: Flag, by_name: dict[str, Flag], container: Container, draft: Draft, ledger: Ledger) -> None:
    names = set(flag.names)
    if "--model" in names:
        _set_file(flag, container, draft, ledger)
    elif "--hf-repo" in names:
        _set_repository(flag, by_name.get("--hf-file"), draft)
    elif "--hf-file" in names:
        if "--hf-repo" not in by_name:
            flag.drop("this flag has no effect without --hf-repo")
    elif "--hf-token" in names:
        flag.word.item.build_in("stackgen passes the token to the download")
        for word in flag.values or [Word(flag.text, flag.word.item, flag.unknown)]:
            take_hub_token(word.text, word.unknown, word.item, ledger)
    elif "--alias" in names:
        draft.fields["served_names"] = [one for one in flag.text.split(",") if one]
        flag.carry("served_names", draft)
    elif "--parallel" in names:
        take(flag, draft, "max_num_seqs", int)
        if draft.fields.get("max_num_seqs", 1) < 1:
            del draft.fields["max_num_seqs"]
            flag.build_in("llama-server chooses the number of slots")
    elif "--gpu-layers" in names:
        _set_layers(flag, draft)
    elif "--ctx-size" in names:
        return
    elif names & {"--host", "--port"}:
        draft.fields[f"_{'host' if '--host' in names else 'port'}"] = flag
    elif "--api-key" in names:
        flag.word.item.build_in("stackgen sets the key")
        take_api_keys(flag.values or [Word(flag.text, flag.word.item, flag.unknown)], ledger)
    elif names & {"--ui", "--no-ui"}:
        flag.build_in("stackgen starts llama-server without its web page; for a chat page, set `ui: open-webui`")
    elif breaking := next((one for one in flag.names if one in BREAKING_FLAGS["llamacpp"]), ""):
        flag.drop(f"{breaking} {BREAKING_FLAGS['llamacpp'][breaking][0]}")
    elif not names and flag.written in LOAD_MODES:
        draft.fields.setdefault("extra_args", []).extend(["--load-mode", LOAD_MODES[flag.written]])
        flag.carry("extra_args", draft, f"{flag.written} is now --load-mode {LOAD_MODES[flag.written]}")
    elif not names:
        flag.drop(f"llama-server of build 11434 has no flag {flag.written}")
    else:
        _add(flag, container, draft, ledger)


def _add(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    path, mount = find_host_path(container, flag.text) if set(flag.names) & set(FILES) else ("", None)
    # only a relative path in an argument is mounted, and an absolute one needs its mount
    if path and mount and local(path).startswith(("./", "../", "~")):
        draft.fields.setdefault("extra_args", []).extend([flag.written, local(path)])
        flag.carry("extra_args", draft, f"{flag.text} is in the mount of {mount.source}")
        return
    add_argument(flag, draft, ledger)


def _set_file(flag: Flag, container: Container, draft: Draft, ledger: Ledger) -> None:
    word = flag.values[0] if flag.values else flag.word
    items = [flag.word.item, *(one.item for one in flag.values)]
    text = flag.text
    # the image's working directory is /app, and a relative path is relative to it
    if not container.is_bare and not text.startswith("/") and not flag.unknown:
        text = posixpath.join("/app", text)
    set_model(Word(local(text) if container.is_bare and not flag.unknown else text, word.item, flag.unknown), items,
              container, draft, ledger)  # fmt: skip


def _set_repository(flag: Flag, file: Flag | None, draft: Draft) -> None:
    match = QUANT.match(flag.text.removeprefix("hf.co/").removeprefix("huggingface.co/"))
    if flag.unknown or not match:
        flag.drop("not a repository of the Hub: set `model` and `file`")
        return
    draft.fields["model"] = match["repo"]
    if file:
        draft.fields["file"] = file.text
        flag.carry("model", draft)
        file.carry("file", draft)
        return
    # llama-server lists the repository; stackgen makes no requests here, and the names follow a convention
    name = match["repo"].rpartition("/")[2].removesuffix("-GGUF").removesuffix("-gguf")
    draft.fields["file"] = f"{name}-{match['quant'] or 'Q4_K_M'}.gguf"
    flag.carry("model", draft, f"`file` is the usual name of the {match['quant'] or 'Q4_K_M'} file: compare it with "
        "the "
               "list of files of the repository")  # fmt: skip


def _set_layers(flag: Flag, draft: Draft) -> None:
    if flag.text in ("auto", "all", "-1"):
        flag.build_in("with a GPU, all layers are on the GPU")
        return
    take(flag, draft, "gpu_layers", int)
    # 99, 999: more layers than any model has
    if draft.fields.get("gpu_layers", 0) == 0:
        draft.fields.pop("gpu_layers", None)
        flag.carry("gpus", draft, "no layer on a GPU")
        draft.fields["gpus"] = "none"


def _set_context(flag: Flag | None, draft: Draft) -> None:
    if flag is None:
        return
    if flag.text == "0":
        flag.build_in("this is the default: the model's own context length")
        return
    take(flag, draft, "max_model_len", int)
    slots = draft.fields.get("max_num_seqs", 1)
    if slots > 1 and isinstance(draft.fields.get("max_model_len"), int):
        draft.fields["max_model_len"] //= slots
        flag.carry("max_model_len", draft, f"llama-server divides {flag.text} tokens among {slots} slots")
