"""The JSON Schema for editors: it accepts what the loader accepts, and describes every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from stackgen import engines
from stackgen.cli import main as cli
from stackgen.errors import SpecError
from stackgen.stack.load import build_spec, parse_stack
from stackgen.stack.schema import MODELINE, stack_schema
from tests.conftest import ROOT

EXAMPLES = sorted(ROOT.glob("compose/*/stack.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(stack_schema())


def stack(**fields: Any) -> dict[str, Any]:
    """Returns a stack with one vLLM model and these fields. `model=…` sets fields of the model."""
    model = {"model": "org/name", "engine": "vllm"} | fields.pop("model", {})
    return {"name": "demo", "models": [model]} | fields


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(stack_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_examples_match_the_schema(path: Path) -> None:
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(path.read_text("utf-8"))))


GOOD = [
    stack(model={"gpus": [0, "GPU-8a1b"]}),
    stack(model={"gpus": "GPU-8a1b"}),
    stack(model={"gpus": "all", "tensor_parallel_size": 2}),
    stack(model={"max_model_len": "32k", "extra_env": {"A": 1, "B": "x"}}),
    stack(model={"gpus": "2"}),
    stack(model={"max_model_len": 8192}),
    stack(port="8080", gateway={"timeout": "30"}, model={"replicas": "2", "gpu_memory_utilization": "0.9"}),
    stack(port=9000, bind="0.0.0.0", storage={"path": "/x", "offline": True}, logging={"max_file": 2}),
]
BAD = [
    {},
    {"name": "demo"},
    {"name": "demo", "models": []},
    {"name": "demo", "models": [{"model": "a/b"}]},
    stack(nme="x"),
    stack(name="Demo"),
    stack(port=0),
    stack(port="x"),
    stack(port="80 80"),
    stack(monitoring={"ttft_target": "fast"}),
    stack(y_common={"engine": "vllm"}),
    stack(restart="often"),
    stack(storage={"pth": "/x"}),
    stack(model={"engine": "tgi"}),
    stack(model={"gpuss": 1}),
    stack(model={"gpus": 65}),
    stack(model={"gpus": "0"}),
    stack(model={"gpus": []}),
    stack(model={"gpus": [0, 0]}),
    stack(model={"worker_concurrency": 2}),
    stack(model={"dtype": "fp7"}),
    stack(model={"replicas": 0}),
    stack(model={"extra_args": "--x"}),
    stack(model={"extra_env": {"A": True}}),
    stack(model={"lora_adapters": [{"name": "a"}]}),
]


@pytest.mark.parametrize("data", GOOD, ids=str)
def test_the_schema_accepts_valid_stacks(data: dict[str, Any]) -> None:
    build_spec(data, "test")
    assert not list(VALIDATOR.iter_errors(data))


@pytest.mark.parametrize("data", BAD, ids=str)
def test_schema_and_loader_reject_invalid_stacks(data: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(data))
    with pytest.raises(SpecError):
        build_spec(data, "test")


def test_schema_and_loader_accept_fields_for_anchors_at_the_top_level() -> None:
    text = (
        "name: demo\nx-common: &common\n  engine: vllm\n  gpus: 1\n"
        "models:\n  - <<: *common\n    model: org/a\n  - <<: *common\n    model: org/b\n    gpus: 2\n"
    )
    spec = parse_stack(text)
    assert [(one.model, one.engine, one.gpus) for one in spec.models] == [("org/a", "vllm", 1), ("org/b", "vllm", 2)]
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(text)))


def test_an_error_in_an_anchor_has_the_line_of_the_anchor() -> None:
    text = (
        "name: demo\nx-common: &common\n  engine: vllm\n  replicas: none\nmodels:\n  - <<: *common\n    model: org/a\n"
    )
    with pytest.raises(SpecError) as caught:
        parse_stack(text)
    assert [(one.path, one.line) for one in caught.value.mistakes] == [("models[0].replicas", 4)]


def test_every_field_has_a_description() -> None:
    schema = stack_schema()
    objects = {"stack": schema, **schema["$defs"]}
    count = 0
    for owner, definition in objects.items():
        for name, field in definition.get("properties", {}).items():
            assert len(field.get("description", "")) > 8, f"{owner}.{name} has no description"
            count += 1
    # the loop must not be empty
    assert count > 60


def test_the_schema_has_every_engine_and_field() -> None:
    schema = stack_schema()
    mapping = schema["properties"]["models"]["items"]["discriminator"]["mapping"]
    assert tuple(mapping) == engines.names()
    for name, reference in mapping.items():
        definition = schema["$defs"][reference.rpartition("/")[2]]
        assert set(definition["properties"]) == set(engines.get(name).Model.model_fields)
        assert definition["additionalProperties"] is False


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == stack_schema()


def test_the_committed_schema_is_up_to_date() -> None:
    assert json.loads((ROOT / "compose/stack.schema.json").read_text("utf-8")) == stack_schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.parent.name)
def test_the_examples_refer_to_their_schema(path: Path) -> None:
    first = path.read_text("utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("$schema=")[2]).resolve().is_file()


def test_init_writes_the_schema_and_a_modeline_that_refers_to_it(tmp_path: Path) -> None:
    assert cli.main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "stack.yaml").read_text("utf-8").splitlines()[0] == MODELINE
    named = MODELINE.partition("$schema=")[2]
    schema = json.loads((tmp_path / named).read_text("utf-8"))
    assert not list(
        jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load((tmp_path / "stack.yaml").read_text()))
    )
