"""`stackgen doctor` on this real machine: its text, its JSON, and the documentation page that lists every check."""

from __future__ import annotations

import argparse
import json
import socket
from argparse import Namespace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stackgen.cli.commands.doctor import doctor
from stackgen.cli.main import main
from stackgen.cli.parsers.base import Subcommands
from stackgen.cli.parsers.doctor import add_doctor
from stackgen.doctor.cluster_table import CLUSTER_ONLY
from stackgen.doctor.finding import Finding
from stackgen.doctor.table import CHECKS
from stackgen.doctor.text import as_json, as_text
from tests.doctor.hosts import NO_GPU, findings, write_stack

ROOT = Path(__file__).parents[2]
TEXT = {"type": "string"}
PLACE = {"type": ["integer", "null"], "minimum": 1}
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["ok", "exit_code", "stack", "counts", "findings", "not_checked"],
    "properties": {
        "ok": {"type": "boolean"},
        "exit_code": {"enum": [0, 1, 3]},
        "stack": {"type": ["string", "null"]},
        "counts": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        "not_checked": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "reason"],
                "properties": {"id": {"type": "string", "pattern": "^SG-P[0-9]{3}$"}, "reason": TEXT},
            },
        },
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "check", "status", "message", "evidence", "fix", "place", "line", "column"],
                "properties": {
                    "id": {"type": "string", "pattern": "^SG-P[0-9]{3}$"},
                    "status": {"enum": ["ok", "warn", "fail", "unknown"]},
                    **dict.fromkeys(("check", "message", "evidence", "fix", "place"), TEXT),
                    **dict.fromkeys(("line", "column"), PLACE),
                },
            },
        },
    },
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    parser = argparse.ArgumentParser()
    add_doctor(Subcommands(parser.add_subparsers(dest="command")))
    code = doctor(parser.parse_args(["doctor", "--json", "--offline", *arguments]))
    report = json.loads(capsys.readouterr().out)
    jsonschema.validate(report, SCHEMA)
    assert report["exit_code"] == code and report["ok"] == (code == 0)
    # every check is either in the findings or in the list of checks that did not run
    unchecked = [one["id"] for one in report["not_checked"]]
    assert sorted({*unchecked, *(one["id"] for one in report["findings"])}) == sorted(check.id for check in CHECKS)
    assert not set(unchecked) & {one["id"] for one in report["findings"]}
    return code, report


def ids_with(report: dict[str, Any], *statuses: str) -> set[str]:
    return {one["id"] for one in report["findings"] if one["status"] in (statuses or ("fail",))}


@pytest.mark.docker
@pytest.mark.parametrize("name", ["vllm-cpu", "fastchat-cpu", "llamacpp-cpu"])
def test_cpu_examples_have_no_failure_on_this_machine(
    name: str, capsys: pytest.CaptureFixture[str], vllm_image: str
) -> None:
    _, report = run(capsys, str(ROOT / "compose" / name))
    # another stack on this machine may hold port 8000
    assert ids_with(report) <= {"SG-P020"}
    assert {"SG-P001", "SG-P003", "SG-P080", "SG-P081"} <= ids_with(report, "ok")


@pytest.mark.docker
@pytest.mark.parametrize("name", ["vllm-one-gpu", "vllm-two-models", "vllm-tensor-parallel-4", "fastchat-one-gpu"])
def test_gpu_examples_are_unknown_without_nvidia_smi(
    name: str, capsys: pytest.CaptureFixture[str], vllm_image: str
) -> None:
    import shutil

    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA GPUs")
    code, report = run(capsys, str(ROOT / "compose" / name))
    assert "SG-P030" in ids_with(report, "unknown") and code in (0, 1, 3)
    assert not {"SG-P030", "SG-P031", "SG-P033", "SG-P034"} & ids_with(report, "ok")


@pytest.mark.docker
def test_four_faults_at_once_are_all_found_on_this_machine(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path = write_stack(
            tmp_path, gpus="none", model=str(tiny_model), stack_port=port, extra_args=["--max-num-batched-tokns", "64"]
        )
        (tmp_path / ".env").unlink()
        compose = tmp_path / "compose.yaml"
        compose.write_text(compose.read_text().replace(str(port), str(port + 1)))
        code, report = run(capsys, str(path))
    assert code == 1
    assert ids_with(report) == {"SG-P020", "SG-P090"}
    assert {"SG-P070", "SG-P081"} <= ids_with(report, "warn")
    held = next(one for one in report["findings"] if one["id"] == "SG-P020")
    assert "pid" in held["evidence"] and str(port) in held["message"]
    flag = next(one for one in report["findings"] if one["id"] == "SG-P090")
    assert flag["fix"] == "did you mean --max-num-batched-tokens?"


def test_without_a_stack_only_the_machine_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, report = run(capsys)
    assert report["stack"] is None
    assert not any(one["id"] >= "SG-P050" for one in report["findings"])


def test_missing_stack_file_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, report = run(capsys, str(tmp_path / "stack.yaml"))
    assert "SG-P080" in ids_with(report)


def test_machine_without_a_docker_engine_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    code, report = run(capsys, str(write_stack(tmp_path, gpus="none")))
    assert code == 3 and "SG-P001" in ids_with(report)
    assert "SG-P083" in ids_with(report, "unknown")


def test_text_lists_the_worst_first_and_ends_with_a_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = (
        Finding(
            "SG-P090", "extra-args", "fail", "--x is unknown", "vllm 0.32.0", "leave it out", "models[0].extra_args[0]"
        ),
        Finding("SG-P005", "cgroup", "warn", "old", "", "new"),
        Finding("SG-P030", "gpu", "unknown", "no tool"),
        Finding("SG-P001", "docker", "ok", "answers"),
    )
    text = as_text(found, "stack.yaml")
    assert text.splitlines()[1:4] == [
        "  ✗ fail    SG-P090 models[0].extra_args[0]: --x is unknown",
        "      seen: vllm 0.32.0",
        "      fix: leave it out",
    ]
    assert "answers" not in text and "answers" in as_text(found, verbose=True)
    assert text.splitlines()[-1] == "stack.yaml: the stack can't start (1 fail, 1 warn, 1 unknown, 1 ok)"
    assert "\033[" not in text and "\033[31m" in as_text(found, color=True)
    jsonschema.validate(as_json(found), SCHEMA)
    assert doctor(Namespace(stack=str(tmp_path), json=False, offline=True, verbose=False)) in (1, 3)
    assert "SG-P080" in capsys.readouterr().out


def test_text_names_a_missing_fact_once_and_verbose_text_lists_what_was_not_checked() -> None:
    why = "this machine's GPUs are unknown"
    found = tuple(Finding(f"SG-P0{number}", "x", "unknown", f"can't tell {number}", why) for number in (34, 35, 36))
    text = as_text(found, "stack.yaml")
    assert text.count(why) == 1 and all(one.message in text for one in found)
    assert "SG-P090" not in text
    verbose = as_text(found, "stack.yaml", verbose=True)
    section = verbose.partition("not checked, because these checks do not apply:")[2]
    listed = {word for word in section.replace(":", " ").split() if word.startswith("SG-P")}
    assert listed == {check.id for check in CHECKS} - {one.id for one in found}


def test_a_gpu_driver_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    path = write_stack(tmp_path, replicas=2, gpus=1, stack_gateway=True)
    found = findings(NO_GPU, path)
    ids = {
        one.id for one in found if one.status == "unknown" and one.id in ("SG-P031", "SG-P033", "SG-P034", "SG-P059")
    }
    assert len(ids) == 4
    lines = as_text(found, "stack.yaml").splitlines()
    (line,) = [line for line in lines if "also not checked, because the GPUs are unknown" in line]
    assert ids <= set(line.split())
    assert not [line for line in lines if line.split()[1:3] and line.split()[2:3] == ["SG-P034"]]
    # nothing is lost for programs, and for who wants to see everything
    assert ids <= {one["id"] for one in as_json(found)["findings"]}
    assert "also not checked" not in (verbose := as_text(found, "stack.yaml", verbose=True)) and "SG-P034 " in verbose


def test_who_can_reach_the_stack_is_shown_without_verbose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_stack(tmp_path, replicas=2, gpus="none")
    main(["doctor", str(path), "--offline"])
    shown = capsys.readouterr().out
    assert shown.count("SG-P022") == 1 and "only this machine can reach the API" in shown
    assert "http://127.0.0.1:8000/v1" in shown


def test_documentation_lists_every_check() -> None:
    page = (ROOT / "docs" / "reference" / "doctor.md").read_text("utf-8")
    checks = (*CHECKS, *CLUSTER_ONLY)
    rows = [f"| {check.id} | {check.name} | {check.description} | {3 if check.machine else 1} |" for check in checks]
    assert [line for line in page.splitlines() if line.startswith("| SG-P")] == rows
