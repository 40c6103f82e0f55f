"""The command line: exit codes, text and JSON output, and no traceback for any input."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen import __version__
from stackgen.cli import commands
from stackgen.cli import main as cli
from stackgen.cli.commands import schema as schema_command
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.stack.folder import build_from_flags
from stackgen.stack.load import load_stack
from tests.conftest import ROOT

STACK = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stack.yaml").write_text(STACK)
    return tmp_path


def subcommands() -> dict[str, argparse.ArgumentParser]:
    parser = cli.build_parser()
    action = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


COMMANDS = sorted(subcommands())


def stackgen(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs stackgen as a separate process."""
    env = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.run([sys.executable, "-m", "stackgen", *args], capture_output=True, text=True, env=env, **options)


# exit codes


def test_check_of_rendered_files_exits_with_1_until_they_are_written(folder: Path) -> None:
    args = ["render", str(folder), "--no-validate"]
    assert cli.main([*args, "--check"]) == 1
    assert cli.main(args) == 0
    assert cli.main([*args, "--check"]) == 0


@pytest.mark.parametrize(
    "args",
    [
        ["render", "nowhere"],
        ["render", "nowhere.yaml"],
        ["render", "org/name", "--engine", "tgi"],
        ["render", "org/name", "--engine", "vllm", "--gpus", "some"],
        ["render", "org/name", "--engine", "vllm", "--gpus", "0"],
        ["render", "org/name", "--engine", "vllm", "--gpus", "²"],  # isdigit() is true, but int() rejects it
        ["render", "org/name", "--engine", "vllm", "--set", "novalue"],
        ["render", "org/name", "--engine", "vllm", "--set", "no_such_field=1"],
        ["render", "org/name", "--engine", "vllm", "--set", "extra_args=[&a [*a]]"],
        ["render", "org/name", "--engine", "vllm", "--set", "revision=2024-13-01x", "--set", "port=x"],
        ["render", "org/name", "--engine", "vllm", "--set", "port.x=1"],
        ["render", "org/name", "--engine", "vllm", "--port", "0"],
        ["render", "org/name", "--engine", "vllm", "--served-name", "a\udcff"],
        ["init", "--engine", "tgi"],
        ["down", "nowhere"],
        ["logs", "--stack", "nowhere"],
        ["check", "nowhere"],
        ["ask", "why?", "--stack", "nowhere"],
        ["status", "nowhere"],
        ["up", "nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_input_exits_with_2_and_a_message_without_traceback(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("stackgen: ")
    assert "hint: " in shown.err
    assert shown.out == ""
    # nothing was written
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args", [["render", "--no-such-flag"], ["nonsense"], ["completion", "tcsh"], ["up", "--timeout", "soon"]]
)
def test_arguments_that_argparse_rejects_exit_with_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert caught.value.code == 2
    assert "usage: stackgen" in capsys.readouterr().err


def test_no_command_prints_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: stackgen" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(StackgenError, 2), (MachineError, 3), (StartError, 1)])
def test_each_error_class_has_its_exit_code(
    error: type[StackgenError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise error("what is wrong", "what to do")

    monkeypatch.setattr(schema_command, "schema", fail)
    assert cli.main(["schema"]) == code
    assert capsys.readouterr().err == "stackgen: what is wrong\n  hint: what to do\n"
    assert cli.main(["schema", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": "what is wrong", "hint": "what to do"}
    with pytest.raises(error):
        cli.main(["--debug", "schema"])


def test_a_machine_without_docker_exits_with_3(folder: Path) -> None:
    """`docker` is not on the PATH: the exit code shows that the machine is the problem, and not the input."""
    stackgen("render", str(folder), check=True, env={"PATH": "/nowhere"})  # rendering needs no Docker
    done = stackgen("down", str(folder), env={"PATH": "/nowhere"})
    assert done.returncode == 3
    assert "docker is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_folder_prints_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(STACK)
    (tmp_path / "file").write_text("")
    done = stackgen("render", str(tmp_path), "-o", str(tmp_path / "file/inside"))
    assert "Traceback" not in done.stderr
    assert done.returncode in (2, 3)


def test_a_bug_prints_its_type_without_traceback_and_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise KeyError("sk-secret")

    monkeypatch.setattr(schema_command, "schema", fail)
    assert cli.main(["schema"]) == 3
    shown = capsys.readouterr().err
    assert "a bug in stackgen: KeyError" in shown and "--debug" in shown
    assert "sk-secret" not in shown and "Traceback" not in shown
    with pytest.raises(KeyError):
        cli.main(["--debug", "schema"])


def test_up_prints_warnings_before_it_starts_anything(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("name: a\nmodels: [{model: org/m, engine: vllm}]\n")
    done = subprocess.run([sys.executable, "-m", "stackgen", "up", str(tmp_path)], capture_output=True, text=True,
                          env=os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/nobody"})  # fmt: skip
    assert done.returncode == 3
    assert "warning: org/m has no revision" in done.stderr and done.stdout == ""


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(schema_command, "schema", interrupt)
    assert cli.main(["schema"]) == 130
    assert "stackgen: stopped" in capsys.readouterr().err


def test_a_closed_pipe_prints_no_error() -> None:
    """`stackgen schema | head -c 10`: the schema is larger than the buffer of a pipe."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m stackgen schema | head -c 10; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


# output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_mentions_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for action in subcommands()[command]._actions:
        for flag in action.option_strings:
            assert flag in shown
        if not isinstance(action, argparse._HelpAction):
            assert action.help, f"{command}: {action.dest} has no help"
    assert "exit codes: 0 success" in " ".join(shown.split())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^ +{command}\b", shown, re.MULTILINE) for command in COMMANDS)


def test_every_command_has_a_module_and_every_command_module_a_command() -> None:
    found = set()
    for path in Path(commands.__file__).parent.glob("[a-z]*.py"):
        function = getattr(import_module(f"stackgen.cli.commands.{path.stem}"), path.stem, None)
        # helpers of several commands take more than the parsed arguments
        if function and list(signature(function).parameters) == ["args"]:
            # `import` is a word of Python
            found.add(path.stem.rstrip("_"))
    assert found == set(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom stackgen.cli import main as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = 'openai', 'docker', 'rich', 'pydantic', 'jinja2', 'yaml', 'httpx2'\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_rendering_imports_no_client_library(folder: Path) -> None:
    code = (
        f"import sys\nfrom stackgen.cli import main as cli\ncli.main(['render', {str(folder)!r}, '--stdout'])\n"
        "print([m for m in ('openai', 'docker', 'rich', 'httpx2') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    "args", [["render", "{}", "--stdout"], ["status", "{}"], ["down", "{}"], ["keys", "list", "{}"]]
)
def test_short_commands_compile_no_rules(folder: Path, args: list[str]) -> None:
    args = [arg.format(folder) for arg in args]
    code = (
        f"import sys\nfrom stackgen.cli import main as cli\ntry: cli.main({args!r})\nexcept SystemExit: pass\n"
        "heavy = 'stackgen.diagnose.rules', 'stackgen.doctor.table', 'stackgen.kubernetes.manifests'\n"
        "print('loaded:', [m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.endswith("loaded: []\n")


@pytest.mark.parametrize(
    "args",
    [["render", "{}", "--no-validate"], ["render", "{}", "--no-validate", "--check"], ["init", "{}/new"], ["schema"]],
)
def test_json_outputs_parse(folder: Path, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([arg.format(folder) for arg in args] + ["--json"])
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_json_of_a_diff_parses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["render", str(folder), "--no-validate", "--diff", "--json"])
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_json_of_render_lists_each_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["render", str(folder), "--no-validate", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["folder"] == str(folder)
    assert {"path": "compose.yaml", "kind": "new", "edited": False} in data["changes"]
    assert data["warnings"] == []


def test_data_goes_to_stdout_and_warnings_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text(STACK.replace(", revision: abc", ""))
    assert cli.main(["render", str(folder), "--stdout"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "demo"
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    shown = capsys.readouterr()
    assert "warning: org/name has no revision" in shown.err
    assert "warning" not in shown.out
    assert f"new     {folder / 'compose.yaml'}" in shown.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "stackgen" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
    # at least this one must have been tried
    assert shutil.which("bash")


def test_completion_completes_commands(tmp_path: Path) -> None:
    """Does what the shell's completion script does."""
    out = tmp_path / "out"
    env = {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": "stackgen re",
        "COMP_POINT": "11",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
        "_ARGCOMPLETE_IFS": " ",
    }
    stackgen(env=env)
    assert out.read_text().split() == ["render"]


# flags instead of a file


def test_flags_give_the_same_stack_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "render",
        "org/Name-1",
        "--engine",
        "vllm",
        "--gpus",
        "0,1",
        "--revision",
        "abc",
        "--served-name",
        "a",
        "--served-name",
        "b: #",
        "--max-model-len",
        "32k",
        "--gpu-memory-utilization",
        "0.8",
        "--port",
        "9000",
        "--bind",
        "0.0.0.0",
        "--tensor-parallel-size",
        "2",
        "--set",
        'extra_args=[--x, "1e-5"]',
        "--set",
        "storage.path=/w",
        "--set",
        "extra-env.A=no",
        "--no-validate",
    ]
    flags[flags.index("extra-env.A=no")] = 'extra-env.A="no"'
    assert cli.main(flags) == 0
    one = tmp_path / "compose/name-1"
    two = tmp_path / "two"
    two.mkdir()
    (two / "stack.yaml").write_text(
        "name: name-1\nport: 9000\nbind: 0.0.0.0\nstorage: {path: /w}\nmodels:\n  - model: org/Name-1\n    "
        "engine: vllm\n"
        "    gpus: [0, 1]\n    revision: abc\n    served_names: [a, 'b: #']\n    max_model_len: 32k\n"
        "    gpu_memory_utilization: 0.8\n    tensor_parallel_size: 2\n    extra_args: [--x, '1e-5']\n"
        "    extra_env: {A: 'no'}\n"
    )
    assert cli.main(["render", str(two), "--no-validate"]) == 0
    assert load_stack(one / "stack.yaml") == load_stack(two / "stack.yaml")
    assert (one / "compose.yaml").read_text() == (two / "compose.yaml").read_text()


@pytest.mark.parametrize(
    "text",
    ["1e-5", "no", "08", "=", "a: b", "# x", "é\u2028😀", "'", '"', "\n", " x ", "null", "x-", "<<", "0x1", "1_000"],
)
def test_the_stack_file_written_from_flags_loads_unchanged(tmp_path: Path, text: str) -> None:
    stack = build_from_flags("org/name", {"engine": "vllm", "served_names": [text]}, [], str(tmp_path))
    (tmp_path / "stack.yaml").write_text(stack.generated_file, encoding="utf-8")
    assert load_stack(tmp_path / "stack.yaml") == stack.spec


@pytest.mark.parametrize(
    ("value", "gpus"),
    [
        ("2", 2),
        ("0,", ("0",)),
        ("0,1", ("0", "1")),
        ("device=0", ("0",)),
        ("device=0,2", ("0", "2")),
        ("[0, 1]", ("0", "1")),
        ("GPU-8a1b", ("GPU-8a1b",)),
        ("none", 0),
        ("nvidia.com/gpu=0", ("nvidia.com/gpu=0",)),
    ],
)
def test_gpus_flag_is_parsed_in_every_form(value: str, gpus: Any, tmp_path: Path) -> None:
    stack = build_from_flags("org/name", {"engine": "vllm", "gpus": value}, [], str(tmp_path))
    assert stack.spec.models[0].gpus == gpus


def test_all_gpus_are_accepted_with_a_tensor_parallel_size(tmp_path: Path) -> None:
    flags = {"engine": "vllm", "gpus": "all", "tensor_parallel_size": 8}
    assert build_from_flags("org/name", flags, [], str(tmp_path)).spec.models[0].gpus == "all"


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("dtype=bfloat16", "bfloat16"),
        ("max-num-seqs=8", 8),
        ("enforce_eager=true", True),
        ("image=a:b", "a:b"),
        ("extra_args=[--x]", ("--x",)),
        ("chat_template=./a=b.jinja", "./a=b.jinja"),
        ("quantization=", None),
        ("revision=[", "["),
    ],
)
def test_set_changes_a_field_of_the_model(assignment: str, value: Any, tmp_path: Path) -> None:
    stack = build_from_flags("org/name", {"engine": "vllm"}, [assignment], str(tmp_path))
    assert getattr(stack.spec.models[0], assignment.partition("=")[0].replace("-", "_")) == value


def test_set_changes_fields_of_the_stack(tmp_path: Path) -> None:
    sets = ["storage.offline=true", "storage.path=/w", "logging.max_size=1m", "restart=always", "name=other"]
    spec = build_from_flags("org/name", {"engine": "vllm"}, sets, str(tmp_path)).spec
    assert (spec.storage.offline, spec.storage.path, spec.logging.max_size, spec.restart) == (
        True,
        "/w",
        "1m",
        "always",
    )
    assert spec.name == "other"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--port", "9000"], "--port is"),
        (["--gpus", "garbage"], "--gpus is"),
        (["--engine", "vllm", "--served-name", "a"], "--engine and --served-name are"),
        (["--set", "dtype=half", "--max-model-len", "8k"], "--set and --max-model-len are"),
    ],
)
def test_flags_of_a_model_are_refused_for_a_stack(
    folder: Path, flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for stack in (folder, folder / "stack.yaml"):
        assert cli.main(["render", str(stack), "--no-validate", *flags]) == 2
        shown = capsys.readouterr().err
        assert f"{stack} is a stack, and {named} only for `render MODEL`" in shown
        assert f"set the fields in {folder / 'stack.yaml'}" in shown
    assert [path.name for path in folder.iterdir()] == ["stack.yaml"]


@pytest.mark.parametrize(
    ("model", "flags", "size"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", [], "8"),
        ("org/Mixtral-8x7B", ["--gpus", "none"], "56"),
        ("org/Phi-3.8b", [], "3.8"),
        ("org/Llama-3.1-8B", ["--gpus", "1"], ""),
        ("org/Llama-3.1-8B", ["--gpus", "device=0"], ""),
        ("org/Llama-3.2-1B", [], ""),
        ("org/SmolLM2-135M", [], ""),
        ("org/Name-5Bx", [], ""),
    ],
)
def test_a_large_model_on_the_cpu_is_a_warning(
    model: str, flags: list[str], size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", model, "--engine", "vllm", "--revision", "a", "--stdout", *flags]) == 0
    assert cli.main(["render", model, "--engine", "vllm", "--revision", "a", "--diff", "--no-validate", *flags]) == 0
    shown = capsys.readouterr().err
    assert (f"warning: {model} has about {size} billion parameters and runs on the CPU" in shown) == bool(size)
    assert ("set `gpus: 1` (a count) or `gpus: [0]` (indices)" in shown) == bool(size)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("org/Llama-3.2_1B", "llama-3-2-1b"),
        ("./My Models/x/", "x"),
        ("./..", "stack"),
        ("org/" + "a" * 90, "a" * 60),
    ],
)
def test_the_default_name_comes_from_the_model(
    model: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a folder inside the model's would be refused
    (tmp_path / "models" / "current").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models" / "current")
    assert build_from_flags(model, {"engine": "vllm"}, [], str(tmp_path / "stack")).spec.name == name


def test_a_relative_model_folder_is_resolved_for_the_rendered_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["render", "./weights", "--engine", "vllm", "--no-validate"]) == 0
    folder = tmp_path / "compose/weights"
    assert load_stack(folder / "stack.yaml").models[0].model == str(tmp_path / "weights")
    mounts = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["vllm-weights"]["volumes"]
    assert str(tmp_path / "weights") in [mount["source"] for mount in mounts]


def test_output_to_another_folder_keeps_local_paths_valid(folder: Path, tmp_path: Path) -> None:
    (folder / "stack.yaml").write_text("name: demo\nmodels: [{model: ./weights, engine: vllm}]\n")
    out = tmp_path / "out"
    assert cli.main(["render", str(folder), "-o", str(out), "--no-validate"]) == 0
    assert not (folder / "compose.yaml").exists()
    assert str(folder / "weights") in (out / "compose.yaml").read_text()


def test_the_default_is_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["render", "--no-validate"]) == 0
    assert (folder / "compose.yaml").exists()
    assert cli.main(["render", "stack.yaml", "--no-validate", "--check"]) == 0


def test_every_id_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    from stackgen.diagnose.rules import RULES
    from stackgen.doctor.table import CHECKS

    ids = [one.id for one in RULES] + [one.id for one in CHECKS]
    assert len(ids) == len(set(ids)) > 150
    for id in ids:
        assert cli.main(["explain", id.lower()]) == 0
        assert id in capsys.readouterr().out
    assert cli.main(["explain", "SG-Z999"]) == 2


@pytest.mark.parametrize("command", ["check", "exporter"])
def test_names_of_checks_are_separated_by_commas_or_spaces(command: str) -> None:
    assert cli.build_parser().parse_args([command, "--skip", "auth, load tools"]).skip == ("auth", "load", "tools")


def optional_value_options() -> list[tuple[str, str, Any]]:
    """Every option of every command whose value may be left out: the command, the option and its default value."""
    return [
        (command, action.option_strings[-1], action.const)
        for command, parser in subcommands().items()
        for action in parser._actions
        if action.option_strings and action.nargs == "?"
    ]


@pytest.mark.parametrize(("command", "option", "const"), optional_value_options())
def test_an_option_with_an_optional_value_does_not_take_the_stack_as_its_value(
    command: str, option: str, const: Any
) -> None:
    name = option.strip("-").replace("-", "_")
    for given, value, stack in (
        ([option, "llama"], const, "llama"),
        ([option[:-1], "./llama/stack.yaml"], const, "./llama/stack.yaml"),
        (["llama", option], const, "llama"),
        ([option, "3", "llama"], 3, "llama"),
        (["llama", option, "3"], 3, "llama"),
        ([option, "--json"], const, "."),
        ([option, "--", "llama"], const, "llama"),
    ):
        args = cli.build_parser().parse_args([command, *given])
        assert (getattr(args, name), args.stack) == (value, stack), given


def test_at_least_one_option_has_an_optional_value() -> None:
    assert ("check", "--watch", 10.0) in optional_value_options()
