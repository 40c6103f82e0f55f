"""Values of fields are compared with the pinned version of the engine, and extra_args don't repeat what is set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from stackgen.errors import Mistake, SpecError
from stackgen.flags import load_flags
from stackgen.flags.arguments import BREAKING_FLAGS, FIELD_OF_FLAG, LAUNCHER_VALUES, OWN_FLAGS, PLUGIN_FLAGS
from stackgen.resolve.pipeline import resolve
from stackgen.stack.folder import open_stack
from stackgen.stack.load import build_spec
from stackgen.targets.compose import ComposeSite

ROOT = Path(__file__).parents[2]


def mistakes(engine: str, **model: Any) -> list[Mistake]:
    entry = {"model": "org/m", "engine": engine} | ({"file": "m.gguf"} if engine == "llamacpp" else {}) | model
    try:
        resolve(build_spec({"name": "demo", "models": [entry]}, "test"), ComposeSite(), "test")
    except SpecError as error:
        return list(error.mistakes)
    return []


@pytest.mark.parametrize("version", ["0.32.0", "0.99.0"])
def test_a_version_without_a_table_protects_the_flags_of_the_stack(version: str) -> None:
    (found,) = mistakes("vllm", engine_version=version, extra_args=["--port", "9000"])
    assert found.path == "models[0].extra_args[0]" and "repeats --port" in found.message
    (found,) = mistakes("vllm", engine_version=version, extra_args=["--max-model-len=4k"], max_model_len="8k")
    assert "which `max_model_len` sets" in found.message
    # its values are unknown
    assert bool(mistakes("vllm", engine_version=version, tool_call_parser="new")) == (version == "0.32.0")


@pytest.mark.parametrize(
    ("engine", "field", "value", "hint"),
    [
        ("vllm", "tool_call_parser", "hermess", "did you mean hermes?"),
        ("vllm", "tool_call_parser", "Llama3-JSON", "did you mean llama3_json?"),
        ("vllm", "reasoning_parser", "deepseek-r1", "did you mean deepseek_r1?"),
        ("vllm", "kv_cache_dtype", "fp8_e5", "did you mean fp8_e5m2?"),
        ("vllm", "quantization", "awk", "did you mean awq?"),
        ("vllm", "quantization", "bitsandbytes", "use one of auto_awq, "),
        ("vllm", "dtype", "bfloat", "did you mean bfloat16?"),
        ("fastchat", "conv_template", "vicuna-v1.1", "did you mean vicuna_v1.1?"),
        # similar names of other models
        ("fastchat", "conv_template", "llama-3", "remove it: FastChat then chooses a template"),
        ("fastchat", "conv_template", "llama-3.1", "remove it: "),
        ("fastchat", "conv_template", "llama3", "remove it: "),
        ("fastchat", "conv_template", "chatml", "remove it: "),
        ("vllm", "tool_call_parser", "qwen2_coder", "use one of "),
        ("vllm", "reasoning_parser", "glm4", "use one of "),
        ("vllm", "tool_call_parser", "None", "remove it: "),
        ("vllm", "quantization", "none", "remove it: "),
        ("fastchat", "dtype", "half", "use one of float32, "),
    ],
)
def test_a_value_that_the_engine_does_not_know_is_reported(engine: str, field: str, value: str, hint: str) -> None:
    [found] = mistakes(engine, gpus=1, **{field: value})
    assert found.path == f"models[0].{field}"
    assert "does not know the value" in found.message and value in found.message
    assert found.hint.startswith(hint)
    # another image may have another version of the engine
    assert mistakes(engine, gpus=1, image="me/mine:1", **{field: value}) == []


def test_a_field_without_effect_is_reported() -> None:
    [found] = mistakes("llamacpp", dtype="float16")
    assert found.path == "models[0].dtype" and "the GGUF file determines" in found.message


@pytest.mark.parametrize(
    ("engine", "fields"),
    [
        ("vllm", {"tool_call_parser": "hermes", "reasoning_parser": "qwen3", "kv_cache_dtype": "fp8"}),
        ("vllm", {"quantization": "AWQ", "dtype": "half"}),
        ("vllm", {"tool_call_parser": "mine", "extra_args": ["--tool-parser-plugin", "./mine.py"]}),
        ("vllm", {"reasoning_parser": "mine", "extra_args": ["--reasoning_parser_plugin=/mine.py"]}),
        # `gpus: all` is no value of --device
        ("fastchat", {"conv_template": "chat-template", "dtype": "float16", "gpus": "all"}),
        ("llamacpp", {"gpus": "all"}),
    ],
)
def test_values_that_the_engine_knows_are_accepted(engine: str, fields: dict[str, Any]) -> None:
    assert mistakes(engine, **{"gpus": 1} | fields) == []


@pytest.mark.parametrize(
    ("engine", "arguments", "index", "hint"),
    [
        ("vllm", ["--port", "9000"], 0, "set port"),
        ("vllm", ["--seed", "1", "--served_model_name=x"], 2, "set served_names"),
        ("vllm", ["-tp", "2"], 0, "set tensor_parallel_size"),
        ("vllm", ["--api-key", "sk-hidden"], 0, "set STACKGEN_API_KEY in .env"),
        ("fastchat", ["--host", "0.0.0.0"], 0, "remove the flag"),
        ("fastchat", ["--model-names=a"], 0, "set served_names"),
        ("fastchat", ["--seed", "1", "--worker-addr", "http://x"], 2, "remove the flag"),
        ("fastchat", ["--controller-address=http://x"], 0, "remove the flag"),
        ("llamacpp", ["-a", "x"], 0, "set served_names"),
    ],
)
def test_extra_args_that_repeat_what_stackgen_sets_are_reported_with_the_field(
    engine: str, arguments: list[str], index: int, hint: str
) -> None:
    [found] = mistakes(engine, extra_args=arguments)
    assert found.path == f"models[0].extra_args[{index}]"
    assert "which stackgen sets" in found.message and hint in found.hint
    assert "hidden" not in str(found)
    # also with an image of the user's own: the rest of the stack is the same
    assert len(mistakes(engine, extra_args=arguments, image="me/mine:1")) == 1


@pytest.mark.parametrize(
    ("engine", "arguments", "part", "hint"),
    [
        ("vllm", ["--ssl_keyfile=./k.pem"], "--ssl-keyfile serves HTTPS", "gateway: {tls"),
        ("vllm", ["--seed", "1", "--ssl-certfile", "./c.pem"], "--ssl-certfile serves HTTPS", "gateway: {tls"),
        ("vllm", ["--uds", "/tmp/s"], "socket file", "remove the flag"),
        ("vllm", ["--config", "./vllm.yaml"], "from a file", "fields of the model"),
        ("vllm", ["--root-path", "/llm"], "changes the paths", "remove the flag"),
        ("vllm", ["--headless"], "no HTTP server", "several machines"),
        ("vllm", ["--grpc"], "gRPC", "remove the flag"),
        ("fastchat", ["--ssl"], "serves HTTPS", "gateway: {tls"),
        ("fastchat", ["--no-register"], "from the controller", "remove the flag"),
        ("llamacpp", ["-hf", "org/other"], "loads a model other than", "set `model`"),
        ("llamacpp", ["-mu", "https://example.com/m.gguf"], "loads a model other than", "set `model`"),
        ("llamacpp", ["--models-preset", "/models.ini"], "does not know", "set `models_dir`"),
        ("llamacpp", ["--ssl-key-file", "./k.pem"], "serves HTTPS", "gateway: {tls"),
        ("llamacpp", ["--ssl-cert-file", "./c.pem"], "serves HTTPS", "gateway: {tls"),
        ("llamacpp", ["--api-prefix", "/llm"], "changes the paths", "remove the flag"),
    ],
)
def test_extra_args_that_break_the_rest_of_the_stack_are_refused(
    engine: str, arguments: list[str], part: str, hint: str
) -> None:
    [found] = mistakes(engine, extra_args=arguments)
    index = next(index for index, one in reversed(list(enumerate(arguments))) if one.startswith("-"))
    assert found.path == f"models[0].extra_args[{index}]"
    assert part in found.message and hint in found.hint


def test_errors_of_a_file_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text("name: a\nmodels:\n- model: org/m\n  engine: vllm\n  gpus: 1\n  reasoning_parser: qwen\n")
    with pytest.raises(SpecError, match=r"stack\.yaml:6: models\[0\]\.reasoning_parser: .*did you mean qwen3\?"):
        open_stack(str(path))


def test_the_tables_name_flags_that_the_engines_have() -> None:
    for engine, flags in OWN_FLAGS.items():
        known = load_flags(engine)
        assert known and flags <= set(known.by_name)
        assert set(FIELD_OF_FLAG[engine]) | set(BREAKING_FLAGS[engine]) <= set(known.by_name)
    vllm, fastchat = load_flags("vllm"), load_flags("fastchat")
    assert vllm and fastchat
    for flag, plugin in PLUGIN_FLAGS.items():
        assert vllm.by_name[flag]["values"] and "values" not in vllm.by_name[plugin]
    # the name that FastChat's launcher adds
    text = (ROOT / "templates/images/fastchat/conversations.py").read_text()
    name = re.search(r'^NAME, PLAIN = "([^"]+)"', text, re.M)
    assert name and LAUNCHER_VALUES["--conv-template"] == (name[1],)
    assert len(fastchat.by_name["--conv-template"]["values"]) > 50
