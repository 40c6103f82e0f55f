"""`stackgen init`: the files work unchanged, and nothing of the user's is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.resolve.pipeline import resolve
from stackgen.runtimes.observation import gpu_tools
from stackgen.stack.envfile import read_api_key
from stackgen.stack.folder import open_stack
from stackgen.stack.load import load_stack
from stackgen.stack.starter import write_starter
from stackgen.targets.compose import ComposeSite


def init(folder: Path, *args: str) -> int:
    return cli.main(["init", str(folder), *args])


def test_init_writes_a_valid_stack_a_schema_and_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my stack"
    assert init(folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == [".env", ".gitignore", "stack.schema.json", "stack.yaml"]
    shown = capsys.readouterr()
    assert all(str(folder / name) in shown.out for name in ("stack.yaml", "stack.schema.json", ".env", ".gitignore"))
    assert "stackgen up" in shown.err
    stack = load_stack(folder / "stack.yaml")
    assert (stack.name, stack.port, stack.bind) == ("my-stack", 8000, "127.0.0.1")
    assert stack.models[0].gpus == 1
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    # the key is neither printed nor in another file
    key = read_api_key(folder)
    assert key not in shown.out + shown.err
    assert not any(key in path.read_text("utf-8") for path in folder.iterdir() if path.name != ".env")


ROWS = "0, GPU-0a, NVIDIA H100, 81559, 80000, 9.0\n1, GPU-1b, NVIDIA H100, 81559, 80000, 9.0\n"


def test_all_gpus_become_the_number_that_vllm_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_tools, "run_tool", lambda command: (0, ROWS if "--query-gpu" in str(command) else ""))
    assert init(tmp_path / "a", "--gpus", "all") == 0
    assert load_stack(tmp_path / "a" / "stack.yaml").models[0].gpus == 2
    assert "`gpus: 2`, the number of GPUs of this machine" in capsys.readouterr().err
    # the other engines use all GPUs without their number
    assert init(tmp_path / "b", "--gpus", "all", "--engine", "fastchat") == 0
    assert load_stack(tmp_path / "b" / "stack.yaml").models[0].gpus == "all"
    monkeypatch.setattr(gpu_tools, "run_tool", lambda command: None)
    assert init(tmp_path / "c", "--gpus", "all") == 2
    assert "--gpus 2" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_a_machine_without_a_gpu_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stackgen.cli.commands import init as command

    def notes(name: str, *args: str) -> str:
        assert init(tmp_path / name, *args) == 0
        return capsys.readouterr().err

    monkeypatch.setattr(command, "AMD_DEVICE", tmp_path / "kfd")
    monkeypatch.setattr(gpu_tools, "run_tool", lambda command: None)
    llama = ("--engine", "llamacpp", "--model", "org/m-GGUF", "--file", "m.gguf")
    said = "stackgen finds no GPU on this machine. stack.yaml contains `gpus: 1`"
    for number, args in enumerate((llama, ())):
        text = notes(f"a{number}", *args)
        assert said in text and "set `gpus: none`" in text
        assert load_stack(tmp_path / f"a{number}" / "stack.yaml").models[0].gpus == 1
    assert said in (text := notes("b", "--engine", "sglang")) and "none" not in text
    # the user has decided
    assert "no GPU" not in notes("c", *llama, "--gpus", "1") + notes("d", *llama, "--gpus", "none")
    (tmp_path / "kfd").touch()
    assert "no GPU" not in notes("e")
    (tmp_path / "kfd").unlink()
    monkeypatch.setattr(gpu_tools, "run_tool", lambda command: (0, ROWS if "--query-gpu" in str(command) else ""))
    assert "no GPU" not in notes("f")


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", "x86_64"), ("aarch64", "arm64"), ("arm64", "arm64")])
def test_init_writes_the_architecture_of_an_arm_machine(
    machine: str, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert init(tmp_path / "a", "--gpus", "none") == 0
    assert load_stack(tmp_path / "a" / "stack.yaml").cpu_arch == arch
    # the field has no effect on other images
    assert init(tmp_path / "b", "--gpus", "1") == 0
    assert "cpu_arch" not in (tmp_path / "b" / "stack.yaml").read_text()


def uncomment(text: str) -> str:
    """`text` with its commented fields as fields: `# bind: …` and `#   path: …`, but not prose without a colon."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        words = line.strip().lstrip("# ").partition(" ")[0]
        if line.strip().startswith("#") and words.endswith(":") and "yaml-language" not in line:
            lines[index] = line.replace("# ", "", 1)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("engine", "gpus"), [
    ("vllm", "1"), ("vllm", "none"), ("sglang", "1"), ("llamacpp", "1"), ("llamacpp", "none"), ("fastchat", "1"),
    ("fastchat", "none"),
])  # fmt: skip
def test_commented_lines_are_valid_fields(engine: str, gpus: str, tmp_path: Path) -> None:
    """The comments of the file document fields, so each of them must be valid for its engine once uncommented."""
    more = ("--file", "name.gguf") if engine == "llamacpp" else ()
    assert init(tmp_path, "--engine", engine, "--model", "org/name", "--gpus", gpus, *more) == 0
    path = tmp_path / "stack.yaml"
    path.write_text(uncomment(path.read_text("utf-8")))
    stack = load_stack(path)
    (model,) = stack.models
    assert model.replicas == 2
    assert stack.storage.path == "/srv/models"
    assert getattr(model, "max_model_len", "32k") == "32k"
    names = ("gpu_memory_utilization", "mem_fraction_static", "gpu_layers", "cpu_kv_cache_gib", "worker_concurrency")
    text = path.read_text("utf-8")
    fields = {name for name in names if f"\n    {name}:" in text}
    expected = {"vllm": {"gpu_memory_utilization"}, "sglang": {"mem_fraction_static"}, "llamacpp": {"gpu_layers"},
                "fastchat": {"worker_concurrency"}}  # fmt: skip
    without_gpu = {"vllm": {"cpu_kv_cache_gib"}, "llamacpp": set(), "fastchat": {"worker_concurrency"}}
    assert fields == (expected if gpus == "1" else without_gpu)[engine]
    # only one of `path` and `volume` may be set
    path.write_text(text.replace("volume:", "# volume:").replace("replicas: 2", "replicas: 1"))
    plan = resolve(load_stack(path), ComposeSite(), "test")
    assert len(plan.services) > 0


@pytest.mark.parametrize(
    ("value", "gpus"),
    [
        ("device=0", ("0",)),
        ("2", 2),
        ("none", 0),
        ("0,1", ("0", "1")),
        ("device=3", ("3",)),
        ("GPU-8a1b,GPU-8a1c", ("GPU-8a1b", "GPU-8a1c")),
    ],
)
def test_gpus_are_written_in_every_form(tmp_path: Path, value: str, gpus: object) -> None:
    assert init(tmp_path, "--gpus", value) == 0
    assert load_stack(tmp_path / "stack.yaml").models[0].gpus == gpus


@pytest.mark.parametrize("engine", ["vllm", "fastchat"])
def test_stacks_of_other_engines_open(tmp_path: Path, engine: str) -> None:
    assert init(tmp_path, "--engine", engine, "--model", "org/name") == 0
    assert open_stack(str(tmp_path)).plan.services


@pytest.mark.parametrize(
    "name", ["2024", "1e5", "null", "true", "0x1f", "08", "UPPER Case", "...", "a" * 80, "ünïcode", "no"]
)
def test_any_folder_name_gives_a_valid_stack_name(tmp_path: Path, name: str) -> None:
    """A folder with the name 2024 would give `name: 2024`, which YAML reads as a number."""
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
def test_any_local_path_is_written_unchanged(tmp_path: Path, model: str) -> None:
    assert init(tmp_path, "--model", model) == 0
    assert load_stack(tmp_path / "stack.yaml").models[0].model == model


def test_an_existing_stack_is_an_error_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stack.yaml").write_text("mine")
    assert init(tmp_path) == 2
    assert "stack.yaml already exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["stack.yaml"]
    assert (tmp_path / "stack.yaml").read_text() == "mine"


def test_an_existing_env_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=mine\n")
    written = write_starter(tmp_path, "vllm", "org/name", "1")
    assert tmp_path / ".env" not in written
    assert (tmp_path / ".env").read_text() == "STACKGEN_API_KEY=mine\n"


@pytest.mark.parametrize(
    "args",
    [["--engine", "tgi"], ["--model", "a b"], ["--gpus", "some"], ["--gpus", "0,0"], ["--gpus", "0"], ["--gpus", ""]],
)
def test_invalid_arguments_write_nothing(tmp_path: Path, args: list[str]) -> None:
    folder = tmp_path / "new"
    assert init(folder, *args) == 2
    assert not folder.exists()


def test_invalid_arguments_raise_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown engine 'vlm'"):
        write_starter(tmp_path, "vlm", "org/name", "1")


def test_the_written_file_sets_only_name_port_and_models(tmp_path: Path) -> None:
    init(tmp_path)
    assert set(yaml.safe_load((tmp_path / "stack.yaml").read_text("utf-8"))) == {"name", "port", "models"}
