"""Which volumes are shared between stacks, and who uses them, with a fake `docker` command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.errors import MachineError
from stackgen.runtimes.compose import store, volumes
from stackgen.runtimes.compose.volumes import find_own_volumes, find_shared_keys
from stackgen.runtimes.observation import inventory
from stackgen.stack.folder import build_from_flags

# name, label of stackgen, project, key: as `docker volume ls` prints them
VOLUMES = (
    ("stackgen-models", "", "", ""),
    ("stackgen-vllm-cache", "true", "", ""),
    # created by Compose for a stack of 0.2.0
    ("team-store", "", "llama", "models"),
    ("llama-grafana", "", "llama", "grafana"),
    # another program's volume of the same key, with Compose's default name
    ("ollama_models", "", "ollama", "models"),
    ("postgres", "", "", ""),
)
CONTAINERS = {"stackgen-models": (("llama-vllm-1", "llama", "/srv/a, b"), ("helper", "", ""))}


@pytest.fixture(autouse=True)
def docker(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    calls: list[tuple[str, ...]] = []

    def answer(*args: str, **_: object) -> str:
        calls.append(args)
        if args[:2] == ("volume", "ls"):
            project = next((one.partition("=")[2].partition("=")[2] for one in args if one.startswith("label=")), "")
            rows: list[tuple[str, ...]] = [row for row in VOLUMES if not project or row[2] == project]
        elif args[0] == "ps":
            name = next(one.partition("=")[2] for one in args if one.startswith("volume="))
            rows = list(CONTAINERS.get(name, ()))
        else:
            rows = []
        return "".join("\t".join(row) + "\n" for row in rows)

    def refuse(*_: object) -> None:
        raise MachineError("the Docker engine does not answer")

    monkeypatch.setattr(volumes, "_docker", answer)
    # the SDK, with which the real engine of this machine would tell its containers and the sizes of its volumes
    for module in (inventory, store):
        monkeypatch.setattr(module, "connect", refuse)
    return calls


def test_only_volumes_that_stackgen_shares_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storage", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["volumes"]
    assert [one["volume"] for one in listed] == ["stackgen-models", "stackgen-vllm-cache", "team-store"]
    assert listed[0]["stacks"] == {"llama": "/srv/a, b", "container helper": ""}
    assert find_own_volumes("llama") == {"llama-grafana"}


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["stackgen-models", "--yes"], 2, "in use: llama (/srv/a, b), container helper. Nothing was removed"),
        (["team-store"], 2, "To remove the volume without a question, add --yes"),
        (["team-store", "--yes"], 0, ""),
        (["postgres", "--yes"], 2, "postgres is not a volume that stackgen shares"),
        (["ollama_models", "--yes"], 2, "is not a volume that stackgen shares"),
        (["team-stor", "--yes"], 2, "did you mean team-store?"),
        ([], 2, "the name of a volume or model is missing"),
    ],
)
def test_a_volume_is_removed_only_if_it_is_shared_unused_and_confirmed(
    args: list[str], code: int, text: str, docker: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert main(["storage", "remove", *args]) == code
    assert text in capsys.readouterr().err
    removals = [one for one in docker if one[:2] == ("volume", "rm")]
    assert removals == ([("volume", "rm", args[0])] if code == 0 else [])


def test_every_volume_of_weights_and_caches_is_external_in_the_rendered_file(tmp_path: Path) -> None:
    stack = build_from_flags(
        "org/m", {"engine": "vllm", "gpus": "1", "name": "stackgen"}, ["monitoring=true"], str(tmp_path)
    )
    (tmp_path / "compose.yaml").write_text(stack.files()[0].text)
    shared = {"models": "stackgen-models", "vllm-cache": "stackgen-vllm-cache"}
    # the name of the stack is `stackgen` here, the start of the names of the shared volumes
    assert find_shared_keys(tmp_path) == shared
    assert set(stack.plan.shared_volumes) == set(shared.values())
    assert {"stackgen-prometheus", "stackgen-grafana"} == {name for _, name in stack.plan.volumes} - set(
        shared.values()
    )
    # as version 0.2.0 declared them
    old = "\n".join(line for line in stack.files()[0].text.splitlines() if "external:" not in line)
    (tmp_path / "compose.yaml").write_text(old)
    assert find_shared_keys(tmp_path) == shared


@pytest.mark.parametrize("text", ["", "volumes: [", "volumes: 5", "- a", "volumes: {models: 5}"])
def test_a_broken_compose_file_has_no_shared_volumes(tmp_path: Path, text: str) -> None:
    (tmp_path / "compose.yaml").write_text(text)
    assert find_shared_keys(tmp_path) == {}


def test_down_keeps_volumes_that_may_belong_to_a_stack_of_the_same_name(
    docker: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    downs: list[object] = []
    monkeypatch.setattr("stackgen.cli.commands.down.compose.down", lambda *args: downs.append(args))
    first, second = tmp_path / "first", tmp_path / "second"
    text = "name: llama\nmodels: [{model: org/x, engine: vllm, gpus: none, revision: main}]\n"
    for folder in (first, second):
        folder.mkdir()
        (folder / "stack.yaml").write_text(text)
        assert main(["render", str(folder)]) == 0
    assert main(["down", str(second), "--volumes", "--runtime", "compose"]) == 2
    shown = capsys.readouterr().err
    assert f"the volumes of llama may belong to {first}" in shown and f"run the command in {first}" in shown
    assert not downs
    # without the first folder's stack, the volumes are this one's
    (first / "stack.yaml").unlink()
    assert main(["down", str(second), "--volumes", "--runtime", "compose"]) == 0
    assert len(downs) == 1
