"""Reads a Dockerfile: its image, variables and command become those of a container. Nothing is built.

Format: docs.docker.com, Dockerfile reference (instructions, escapes, here-documents, shell and exec form).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stackgen.errors import Mistake, SpecError
from stackgen.importing.container import Container, Value
from stackgen.importing.ledger import Item, Ledger, Word
from stackgen.importing.programs import LLAMA_IMAGE, SGLANG_IMAGE, VLLM_IMAGE
from stackgen.importing.variables import expand

__all__ = ["apply_dockerfile", "is_dockerfile"]

STEP = "a step of the build: stackgen runs the base image unchanged. Build the image yourself, and set `image`"
REPLACED = "the service sets another value"
BUILT_IN = {
    "ARG": "its value is used in the places that refer to it", "EXPOSE": "stackgen publishes the port of the stack",
    "HEALTHCHECK": "stackgen's own health check generates a token", "LABEL": "this only describes the image",
    "MAINTAINER": "this only describes the image", "STOPSIGNAL": "stackgen stops engines itself",
    "SHELL": "its value is used in the places that refer to it", "VOLUME": "stackgen mounts the storage, and `mounts`",
    "WORKDIR": "the paths of a stack don't depend on a working directory",
}  # fmt: skip
STEPS = ("RUN", "COPY", "ADD", "ONBUILD")
ENGINE_IMAGES = (VLLM_IMAGE, LLAMA_IMAGE, SGLANG_IMAGE)
LINE = re.compile(r"\s*([A-Za-z]+)\s+(.*)", re.DOTALL)
BUILD_VARIABLE = re.compile(r"PIP_|UV_|DEBIAN_FRONTEND$|PYTHONDONTWRITEBYTECODE$|CMAKE_|CARGO_")
HEREDOC = re.compile(r"<<-?[\"']?(\w+)[\"']?")


@dataclass(frozen=True, slots=True)
class _Instruction:
    line: int
    name: str
    text: str


def is_dockerfile(text: str) -> bool:
    """Whether the first instruction of `text` is FROM, after ARG and comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    first = next((line for line in lines if not re.match(r"(?i)\s*ARG\s", line)), "")
    # `from x import y` is Python
    return re.fullmatch(r"(?i)\s*FROM(\s+--\S+)*\s+\S+(\s+AS\s+\S+)?\s*", first) is not None


def apply_dockerfile(
    text: str, place: str, container: Container, ledger: Ledger, args: Mapping[str, str], target: str = ""
) -> bool:
    """Gives `container` what the Dockerfile sets and the container does not. Returns whether it has steps of a build.

    `args` replace the defaults of ARG, `target` is the stage (default: the last one). Raises SpecError for a Dockerfile
    without FROM, or without the stage.
    """
    reader = _Reader(place, container, ledger, dict(args))
    stages = _split(list(_instructions(text)), reader, place)
    names = [name for name, _ in stages]
    if target and target not in names:
        raise SpecError(place, [Mistake("", f"has no stage {target!r}", hint=f"its stages are {', '.join(names)}")])
    used = _chain(stages, len(stages) - 1 - names[::-1].index(target) if target else len(stages) - 1)
    reader.stages = [name for index, name in enumerate(names) if index in used]
    for index, (_, instructions) in enumerate(stages):
        for one in instructions:
            if index in used:
                reader.read(one)
            else:
                reader.item(one).build_in("a stage of the build that the container does not run")
    reader.finish()
    return reader.has_steps


def _instructions(text: str) -> Iterator[_Instruction]:
    lines = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        while line.rstrip().endswith("\\") and at < len(lines):
            # comments and empty lines inside of a continued instruction are no part of it
            more = lines[at]
            at += 1
            if more.strip() and not more.lstrip().startswith("#"):
                line = f"{line.rstrip()[:-1]} {more.strip()}"
        match = LINE.fullmatch(line)
        name, rest = (match[1].upper(), match[2].strip()) if match else (line.split()[0].upper(), "")
        for end in HEREDOC.findall(rest) if name in ("RUN", "COPY", "ADD") else ():
            while at < len(lines):
                rest = f"{rest}\n{lines[at]}"
                at += 1
                if lines[at - 1].strip() == end:
                    break
        yield _Instruction(start + 1, name, rest)


def _split(found: list[_Instruction], reader: _Reader, place: str) -> list[tuple[str, list[_Instruction]]]:
    """(name, instructions) of each stage; the ARGs before the first FROM are read."""
    stages: list[tuple[str, list[_Instruction]]] = []
    for one in found:
        if one.name == "FROM":
            alias = re.search(r"(?i)\sAS\s+(\S+)$", one.text)
            stages.append((alias[1] if alias else str(len(stages)), [one]))
        elif stages:
            stages[-1][1].append(one)
        else:
            reader.read(one)
    if not stages:
        raise SpecError(place, [Mistake("", "has no FROM", hint="name another file")])
    return stages


def _base(instruction: _Instruction) -> str:
    words = [word for word in instruction.text.split() if not word.startswith("--")]
    return words[0] if words else ""


def _chain(stages: list[tuple[str, list[_Instruction]]], last: int) -> set[int]:
    """The stages that the stage `last` is built from, and itself."""
    used = {last}
    base = _base(stages[last][1][0])
    for index in range(last - 1, -1, -1):
        if stages[index][0] == base:
            used.add(index)
            base = _base(stages[index][1][0])
    return used


class _Reader:
    def __init__(self, place: str, container: Container, ledger: Ledger, args: dict[str, str]) -> None:
        self.place, self.container, self.ledger, self.args = place, container, ledger, args
        self.values: dict[str, str] = {}
        self.has_steps = False
        # the last ENTRYPOINT and CMD count
        self.entrypoint: list[Word] = []
        self.command: list[Word] = []
        self.is_shell = False
        # the names of the stages that are read
        self.stages: list[str] = []

    def item(self, one: _Instruction) -> Item:
        return self.ledger.add(f"{self.place}: line {one.line}", f"{one.name} {one.text}")

    def read(self, one: _Instruction) -> None:
        if one.name in STEPS:
            self.has_steps = True
            self.item(one).drop(STEP)
        elif one.name == "FROM":
            self._read_from(one)
        elif one.name == "ARG":
            for name, equals, default in (word.partition("=") for word in _split_words(one.text)):
                if equals or name in self.args:
                    self.values.setdefault(name, self.args.get(name, self._expand(default)[0]))
            self.item(one).build_in(BUILT_IN["ARG"])
        elif one.name == "ENV":
            self._read_env(one)
        elif one.name == "USER":
            item = self.item(one)
            self.container.options.setdefault("user", Value(self._expand(one.text)[0], item))
        elif one.name in ("ENTRYPOINT", "CMD"):
            self._read_command(one)
        elif one.name in BUILT_IN:
            self.item(one).build_in(BUILT_IN[one.name])
        else:
            self.item(one).drop("stackgen does not know this instruction")

    def finish(self) -> None:
        """Gives the container the command. An entrypoint of its own also replaces CMD."""
        image = self.container.image
        if image and self.has_steps and not any(one.search(image.text) for one in ENGINE_IMAGES):
            # a base that becomes an engine only by the steps
            image.item.drop(STEP)
            self.container.image = None
        if self.container.entrypoint:
            self._replace(self.entrypoint, self.command)
            return
        self.container.entrypoint[:] = self.entrypoint
        if self.container.command or (self.is_shell and self.entrypoint):
            self._replace(self.command)
        else:
            self.container.command[:] = self.command

    def _replace(self, *lists: list[Word]) -> None:
        for words in lists:
            for word in words:
                word.item.build_in(REPLACED)

    def _expand(self, text: str) -> tuple[str, tuple[str, ...]]:
        return expand(text, self.values)

    def _read_from(self, one: _Instruction) -> None:
        if _base(one) in self.stages:
            self.item(one).build_in("an earlier stage of the build, whose instructions are read")
            return
        text, unknown = self._expand(_base(one))
        item = self.ledger.add(f"{self.place}: line {one.line}", one.text)
        self.container.image = Word(text, item, unknown)

    def _read_env(self, one: _Instruction) -> None:
        words = _split_words(one.text)
        pairs = [word.partition("=")[::2] for word in words]
        if words and "=" not in words[0]:
            # the old form: one name, and the rest of the line
            name, _, value = one.text.partition(" ")
            pairs = [(name, value.strip())]
        for name, value in pairs:
            text, unknown = self._expand(value)
            item = self.ledger.add(f"{self.place}: line {one.line}.{name}", f"{name}={value}")
            self.values[name] = text
            if BUILD_VARIABLE.match(name):
                item.build_in("this only has an effect while the image is built")
            elif name in self.container.environment:
                item.build_in(REPLACED)
            else:
                self.container.environment[name] = Value(text, item, unknown)

    def _read_command(self, one: _Instruction) -> None:
        earlier = self.entrypoint if one.name == "ENTRYPOINT" else self.command
        for word in earlier:
            word.item.build_in("a later instruction replaces it")
        where = f"{self.place}: line {one.line}"
        is_shell = False
        try:
            given = json.loads(one.text)
            texts = [str(word) for word in given] if isinstance(given, list) else None
        except ValueError:
            texts = None
        if texts is None:
            texts, is_shell = ["/bin/sh", "-c", one.text], True
        # an instruction without a word of its own keeps its name
        name = self.ledger.add(f"{where}[0]", one.name)
        name.build_in("its arguments are listed one by one")
        found = [self.ledger.word(f"{where}[{index}]", text) for index, text in enumerate(texts, 1)]
        if one.name == "ENTRYPOINT":
            self.entrypoint, self.is_shell = found, is_shell
        else:
            self.command = found


def _split_words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()
