"""LoRA adapters: the rank that vLLM prepares for, pinned adapters from the Hub, and the checks before a start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stackgen.check.huggingface import look_up_model
from stackgen.cli.main import main
from stackgen.doctor.finding import Finding
from stackgen.errors import SpecError
from stackgen.plan import Service
from stackgen.stack.folder import open_stack
from tests.doctor.hosts import CONFIG, EIGHT_80, findings, problem_ids, single_problem, write_model, write_stack
from tests.hub.standin import Hub

BASE = "meta-llama/Llama-3.1-8B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def write_adapter(folder: Path, hidden: int = 4096, files: tuple[str, ...] = (), **config: Any) -> Path:
    """Writes an adapter as PEFT saves it, with one layer. `files` replace the weights."""
    folder.mkdir(parents=True)
    about = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "bias": "none", "base_model_name_or_path": BASE}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    header = json.dumps({LAYER: {"dtype": "BF16", "shape": [about["r"], hidden], "data_offsets": [0, 0]}}).encode()
    for name in files or ("adapter_model.safetensors",):
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def stack(folder: Path, *adapters: dict[str, Any], **fields: Any) -> Path:
    # a model on the Hub has no folder with a config
    if "model" not in fields:
        fields["config"] = CONFIG | {"hidden_size": 4096}
    return write_stack(folder, lora_adapters=list(adapters), **fields)


def engine(path: Path) -> Service:
    return next(one for one in open_stack(str(path)).plan.services if one.role == "engine")


def after(path: Path, flag: str) -> str | None:
    command = engine(path).command
    return command[command.index(flag) + 1] if flag in command else None


SQL = {"name": "sql", "path": "./sql"}


@pytest.mark.parametrize(
    ("config", "fields", "rank"),
    [
        ({"r": 8}, {}, None),
        ({"r": 16}, {}, None),
        ({"r": 64}, {}, "64"),
        # vLLM accepts only some ranks
        ({"r": 40}, {}, "64"),
        ({"r": 8, "rank_pattern": {"q_proj": 128}}, {}, "128"),
        ({"r": 8}, {"max_lora_rank": 256}, "256"),
        ({"r": "x", "rank_pattern": [1]}, {}, None),
        ({"r": 64}, {"extra_args": ["--max_lora_rank=128"]}, None),
    ],
)
def test_the_rank_comes_from_the_adapters(
    config: dict[str, Any], fields: dict[str, Any], rank: str | None, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "sql", **config)
    write_adapter(tmp_path / "other", r=4)
    assert after(stack(tmp_path, SQL, {"name": "o", "path": "./other"}, **fields), "--max-lora-rank") == rank


@pytest.mark.parametrize(
    ("rank", "fields", "part"),
    [
        (64, {"max_lora_rank": 32}, "the adapter's rank is 64, but max_lora_rank is 32"),
        (1024, {}, "vLLM supports ranks up to 512"),
        (16, {"max_lora_rank": 20}, "does not know the value 20 .use one of 1, 8, 16, 32"),
    ],
)
def test_a_rank_that_vllm_refuses_is_an_error(rank: int, fields: dict[str, Any], part: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql", r=rank)
    with pytest.raises(SpecError, match=part):
        stack(tmp_path, SQL, **fields)


@pytest.mark.parametrize(
    ("adapter", "fields", "place", "part"),
    [
        ({"path": "https://huggingface.co/org/sql/tree/v2"}, {}, "[0].path", "`path: org/sql` and `revision: v2`"),
        ({"path": "adapters/of/mine"}, {}, "[0].path", "Start a local path with /, ./ or ~"),
        ({"path": "./sql", "revision": "v2"}, {}, "[0].revision", "the path is a local folder"),
        ({}, {"max_lora_rank": 64, "extra_args": ["--max-lora-rank=64"]}, "max_lora_rank", "already contains"),
        (None, {"max_lora_rank": 64}, "max_lora_rank", "has no effect without lora_adapters"),
        (None, {"max_loras": 2}, "max_loras", "has no effect without lora_adapters"),
        ({}, {"max_loras": 2, "extra_args": ["--max-loras=2"]}, "extra_args[0]", "which `max_loras` sets"),
    ],
)
def test_adapters_and_ranks_that_would_be_ignored_are_errors(
    adapter: dict[str, Any] | None, fields: dict[str, Any], place: str, part: str, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "sql", r=8)
    with pytest.raises(SpecError) as caught:
        stack(tmp_path, *([] if adapter is None else [SQL | adapter]), **fields)
    [found] = caught.value.mistakes
    assert found.path.endswith(place) and part in f"{found.message} {found.hint}"


@pytest.mark.parametrize(("fields", "warned"), [
    ({}, True), ({"max_lora_rank": 16}, False), ({"extra_args": ["--max-lora-rank=64"]}, False),
])  # fmt: skip
def test_the_unknown_rank_of_an_adapter_on_the_hub_is_a_warning(
    fields: dict[str, Any], warned: bool, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "sql", r=8)
    path = stack(tmp_path, SQL, {"name": "o", "path": "org/o"}, **fields)
    found = [one for one in open_stack(str(path)).plan.warnings if "is unknown before the download" in one]
    assert len(found) == warned and all("models[0].lora_adapters: the rank of org/o is" in one for one in found)


def test_an_adapter_that_is_written_after_the_rendering_needs_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stack(tmp_path, SQL)

    def to_do() -> list[str]:
        assert main(["render", str(path), "--no-validate"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("to do: create ./sql")]

    (line,) = to_do()
    assert line.endswith("Then run `stackgen render` again, which reads the adapter's rank")
    write_adapter(tmp_path / "sql", r=64)
    assert to_do() == [] and "--max-lora-rank" in (tmp_path / "compose.yaml").read_text()


def test_adapters_of_one_batch_are_a_field(tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql", r=8)
    other = {"name": "o", "path": "org/o"}
    assert after(stack(tmp_path, SQL, other), "--max-loras") is None
    assert after(path := stack(tmp_path, SQL, other, max_loras=2), "--max-loras") == "2"
    assert not any("max_loras" in text for text in open_stack(str(path)).plan.warnings)
    # vLLM would reserve memory for adapters that do not exist
    path = stack(tmp_path, SQL, other, max_loras=8)
    assert any("max_loras is 8, but lora_adapters has 2" in text for text in open_stack(str(path)).plan.warnings)


def test_an_adapter_of_the_hub_is_pinned(tmp_path: Path) -> None:
    path = stack(
        tmp_path,
        {"name": "a", "path": "org/a"},
        {"name": "b", "path": "org/b", "revision": COMMIT},
        {"name": "c", "path": "org/c", "revision": "feature/x"},
    )
    made = open_stack(str(path))
    assert made.plan.services[0].command == (
        "--model", "org/a", "--model", "org/b", "--revision", COMMIT, "--model", "org/c", "--revision", "feature/x",
    )  # fmt: skip
    command = engine(path).command
    start = command.index("--lora-modules") + 1
    assert command[start : start + 3] == (
        "a=org/a",
        f"b=/models/hub/models--org--b/snapshots/{COMMIT}",
        # download.py links the snapshot, whose commit is unknown here
        "c=/models/by-name/org/c/feature%2Fx",
    )
    assert any(one.startswith("org/a has no revision") for one in made.plan.warnings)
    assert not any(one.startswith("org/b has no revision") for one in made.plan.warnings)
    places = [one.place for one in findings(EIGHT_80, path) if one.id == "SG-P064" and one.status == "warn"]
    assert places == ["models[0].lora_adapters[0].revision"]


def test_each_adapter_has_a_name_of_its_own(tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql")
    names = ("m", "sql", "sql")
    with pytest.raises(SpecError) as caught:
        stack(tmp_path, *({"name": name, "path": "./sql"} for name in names))
    assert [(one.path, one.message) for one in caught.value.mistakes] == [
        ("models[0].lora_adapters[0].name", "'m' is already served by models[0]"),
        ("models[0].lora_adapters[2].name", "'sql' is already served by models[0].lora_adapters[1]"),
    ]


def checked(path: Path) -> tuple[Finding, ...]:
    return findings(EIGHT_80, path)


def test_a_complete_adapter_of_the_right_model_is_ok(tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql", r=64)
    found = checked(stack(tmp_path, SQL))
    assert not problem_ids(found)
    [one] = [one for one in found if one.id == "SG-P066"]
    assert (one.status, one.evidence) == ("ok", f"rank 64, base model {BASE}")


@pytest.mark.parametrize(
    ("adapter", "evidence"),
    [
        ({"files": ("model.safetensors", "config.json")}, "missing: adapter_model.safetensors or adapter_model.bin"),
        ({"use_dora": True}, "adapter_config.json: DoRA (use_dora)"),
        ({"bias": "all"}, "adapter_config.json: biases (bias, lora_bias)"),
        ({"modules_to_save": ["embed_tokens", "score"]}, "adapter_config.json: modules_to_save (embed_tokens)"),
        ({"init_lora_weights": "pissa"}, "adapter_config.json: init_lora_weights: pissa"),
        (
            {"hidden": 2048, "base_model_name_or_path": "org/small"},
            "its layers have the input size 2048, and the model's hidden size is 4096; "
            "base model in adapter_config.json: org/small",
        ),
    ],
)
def test_an_adapter_that_vllm_refuses_fails(adapter: dict[str, Any], evidence: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql", **adapter)
    found = single_problem(checked(stack(tmp_path, SQL)), "SG-P066", "fail")
    assert found.place == "models[0].lora_adapters[0].path" and found.evidence == evidence


@pytest.mark.parametrize(
    "adapter",
    [
        {"modules_to_save": ["score"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": True},
        {"files": ("adapter_model.bin",)},
    ],
)
def test_features_that_vllm_supports_are_ok(adapter: dict[str, Any], tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql", **adapter)
    assert not problem_ids(checked(stack(tmp_path, SQL)))


def test_files_of_any_content_are_no_exception(tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql")
    (tmp_path / "sql" / "adapter_model.safetensors").write_bytes(b"\xff" * 9)
    path = stack(tmp_path, SQL)
    assert not problem_ids(checked(path))
    (tmp_path / "sql" / "adapter_config.json").write_text("[")
    found = single_problem(checked(path), "SG-P066", "fail")
    assert "can't be read, or is not a JSON object" in found.message
    (tmp_path / "sql" / "adapter_config.json").unlink()
    assert single_problem(checked(path), "SG-P066", "fail").evidence == "missing: adapter_config.json"


@pytest.mark.parametrize(
    ("base", "model", "status"),
    [
        (BASE, BASE, "ok"),
        (BASE, "unsloth/Llama-3.1-8B-Instruct-bnb-4bit", "ok"),
        ("unsloth/llama-3.1-8b-instruct-unsloth-bnb-4bit", BASE, "ok"),
        (BASE, "org/Llama-3.1-8B-Instruct-AWQ", "ok"),
        ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", "warn"),
        ("Qwen/Qwen2.5-0.5B", BASE, "warn"),
        # a folder of the machine that trained the adapter
        ("/data/llama", BASE, "ok"),
        ("", BASE, "ok"),
    ],
)
def test_another_base_model_is_reported(base: str, model: str, status: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "sql", base_model_name_or_path=base)
    found = checked(stack(tmp_path, SQL, model=model, revision=COMMIT))
    assert [one.status for one in found if one.id == "SG-P066"] == [status]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    server = Hub({"org/sql": write_adapter(tmp_path / "published", r=64), "org/m": write_model(tmp_path / "model")})
    yield server
    server.close()


def test_adapters_of_the_hub_are_looked_up(hub: Hub, tmp_path: Path) -> None:
    lookup = look_up_model("org/sql", endpoint=hub.url)
    assert lookup.config and lookup.config["r"] == 64
    remote = {"name": "sql", "path": "org/sql", "revision": COMMIT}
    path = stack(tmp_path / "a", remote)
    found = single_problem(findings(EIGHT_80, path, {"org/sql": lookup}), "SG-P066", "fail")
    assert found.message == "the rank of the adapter sql is 64, and vLLM accepts ranks up to 16"
    assert found.fix == "set `max_lora_rank: 64`"
    path = stack(tmp_path / "b", remote, max_lora_rank=64)
    assert not problem_ids(findings(EIGHT_80, path, {"org/sql": lookup}))
    # the rank of a local adapter has set the flag for both
    write_adapter(tmp_path / "c" / "sql", r=64)
    both = stack(tmp_path / "c", SQL, remote | {"name": "published"})
    assert not problem_ids(findings(EIGHT_80, both, {"org/sql": lookup}))
    gone = look_up_model("org/none", endpoint=hub.url)
    assert (
        "can't be downloaded" in single_problem(findings(EIGHT_80, path, {"org/sql": gone}), "SG-P066", "fail").message
    )
    # without an answer, nothing is known
    unread = findings(replace(EIGHT_80, storage_root=None), path)
    assert "SG-P066" in problem_ids(unread, "unknown")
