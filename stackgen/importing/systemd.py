"""Reads a systemd unit: the command of `ExecStart=` with its environment. Format: systemd.service(5)."""

from __future__ import annotations

import re
from pathlib import Path

from stackgen.importing.env_files import read_variables
from stackgen.importing.ledger import Item, Ledger, Word
from stackgen.importing.shell import Command, read_script

__all__ = ["is_unit", "read_unit"]

REASONS = {
    "User": "the image sets its own user; to choose another one, set `user`",
    "Group": "the image sets its own user", "SupplementaryGroups": "the container gets its GPUs from Docker",
    "Description": "a description for people", "Documentation": "a description for people",
    "ExecStop": "`stackgen down` stops the stack", "ExecStopPost": "`stackgen down` stops the stack",
    "ExecReload": "`stackgen update` changes a running stack", "Restart": "stackgen restarts containers itself",
    "RestartSec": "stackgen restarts containers itself", "Type": "stackgen starts containers itself",
    "TimeoutStartSec": "stackgen computes how long a start may take",
    "TimeoutStopSec": "stackgen waits until requests have ended",
    "WantedBy": "Docker starts the containers of a running stack again after a reboot",
    "After": "Docker starts after the network",
    "Requires": "a stack needs only Docker", "Wants": "a stack needs only Docker",
    "PIDFile": "stackgen starts containers itself",
    "StandardOutput": "`stackgen logs` shows the output", "StandardError": "`stackgen logs` shows the output",
    "SyslogIdentifier": "`stackgen logs` shows the output", "KillMode": "stackgen stops containers itself",
    "KillSignal": "stackgen stops containers itself", "SuccessExitStatus": "stackgen restarts containers itself",
    "StartLimitIntervalSec": "stackgen restarts containers itself",
    "StartLimitBurst": "stackgen restarts containers itself",
    "StartLimitInterval": "stackgen restarts containers itself", "Alias": "a stack has one name",
    "WorkingDirectory": "relative paths are relative to it", "BindsTo": "a stack needs only Docker",
    "Before": "Docker starts after the network",
}  # fmt: skip
DROPPED = {

    "LimitNOFILE": "stack.yaml has no field for limits",
    "LimitMEMLOCK": "stack.yaml has no field for limits", "MemoryMax": "stack.yaml has no memory limit",
    "CPUAffinity": "set `cpuset`", "Nice": "stack.yaml has no field for priorities",
    "ExecStartPre": "a step before the start: stackgen runs the image unchanged",
    "ExecStartPost": "a step after the start: `stackgen up` waits until the model answers",
}  # fmt: skip


def is_unit(text: str) -> bool:
    """Whether `text` is a unit of systemd."""
    return re.search(r"(?m)^\[(?:Service|Unit)\]\s*$", text) is not None and "ExecStart" in text


def read_unit(text: str, folder: Path, ledger: Ledger) -> tuple[list[Command], dict[str, Word], Path]:
    """The commands of the unit, the variables of its processes, and the folder that relative paths refer to."""
    entries = list(_entries(text))
    environment: dict[str, Word] = {}
    for line, name, value in entries:
        if name == "Environment":
            for word in _words(value, line, ledger, {}):
                variable, _, content = word.text.partition("=")
                environment[variable] = Word(content, word.item, word.unknown)
        elif name == "EnvironmentFile":
            _read_file(value, line, folder, environment, ledger)
        elif name == "WorkingDirectory":
            folder = folder / Path(_specifiers(value).lstrip("-")).expanduser()
    values = {name: word.text for name, word in environment.items()}
    commands: list[Command] = []
    for line, name, value in entries:
        if name == "ExecStart" and not value:
            # an empty line clears the commands before it
            commands.clear()
        elif name == "ExecStart":
            commands += read_script(
                re.sub(r"^[-@:+!]+", "", _specifiers(value)), ledger, values, f"ExecStart (line {line}), "
            )
        elif name not in ("Environment", "EnvironmentFile"):
            _explain(ledger.add(f"line {line}", f"{name}={value}"), name, value)
    return commands, environment, folder


def _explain(item: Item, name: str, value: str) -> None:
    docker = re.search(r"\b(?:docker|podman)\b.*\b(?:pull|stop|rm|kill)\b", value)
    if name.startswith("Exec") and docker:
        item.build_in("stackgen pulls images, and replaces containers itself")
    elif name in REASONS:
        item.build_in(REASONS[name])
    else:
        item.drop(DROPPED.get(name, "a setting of systemd that containers don't have"))


def _entries(text: str) -> list[tuple[int, str, str]]:
    """(line, name, value) of all settings, with continued lines joined."""
    found: list[tuple[int, str, str]] = []
    lines = text.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        start, line = at + 1, lines[at].strip()
        at += 1
        # a comment may be in the middle of a continued line
        while line.endswith("\\") and at < len(lines):
            following = lines[at].strip()
            at += 1
            line = line if following.startswith(("#", ";")) else f"{line[:-1].rstrip()} {following}"
        if match := re.fullmatch(r"([A-Za-z][\w-]*)\s*=\s*(.*)", line):
            found.append((start, match[1], match[2]))
    return found


def _words(value: str, line: int, ledger: Ledger, values: dict[str, str]) -> list[Word]:
    # `Environment="A=b c" D=e`: quotes around whole assignments
    found = [word for command in read_script("x " + value, Ledger(), values) for word in command.words[1:]]
    return [ledger.word(f"line {line}", word.item.text, word.text, word.unknown) for word in found]


def _specifiers(value: str) -> str:
    # systemd.unit(5): %h is the home, %i the instance, %% a percent sign
    return (
        value.replace("%%", "\0")
        .replace("%h", "~")
        .replace("%i", "${instance}")
        .replace("%I", "${instance}")
        .replace("\0", "%")
    )


def _read_file(value: str, line: int, folder: Path, environment: dict[str, Word], ledger: Ledger) -> None:
    item = ledger.add(f"line {line}", f"EnvironmentFile={value}")
    path = Path(_specifiers(value).lstrip("-")).expanduser()
    found = read_variables(folder / path)
    if found is None:
        item.drop(f"the file {path} can't be read here: put the variables that the engine needs into `extra_env`")
        return
    item.build_in("its variables are listed one by one")
    for name, text in found.items():
        environment[name] = Word(text, ledger.add(f"{path}: {name}", f"{name}={text}"))
