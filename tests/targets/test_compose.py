"""The real `docker compose`: it accepts every example, and files that it rejects are never written."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.examples import complete_copy
from stackgen.cli import main as cli
from stackgen.errors import MachineError, StackgenError
from stackgen.runtimes.compose import command as docker_cli
from stackgen.stack.envfile import GENERATED_SECRETS
from stackgen.stack.folder import Stack, open_stack
from tests.conftest import ROOT

pytestmark = pytest.mark.compose
EXAMPLES = sorted(path.parent for path in ROOT.glob("compose/*/stack.yaml"))
GOOD = "name: demo\nmodels: [{model: org/name, engine: vllm, revision: abc, gpus: none}]\n"


def config(folder: Path, *arguments: str, key: str = "the-key") -> subprocess.CompletedProcess[str]:
    """`docker compose config` as a user without stackgen runs it; the environment has no key."""
    env_file = folder.parent / "keys.env"
    command = ["docker", "compose", "--env-file", str(env_file), "config", *arguments]
    env_file.write_text("".join(f"{name}={key}\n" for name in GENERATED_SECRETS))
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_compose_accepts_every_example_without_warnings(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / folder.name
    copy.mkdir()
    for path in folder.rglob("*"):
        target = copy / path.relative_to(folder)
        target.mkdir(parents=True, exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    done = config(copy, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # a warning is on stderr
    data = json.loads(config(copy, "--format", "json").stdout)
    plan = open_stack(str(folder)).plan
    assert set(data["services"]) == {service.name for service in plan.services}
    for service in plan.services:
        ports = [
            (p["host_ip"], int(p["published"]), p["target"]) for p in data["services"][service.name].get("ports", [])
        ]
        assert ports == [(port.address, port.host, port.container) for port in service.ports]
    # without a key nothing starts, and the error says what to do
    refused = config(copy, "--quiet", key="")
    assert refused.returncode != 0
    assert ".env" in refused.stderr


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_render_validates_with_compose(folder: Path, tmp_path: Path) -> None:
    assert cli.main(["render", str(complete_copy(folder, tmp_path / "copy")), "--check"]) == 0


def render_wrong_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes stackgen render an address that only Compose rejects; stack.yaml has no such field."""
    real = Stack.files
    wrong = lambda one: replace(one, text=one.text.replace("127.0.0.1:", "999.999.999.999:"))  # noqa: E731
    monkeypatch.setattr(Stack, "files", lambda self: tuple(wrong(one) for one in real(self)))


def test_files_that_compose_rejects_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render_wrong_address(monkeypatch)
    (tmp_path / "stack.yaml").write_text(GOOD)
    assert cli.main(["render", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "docker compose: " in shown.err
    assert "999.999.999.999" in shown.err
    assert "Traceback" not in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["stack.yaml"]
    # --no-validate and --stdout skip the validation
    assert cli.main(["render", str(tmp_path), "--stdout"]) == 0
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    assert (tmp_path / "compose.yaml").exists()


def test_a_rejected_stack_does_not_replace_a_working_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stack.yaml").write_text(GOOD)
    assert cli.main(["render", str(tmp_path)]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "stack.yaml"}
    render_wrong_address(monkeypatch)
    assert cli.main(["render", str(tmp_path)]) == 2
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "text",
    ["services: [", "services:\n  a:\n    imagee: x\n", "services:\n  a:\n    image: ${X:?missing}\n", "nonsense"],
)
def test_invalid_compose_files_are_rejected(text: str, tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text("name: demo\nmodels: [{model: org/name, engine: vllm}]\n")
    with pytest.raises(StackgenError, match="docker compose: "):
        docker_cli.validate(open_stack(str(tmp_path)).plan, text, tmp_path)


def test_validation_needs_no_key_and_ignores_the_users_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
    (tmp_path / "stack.yaml").write_text("name: demo\nmodels: [{model: org/name, engine: vllm}]\n")
    stack = open_stack(str(tmp_path))
    docker_cli.validate(stack.plan, stack.files()[0].text, tmp_path / "not-there-yet")


def test_a_missing_compose_plugin_is_an_environment_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub prints what an older docker prints."""
    stub = tmp_path / "docker"
    stub.write_text("#!/bin/sh\necho \"docker: 'compose' is not a docker command.\" >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(MachineError, match="docker compose is missing"):
        docker_cli.run(["docker", "compose", "config"])
