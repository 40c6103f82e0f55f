"""`stackgen keys` on a running gateway: when a key counts, and what happens if it can't be loaded or printed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.render.write import compare, write_files
from stackgen.stack.envfile import API_KEY, create_env, read_api_key
from stackgen.stack.folder import open_stack
from stackgen.stack.keys import MAP, create_key, digest, list_keys, load_keys, remove_key
from tests.runtimes.world import World

STACK = "name: n\ngateway: {keys: [{name: team}]}\nmodels: [{model: ./m, engine: vllm, served_names: [m]}]\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.delenv(API_KEY, raising=False)
    world = World(tmp_path, monkeypatch)
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    write_files(compare(open_stack(str(tmp_path)).files(), tmp_path), tmp_path)
    world.up()
    with world.handles:
        yield world


def keys(world: World, *args: str) -> int:
    return main(["keys", *args, "--stack", str(world.folder)])


def test_keys_are_changed_in_the_running_worker(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = world.containers["gateway"].keys
    assert keys(world, "new", "team") == 0
    first = digest(capsys.readouterr().out.strip())
    # the key in .env stays valid, although from now on only the keys in the map are
    assert loaded == {first: "team", digest(read_api_key(world.folder)): "default", "managed": "1"}
    assert list(loaded)[-1] == "managed"
    assert keys(world, "rotate", "team") == 0
    second = digest(capsys.readouterr().out.strip())
    assert {first, second} < set(loaded)
    assert keys(world, "remove", "team", "--older") == 0
    assert first not in loaded and second in loaded
    assert keys(world, "remove", "team") == 0
    assert second not in loaded
    # a reload would leave an old worker behind, and restart the counters of all limits
    assert "reload" not in world.actions
    assert main(["update", str(world.folder)]) == 0
    assert "reload" not in world.actions


def test_keys_that_another_command_saved_are_loaded_too(world: World) -> None:
    other = create_key(world.folder, "other")
    assert keys(world, "new", "team") == 0
    assert digest(other) in world.containers["gateway"].keys


def test_many_changed_keys_are_loaded_by_one_reload(world: World) -> None:
    with (world.folder / MAP).open("w") as file:
        file.write("managed 1\n" + "".join(f"{digest(str(one))} k{one}\n" for one in range(300)))
    assert keys(world, "new", "team") == 0
    assert len(world.containers["gateway"].keys) == 302
    assert world.actions.count("reload") == 1


@pytest.mark.parametrize("action", ["new", "remove"])
def test_command_fails_if_the_gateway_does_not_load_the_change(
    world: World, action: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if action == "remove":
        create_key(world.folder, "team")
    monkeypatch.setattr(type(world.containers["gateway"]), "runtime_api", lambda self, command: "")
    assert keys(world, action, "team", "--json") == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["reloaded"] is False
    assert "the gateway did not load them" in output.err
    assert {"new": "not valid yet", "remove": "still valid"}[action] in output.err


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_key_that_can_not_be_printed_is_taken_back(
    world: World, args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert keys(world, "new", "team", *args) == 1
        monkeypatch.undo()
    assert "could not be printed (No space left on device). The key was deleted again" in capsys.readouterr().err
    assert [one.name for one in load_keys(world.folder)] == ["default"]
    assert "team" not in world.containers["gateway"].keys.values()


@pytest.mark.parametrize("stdout", ["closed", "broken pipe"])
def test_no_key_is_created_without_standard_output(tmp_path: Path, stdout: str) -> None:
    # the reader of a pipe is gone before the key is printed, as in `stackgen keys new team | true`
    (tmp_path / "stack.yaml").write_text(STACK)
    create_env(tmp_path)
    command = f"'{sys.executable}' -m stackgen keys new team --stack '{tmp_path}'"
    shell = f"{command} >&-" if stdout == "closed" else f"set -o pipefail; (sleep 0.3; {command}) | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "sk-" not in done.stderr
    assert [one.name for one in load_keys(tmp_path)] == ["default"]


def test_time_grows_linearly_with_the_number_of_keys(tmp_path: Path) -> None:
    def measure(count: int) -> float:
        folder = tmp_path / str(count)
        create_env(folder)
        lines = [f"{number:064X} k{number}\n" for number in range(count)]
        (folder / MAP).parent.mkdir()
        (folder / MAP).write_text("managed 1\n" + "".join(lines))
        times = []
        for _ in range(3):
            start = time.process_time()
            list_keys(folder, None)
            create_key(folder, "new")
            remove_key(folder, "new")
            times.append(time.process_time() - start)
        return min(times)

    # quadratic time would be a factor of 100
    assert measure(10_000) < 30 * measure(1_000)
