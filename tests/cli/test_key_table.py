"""`stackgen keys new --from` with a table: every line is checked first, and stack.yaml gets the limits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.errors import StackgenError
from stackgen.spec.keys import KeySpec
from stackgen.stack.envfile import API_KEY, create_env
from stackgen.stack.key_entries import add_entries
from stackgen.stack.keys import load_keys

HEAD = """name: lab   # the lab
models: [{model: Qwen/Qwen3-8B, revision: b968826d9c46dd6066d109eabc6255188de91218, engine: vllm, gpus: 1,
          served_names: [qwen]}]
"""
TABLE = "name,models,expires,tokens_per_day\nada,,2999-07-31,2000000\ngrace,qwen,,\n"
ADA = {"name": "ada", "expires": "2999-07-31", "tokens_per_day": 2000000}
GRACE = {"name": "grace", "models": ["qwen"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(API_KEY, raising=False)
    (tmp_path / "stack.yaml").write_text(HEAD + "gateway:\n  keys:\n    - name: old   # stays\n")
    create_env(tmp_path)
    return tmp_path


def new(folder: Path, table: str, *args: str, name: str = "people.csv") -> int:
    (folder / name).write_text(table)
    return cli.main(["keys", "new", "--from", str(folder / name), *args, "--stack", str(folder)])


def declared(folder: Path) -> list[dict[str, Any]]:
    data = yaml.load((folder / "stack.yaml").read_text(), Loader=yaml.BaseLoader)
    return list(data["gateway"]["keys"])


def names(folder: Path) -> set[str]:
    return {one.name for one in load_keys(folder)} - {"default"}


def test_a_table_adds_limits_and_writes_one_file_for_each_person(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "stack.yaml").read_text()
    assert new(folder, TABLE, "--write-to", str(folder / "people")) == 0
    assert "added ada, grace to gateway.keys" in capsys.readouterr().err
    assert (folder / "stack.yaml").read_text() == before + (
        "    - {name: ada, expires: 2999-07-31, tokens_per_day: 2000000}\n    - {name: grace, models: [qwen]}\n"
    )
    assert {one.name for one in (folder / "people").glob("*.key")} == {"ada.key", "grace.key"}
    assert names(folder) == {"ada", "grace"}
    # a second run with a new line
    assert new(folder, TABLE + "ken,,,5\n", "--write-to", str(folder / "people")) == 2
    assert "people.csv:2: name: ada already has a key" in (error := capsys.readouterr().err) and ":3: name" in error
    assert new(folder, TABLE + "ken,,,5\n", "--missing", "--write-to", str(folder / "people")) == 0
    assert names(folder) == {"ada", "grace", "ken"} and declared(folder)[-1] == {"name": "ken", "tokens_per_day": "5"}


def test_in_a_rendered_stack_the_limits_are_loaded_before_a_key_is_created(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    assert new(folder, TABLE) == 2
    assert f"run `stackgen update {folder}`" in capsys.readouterr().err
    assert len(declared(folder)) == 3 and not names(folder)
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    assert new(folder, TABLE) == 0 and names(folder) == {"ada", "grace"} and len(declared(folder)) == 3


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("name;Tokens per day\nada;2000000\n", ()),
        ("\ufeffname\ttokens_per_day\r\nada\t2000000\r\n", ()),
        ("# from the office\nname,tokens_per_day\n# staff\n\nada,2000000\n", ()),
        ('name,models\nada,"qwen, qwen"\n', ()),
        ("name,tokens_per_day\nAda Lovelace,1\nbob,x\ncarl,0\n",
         ("3 errors", "people.csv:2: name:", "for example ada-lovelace", ":3: tokens_per_day:", ":4: tokens_per_day:")),
        ("name,expires\nada,2001-01-31\nbob,31.1.2030\n",
         (":2: expires: 2001-01-31 is over", ":3: expires: must be a date")),
        ("name,models\nada,qwn\n", (":2: models: no model is served as 'qwn' (did you mean qwen?)",)),
        ("name,token_per_day\nada,1\n", (":1: token_per_day: is not a limit of a key (did you mean tokens_per_day?)",)),
        ("name,name\nada,b\n", (":1: name: is the title of two columns",)),
        ("ada,1\nbob,2\n", ("one of them is name",)),
        ("name,expires\nada,,7\n", (":2: has 3 cells, but the first line has 2",)),
        ('name,models\nada,"qwen\n', ("is not CSV",)),
        ("name,expires\nada,\nbob,\nada,\n", (":4: name: ada is also in line 2",)),
        ("name,expires\n", ("contains no key",)),
        ("name,tokens_per_day\nold,7\n", ("old has other limits in stack.yaml: {name: old}",)),
    ],
)  # fmt: skip
def test_every_wrong_line_is_reported_before_anything_is_written(
    folder: Path, table: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "stack.yaml").read_text()
    assert new(folder, table) == (2 if parts else 0)
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    if parts:
        assert (folder / "stack.yaml").read_text() == before and not names(folder)
    else:
        assert names(folder) == {"ada"}


@pytest.mark.parametrize(
    "table",
    ["- ada\n- {name: grace, models: [qwen]}\n", "keys: [ada, {name: grace}]\n", "[ada, grace]\n",
     "# ours\n---\n- name: ada\n  tokens_per_day: 5\n- name: grace\n"],
)  # fmt: skip
def test_a_table_can_be_yaml(folder: Path, table: str) -> None:
    assert new(folder, table, name="people.yaml") == 0 and names(folder) == {"ada", "grace"}


@pytest.mark.parametrize(
    ("table", "part"),
    [("- ada\n- {name: grace, token: 5}\n", "people.yaml:2: token: unknown field"), ("name: ada\n", "must be a list"),
     ("- ada\n- [x]\n", ":2: must be a key"), ("- {name: ada\n", "people.yaml:")],
)  # fmt: skip
def test_mistakes_in_yaml_have_the_line_of_the_file(
    folder: Path, table: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(folder, table, name="people.yaml") == 2 and part in capsys.readouterr().err and not names(folder)


def test_a_table_comes_from_standard_input_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(TABLE))
    assert cli.main(["keys", "new", "bob", "--from", "-", "--stack", str(folder)]) == 2
    assert "add a line for bob to the table" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(TABLE))
    assert cli.main(["keys", "new", "--from", "-", "--stack", str(folder)]) == 0 and names(folder) == {"ada", "grace"}


def test_files_that_exist_leave_the_stack_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "people").mkdir()
    (folder / "people/ada.key").write_text("x")
    before = (folder / "stack.yaml").read_text()
    assert new(folder, TABLE, "--write-to", str(folder / "people")) == 2 and "exists" in capsys.readouterr().err
    assert (folder / "stack.yaml").read_text() == before and not names(folder)


@pytest.mark.parametrize(
    ("gateway", "after"),
    [
        ("gateway: true   # for all\n", "gateway:   # for all\n  keys:\n    - {name: ada}\n"),
        ("", "gateway:\n  keys:\n    - {name: ada}\n"),
        ("gateway: {count_tokens: true}\n", "gateway: {count_tokens: true, keys: [{name: ada}]}\n"),
        ("gateway: {keys: []}\nui: true\n", "gateway: {keys: [{name: ada}]}\nui: true\n"),
        ("gateway: {keys: [{name: b}, ]}\n", "gateway: {keys: [{name: b}, {name: ada}]}\n"),
        ("gateway:\n  tls: {}   # ours\nui: true\n",
         "gateway:\n  keys:\n    - {name: ada}\n  tls: {}   # ours\nui: true\n"),
        ("gateway:\n  keys:\n  - name: b\n    models: [m]\n\n  # more\n  tls: {}\n",
         "gateway:\n  keys:\n  - name: b\n    models: [m]\n  - {name: ada}\n\n  # more\n  tls: {}\n"),
        ("gateway:\n  keys:\n    - {name: b}", "gateway:\n  keys:\n    - {name: b}\n    - {name: ada}\n"),
        ("gateway:\n  keys: [\n    {name: b},\n  ]\n", "gateway:\n  keys: [\n    {name: b}, {name: ada}]\n"),
    ],
)  # fmt: skip
def test_entries_are_added_to_every_form_of_the_file(gateway: str, after: str) -> None:
    ada = KeySpec.model_validate({"name": "ada"})
    assert add_entries(f"name: n\n{gateway}", [ada]) == f"name: n\n{after}"


@pytest.mark.parametrize(
    "gateway",
    ["gateway: {keys: [{name: b} # last\n  ]}\n", "x-k: &k [{name: b}]\ngateway:\n  keys: *k\n", "gateway: {}\n"],
)
def test_a_file_that_cannot_be_edited_safely_is_left_alone(gateway: str) -> None:
    with pytest.raises(StackgenError) as caught:
        add_entries(f"name: n\n{gateway}", [KeySpec.model_validate({"name": "on", "expires": "2030-01-31"})])
    assert "- {name: 'on', expires: 2030-01-31}" in caught.value.hint
