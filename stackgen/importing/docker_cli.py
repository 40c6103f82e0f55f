"""Reads `docker run …`, also of podman and nerdctl, into a container. Options: `docker run --help` of Docker 28.5."""

from __future__ import annotations

import re
from pathlib import Path

from stackgen.importing.container import Container, MountMap, Value
from stackgen.importing.env_files import read_variables
from stackgen.importing.ledger import Ledger, Word
from stackgen.importing.options import ALIASES, SWITCHES, apply_option

__all__ = ["is_docker_run", "read_docker_run"]

TOOLS = ("docker", "podman", "nerdctl", "sudo")


def is_docker_run(words: list[Word]) -> bool:
    """Whether `words` start a container: `docker run`, `docker container run`, `docker create`."""
    texts = [word.text for word in words[:6]]
    while texts and texts[0] in ("sudo", "exec", "nohup", "time"):
        texts.pop(0)
    if not texts or texts[0].rpartition("/")[2] not in TOOLS:
        return False
    # `docker --context x run`: global options stand before the command
    return any(text in ("run", "create") for text in texts[1:4]) and "compose" not in texts


def read_docker_run(words: list[Word], ledger: Ledger, folder: Path) -> Container:
    """The container that `docker run` with these words starts. Every word gets an outcome, or is in the container."""
    start = next(index for index, word in enumerate(words) if word.text in ("run", "create"))
    for word in words[: start + 1]:
        word.item.build_in("`stackgen up` starts the stack")
    container = Container("", words[0].item.place, folder)
    at = start + 1
    while at < len(words):
        word = words[at]
        if not word.text.startswith("-") or word.text == "-":
            break
        at += 1
        if word.text == "--":
            word.item.build_in("this marks the end of the options")
            break
        at += _read_option(container, words, at, ledger)
    if at < len(words):
        container.image = words[at]
        container.command += words[at + 1 :]
    container.text = "\n".join(word.item.text for word in words)
    return container


def _read_option(container: Container, words: list[Word], at: int, ledger: Ledger) -> int:
    """Reads the option before `at`. Returns how many further words it takes."""
    word = words[at - 1]
    flag, equals, value = word.text.partition("=")
    if flag.startswith("--"):
        name = ALIASES.get(flag, flag[2:])
        if name in SWITCHES:
            return _finish(container, name, word, value or "true", ledger)
        if equals:
            return _finish(container, name, word, value, ledger)
    else:
        # `-it`, `-dp 8000:8000`, `-p8000:8000`: switches, then at most one option with a value
        short = word.text[1:]
        while short and ALIASES.get(f"-{short[0]}", "") in SWITCHES:
            name, short = ALIASES[f"-{short[0]}"], short[1:]
            apply_option(container, name, word, ledger, "true")
        if not short:
            return 0
        name = ALIASES.get(f"-{short[0]}", short[0])
        if len(short) > 1:
            return _finish(container, name, word, short[1:].removeprefix("="), ledger)
    if at >= len(words):
        word.item.drop("the command ends after this option")
        return 0
    _finish(container, name, words[at], words[at].text, ledger)
    word.item.follows = words[at].item
    return 1


def _finish(container: Container, name: str, word: Word, value: str, ledger: Ledger) -> int:
    if name == "name":
        container.name = value
        word.item.build_in("stackgen chooses the names of containers")
    elif name == "entrypoint":
        container.entrypoint = [Word(value, word.item, word.unknown)] if value else []
        if not value:
            word.item.build_in("not needed: stackgen's command already names the engine's program")
    elif name == "env-file":
        _read_env_file(container, value, word, ledger)
    elif name == "mount":
        _read_mount(container, value, word)
    elif name == "pull" and not value:
        word.item.build_in("stackgen pulls images that are missing")
    else:
        apply_option(container, name, word, ledger, value)
    return 0


def _read_env_file(container: Container, path: str, word: Word, ledger: Ledger) -> None:
    found = read_variables(container.folder / Path(path).expanduser())
    if found is None:
        word.item.drop(f"the file {path} can't be read here: put its variables into `extra_env`")
        return
    word.item.build_in("its variables are listed one by one")
    for name, value in found.items():
        item = ledger.add(f"{path}: {name}", f"{name}={value}")
        container.environment.setdefault(name, Value(value, item))


def _read_mount(container: Container, text: str, word: Word) -> None:
    """`--mount type=bind,source=/a,target=/b,readonly`."""
    pairs = {part.partition("=")[0]: part.partition("=")[2] for part in text.split(",")}
    source = pairs.get("source") or pairs.get("src") or ""
    target = pairs.get("target") or pairs.get("destination") or pairs.get("dst") or ""
    read_only = any(pairs.get(name) in ("", "true", "1") for name in ("readonly", "ro") if name in pairs)
    if pairs.get("type", "volume") not in ("bind", "volume") or not source or not target:
        word.item.drop("stack.yaml has no field for this kind of mount")
        return
    named = pairs.get("type", "volume") == "volume" and not re.match(r"[/.~]", source)
    container.mounts.append(MountMap(source, target.rstrip("/") or "/", read_only, named, word.item))
