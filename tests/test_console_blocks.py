"""The console blocks of README.md and docs/tutorial.md: every command is run, and its output is compared.

A comment right above a block says how it is run:

    (none)                     without a container engine, in a new folder; the output must be the same to the letter
    <!-- docker -->            with a running engine; numbers, times and the width of columns may differ
    <!-- not run: REASON -->   not at all

A line `…` in a block stands for any lines, `…` within a line for any text.
The tutorial is run from top to bottom once; the README's `docker` blocks run in the middle of it, on its running stack.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
PROJECT = "sgtest-tutorial"
# After this command the tutorial's stack is known to answer, and before its end nothing has broken it yet
STACK_IS_UP = "stackgen check hello"


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    mark: str  # "", "docker" or "not run: REASON"
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def steps(self) -> list[tuple[str, str]]:
        """Commands with the output that the page shows below each. A here-document belongs to its command."""
        found: list[tuple[str, str]] = []
        end = ""  # the word that ends the here-document we are in
        for line in self.text.splitlines():
            command, output = found[-1] if found else ("", "")
            if end or command.endswith("\\"):
                found[-1] = (f"{command}\n{line}", "")
                end = "" if line == end else end
            elif line.startswith("$ "):
                found.append((line[2:], ""))
                word = re.search(r"<<(\w+)$", line)
                end = word[1] if word else ""
            else:
                found[-1] = (command, f"{output}{line}\n")
        return found


def read_blocks(page: Path) -> list[Block]:
    text = page.read_text()
    pattern = r"(?:^<!-- (docker|not run: [^\n]+?) -->\n)?^```console\n(.*?)^```$"
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[1] or "", found[2])
        for found in re.finditer(pattern, text, re.M | re.S)
    ]


BLOCKS = [*read_blocks(README), *read_blocks(TUTORIAL)]
PLAIN = [block for block in BLOCKS if not block.mark]
DOCKER = [block for block in BLOCKS if block.mark == "docker"]


def normalize(text: str) -> str:
    """Without what differs from run to run: numbers, and the spaces that line columns up."""
    text = re.sub(r"\d+(?:[.,]\d+)*", "N", text)
    return "\n".join(re.sub(r" +", " ", line).rstrip() for line in text.splitlines())


def output_pattern(expected: str) -> str:
    """A regular expression for the output that a page shows."""
    lines = []
    for line in expected.splitlines():
        parts = [re.escape(part) for part in line.rstrip().split("…")]
        lines.append(r"(?:[^\n]*\n)*?" if line.strip() == "…" else r"[^\n]*?".join(parts) + r"\n")
    return "".join(lines)


def has_output(expected: str, actual: str, exact: bool) -> bool:
    if not exact:
        expected, actual = normalize(expected), normalize(actual)
    actual = "".join(f"{line.rstrip()}\n" for line in actual.strip("\n").splitlines())
    return re.fullmatch(output_pattern(expected), actual) is not None


class Shell:
    """One bash for all commands of a page, so that variables and the current folder last."""

    def __init__(self, folder: Path, replace: dict[str, str] | None = None) -> None:
        self.folder, self.replace = folder, replace or {}
        tools = folder / ".tools"
        tools.mkdir()
        self._write(tools / "stackgen", f'exec {shlex.quote(sys.executable)} -m stackgen "$@"')
        # with the `openai` package, as a reader has it
        self._write(tools / "python", f'exec {shlex.quote(sys.executable)} "$@"')
        (folder / "scripts").mkdir()
        for name in ("engine", "build-image", "small-model"):
            self._write(folder / "scripts" / name, f'exec {shlex.quote(str(ROOT / "scripts" / name))} "$@"')
        ours = ("STACKGEN_", "HF_", "TOGETHER", "OPENAI_", "VLLM_")  # a key of this machine would change the output
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment |= {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",  # stdout and stderr in the order of a terminal
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }
        self.bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def _write(path: Path, command: str) -> None:
        path.write_text(f"#!/bin/sh\n{command}\n")
        path.chmod(0o755)

    def run(self, command: str) -> str:
        """Standard output and error of a command."""
        for old, new in self.replace.items():
            command = command.replace(old, new)
        script = self.folder / ".tools" / "command"
        script.write_text(command + "\n")
        assert self.bash.stdin and self.bash.stdout
        # the command gets no standard input: a question would read the next commands as its answer
        self.bash.stdin.write(f"source {shlex.quote(str(script))} </dev/null\nprintf '\\n= end =\\n'\n")
        self.bash.stdin.flush()
        lines = []
        for line in self.bash.stdout:
            if line == "= end =\n":
                break
            lines.append(line)
        return "".join(lines).removesuffix("\n")

    def close(self) -> None:
        with self.bash:  # closes its pipes and waits for it
            pass


def assert_as_shown(block: Block, outputs: list[str]) -> None:
    for (command, expected), actual in zip(block.steps, outputs, strict=True):
        assert has_output(expected, actual, exact=not block.mark), (
            f"{block}: `{command}` prints something else than the page shows.\n"
            f"--- the page\n{expected}--- the command\n{actual}"
        )


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_has_commands_and_is_run_or_says_why_not(block: Block) -> None:
    assert block.steps
    assert block.mark in {"", "docker"} or len(block.mark) > len("not run: ") + 5


def test_pages_have_blocks_of_each_kind() -> None:
    assert PLAIN
    assert {block.page for block in DOCKER} == {README, TUTORIAL}


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("a 1 s\n", "a 22.5 s\n", True),
        ("a  1 s\n", "a 1 s\n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\nb\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\nd\n", "a\nd\ne\n", False),
        ("a … c\n", "a b b c\n", True),
        ("a … c\n", "a b\nc\n", False),
        ("", "a\n", False),
    ],
)
def test_outputs_are_compared_without_numbers_and_omitted_lines(expected: str, actual: str, same: bool) -> None:
    assert has_output(expected, actual, exact=False) is same


def test_exact_outputs_keep_their_numbers() -> None:
    assert not has_output("a 1 s\n", "a 2 s\n", exact=True)


@pytest.fixture(scope="module")
def plain_outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Block, list[str]]:
    """Outputs of the blocks that need no engine; each page has a folder of its own."""
    outputs = {}
    for page in (README, TUTORIAL):
        shell = Shell(tmp_path_factory.mktemp(page.stem))
        (shell.folder / "tests").symlink_to(ROOT / "tests")  # the recorded logs that pages read
        for block in PLAIN:
            if block.page == page:
                outputs[block] = [shell.run(command) for command, _ in block.steps]
        shell.close()
    return outputs


@pytest.mark.parametrize("block", PLAIN, ids=str)
def test_commands_without_an_engine_print_what_the_page_shows(
    block: Block, plain_outputs: dict[Block, list[str]]
) -> None:
    assert_as_shown(block, plain_outputs[block])


@pytest.fixture(scope="module")
def docker_outputs(
    vllm_image: str, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Block, list[str]]]:
    """Outputs of the whole tutorial, and of the README on the tutorial's running stack: one engine, started once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    # A reader's own tutorial may run on this machine: another port and project. The failing start is tried twice, not
    # four times: tests/live/test_attempts.py proves the default.
    replace = {"8000": port, "name: hello": f"name: {PROJECT}\nrestart: on-failure:1"}
    shell = Shell(tmp_path_factory.mktemp("docker"), replace)
    (shell.folder / "tests").symlink_to(ROOT / "tests")
    outputs: dict[Block, list[str]] = {}
    try:
        for block in read_blocks(TUTORIAL):
            if block.mark.startswith("not run"):
                continue
            outputs[block] = [shell.run(command) for command, _ in block.steps]
            if any(command == STACK_IS_UP for command, _ in block.steps):
                for other in read_blocks(README):
                    if other.mark == "docker":
                        outputs[other] = [shell.run(command) for command, _ in other.steps]
        yield outputs
    finally:
        shell.close()
        # the tutorial ends with `down`; a run that broke off before must leave no engine behind
        remove = ["docker", "compose", "-p", PROJECT, "down", "--remove-orphans", "--timeout", "5"]
        subprocess.run(remove, capture_output=True, timeout=120)


@pytest.mark.docker
@pytest.mark.engine
@pytest.mark.xdist_group("engines")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", DOCKER, ids=str)
def test_commands_on_a_running_stack_print_what_the_page_shows(
    block: Block, docker_outputs: dict[Block, list[str]]
) -> None:
    assert_as_shown(block, docker_outputs[block])
