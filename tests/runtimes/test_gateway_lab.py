"""`stackgen keys` for many people: keys for all names at once, files for each of them, and the report of their use."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.cli.main import main
from stackgen.render.write import compare, write_files
from stackgen.stack.envfile import API_KEY, create_env
from stackgen.stack.folder import open_stack
from stackgen.stack.keys import MAP, NAME, create_key, digest, load_keys
from tests.runtimes.world import World

STACK = """name: n
gateway:
  keys:
    - {name: ada, tokens_per_day: 1000, models: [m]}
    - {name: grace, expires: 2020-02-29}
    - {name: ken, expires: "2999-12-31", requests_per_minute: 5}
models: [{model: ./m, engine: vllm, served_names: [m]}]
"""
METRICS = """HTTP/1.0 200 OK
content-type: text/plain; version=0.0.4

# TYPE stackgen_gateway_key_requests_total counter
stackgen_gateway_key_requests_total{key="default"} 0
stackgen_gateway_key_requests_total{key="ada"} 12345
stackgen_gateway_key_errors_total{key="ada"} 3
stackgen_gateway_key_failures_total{key="ada"} 1
stackgen_gateway_key_concurrent_requests{key="ada"} 2
"""
TOKENS = """stackgen_gateway_key_prompt_tokens_total{key="ada"} 9000
stackgen_gateway_key_completion_tokens_total{key="ada"} 1500
stackgen_gateway_key_tokens_today{key="ada"} 750
"""


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
    return main(["keys", *args, str(world.folder)])


def names(world: World) -> list[str]:
    return [one.name for one in load_keys(world.folder)]


def test_keys_for_several_names_are_created_and_loaded_at_once(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(world, "new", "ada", "ken") == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {*printed} == {"ada", "ken"} and len({*printed.values()}) == 2
    loaded = world.containers["gateway"].keys
    assert {name: loaded[digest(key)] for name, key in printed.items()} == {"ada": "ada", "ken": "ken"}
    assert world.actions.count("add key") == 1


def test_missing_creates_keys_for_the_listed_names_without_one(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    ada = create_key(world.folder, "ada")
    assert keys(world, "new", "--missing", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in data["keys"]] == ["grace", "ken"] and data["reloaded"] is True
    assert f"{digest(ada)} ada" in (world.folder / MAP).read_text()
    # nothing is left to do, and nothing changes
    before = (world.folder / MAP).read_text()
    assert keys(world, "new", "--missing") == 2
    assert "every name has a key" in capsys.readouterr().err
    assert (world.folder / MAP).read_text() == before


def test_the_last_argument_is_the_stack_unless_a_name_is_needed(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world.folder.parent)
    # a valid name of a key, too
    folder = world.folder.name
    assert NAME.fullmatch(folder)
    assert main(["keys", "new", "--missing", folder]) == 0
    assert names(world) == ["default", "ada", "grace", "ken"]
    assert main(["keys", "rotate", "ada", folder]) == 0 and main(["keys", "list", folder]) == 0
    assert len(load_keys(world.folder)[1].hashes) == 2
    capsys.readouterr()
    assert main(["keys", "new", folder]) == 2
    assert "stack.yaml" in capsys.readouterr().err and folder not in names(world)


def test_names_are_read_from_a_file_or_from_standard_input(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    people = tmp_path / "people.txt"
    people.write_text("# the lab\nada\n  ken   # guest\n\nada\n")
    assert keys(world, "new", "--from", str(people)) == 0
    assert names(world) == ["default", "ada", "ken"]
    monkeypatch.setattr("sys.stdin", io.StringIO("grace\n"))
    assert keys(world, "new", "--from", "-") == 0
    # also for one name, so that a script can rely on the format
    assert capsys.readouterr().out.splitlines()[-1].startswith("grace  sk-")
    people.write_text("# nobody\n")
    assert keys(world, "new", "--from", str(people)) == 2
    assert keys(world, "new", "--from", str(tmp_path / "gone.txt")) == 2
    error = capsys.readouterr().err
    assert "contains no name" in error and "gone.txt can't be read: No such file" in error


@pytest.mark.parametrize(("second", "message"), [("ada", "ada already has a key"), ("Ken T", "'Ken T' is not a valid")])
def test_if_one_name_is_refused_no_key_is_created(
    world: World, second: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    create_key(world.folder, "ada")
    before = (world.folder / MAP).read_text()
    assert keys(world, "new", "grace", second) == 2
    assert message in capsys.readouterr().err
    assert (world.folder / MAP).read_text() == before


def test_each_person_gets_a_file_that_git_ignores(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    target = world.folder / "for people"
    assert keys(world, "new", "ada", "ken", "--write-to", str(target), "--base-url", "https://lab.example/v1") == 0
    shown = capsys.readouterr()
    assert "sk-" not in shown.out + shown.err
    assert shown.out.splitlines() == [f"wrote {target}/ada.key", f"wrote {target}/ken.key"]
    for name in ("ada", "ken"):
        key, url = (target / f"{name}.key").read_text().splitlines()
        assert world.containers["gateway"].keys[digest(key.removeprefix("OPENAI_API_KEY="))] == name
        assert url == "OPENAI_BASE_URL=https://lab.example/v1"
        assert (target / f"{name}.key").stat().st_mode & 0o777 == 0o600
    assert (target / ".gitignore").read_text() == "*\n" and target.stat().st_mode & 0o777 == 0o700
    # a file may be the only copy of a key
    assert keys(world, "rotate", "ada") == 0
    (target / "grace.key").write_text("another key")
    assert keys(world, "new", "grace", "--write-to", str(target)) == 2
    assert "grace.key exists" in capsys.readouterr().err
    assert (target / "grace.key").read_text() == "another key" and "grace" not in names(world)


def test_keys_whose_files_can_not_be_written_are_taken_back(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    # no file is there yet, but none can be created
    (target / "ken.key").symlink_to("gone")
    assert keys(world, "new", "ada", "ken", "--write-to", str(target)) == 1
    error = capsys.readouterr().err
    assert f"could not be written to {target}/ken.key (File exists). The key was deleted again" in error
    assert "choose another folder for --write-to" in error
    assert names(world) == ["default"] and not (target / "ada.key").exists()


def test_a_base_url_or_folder_that_can_not_be_used_creates_no_key(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    target = str(tmp_path / "out")
    for words, message in [
        (["--base-url", "https://lab.example/v1"], "only together with --write-to"),
        (["--write-to", target, "--base-url", "lab.example"], "--base-url must look like http://"),
        (["--write-to", target, "--base-url", "http://h/v1\nX=1"], "--base-url must look like http://"),
        (["--write-to", target, "--base-url", ""], "--base-url must look like http://"),
        (["--write-to", str(tmp_path / "file")], f"{tmp_path / 'file'} is not a folder"),
        (["--write-to", str(tmp_path / "file/inside")], f"{tmp_path / 'file'} is not a folder"),
    ]:
        assert keys(world, "new", "ada", *words) == 2
        assert message in capsys.readouterr().err
    assert names(world) == ["default"] and not (tmp_path / "out").exists()


def test_the_list_shows_models_last_day_and_budget(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    create_key(world.folder, "grace")
    assert keys(world, "list") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "1000 tokens per day  only m" in lines["ada"]
    assert "expired on 2020-02-29" in lines["grace"] and "valid until 2999-12-31" in lines["ken"]
    assert keys(world, "list", "--json") == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["keys"]}
    assert (found["ada"]["models"], found["ada"]["tokens_per_day"]) == (["m"], 1000)
    assert found["grace"]["expires"] == "2020-02-29"


def test_usage_shows_what_the_gateway_has_counted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.containers["gateway"].metrics = METRICS + TOKENS
    create_key(world.folder, "undeclared")
    assert keys(world, "usage") == 0
    shown = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in shown.out.splitlines()}
    assert rows["ada"] == ["12,345", "3", "1", "9,000", "1,500", "750", "1,000", "-"]
    assert rows["grace"][-2:] == ["2020-02-29", "(expired)"]
    # a key that is not listed in gateway.keys has no metrics
    assert rows["undeclared"] == ["-"] * 8
    assert "not counted" not in shown.err
    assert keys(world, "usage", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts_tokens"] is True
    (ada,) = [one for one in data["keys"] if one["name"] == "ada"]
    assert ada == {"name": "ada", "declared": True, "tokens_per_day": 1000, "expires": None, "requests": 12345,
                   "errors": 3, "failures": 1, "prompt_tokens": 9000, "completion_tokens": 1500,
                   "tokens_today": 750}  # fmt: skip


def test_usage_without_token_counts_says_how_to_turn_them_on(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.containers["gateway"].metrics = METRICS
    assert keys(world, "usage") == 0
    assert "tokens are not counted: set count_tokens" in capsys.readouterr().err


def test_usage_needs_a_running_gateway_that_answers(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    # `docker exec` lost the beginning of the answer
    world.containers["gateway"].metrics = METRICS[40:]
    assert keys(world, "usage") == 1
    assert "did not return its metrics" in capsys.readouterr().err
    world.containers["gateway"].state = "exited"
    assert keys(world, "usage") == 2
    assert "the gateway is not running" in capsys.readouterr().err


def test_arguments_that_do_not_fit_the_action_are_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (("rotate", "ada", "ken"), ("remove", "ada", "--missing"), ("list", "ada"), ("new",)):
        assert keys(world, *args) == 2, args
    error = capsys.readouterr().err
    assert "takes one name, not 2" in error and "only for `stackgen keys new`" in error
    assert "ada is not the folder of a stack" in error and "the name of the key is missing" in error
