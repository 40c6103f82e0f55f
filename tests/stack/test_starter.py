"""`stackgen init`: files that work as they are, and nothing of the user's overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.stack.envfile import key_of
from stackgen.stack.folder import open_stack
from stackgen.stack.load import load_stack
from stackgen.stack.starter import write_starter


def init(folder: Path, *words: str) -> int:
    return cli.main(["init", str(folder), *words])


def test_it_writes_a_stack_that_loads_a_schema_and_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my stack"
    assert init(folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".env", "stack.schema.json", "stack.yaml"]
    shown = capsys.readouterr()
    assert all(str(folder / name) in shown.out for name in ("stack.yaml", "stack.schema.json", ".env"))
    assert "stackgen up" in shown.err
    stack = load_stack(folder / "stack.yaml")
    assert (stack.name, stack.port, stack.bind) == ("my-stack", 8000, "127.0.0.1")
    assert stack.models[0].gpus == 1
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    # the key reaches neither the terminal nor another file
    key = key_of(folder)
    assert key not in shown.out + shown.err
    assert not any(key in path.read_text("utf-8") for path in folder.iterdir() if path.name != ".env")


def test_its_comments_are_true(tmp_path: Path) -> None:
    """Each commented line, uncommented, is a field that exists: the file is documentation at once."""
    init(tmp_path)
    text = (tmp_path / "stack.yaml").read_text("utf-8")
    opened = []
    for line in text.splitlines():
        stripped = line.strip()
        # `# bind: …` and `#   path: …`; prose has no colon after its first word
        if (
            stripped.startswith("#")
            and stripped.lstrip("# ").partition(" ")[0].rstrip().endswith(":")
            and "yaml-language" not in line
        ):
            line = line.replace("# ", "", 1)
        opened.append(line)
    (tmp_path / "stack.yaml").write_text("\n".join(opened) + "\n")
    stack = load_stack(tmp_path / "stack.yaml")
    assert stack.models[0].replicas == 2
    assert stack.models[0].max_model_len == "32k"
    assert stack.storage.path == "/srv/models"


@pytest.mark.parametrize(
    ("words", "gpus"),
    [
        ("0", 0),
        ("2", 2),
        ("none", 0),
        ("0,1", ("0", "1")),
        ("device=3", ("3",)),
        ("GPU-8a1b,GPU-8a1c", ("GPU-8a1b", "GPU-8a1c")),
    ],
)
def test_gpus(tmp_path: Path, words: str, gpus: object) -> None:
    assert init(tmp_path, "--gpus", words) == 0
    assert load_stack(tmp_path / "stack.yaml").models[0].gpus == gpus


@pytest.mark.parametrize("engine", ["vllm", "fastchat"])
def test_engines(tmp_path: Path, engine: str) -> None:
    assert init(tmp_path, "--engine", engine, "--model", "org/name") == 0
    assert open_stack(str(tmp_path)).plan.services


@pytest.mark.parametrize(
    "name", ["2024", "1e5", "null", "true", "0x1f", "08", "UPPER Case", "...", "a" * 80, "ünïcode", "no"]
)
def test_any_folder_gives_a_name_that_loads(tmp_path: Path, name: str) -> None:
    """A folder called 2024 would make `name: 2024`, which YAML reads as a number."""
    folder = tmp_path / name
    assert init(folder) == 0
    assert load_stack(folder / "stack.yaml").name


@pytest.mark.parametrize(
    "model",
    [
        "./a: b",
        "./a #b",
        "./a'b",
        '/a"b',
        "/a\nb",
        "./@engine@",
        "~/x",
        ".",
        "/é😀",
        "/a\\1",
        "./{a}",
        "/.inf",
        "./1e5",
    ],
)
def test_any_local_path_is_kept(tmp_path: Path, model: str) -> None:
    assert init(tmp_path, "--model", model) == 0
    assert load_stack(tmp_path / "stack.yaml").models[0].model == model


def test_an_existing_stack_is_an_error_and_nothing_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text("mine")
    assert init(tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["stack.yaml"]
    assert (tmp_path / "stack.yaml").read_text() == "mine"


def test_an_existing_env_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=mine\n")
    written = write_starter(tmp_path, "vllm", "org/name", "1")
    assert tmp_path / ".env" not in written
    assert (tmp_path / ".env").read_text() == "STACKGEN_API_KEY=mine\n"


@pytest.mark.parametrize(
    "words", [["--engine", "tgi"], ["--model", "a b"], ["--gpus", "some"], ["--gpus", "0,0"], ["--gpus", ""]]
)
def test_wrong_words_write_nothing(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "new"
    assert init(folder, *words) == 2
    assert not folder.exists()


def test_wrong_words_are_spec_errors(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no engine"):
        write_starter(tmp_path, "vlm", "org/name", "1")


def test_the_text_is_yaml_with_its_two_parts(tmp_path: Path) -> None:
    init(tmp_path)
    assert set(yaml.safe_load((tmp_path / "stack.yaml").read_text("utf-8"))) == {"name", "port", "models"}
