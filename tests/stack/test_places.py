"""Errors, warnings and problems name the file, line and column of what they are about."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.stack.yaml_text import find_places

TEXT = """\
x-base: &base
  gpuss: 1
  dtype: fp7
x-limits: &limits
  max_sise: 1m
name: demo
models:
  - model: org/a
    engine: vllm
    <<: *base
    dtype: auto
  - {model: org/b, engine: vllm, extra_args: [--port, '1'],
     tensor_paralel_size: 2}
logging: *limits
"""


def found_by(text: str, path: str) -> str:
    """What the text has at the place of `path`."""
    line, column = find_places(text)[path]
    return text.splitlines()[line - 1][column - 1 :]


@pytest.mark.parametrize(
    ("path", "line", "there"),
    [
        ("name", 6, "name: demo"),
        ("models", 7, "models:"),
        ("models[0]", 8, "model: org/a"),
        # merged fields are where the anchor has them, unless the model sets them itself
        ("models[0].gpuss", 2, "gpuss: 1"),
        ("models[0].dtype", 11, "dtype: auto"),
        ("models[1].model", 12, "model: org/b"),
        ("models[1].extra_args[1]", 12, "'1']"),
        ("models[1].tensor_paralel_size", 13, "tensor_paralel_size"),
        ("logging", 14, "logging: *limits"),
        ("logging.max_sise", 5, "max_sise: 1m"),
    ],
)
def test_a_place_is_where_the_name_is_written(path: str, line: int, there: str) -> None:
    assert find_places(TEXT)[path][0] == line
    assert found_by(TEXT, path).startswith(there)


def test_errors_begin_with_file_and_line_and_json_has_each_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(TEXT)
    assert main(["render", str(path), "--json"]) == 2
    out, err = capsys.readouterr()
    expected = [
        (2, 3, "models[0].gpuss"), (5, 3, "logging.max_sise"), (13, 6, "models[1].tensor_paralel_size"),
    ]  # fmt: skip
    assert re.findall(rf"(?m)^  {re.escape(str(path))}:(\d+): ([^:]+): ", err) == [
        (str(line), place) for line, _, place in expected
    ]
    data = json.loads(out)
    assert {"error", "hint", "mistakes"} == set(data)
    assert [(one["line"], one["column"], one["path"]) for one in data["mistakes"]] == expected
    assert {one["file"] for one in data["mistakes"]} == {str(path)}
    assert data["mistakes"][0]["hint"] == "did you mean gpus?"


def test_errors_of_the_command_line_have_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "org/m", "--engine", "vllm", "--port", "0", "-o", str(tmp_path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert re.search(r"(?m)^  port: ", err)
    assert [(one["path"], one["line"], one["column"]) for one in json.loads(out)["mistakes"]] == [("port", None, None)]


def test_other_errors_have_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("stack.yaml", "stack.yml"):
        (tmp_path / name).write_text(TEXT)
    assert main(["render", str(tmp_path), "--json"]) == 2
    assert set(json.loads(capsys.readouterr().out)) == {"error", "hint"}


def test_errors_of_the_whole_stack_have_a_line_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(
        "name: a\nport: 8000\nmodels:\n  - {model: o/a, engine: vllm, gpus: [0], port: 8001}\n"
        "  - {model: o/b, engine: vllm, gpus: [0]}\ngateway: false\n"
    )
    assert main(["render", str(path)]) == 2
    assert re.search(rf"{re.escape(str(path))}:[45]: models\[[01]\]\.gpus: ", capsys.readouterr().err)


def test_warnings_about_fields_have_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(
        "name: a\nmodels:\n  - model: o/a\n    engine: vllm\n    extra_env:\n      A: x\n      MY_TOKEN: abcdefghijkl\n"
        "gpu_driver: amd\n"
    )
    assert main(["render", str(path), "--no-validate"]) == 0
    err = capsys.readouterr().err
    assert f"warning: {path}:7: models[0].extra_env.MY_TOKEN: this secret is in clear text" in err
    assert f"warning: {path}:8: gpu_driver has no effect" in err


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("name: a\n\tport: 1\n", 2, 1),
        ("name: a\nname: b\n", 2, 1),
        ("name: a\nmodels: [1\n", 2, 9),
        ("name: a\ngateway: {keys: [{name: k, expires: 2027-02-30}]}\n", 2, 37),
    ],
)
def test_errors_of_yaml_have_a_column(
    tmp_path: Path, text: str, line: int, column: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(text)
    assert main(["render", str(path), "--json"]) == 2
    out, err = capsys.readouterr()
    assert f"{path}:{line}: " in err
    assert [(one["line"], one["column"]) for one in json.loads(out)["mistakes"]] == [(line, column)]


def test_problems_of_an_import_have_the_line_in_the_new_stack(capsys: pytest.CaptureFixture[str]) -> None:
    command = "vllm serve org/m --port 8000 --max-num-seqs 0"
    assert main(["import", command, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    (problem,) = data["problems"]
    assert data["text"].splitlines()[problem["line"] - 1][problem["column"] - 1 :].startswith("max_num_seqs: 0")
    assert main(["import", command]) == 1
    assert f"  stack.yaml:{problem['line']}: models[0].max_num_seqs: " in capsys.readouterr().err


def test_errors_of_an_imported_compose_file_have_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text("services:\n  llm:\n    image: vllm/vllm-openai:v0.32.0\n    ports: 8000:8000\n")
    assert main(["import", str(path)]) == 2
    assert f"{path}:4: services.llm.ports: must be " in capsys.readouterr().err


def test_errors_of_a_list_of_gpus_have_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack, machine = tmp_path / "stack.yaml", tmp_path / "machine.yaml"
    stack.write_text("name: a\nmodels:\n  - {model: o/a, engine: vllm, gpus: auto}\n")
    machine.write_text("# two GPUs\ngpus:\n  - {uuid: GPU-1, name: NVIDIA L4}\n  - {uuid: GPU-1, name: NVIDIA L4}\n")
    assert main(["plan", str(stack), "--machine", str(machine), "--offline"]) == 2
    assert f"{machine}:4: gpus[1]: " in capsys.readouterr().err
