"""Loading stack.yaml: all errors are reported at once, with line, path and fix, and only SpecError is raised."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen import engines
from stackgen.errors import Mistake, SpecError
from stackgen.spec import StackSpec, parse_token_count
from stackgen.stack.load import build_spec, load_stack, parse_stack
from stackgen.stack.yaml_text import find_places, read_value

GOOD = "name: demo\nmodels:\n  - model: org/name\n    engine: vllm\n"


def load_errors(text: str) -> dict[str, Mistake]:
    """Returns the errors in `text` by path. Fails the test if there are none."""
    with pytest.raises(SpecError) as caught:
        parse_stack(text)
    return {mistake.path: mistake for mistake in caught.value.mistakes}


def model(**fields: Any) -> Any:
    """Returns the validated model of a stack with one model that has these fields."""
    data = {"name": "demo", "models": [{"model": "org/name", "engine": "vllm"} | fields]}
    return build_spec(data, "test").models[0]


def test_all_errors_are_reported_at_once_with_their_lines() -> None:
    errors = load_errors(
        "name: Bad Name\n"
        "prot: 9000\n"
        "models:\n"
        "  - model: org/name\n"
        "    engine: vlm\n"
        "  - model: not an id\n"
        "    engine: vllm\n"
        "    max_model_length: 4\n"
        "    gpus: [0, 0]\n"
        "    dtype: bfloat61\n"
        "  - engine: fastchat\n"
        "storage:\n"
        "  pth: /x\n"
        "restart: sometimes\n"
    )
    lines = {path: mistake.line for path, mistake in errors.items()}
    assert lines == {
        "name": 1,
        "prot": 2,
        "models[0].engine": 5,
        "models[1].model": 6,
        "models[1].max_model_length": 8,
        "models[1].gpus": 9,
        "models[1].dtype": 10,
        "models[2].model": 11,
        "storage.pth": 13,
        "restart": 14,
    }


def test_message_has_source_count_line_path_and_fix() -> None:
    with pytest.raises(SpecError) as caught:
        parse_stack(GOOD + "    gpuss: 1\n", "my/stack.yaml")
    assert str(caught.value) == (
        "my/stack.yaml: 1 error\n  my/stack.yaml:5: models[0].gpuss: unknown field (did you mean gpus?)"
    )
    assert caught.value.exit_code == 2
    assert "schema" in caught.value.hint


@pytest.mark.parametrize(
    ("line", "path", "hint"),
    [
        ("    tensor_paralel_size: 2", "models[0].tensor_paralel_size", "did you mean tensor_parallel_size?"),
        # people copy flags from a command line
        ("    max-model-len: 2", "models[0].max-model-len", "did you mean max_model_len?"),
        ("    dtype: bfloat1", "models[0].dtype", "did you mean bfloat16?"),
        # right name, wrong level
        ("    worker_concurrency: 2", "models[0].worker_concurrency", "only fastchat models have this field"),
        ("    bind: 0.0.0.0", "models[0].bind", "the field belongs to the stack: move it one level up"),
        ("replicas: 2", "replicas", "the field belongs to a model: models[0].replicas"),
        ("loging: {}", "loging", "did you mean logging?"),
        ("storage: {pth: /x}", "storage.pth", "did you mean path?"),
        ("logging: {max_sise: 1m}", "logging.max_sise", "did you mean max_size?"),
        ("    lora_adapters: [{nmae: a, path: b}]", "models[0].lora_adapters[0].nmae", "did you mean name?"),
        # other words for the same
        ("gateway: {keys: [{name: a, budget: 9}]}", "gateway.keys[0].budget", "the field is tokens_per_day"),
        ("gateway: {tls: {cert: a.pem}}", "gateway.tls.cert", "the field is certificate"),
        ("gateway: {keys: [ada]}", "gateway.keys[0]", "write {name: ada}"),
        ("    fallback: groq:x", "models[0].fallback.provider",
         "for other providers and servers, write `fallback: {model: …, base_url: …, api_key_env: …}`"),
        ("    fallback: togeter:x", "models[0].fallback.provider", "did you mean together?"),
    ],
)  # fmt: skip
def test_unknown_fields_get_a_suggestion(line: str, path: str, hint: str) -> None:
    assert load_errors(f"{GOOD}{line}\n")[path].hint == hint


def test_unknown_engines_get_the_closest_or_all_as_hint() -> None:
    errors = load_errors("name: a\nmodels: [{model: a/b, engine: fastchap}, {model: a/b, engine: tgi}, {model: a/b}]\n")
    assert errors["models[0].engine"].hint == "did you mean fastchat?"
    assert errors["models[1].engine"].hint == "choose one of fastchat, llamacpp, sglang, vllm"
    assert errors["models[2].engine"].message == "is missing"


@pytest.mark.parametrize("engine", engines.names())
def test_fields_of_other_engines_are_rejected(engine: str) -> None:
    others = {field for name in engines.names() for field in engines.get(name).Model.model_fields}
    foreign = others - set(engines.get(engine).Model.model_fields)
    assert foreign
    for field in foreign:
        with pytest.raises(SpecError) as caught:
            model(engine=engine, **{field: "x"})
        assert any(mistake.path == f"models[0].{field}" for mistake in caught.value.mistakes)


@pytest.mark.parametrize(
    ("engine", "path", "hint"),
    [
        ("engin: vllm", "engin", "did you mean engine?"),
        ("Engine: vllm", "Engine", "did you mean engine?"),
        ("engine: vlm", "engine", "did you mean vllm?"),
        ("engine: tgi", "engine", "choose one of fastchat, llamacpp, sglang, vllm"),
        ("engine: [vllm]", "engine", "did you mean vllm?"),
        ("replicas: 1", "engine", "choose one of fastchat, llamacpp, sglang, vllm"),
    ],
)
def test_a_wrong_engine_hides_no_other_error_of_its_model(engine: str, path: str, hint: str) -> None:
    errors = load_errors(f"name: a\nmodels:\n  - model: a b\n    {engine}\n    gpuss: 1\n    dtype: fp7\n    port: 0\n")
    assert errors[f"models[0].{path}"].hint == hint
    assert set(errors) == {f"models[0].{one}" for one in (path, "model", "gpuss", "dtype", "port")}


def test_fields_of_an_engine_are_no_error_if_the_engine_is_missing() -> None:
    text = "name: a\nmodels: [{model: a/b, tensor_parallel_size: 2, worker_concurrency: 3, nothing: 1}]\n"
    assert set(load_errors(text)) == {"models[0].engine", "models[0].nothing"}


COMPOSE = "services:\n  vllm:\n    image: vllm/vllm-openai:v0.11.0\n    ports: ['8000:8000']\n"


@pytest.mark.parametrize("text", [COMPOSE, "name: x\n" + COMPOSE, COMPOSE + "models: {llm: {model: ai/x}}\n"])
def test_a_compose_file_is_recognized(text: str) -> None:
    errors = load_errors(text)
    assert set(errors) == {"services"}
    assert errors["services"].message == "this is a Docker Compose file, not a stack file"
    assert "docker compose -f" in errors["services"].hint and "stackgen import" in errors["services"].hint


@pytest.mark.parametrize(
    ("line", "path", "name"),
    [
        ("    revision: ${REV}", "models[0].revision", "${REV}"),
        ("    extra_env: {HF_TOKEN: '${HF_TOKEN}'}", "models[0].extra_env.HF_TOKEN", "${HF_TOKEN}"),
        ("    extra_args: ['--seed=${SEED:-1}']", "models[0].extra_args[0]", "${SEED:-1}"),
        ("    replicas: ${N}", "models[0].replicas", "${N}"),
        ("port: ${PORT:?no port}", "port", "${PORT:?no port}"),
        ("storage: {path: $HOME/models}", "storage.path", "$HOME"),
        ("endpoints: [{name: a, base_url: '${URL}'}]", "endpoints[0].base_url", "${URL}"),
    ],
)
def test_variables_are_named_as_the_error(line: str, path: str, name: str) -> None:
    errors = load_errors(f"{GOOD}{line}\nprot: 1\n")
    assert errors[path].message == f"contains the variable {name}, and stack files have no variables"
    assert set(errors) == {path, "prot"}


@pytest.mark.parametrize("text", ["a$b", "$", "$$", "pa$$word", "$5", "{{x}}", "${", "$(ls)", "$${5}"])
def test_other_dollars_are_text(text: str) -> None:
    assert parse_stack(f"{GOOD}    extra_env: {{A: '{text}'}}\n").models[0].extra_env == {"A": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("$${X}", "${X}"), ("a$${X:-1}b$${Y}", "a${X:-1}b${Y}"), ("$$${X}", "$${X}"), ("$${", "$${"), ("$$X", "$$X")],
)
def test_two_dollars_write_the_text_of_a_variable(text: str, value: str) -> None:
    spec = parse_stack(f"{GOOD}    extra_env: {{A: '{text}'}}\n    extra_args: ['--x={text}']\n")
    assert (spec.models[0].extra_env, spec.models[0].extra_args) == ({"A": value}, (f"--x={value}",))


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        f"name: {LONG}",
        f"{LONG}: 1",
        f"{GOOD}    {LONG}: 1",
        f"{GOOD}    dtype: {LONG}",
        f"{GOOD}    revision: [{LONG}]",
        f"{GOOD}    extra_env: {{{LONG}: 1.5}}",
        f"{GOOD}    extra_env: {{A: '${{{LONG}}}'}}",
        f"name: a\nmodels: [{{model: a/b, engine: {LONG}}}]",
        f"name: a\nmodels: [{{model: a/b, engine: [{LONG}, {LONG}]}}]",
        f"{GOOD}    fallback: {LONG}",
        f"{GOOD}    fallback: {{provider: {LONG}, model: x}}",
        f"{GOOD}restart: {LONG}",
        f"{GOOD}{LONG}: 1\n{LONG}: 2\n",
        f"name: *{LONG}",
        f"name: !{LONG} x",
        f"{GOOD}endpoints: [{{name: {LONG}, provider: openai}}, {{name: {LONG}, provider: openai}}]",
        'name: "a\\nb\\nc\\e[2J"',
        '{"name": "a\\nb\\e[31m", "models": [{"mo\\ndel": 1}]}',
    ],
    ids=range(18),
)
def test_messages_repeat_at_most_a_line_of_the_file(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_stack(text + "\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + len(caught.value.mistakes)
    assert all(len(line.partition(" (")[0]) < 700 and line.isprintable() for line in lines), lines


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Any) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text("name: a\nmodels: [" + "a, " * 3_000_000 + "]\n")
    started = time.process_time()
    with pytest.raises(SpecError, match="it is larger than 512 KiB"):
        load_stack(path)
    assert time.process_time() - started < 0.2


def test_what_is_no_file_is_an_error_and_does_not_hang(tmp_path: Any) -> None:
    path = tmp_path / "stack.yaml"
    os.mkfifo(path)
    with pytest.raises(SpecError, match="it is a pipe or a device, not a file"):
        load_stack(path)
    with pytest.raises(SpecError, match="it is a pipe or a device, not a file"):
        load_stack(Path("/dev/zero"))


def test_more_than_a_thousand_errors_are_counted() -> None:
    with pytest.raises(SpecError) as caught:
        parse_stack("name: a\nmodels: [" + "3, " * 1500 + "]\n")
    assert len(caught.value.mistakes) == 1001 and caught.value.mistakes[-1].message == "and 500 more errors"


def test_duplicate_keys_are_reported_with_their_line() -> None:
    errors = load_errors(GOOD + "    gpus: 1\n    gpus: 2\n")
    assert (errors[""].line, errors[""].message) == (6, "the key 'gpus' is set twice")


@pytest.mark.parametrize(
    "text",
    [
        "name: [a\n",
        "name: a\n\tmodels: x\n",
        "a: b\n---\nc: d\n",
        "name: \x01\n",
        "name: *nowhere\n",
        'name: "\\ud800"\n',  # a lone surrogate is no character
        "name: \ud800\n",
        "? [a, b]\n: 1\n",  # a list as a key
        "? {a: b}\n: 1\n",
        # each of these makes PyYAML's constructor raise another exception
        "name: !!bool x\n",
        "name: !!int x\n",
        "name: !!float x\n",
        "name: !!timestamp x\n",
        "name: 2024-13-01\n",
        "name: !!binary é\n",
        "name: !!python/object/apply:os.system [ls]\n",
        f"port: {'9' * 5000}\n",  # Python refuses to convert that many digits
    ],
)
def test_invalid_yaml_is_one_error(text: str) -> None:
    with pytest.raises(SpecError, match="invalid YAML") as caught:
        parse_stack(text)
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nmodels: &a [*a]\n",
        "&a\nname: a\nmodels: [{model: x/y, engine: vllm, extra_env: *a}]\n",
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
        "name: a\nmodels: " + "[" * 3000 + "]" * 3000,
    ],
    ids=["loop in a list", "loop in a mapping", "billion laughs", "3,000 brackets"],
)
@pytest.mark.timeout(60)
def test_recursion_bombs_are_errors_and_end_quickly(text: str) -> None:
    with pytest.raises(SpecError, match="nested too deeply"):
        parse_stack(text)


def test_aliases_and_merge_keys_work() -> None:
    stack = parse_stack("name: a\nmodels:\n  - &m {model: x/y, engine: vllm}\n  - {<<: *m, served_names: [other]}\n")
    assert [one.model for one in stack.models] == ["x/y", "x/y"]


# in PyYAML 6.0.4, the last mapping wins, or the first one if a name has one character
def test_the_first_of_several_merged_mappings_sets_a_value() -> None:
    text = (
        "name: a\nx-one: &one {model: x/y, engine: vllm, extra_env: {A: '1'}}\n"
        "x-two: &two {gpus: 2, <<: *one, replicas: 2}\nx-three: &three {gpus: 3, replicas: 3, extra_env: {A: '3'}}\n"
        "models:\n  - {<<: [*two, *three]}\n  - {<<: [*three, *two], gpus: 4}\n"
    )
    found = [(one.model, one.gpus, one.replicas, one.extra_env) for one in parse_stack(text).models]
    assert found == [("x/y", 2, 2, {"A": "1"}), ("x/y", 4, 3, {"A": "3"})]
    places = find_places(text)
    assert [places[f"models[{index}].{name}"][0] for index in (0, 1) for name in ("gpus", "replicas")] == [3, 3, 7, 4]


def test_a_name_with_one_character_overrides_a_merged_value() -> None:
    text = "base: &base {N: '1', O: '1'}\nmore: &more {<<: *base, N: '2'}\nall: {<<: *more}\n"
    assert read_value(text)["all"] == {"N": "2", "O": "1"}


@pytest.mark.parametrize("value", ["text", "[text]", "null"])
def test_merging_a_value_that_is_no_mapping_is_an_error(value: str) -> None:
    with pytest.raises(SpecError, match="invalid YAML"):
        parse_stack(f"name: a\nmodels:\n  - {{<<: {value}, model: x/y, engine: vllm}}\n")


@pytest.mark.timeout(60)
def test_errors_of_a_thousand_models_are_all_reported() -> None:
    text = "name: a\nmodels:\n" + "".join(f"  - {{model: x/m{i}, engine: vllm, gpuss: 1}}\n" for i in range(1000))
    errors = load_errors(text)
    assert len(errors) == 1000
    assert errors["models[999].gpuss"].line == 1002


@pytest.mark.parametrize("text", ["", "just text", "- a\n- b\n", "7", "null"])
def test_files_without_a_mapping_are_rejected(text: str) -> None:
    with pytest.raises(SpecError, match="must be a mapping"):
        parse_stack(text)


@pytest.mark.parametrize("models", ["foo", "{model: a/b}", "3", "2024-01-01"])
def test_models_must_be_a_list(models: str) -> None:
    errors = load_errors(f"name: a\nmodels: {models}\n")
    assert errors["models"].message == "must be a list. Start each model with `- model:`"


def test_models_must_be_mappings_and_at_least_one() -> None:
    assert "at least 1" in load_errors("name: a\nmodels: []\n")["models"].message
    errors = load_errors("name: a\nmodels: [3, [], null, text]\n")
    assert set(errors) == {f"models[{index}]" for index in range(4)}
    assert errors["models[2]"].message == "must be a mapping with `model:` and `engine:`"


@pytest.mark.parametrize(
    ("value", "shown"),
    [("no", "False"), ("yes", "True"), ("1", "1"), ("1.0", "1.0"), ("010", "8"), ("2024-01-01", "datetime.date(2024")],
)
@pytest.mark.parametrize("field", ["revision", "image", "quantization", "chat_template"])
def test_other_yaml_types_in_text_fields_are_reported_and_not_converted(field: str, value: str, shown: str) -> None:
    message = load_errors(f"{GOOD}    {field}: {value}\n")[f"models[0].{field}"].message
    assert message.startswith(f"must be text, but YAML reads the value as {shown}")
    assert message.endswith(". Put the value in quotes")


def test_other_yaml_types_in_lists_of_text_are_reported() -> None:
    errors = load_errors(GOOD + "    extra_args: [--x, 1, yes]\n    served_names: [1e3, 7]\n")
    assert {"models[0].extra_args[1]", "models[0].extra_args[2]", "models[0].served_names[1]"} <= set(errors)
    # YAML 1.1 reads 1e3 as text
    assert "models[0].served_names[0]" not in errors


def test_environment_accepts_integers_and_rejects_values_that_yaml_changes() -> None:
    assert model(extra_env={"A": 1, "B": "1e-5", "C": ""}).extra_env == {"A": "1", "B": "1e-5", "C": ""}
    errors = load_errors(GOOD + "    extra_env: {A: 1.5, B: yes, C: null, D: [1], 1X: a, E-F: b}\n")
    for name in "ABCD":
        assert errors[f"models[0].extra_env.{name}"].message == "must be text. Put the value in quotes"
    assert {"models[0].extra_env.1X", "models[0].extra_env.E-F"} <= set(errors)


@pytest.mark.parametrize("text", ['"a\\0b"', '["a\\0b"]'])
def test_nul_is_rejected_in_any_field(text: str) -> None:
    field = "extra_args" if text.startswith("[") else "revision"
    errors = load_errors(f"{GOOD}    {field}: {text}\n")
    assert "NUL" in next(mistake.message for mistake in errors.values())


@pytest.mark.parametrize("path", ["revision", "image"])
def test_surrogates_are_rejected(path: str) -> None:
    # YAML can't contain one, but flags in a broken locale can
    with pytest.raises(SpecError, match="NUL or a broken character"):
        model(**{path: "a\udcffb"})
    with pytest.raises(SpecError, match="NUL or a broken character"):
        model(extra_env={"A": "a\udcffb"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", 0),
        (None, 0),
        (4, 4),
        ("4", 4),
        ("all", "all"),
        ([0, 1], ("0", "1")),
        (["0", 3], ("0", "3")),
        (["GPU-8a1b2c3d-1111-2222-3333-444455556666"], ("GPU-8a1b2c3d-1111-2222-3333-444455556666",)),
        (["MIG-GPU-8a1b/1/0"], ("MIG-GPU-8a1b/1/0",)),
        ("GPU-8a1b2c3d-1111-2222-3333-444455556666", ("GPU-8a1b2c3d-1111-2222-3333-444455556666",)),
        ("nvidia.com/gpu=0", ("nvidia.com/gpu=0",)),
        (["nvidia.com/gpu=0"], ("nvidia.com/gpu=0",)),
    ],
)
def test_gpus_are_parsed_in_every_form(value: Any, expected: Any) -> None:
    assert model(gpus=value).gpus == expected


@pytest.mark.parametrize(
    "value", [-1, 65, 1.5, True, "65", "02", "-1", "0,1", "some", [], [-1], [1.0], [True], [[0]], {}, ["gpu0"]]
)
def test_invalid_gpus_are_rejected(value: Any) -> None:
    with pytest.raises(SpecError, match=r"models\[0\]\.gpus: must be a count \(2\), `all`, `none`"):
        model(gpus=value)


def test_gpus_0_is_refused_with_both_meanings() -> None:
    """`gpus: 0` is no GPU in a count, but `--gpus 0` is the first GPU in `docker run` and CUDA_VISIBLE_DEVICES."""
    with pytest.raises(SpecError, match=r"0 is ambiguous\. Write `none` for no GPU, or the list \[0\] for the GPU"):
        model(gpus=0)
    with pytest.raises(SpecError, match=r"0 is ambiguous"):
        model(gpus="0")


def test_a_gpu_listed_twice_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"models\[0\]\.gpus: lists a GPU twice\. List each GPU once"):
        model(gpus=[0, "0"])


@pytest.mark.parametrize("name", ["org/name", "name", "org/na.me-1_x", "./x", "../x", "/x", "~/x", "./ a: b #", "."])
def test_hub_ids_and_local_paths_are_valid_models(name: str) -> None:
    assert model(model=name).model == name


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "-x/.y/z", "a/b\n", "é/b", "/".join("abcd"), 7, None, ["a"]])
def test_other_models_are_rejected(name: Any) -> None:
    with pytest.raises(SpecError, match=r"models\[0\]\.model"):
        model(model=name)


@pytest.mark.parametrize(
    ("text", "expected"), [("8192", 8192), ("32k", 32000), ("32K", 32768), ("1.5k", 1500), ("1M", 2**20)]
)
def test_token_counts_are_parsed_as_vllm_parses_them(text: str, expected: int) -> None:
    assert parse_token_count(text) == expected
    assert model(max_model_len=text).max_model_len == text


@pytest.mark.parametrize("value", [0, -2, "", "32kb", "k", "1e3", 1.5, True, "32k\n"])
def test_invalid_token_counts_are_rejected(value: Any) -> None:
    with pytest.raises(SpecError, match=r"models\[0\]\.max_model_len: must be a number of tokens"):
        model(max_model_len=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a\n"),
        ("name", "A"),
        ("name", "-a"),
        ("name", "a" * 64),
        ("bind", "127.0.0.1\n"),
        ("bind", "localhost"),
        ("bind", "0.0.0.0:80"),
        ("port", 0),
        ("port", 65536),
        ("restart", "on-failure:0"),
        ("storage", {"volume": "a b"}),
        ("storage", {"hub_endpoint": "ftp://x"}),
        ("logging", {"max_size": "1.5m"}),
        ("gpu_driver", "cuda"),
    ],
)
def test_invalid_values_are_reported_at_their_field(field: str, value: Any) -> None:
    # patterns match to the very end: a trailing line feed could inject YAML
    with pytest.raises(SpecError) as caught:
        build_spec({"name": "demo", "models": [{"model": "a/b", "engine": "vllm"}], field: value}, "test")
    assert [mistake.path.partition(".")[0] for mistake in caught.value.mistakes] == [field]


NUMBERS = [
    ("port: {}", "port"),
    ("logging: {{max_file: {}}}", "logging.max_file"),
    ("gateway: {{timeout: {}}}", "gateway.timeout"),
    ("gateway: {{keys: [{{name: a, requests_per_minute: {}}}]}}", "gateway.keys[0].requests_per_minute"),
    ("monitoring: {{ttft_target: {}}}", "monitoring.ttft_target"),
    ("ui: {{kind: open-webui, port: {}}}", "ui.port"),
    ("    replicas: {}", "models[0].replicas"),
    ("    gpu_memory_utilization: {}", "models[0].gpu_memory_utilization"),
    ("    tensor_parallel_size: {}", "models[0].tensor_parallel_size"),
]


@pytest.mark.parametrize("value", ["yes", "on", "true", "no", "off", ".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(("line", "path"), NUMBERS, ids=[path for _, path in NUMBERS])
def test_switches_and_infinite_values_are_no_numbers(line: str, path: str, value: str) -> None:
    """`port: yes` would otherwise publish port 1."""
    assert set(load_errors(f"{GOOD}{line.format(value)}\n")) == {path}


def test_every_number_in_every_field_refuses_a_switch() -> None:
    """Also in fields that are added later: each class of the stack file inherits the check."""
    classes = [StackSpec, *(engines.get(name).Model for name in engines.names())]
    fields = [(kind, field) for kind in classes for field, info in kind.model_fields.items()
              if info.annotation in (int, float, int | None, float | None)]  # fmt: skip
    assert len(fields) >= 20
    for kind, field in fields:
        with pytest.raises(ValueError, match=r"must be a number, but YAML reads the value as true"):
            kind.model_validate({field: True})


@pytest.mark.parametrize(
    "value", ["0.0.0.0", "127.0.0.1", "10.1.2.3", "::", "::1", "[::1]", "fd00::5", "::ffff:10.0.0.1"]
)
def test_addresses_can_be_bound(value: str) -> None:
    assert parse_stack(f"{GOOD}bind: '{value}'\n").bind == value


@pytest.mark.parametrize(
    "value",
    ["999.1.1.1", "1.2.3", "1.2.3.4.5", "01.2.3.4", ":::::", "[127.0.0.1]", "[::1", "fe80::1%eth0", "::1/128", "", "*"],
)
def test_what_only_looks_like_an_address_is_refused(value: str) -> None:
    assert load_errors(f"{GOOD}bind: '{value}'\n")["bind"].message.startswith("must be an IP address, for example")


def test_specs_are_frozen() -> None:
    stack = parse_stack(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        stack.name = "other"  # type: ignore[misc]


def test_unreadable_files_are_errors_and_a_windows_file_is_not(tmp_path: Any) -> None:
    path = tmp_path / "stack.yaml"
    with pytest.raises(SpecError, match="the file does not exist") as caught:
        load_stack(path)
    assert "stackgen init" in str(caught.value)
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(SpecError, match="the file can't be read"):
        load_stack(path)
    with pytest.raises(SpecError, match="the file can't be read"):
        load_stack(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())  # as Windows editors write it: BOM and CRLF
    assert load_stack(path).name == "demo"


likely_values = st.sampled_from(
    [
        "vllm",
        "fastchat",
        "llamacpp",
        "org/name",
        "./x",
        "auto",
        "all",
        "none",
        "32k",
        "127.0.0.1",
        "demo",
        "no",
        "1e-5",
        "",
    ]
)
leaf = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | likely_values
    | st.binary(max_size=4)
)
anything = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | likely_values, inner, max_size=4),
    max_leaves=8,
)
every_model_field = sorted({field for name in engines.names() for field in engines.get(name).Model.model_fields})
models_ = st.dictionaries(st.sampled_from(every_model_field), anything, max_size=6)
likely_models = st.builds(
    lambda engine, rest: {"model": "org/name"} | rest | {"engine": engine}, likely_values, models_
)
stacks = st.builds(
    lambda models, rest: {"name": "demo", "models": models} | rest,
    st.lists(likely_models | anything, max_size=3),
    st.dictionaries(st.sampled_from(sorted(StackSpec.model_fields)) | st.text(max_size=3), anything, max_size=3),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=stacks)
def test_any_data_gives_a_stack_or_a_spec_error(data: dict[str, Any]) -> None:
    try:
        assert isinstance(build_spec(data, "test"), StackSpec)
    except SpecError as error:
        messages = [mistake.message for mistake in error.mistakes]
        assert messages
        assert all(messages)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="abnm:-[]{}&*!?|>#%@`'\", \n\t\\/01~<=é\x85\ufeff😀", max_size=60))
def test_any_text_gives_a_stack_or_a_spec_error(text: str) -> None:
    for one in (text, GOOD + text, GOOD + "    extra_env: " + text):
        try:
            assert isinstance(parse_stack(one), StackSpec)
        except SpecError as error:
            errors = error.mistakes
            assert errors


@settings(max_examples=100, deadline=None)
@given(value=st.text(min_size=1, max_size=20).filter(lambda text: not {"\0", "$"} & {*text}))
def test_text_is_not_changed(value: str) -> None:
    """ASCII JSON is also YAML, except for surrogate pairs."""
    quoted = json.dumps(value, ensure_ascii=True)
    if "\\ud" not in quoted:
        assert parse_stack(f"{GOOD}    revision: {quoted}\n").models[0].revision == value
