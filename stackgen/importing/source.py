"""Recognizes what a source is, reads it, and returns the stack with what became of each word: `import_text`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackgen.errors import Mistake, SpecError
from stackgen.importing.assemble import Assembled, assemble
from stackgen.importing.compose_file import is_compose, load_text, read_compose
from stackgen.importing.container import Container, Value
from stackgen.importing.docker_cli import is_docker_run, read_docker_run
from stackgen.importing.dockerfile import apply_dockerfile, is_dockerfile
from stackgen.importing.helm_values import is_values, read_values
from stackgen.importing.ledger import Ledger, Word
from stackgen.importing.programs import find_program, name_unsupported
from stackgen.importing.shell import Command, read_script
from stackgen.importing.systemd import is_unit, read_unit
from stackgen.stack.yaml_text import YAML_ERRORS, read_value

__all__ = ["Imported", "import_text"]

# exported variables with another beginning belong to the script, and not to the engine
ENGINE_VARIABLE = re.compile(
    r"(?:CUDA|HF|HUGGING|VLLM|NCCL|NVIDIA|HIP|ROCR|TORCH|PYTORCH|OMP|TRANSFORMERS|GLOO|RAY|LLAMA|FASTCHAT|SGLANG|FLASHINFER|"
    r"TRITON|HTTPS?|https?|NO|no|TOKENIZERS|SAFETENSORS|LMCACHE|UCX|GGML)_"
)
HELP = (
    "stackgen reads `docker run`, `vllm serve`, SGLang, `llama-server` and FastChat commands, Compose files, "
    "Dockerfiles, systemd units, and values of vLLM's production-stack"
)
MANIFEST_HINT = (
    "combine the container's `command`, `args` and `env` into one command, for example `stackgen import -- env "
    "NAME=VALUE vllm serve MODEL --max-model-len 8192`. `gpus` is the limit of nvidia.com/gpu"
)
# commands of a script that stackgen does itself
OWN_COMMANDS = re.compile(
    r"(?:sudo )?(?:docker|podman) (?:container |image |network |volume "
    r")?(?:pull|stop|rm|kill|logs|ps|create|inspect|network|volume|login|compose|rmi|wait)\b"
)
SCRIPT_COMMANDS = re.compile(
    r"(?:echo|printf|true|false|:|sleep|exit|return|trap|\[\[?|test|wait|kill|pkill|tee|clear|ulimit|shift|source|\.|conda|"
    r"module|nvidia-smi|curl|tail|until|shopt|which|command|date|cat|read|ls)(?:\s|$)"
)
INSTALLS = re.compile(
    r"(?:sudo )?(?:uv )?(?:python\d* -m )?pip\d* install\b.*\b(?:vllm|fschat|sglang|huggingface_hub|hf_transfer)\b"
)


@dataclass(slots=True)
class Imported:
    """What was read: the `kind` of source, the stack, its ledger, and the folder that its relative paths refer to.

    `problems` are errors that stackgen finds in the new stack.
    """

    kind: str
    folder: Path
    ledger: Ledger
    assembled: Assembled = field(default_factory=Assembled)
    problems: list[Mistake] = field(default_factory=list)

    @property
    def result(self) -> str:
        """`whole`: everything is in the stack. `notes`: something is not. `none`: no model is."""
        if not self.assembled.drafts:
            return "none"
        lost = (
            any(item.outcome == "dropped" for item in self.ledger.items) or self.assembled.unsupported or self.problems
        )
        return "notes" if lost else "whole"


def import_text(text: str, source: str, folder: Path, overrides: Sequence[Path] = ()) -> Imported:
    """Reads `text`, a file or a command. `source` is its name for messages; paths are relative to `folder`.

    `overrides` are further Compose files, merged into the first as `docker compose -f A -f B` does.

    Raises SpecError if the text is damaged, is no source that stackgen reads, or starts no engine.
    """
    ledger = Ledger()
    kind, containers, project, stack, folder = _read(text, source, folder, ledger, overrides)
    assembled = assemble(containers, project, ledger, scheduled="production-stack" in kind)
    assembled.data = _merge(assembled.data, stack)
    ledger.close()
    found = Imported(kind, folder, ledger, assembled)
    if not assembled.drafts:
        _refuse(found, source)
    return found


def _merge(data: dict[str, Any], stack: dict[str, Any]) -> dict[str, Any]:
    models = data.pop("models")
    return {**data, **{key: value for key, value in stack.items() if key not in data}, "models": models}


def _refuse(found: Imported, source: str) -> None:
    reasons = found.assembled.unsupported
    mistakes = [Mistake("", text) for text in reasons]
    if not mistakes:
        mistakes = [Mistake("", "starts no engine that stackgen knows", hint=HELP)]
    raise SpecError(source, mistakes)


def _read(
    text: str, source: str, folder: Path, ledger: Ledger, overrides: Sequence[Path] = ()
) -> tuple[str, list[Container], str, dict[str, Any], Path]:
    if is_unit(text):
        commands, environment, folder = read_unit(text, folder, ledger)
        containers = _containers(commands, folder, ledger)
        # a variable that only the command line uses is no setting of the engine
        given = {name: word for name, word in environment.items() if not _is_only_expanded(name, text)}
        bare = [one for one in containers if one.is_bare]
        for container in bare:
            container.environment = {name: _value(word) for name, word in given.items()} | container.environment
        for name, word in environment.items():
            if name not in given or not bare:
                word.item.build_in("a variable of the systemd unit: its value is inserted where the command uses it")
        name = Path(source).stem if source.endswith(".service") else ""
        return "systemd unit", containers, name.rstrip("@"), {}, folder
    if is_dockerfile(text):
        container = Container("", source, folder, text=text)
        if apply_dockerfile(text, source, container, ledger, {}):
            ledger.warn(
                source, "the source builds its own image. The stack uses the base image, unless you set `image`"
            )
        return "Dockerfile", [container], "", {}, folder
    if (data := _yaml(text, source)) is not None:
        if is_compose(data):
            containers, project = read_compose(data, folder, source, ledger, overrides)
            return "Compose file", containers, project, {}, folder
        if is_values(data):
            containers, stack = read_values(data, folder, source, ledger)
            return "values of vLLM's production-stack", containers, "", stack, folder
        _refuse_yaml(data, source)
    # people paste commands with the prompt of their shell
    clean = re.sub(r"(?m)^[ \t]*[$❯%][ \t]+", "", text)
    # as in a shell, variables of the environment count; HOME stays `~`
    values = {name: value for name, value in os.environ.items() if name not in ("HOME", "PWD", "OLDPWD")}
    commands = read_script(clean, ledger, values)
    return "command", _containers(commands, folder, ledger), "", {}, folder


def _yaml(text: str, source: str) -> dict[str, Any] | None:
    """The mapping in `text` if it is YAML; None for commands. Raises SpecError for a broken YAML file."""
    kinds = re.findall(r"(?m)^kind:[ \t]*(\w+)", text)
    if kinds and re.search(r"(?m)^apiVersion:", text):
        what = ", ".join(dict.fromkeys(kinds))
        message = f"this is a Kubernetes manifest ({what}), which stackgen does not import"
        raise SpecError(source, [Mistake("", message, hint=MANIFEST_HINT)])
    named = source.endswith((".yaml", ".yml"))
    looks = re.search(r"(?m)^(?:services|version|servingEngineSpec|x-[\w-]+|name)[ \t]*:", text) is not None
    if not named and not looks:
        try:
            data = read_value(text)
        except YAML_ERRORS:
            return None
        if not isinstance(data, dict) or not any(isinstance(one, (dict, list)) for one in data.values()):
            return None
    return load_text(text, source)


def _refuse_yaml(data: dict[str, Any], source: str) -> None:
    if isinstance(data.get("models"), list):
        message = "this is a stack file already"
        hint = f"`stackgen render {source}` renders it"
    else:
        message, hint = "is not a file that stackgen can import", HELP
    raise SpecError(source, [Mistake("", message, hint=hint)])


def _containers(commands: list[Command], folder: Path, ledger: Ledger) -> list[Container]:
    """The containers and processes that the commands of a script start."""
    found = []
    for command in commands:
        texts = " ".join(word.text for word in command.words)
        if is_docker_run(command.words):
            container = read_docker_run(command.words, ledger, folder)
            _settle(command, command.assignments)
            found.append(container)
            continue
        if command.words[0].text == "cd" and len(command.words) > 1:
            folder = folder / Path(command.words[1].text).expanduser()
            _settle_words(command, "relative paths are relative to this folder")
            continue
        container = _process(command, folder)
        if _is_server(container):
            container.place = command.words[0].item.place
            for name, word in command.exported.items():
                if ENGINE_VARIABLE.match(name):
                    container.environment.setdefault(name, _value(word))
            found.append(container)
        elif OWN_COMMANDS.match(texts):
            _settle_words(command, "stackgen pulls images, and starts, stops and replaces containers itself")
        elif SCRIPT_COMMANDS.match(texts):
            _settle_words(command, "this command is for the script, and sets nothing for the engine")
        elif INSTALLS.match(texts):
            _settle_words(command, "stackgen's images have the engine and its packages")
        else:
            for item in command.items():
                item.drop(f"this command of the script ({command.words[0].text}) starts no model")
    return found


def _process(command: Command, folder: Path) -> Container:
    container = Container("", command.words[0].item.place, folder, is_bare=True)
    container.command = list(command.words)
    container.environment = {name: _value(word) for name, word in command.assignments.items()}
    container.text = "\n".join(item.text for item in command.items())
    return container


def _is_server(container: Container) -> bool:
    """Whether a program is an engine, without giving its words an outcome."""
    probe = Container("", container.place, container.folder, is_bare=True)
    scratch = Ledger()
    probe.command = [
        scratch.word(word.item.place, word.item.text, word.text, word.unknown) for word in container.command
    ]
    return find_program(probe, scratch) is not None or bool(name_unsupported(probe))


def _is_only_expanded(name: str, text: str) -> bool:
    return not ENGINE_VARIABLE.match(name) and re.search(rf"\$\{{?{re.escape(name)}\b", text) is not None


def _value(word: Word) -> Value:
    return Value(word.text, word.item, word.unknown)


def _settle(command: Command, words: dict[str, Word]) -> None:
    # `A=1 docker run` sets A for the client of Docker
    for word in words.values():
        word.item.drop("a variable of the command `docker`, which no container gets")


def _settle_words(command: Command, reason: str) -> None:
    for item in command.items():
        item.build_in(reason)
