"""What people are used to from other tools: where a stack is named, stack.yml, copies, completion, terminals."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.stack.load import load_stack
from tests.conftest import ROOT

STACK = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc}]\n"


def run(*args: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Runs stackgen as a separate process, in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "stackgen", *args],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)} | env, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK)
    return tmp_path


# stack.yml


def test_a_stack_file_may_have_the_name_stack_yml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stack.yml").write_text(STACK.replace("abc", "1"))
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 2
    assert f"{tmp_path / 'stack.yml'}: 1 error" in capsys.readouterr().err
    (tmp_path / "stack.yml").write_text(STACK)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", "--no-validate"]) == 0
    assert cli.main(["render", "--no-validate", "--check"]) == 0
    assert not (tmp_path / "stack.yaml").exists()
    assert cli.main(["init"]) == 2
    assert "stack.yml already exists" in capsys.readouterr().err
    cli.main(["doctor", "--offline", "--json"])
    assert "stack.yml" in json.loads(capsys.readouterr().out)["stack"]


def test_two_stack_files_in_a_folder_are_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yml").write_text(STACK.replace("demo", "other"))
    for command in (["render", "--no-validate"], ["status"], ["check"], ["down"]):
        assert cli.main([command[0], str(folder), *command[1:]]) == 2
        assert "contains both stack.yaml and stack.yml" in capsys.readouterr().err
    assert cli.main(["render", str(folder / "stack.yml"), "--no-validate"]) == 0
    assert "name: other" in (folder / "compose.yaml").read_text()


# render into another folder, and from flags


def test_output_to_another_folder_is_a_stack_that_can_be_started_there(folder: Path, tmp_path: Path) -> None:
    text = (
        "# ünï 𝄞\nname: demo\nstorage: {path: weights}\nmodels:\n"
        "  - model: &m ./w  # folder\n    engine: vllm\n    mounts: [{source: data, target: /data}]\n"
        "    chat_template: t.jinja\n    extra_args: [--x=./x, ./y, --z=.z, /abs]\n"
        "  - {model: *m, engine: vllm, served_names: [b], lora_adapters: [{name: a, path: org/hub}]}\n"
    )
    (folder / "stack.yaml").write_text(text)
    out = tmp_path / "out"
    assert cli.main(["render", str(folder), "-o", str(out), "--no-validate"]) == 0
    spec = load_stack(out / "stack.yaml")
    assert spec.storage.path == str(folder / "weights")
    assert [model.model for model in spec.models] == [str(folder / "w")] * 2
    # relative, because an absolute path in an argument is not mounted
    up = os.path.relpath(folder, out)
    assert spec.models[0].extra_args == (f"--x={up}/x", f"{up}/y", "--z=.z", "/abs")
    assert (spec.models[0].mounts[0].source, spec.models[0].chat_template) == (
        str(folder / "data"), str(folder / "t.jinja"),
    )  # fmt: skip
    assert spec.models[1].lora_adapters[0].path == "org/hub"
    assert "# ünï 𝄞\n" in (out / "stack.yaml").read_text("utf-8")
    # a command in the new folder renders the same files
    assert cli.main(["render", str(out), "--no-validate", "--check"]) == 0


@pytest.mark.parametrize("inside", [True, False])
def test_files_in_arguments_are_mounted_in_a_copy_too(folder: Path, tmp_path: Path, inside: bool) -> None:
    words = "[--tool-parser-plugin, ./p.py, --allowed-local-media-path=./m, --last, ., --text, a=./b]"
    (folder / "stack.yaml").write_text(STACK.replace("revision: abc", f"revision: abc, extra_args: {words}"))
    out = folder / "out" if inside else tmp_path / "elsewhere"
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    assert cli.main(["render", str(folder), "-o", str(out), "--no-validate"]) == 0
    sources = []
    for place in (folder, out):
        service = yaml.safe_load((place / "compose.yaml").read_text())["services"]["vllm-name"]
        binds = {one["target"]: one["source"] for one in service["volumes"] if one["type"] == "bind"}
        command = service["command"]
        plugin = command[command.index("--tool-parser-plugin") + 1]
        media = next(one for one in command if one.startswith("--allowed")).partition("=")[2]
        sources.append([os.path.normpath(place / binds[path]) for path in (plugin, media)])
        assert command[command.index("--last") + 1] == "." and "a=./b" in command
    assert sources[0] == sources[1] == [str(folder / "p.py"), str(folder / "m")]


def test_a_path_in_a_block_of_text_is_moved(folder: Path, tmp_path: Path) -> None:
    (folder / "stack.yaml").write_text(
        "name: demo\nmodels:\n  - model: >-\n      ./m\n\n    # a comment\n    engine: vllm\n"
        "    chat_template: &t |-\n      t.jinja\n    extra_args:\n      - >-\n        --x=./y\nport: 9000\n"
    )
    out = tmp_path / "out"
    assert cli.main(["render", str(folder), "-o", str(out), "--no-validate"]) == 0
    spec = load_stack(out / "stack.yaml")
    (model,) = spec.models
    assert (model.model, model.chat_template) == (str(folder / "m"), str(folder / "t.jinja"))
    assert (model.extra_args, spec.port) == ((f"--x={os.path.relpath(folder, out)}/y",), 9000)
    assert "# a comment" in (out / "stack.yaml").read_text()


def test_a_repository_of_gguf_files_needs_the_name_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", "org/name-GGUF", "--no-validate"]) == 2
    assert "add `--file FILE.gguf`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_output_that_is_a_file_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert cli.main(["render", str(folder), "-o", str(tmp_path / "file"), "--no-validate"]) == 2
    assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err


def test_a_copy_follows_its_source_until_somebody_edits_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    render = ["render", str(folder), "-o", str(out), "--no-validate"]
    assert cli.main(render) == 0
    (folder / "stack.yaml").write_text(STACK + "port: 9000\n")
    assert cli.main(render) == 0
    assert load_stack(out / "stack.yaml").port == 9000
    with (out / "stack.yaml").open("a") as file:
        file.write("bind: 127.0.0.2\n")
    (folder / "stack.yaml").write_text(STACK + "port: 9001\n")
    capsys.readouterr()
    assert cli.main(render) == 2
    assert f"edited by hand: {out / 'stack.yaml'}" in capsys.readouterr().err
    assert load_stack(out / "stack.yaml").bind == "127.0.0.2"
    assert cli.main([*render, "--force"]) == 0
    assert load_stack(out / "stack.yaml").port == 9001


def test_output_never_replaces_another_stack_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "stack.yaml").write_text("name: mine\nmodels: [{model: org/mine, engine: vllm}]\n")
    for force in ([], ["--force"]):
        assert cli.main(["render", str(folder), "-o", str(out), "--no-validate", *force]) == 2
        shown = capsys.readouterr().err
        assert f"{out} contains another stack (`mine`)" in shown and "choose another folder" in shown
    assert load_stack(out / "stack.yaml").name == "mine"
    assert not (out / "compose.yaml").exists()


def test_a_stack_from_flags_can_be_rendered_again_with_other_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    render = ["render", "org/name", "--engine", "vllm", "--no-validate"]
    assert cli.main(render) == 0
    assert cli.main([*render, "--port", "9000"]) == 0
    # `up` in that folder starts what was rendered
    monkeypatch.chdir("compose/name")
    assert cli.main(["render", "--no-validate", "--check"]) == 0
    assert load_stack(Path("stack.yaml")).port == 9000
    monkeypatch.chdir(tmp_path)
    path = Path("compose/name/stack.yaml")
    path.write_text(path.read_text().replace("9000", "9001"))
    capsys.readouterr()
    assert cli.main([*render, "--port", "9002"]) == 2
    shown = capsys.readouterr().err
    assert "edited by hand" in shown and "to use your edited file, run `stackgen render compose/name`" in shown
    assert load_stack(path).port == 9001


@pytest.mark.parametrize(
    ("words", "engine", "gpus"),
    [
        (["org/name"], "vllm", 1),
        (["org/name", "--gpus", "none"], "vllm", 0),
        (["org/name", "--gpus", "2"], "vllm", 2),
        (["org/name-GGUF", "--file", "m.gguf"], "llamacpp", 0),
        (["./weights"], "vllm", 1),
    ],
)
def test_a_model_without_an_engine_gets_one(
    words: list[str], engine: str, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    assert cli.main(["render", *words, "-o", "out", "--no-validate"]) == 0
    assert f"{words[0]} is served with {engine}" in capsys.readouterr().err
    (model,) = load_stack(Path("out/stack.yaml")).models
    assert (model.engine, model.gpus) == (engine, gpus)


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("nowhere", "`--engine vllm --gpus 1`"),
        # a misspelled folder of a stack, not a model of the organization `compose`
        ("compose/lama", "`stackgen init` writes a stack.yaml"),
        ("./nowhere", "`stackgen init`"),
        ("qwen3:8b", "Write `model: Qwen/Qwen3-8B`"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "`model: Qwen/Qwen3-0.6B`"),
    ],
)
def test_a_word_that_is_no_stack_and_no_model_is_explained(
    argument: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compose").mkdir()
    assert cli.main(["render", argument, "--no-validate"]) == 2
    shown = capsys.readouterr().err
    assert f"{argument} is not a stack" in shown and advice in shown
    assert [path.name for path in tmp_path.iterdir()] == ["compose"]


# the stack among other words


def write_log(folder: Path, service: str, text: str) -> None:
    """Writes the state of a stack of local processes that has stopped, and a log."""
    logs = folder / ".stackgen" / "logs"
    logs.mkdir(parents=True)
    (logs / f"{service}.log").write_text(text)
    entry = {"service": service, "role": "engine", "state": "exited", "health": "", "ready": "/none", "exit_code": 0,
             "pid": None, "start": None, "restarts": 0, "grace": 1, "ports": []}  # fmt: skip
    state = {"supervisor": {"pid": 0, "start": None}, "services": [entry]}
    (folder / ".stackgen" / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize(
    "words",
    [["FOLDER"], ["FOLDER/stack.yaml"], ["FOLDER", "vllm-name"], ["vllm-name", "FOLDER"], ["--stack", "FOLDER"]],
)
def test_logs_take_the_stack_as_other_commands_do(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(folder, "vllm-name", "hello\n")
    words = [word.replace("FOLDER", str(folder)) for word in words]
    assert cli.main(["logs", *words, "--runtime", "process"]) == 0
    assert capsys.readouterr().out == "vllm-name | hello\n"
    assert cli.main(["logs", *words, "--runtime", "process", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"service": "vllm-name", "text": "hello"}


def test_logs_of_containers_are_printed_as_json(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    # as docker/compose v2.40 prints them; the arguments are its last line
    docker.write_text('#!/bin/sh\necho "download-1   | a | b"\necho "vllm-name-1  | "\necho "x-1  | $*"\nexit 3\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    capsys.readouterr()
    assert cli.main(["logs", str(folder), "vllm-name", "--json", "-n", "5"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [{"service": "download", "text": "a | b"}, {"service": "vllm-name", "text": ""}]
    assert lines[2]["text"].endswith("logs --tail 5 vllm-name --no-color")


def test_ask_takes_the_stack_as_other_commands_do(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "stack.yaml").write_text("name: demo\nport: 1\nmodels: [{model: org/name, engine: vllm}]\n")
    for words in (["why?", str(folder)], [str(folder), "why?"], ["why?", "--stack", str(folder)]):
        assert cli.main(["ask", *words, "--api-key", "k"]) == 1
        assert "nothing listens on 127.0.0.1:1" in capsys.readouterr().err
    monkeypatch.chdir(folder)
    assert cli.main(["ask", "Who", "are"]) == 2
    assert "put a question of several words in quotes" in capsys.readouterr().err
    assert cli.main(["ask", "why?", str(folder), "--stack", "elsewhere"]) == 2
    assert "2 stacks were given" in capsys.readouterr().err


# --json, completion


@pytest.mark.parametrize(
    "command", ["render --stdout", "completion bash", "schema", "check --list", "explain", "init new"]
)
def test_commands_that_print_a_document_print_json_too(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main([*command.split(), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    if command.startswith("render"):
        assert cli.main(command.split()) == 0
        assert data["text"] == capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("render org/name --engine ll", {"llamacpp"}),
        ("render org/name --set max_model", {"max_model_len="}),
        ("explain SG-V00", {"SG-V001", "SG-V002"}),
        ("check --select chat,str", {"chat,stream"}),
        ("check --provider toge", {"together"}),
        ("ask why --model org/", {"org/name"}),
        ("logs vllm", {"vllm-name"}),
        ("logs ./ vllm", {"vllm-name"}),
        ("scale org", {"org/name="}),
        ("up stack", {"stack.yaml"}),
        ("status --runtime p", {"process"}),
    ],
)
def test_completion_knows_values(line: str, words: set[str], folder: Path) -> None:
    """Does what the shell's completion script does."""
    out = folder / "out"
    line = f"stackgen {line}"
    env = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": " ",
           "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}  # fmt: skip
    done = run(folder=folder, **env)
    assert {word.strip() for word in out.read_text().split()} >= words, done.stderr


# encodings


def test_no_terminal_breaks_a_command(tmp_path: Path) -> None:
    """A terminal in ISO 8859-1 has no arrows and no ellipsis."""
    ours, theirs = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "iso-8859-1"}
    command = [sys.executable, "-m", "stackgen", "check", "--base-url", "http://127.0.0.1:1"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        # the end of a terminal is an error
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            os.close(ours)
    assert process.returncode == 1
    assert b"-> " in shown and b"bug" not in shown and b"\\u" not in shown


def test_redirected_output_is_utf8_in_every_locale(folder: Path) -> None:
    name = "n\u00fcm\u2026"
    (folder / "stack.yaml").write_text(STACK.replace("revision: abc", f"served_names: ['{name}']"), "utf-8")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run("render", "--stdout", folder=folder, **env)
    assert done.returncode == 0, done.stderr
    assert name in yaml.safe_load(done.stdout.decode("utf-8"))["services"]["vllm-n-m"]["command"]
    done = run("render", "--stdout", folder=folder, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"n?m..." in done.stdout


def test_the_next_command_can_be_pasted_for_a_folder_with_a_blank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "My Lab"]) == 0
    assert "`stackgen up 'My Lab'`" in capsys.readouterr().err
    assert cli.main(["render", "My Lab", "--no-validate"]) == 0
    assert "`stackgen up 'My Lab'`" in capsys.readouterr().err
