"""A lost `.env`: values that the containers still have come back, and no key that is in use is replaced in silence.

The Docker engine is a stub that lists containers and volumes; `up` ends where it would compare the running services.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stackgen.cli.main import main
from stackgen.errors import MachineError, StackgenError
from stackgen.plan import EnvRef
from stackgen.runtimes.compose import kept_keys
from stackgen.stack.envfile import API_KEY, read_env
from stackgen.stack.folder import open_stack

MODEL = "model: org/name, engine: vllm, revision: abc, served_names: [m]"
STACK = f"""name: demo
gateway: true
ui: {{kind: open-webui}}
monitoring: true
models: [{{{MODEL}, fallback: "together:org/big"}}]
"""
OWN = ("STACKGEN_ENGINE_KEY", "WEBUI_SECRET_KEY", "WEBUI_ADMIN_PASSWORD", "GRAFANA_PASSWORD")
NAMES = (API_KEY, *OWN, "TOGETHER_API_KEY")
VOLUMES = ("demo-open-webui", "demo-grafana")
Docker = Callable[..., None]


@pytest.fixture
def docker(monkeypatch: pytest.MonkeyPatch) -> Docker:
    """Sets what the engine has: containers (folder, service, state, environment, mounts), and volumes."""
    for name in (*NAMES, "HF_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    about: dict[str, dict[str, Any]] = {}
    volumes: list[str] = []
    label = "com.docker.compose."
    rows: list[dict[str, Any]] = []
    api = SimpleNamespace(
        containers=lambda **_: rows,
        inspect_container=lambda id: about[id],
        volumes=lambda: {"Volumes": [{"Name": name} for name in volumes]},
    )
    monkeypatch.setattr(kept_keys, "check_socket", lambda *_: None)
    monkeypatch.setattr(kept_keys, "connect", lambda *_: SimpleNamespace(api=api, close=lambda: None))

    def stop(*_: object) -> None:
        raise StackgenError("the start would begin here")

    monkeypatch.setattr("stackgen.cli.commands.up.check_ownership", lambda *_: None)
    monkeypatch.setattr("stackgen.cli.commands.up.plan_start", stop)

    def change(*containers: tuple[Path, str, str, dict[str, str], list[dict[str, str]]], has: tuple[str, ...] = ()
               ) -> None:  # fmt: skip
        rows[:] = [{"Id": str(index), "State": state, "Labels": {
            f"{label}project": "demo", f"{label}project.working_dir": str(folder), f"{label}service": service,
        }} for index, (folder, service, state, _, _) in enumerate(containers)]  # fmt: skip
        about.update({str(index): {"Config": {"Env": [f"{k}={v}" for k, v in env.items()]}, "Mounts": mounts}
                      for index, (*_, env, mounts) in enumerate(containers)})  # fmt: skip
        volumes[:] = has

    change()
    return change


def stack_in(folder: Path, text: str = STACK) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stack.yaml").write_text(text)
    assert main(["render", str(folder), "--no-validate"]) == 0
    with (folder / ".env").open("a") as file:
        file.write("TOGETHER_API_KEY='tg $ #1'\nHF_TOKEN_FILE=/srv/token\n")
    (folder / ".stackgen.applied.json").write_text("{}")
    return folder


def containers(folder: Path, label: Path | None = None, state: str = "running") -> list[Any]:
    """The containers as Compose starts them: with the values of .env, and without its names."""
    env, found = read_env(folder), []
    for service in open_stack(str(folder)).plan.services:
        own = {name: env.get(one.name, "") for name, one in service.environment if isinstance(one, EnvRef)}
        mounts = [{"Destination": "/run/secrets/hf_token", "Source": "/srv/token"}] if service.secrets else []
        found.append((label or folder, service.name, state, own, mounts))
    return found


def up(folder: Path, *args: str) -> int:
    return main(["up", str(folder), "--skip-doctor", *args])


@pytest.mark.parametrize("state", ["running", "exited"])
def test_up_restores_what_the_containers_have(
    tmp_path: Path, docker: Docker, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack_in(tmp_path / "demo")
    before = read_env(folder)
    docker(*containers(folder, state=state), has=VOLUMES)
    (folder / ".env").unlink()
    assert main(["doctor", str(folder), "--offline"]) == 0
    shown = capsys.readouterr().out
    assert (
        "SG-P070" in shown and ".env is lost" in shown and "the stack's containers still have the old values" in shown
    )
    assert not (folder / ".env").exists()
    up(folder)
    shown = capsys.readouterr().err
    assert "the start would begin here" in shown and "restored in" in shown
    after = read_env(folder)
    assert {name: after[name] for name in (*NAMES, "HF_TOKEN_FILE")} == {
        name: before[name] for name in (*NAMES, "HF_TOKEN_FILE")
    }
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    assert not any(before[name] in shown for name in NAMES)


def test_one_lost_line_is_restored_and_the_others_stay(tmp_path: Path, docker: Docker) -> None:
    folder = stack_in(tmp_path / "demo")
    before = read_env(folder)
    docker(*containers(folder), has=VOLUMES)
    lines = (folder / ".env").read_text().splitlines(keepends=True)
    (folder / ".env").write_text("".join(one for one in lines if not one.startswith("WEBUI_SECRET_KEY")) + "OWN=1\n")
    up(folder)
    assert read_env(folder) == before | {"OWN": "1"}


def test_without_containers_up_starts_nothing_and_names_each_value(
    tmp_path: Path, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack_in(tmp_path / "demo")
    docker(has=VOLUMES)
    (folder / ".env").unlink()
    capsys.readouterr()
    assert up(folder) == 2
    shown = capsys.readouterr().err
    assert "Nothing was started" in shown and "the start would begin here" not in shown
    assert f"✗ {API_KEY}: clients may still use the old key" in shown
    assert "the volume demo-open-webui" in shown and "the volume demo-grafana" in shown and "--new-keys" in shown
    # nobody but the stack itself knows this key
    assert "STACKGEN_ENGINE_KEY" not in shown
    assert not (folder / ".env").exists()
    assert main(["doctor", str(folder), "--offline"]) != 0
    shown = capsys.readouterr().out
    assert f"{API_KEY} is lost" in shown and "WEBUI_SECRET_KEY is lost" in shown
    # render starts nothing, so it writes what is safe and says what is missing
    assert main(["render", str(folder), "--no-validate"]) == 0
    assert f"lacks {API_KEY}: clients may still use the old key" in capsys.readouterr().err
    values = read_env(folder)
    assert values["STACKGEN_ENGINE_KEY"] and not any(values[name] for name in NAMES[:1] + OWN[1:])


def test_new_keys_are_written_when_the_user_says_so(
    tmp_path: Path, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack_in(tmp_path / "demo", STACK.replace(', fallback: "together:org/big"', ""))
    before = read_env(folder)
    docker(has=VOLUMES)
    (folder / ".env").unlink()
    up(folder, "--new-keys")
    shown = capsys.readouterr().err
    assert "the start would begin here" in shown and f"wrote a new {API_KEY}" in shown
    after = read_env(folder)
    assert all(after[name] and after[name] != before[name] for name in NAMES[:-1])


def test_key_that_was_rotated_away_does_not_come_back(
    tmp_path: Path, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack_in(tmp_path / "demo")
    docker(*containers(folder), has=VOLUMES)
    old = read_env(folder)[API_KEY]
    keys = ["keys", "--stack", str(folder)]
    assert main([*keys[:1], "rotate", "default", *keys[1:]]) == 0
    assert main([*keys[:1], "remove", "default", "--older", *keys[1:]]) == 0
    (folder / ".env").unlink()
    capsys.readouterr()
    assert up(folder) == 2
    assert "stackgen keys rotate default" in capsys.readouterr().err
    up(folder, "--new-keys")
    assert read_env(folder)[API_KEY] not in ("", old)
    # and the gateway accepts the new one
    assert "the gateway refuses" not in capsys.readouterr().err


def test_containers_of_another_folder_and_a_silent_engine_prove_nothing(
    tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = stack_in(tmp_path / "other")
    folder = stack_in(tmp_path / "demo")
    docker(*containers(other), has=VOLUMES)
    (folder / ".env").unlink()
    assert up(folder) == 2

    def silent(*_: object) -> None:
        raise MachineError("the Docker engine does not answer")

    monkeypatch.setattr(kept_keys, "connect", silent)
    capsys.readouterr()
    assert up(folder) == 2
    # the stack has run, so its volumes may well exist
    assert "WEBUI_ADMIN_PASSWORD" in capsys.readouterr().err


def test_up_names_the_providers_key_before_it_starts(
    tmp_path: Path, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "stack.yaml").write_text(STACK)
    assert up(folder) == 2
    shown = capsys.readouterr().err
    assert (
        "✗ TOGETHER_API_KEY" in shown
        and "put the key of together into .env" in shown
        and "Nothing was started" in shown
    )
    # a new stack has no key in use
    assert all(read_env(folder)[name] for name in NAMES[:-1])


def test_local_processes_need_no_key_of_the_gateway(
    tmp_path: Path, docker: Docker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise StackgenError("the start would begin here")

    monkeypatch.setattr("stackgen.cli.commands.up.prepare_processes", stop)
    (tmp_path / "stack.yaml").write_text(STACK)
    docker(has=VOLUMES)
    up(tmp_path, "--runtime", "process")
    assert "the start would begin here" in capsys.readouterr().err
    # the key of the engines is another matter
    (tmp_path / ".stackgen.applied.json").write_text("{}")
    (tmp_path / ".env").unlink()
    assert up(tmp_path, "--runtime", "process") == 2
    shown = capsys.readouterr().err
    assert f"✗ {API_KEY}" in shown and "✗ WEBUI" not in shown


def test_key_of_another_machine_comes_from_the_folder_next_to_it(
    tmp_path: Path, docker: Docker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text(f"""name: demo
gateway: true
hosts: {{front: {{}}, back: {{address: 10.0.0.2}}}}
models: [{{{MODEL}, host: back}}]
""")
    render = ["render", str(tmp_path), "--no-validate"]
    assert main(render) == 0
    front, back = tmp_path / "front", tmp_path / "back"
    key = read_env(back)[API_KEY]
    assert key == read_env(front)["STACKGEN_ENGINE_KEY"]
    (back / ".env").unlink()
    assert main(render) == 0 and read_env(back)[API_KEY] == key
    (front / ".env").unlink()
    capsys.readouterr()
    assert main(render) == 0
    # the key between the machines is known, but not the key of the clients
    assert read_env(front)["STACKGEN_ENGINE_KEY"] == key and not read_env(front)[API_KEY]
    assert f"lacks {API_KEY}" in capsys.readouterr().err
    # a machine that got its folder without .env must not invent the key
    alone = tmp_path / "elsewhere" / "back"
    alone.mkdir(parents=True)
    (alone / "stack.yaml").write_text((back / "stack.yaml").read_text())
    assert up(alone, "--new-keys") == 2
    assert "the value of STACKGEN_ENGINE_KEY in the .env of front" in capsys.readouterr().err
