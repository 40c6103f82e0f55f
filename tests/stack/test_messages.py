"""Messages for what newcomers mistype: YAML, names, variables, and model ids of other programs."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stackgen.errors import Mistake, SpecError
from stackgen.stack import yaml_text
from stackgen.stack.load import parse_stack

LOADERS = [yaml.SafeLoader, *([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])]


def mistakes(text: str) -> list[Mistake]:
    with pytest.raises(SpecError) as caught:
        parse_stack(text)
    return list(caught.value.mistakes)


@pytest.mark.parametrize("loader", LOADERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("name: a\nmodels:\n\t- model: x/y\n", 3, "starts with a tab", "spaces"),
        ("name: a\nmodels:\n  - model: x/y\n\tengine: vllm\n", 4, "starts with a tab", "spaces"),
        ("name: a\nmodels:\n  - model: x/y\n   engine: vllm\n", 4,
         "`engine` in line 4 starts in column 4, and `model` in line 3 starts in column 5", "same column"),
        ("name: a\nmodels:\n  - model: x/y\n     engine: vllm\n", 4,
         "`engine` in line 4 starts in column 6, and `model` in line 3 starts in column 5", "same column"),
        ("name: a\n port: 1\n", 2, "`port` in line 2 starts in column 2, and `name` in line 1", "same column"),
        ("models:\n- model: x/y\n\n  # note\n   engine: v\n", 5,
         "`engine` in line 5 starts in column 4, and `model` in line 2 starts in column 3", "same column"),
        ("models:\n  - model: x/y\n    engine vllm\n    gpus: 1\n", 3, "a field has no colon", "`field: value`"),
        ("name:demo\nport: 1\n", 1, "`name:` needs a space after the colon", ""),
        ("models:\n  - model: \"x/y\n    engine: v\n", 2, "a quote in this line is not closed", "closing quote"),
        ("a: [0, 1\nb: 2\n", 1, "the `[` in this line is not closed", "add `]`"),
        ("a: {b: 1\n", 1, "the `{` in this line is not closed", "add `}`"),
        ("a: b: c\n", 1, "can't read the line from column", "quotes"),
        ("a: @b\n", 1, "can't start with the character @", "quotes"),
        ("a: *b\n", 1, "found undefined alias", ""),
    ],
)  # fmt: skip
def test_errors_of_yaml_are_explained(
    text: str, line: int, message: str, hint: str, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text, "Loader", loader)
    (found,) = mistakes(text)
    assert found.line == line
    assert found.message.startswith("invalid YAML: ") and message in found.message
    assert hint in found.hint


def test_a_tab_behind_a_value_is_explained_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "Loader", yaml.SafeLoader)
    (found,) = mistakes("name: a\nport: 1\t\n")
    assert found.line == 2 and "contains a tab between or after" in found.message and "remove the tab" in found.hint


def test_an_error_of_yaml_shows_no_value() -> None:
    secret = "hf_abcdefghijklmnop"
    for text in (
        f"name: a\n HF_TOKEN: {secret}\n", f"a:\n  - {secret}\n b: 1\n", f"a: \"{secret}\n",
        f"HF_TOKEN:{secret}\nb: 1\n",
    ):  # fmt: skip
        (found,) = mistakes(text)
        assert secret not in str(found)


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("MyStack", "mystack"), ("my stack!", "my-stack"), ("_lab", "lab"), ("Ünï", "uni"), ("a.b", "a-b")],
)
def test_a_name_that_is_not_allowed_gets_a_suggestion(name: str, suggestion: str) -> None:
    (found,) = mistakes(f"name: {name!r}\nmodels: [{{model: x/y, engine: vllm}}]\n")
    assert (found.path, found.hint) == ("name", f"for example {suggestion}")
    parse_stack(f"name: {suggestion}\nmodels: [{{model: x/y, engine: vllm}}]\n")


def test_the_name_of_a_key_gets_a_suggestion_too() -> None:
    (found,) = mistakes("name: a\ngateway: {keys: [{name: Alice Smith}]}\nmodels: [{model: x/y, engine: vllm}]\n")
    assert (found.path, found.hint) == ("gateway.keys[0].name", "for example alice-smith")


@pytest.mark.parametrize(("text", "path", "said"), [
    ("storage: {offline: yes please}", "storage.offline", "must be `true` or `false`, not 'yes please'"),
    ("gateway: {tls: selfsigned}", "gateway.tls", "must be `generate` for a self-signed certificate"),
    ("gateway: {keys: [{name: Anna Müller}]}", "gateway.keys[0].name", "for example anna-muller"),
])  # fmt: skip
def test_a_wrong_value_names_the_values_that_are_allowed(text: str, path: str, said: str) -> None:
    (found,) = mistakes(f"name: a\n{text}\nmodels: [{{model: x/y, engine: vllm}}]\n")
    assert found.path == path and said in str(found)


def test_a_name_without_any_allowed_character_gets_the_description() -> None:
    (found,) = mistakes("name: '???'\nmodels: [{model: x/y, engine: vllm}]\n")
    assert "Name of the stack" in found.hint


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("${PORT:-8080}", "write the value itself: 8080"),
        ("${PORT-8080}", "write the value itself: 8080"),
        ("${PORT}", "write the value itself. Keys and tokens go into .env"),
    ],
)
def test_the_default_of_a_variable_is_suggested(value: str, hint: str) -> None:
    (found,) = mistakes(f"name: a\nport: {value}\nmodels: [{{model: x/y, engine: vllm}}]\n")
    assert (found.path, found.hint) == ("port", hint)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "Write `model: Qwen/Qwen3-0.6B`"),
        ("huggingface.co/Qwen/Qwen3-0.6B/tree/main", "Write `model: Qwen/Qwen3-0.6B`"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/abc123?x=1", "`model: Qwen/Qwen3-0.6B` and `revision: abc123`"),
        ("https://hf.co/o/M-GGUF/blob/main/m-Q8_0.gguf?download=true", "`model: o/M-GGUF` and `file: m-Q8_0.gguf`"),
        ("hf://o/m@v1", "`model: o/m` and `revision: v1`"),
        ("o/m@v1", "`model: o/m` and `revision: v1`"),
        ("o/M-GGUF/m-q4.gguf", "`model: o/M-GGUF` and `file: m-q4.gguf`"),
        ("o/M-GGUF:Q4_K_M", "`model: o/M-GGUF`; for llamacpp, also `file:` with the name of the Q4_K_M file"),
        ("qwen3:8b", "a name in Ollama's library"),
        ("qwen3:8b", "`model: Qwen/Qwen3-8B`, which are the original weights"),
        ("qwen3:8b", "https://huggingface.co/models?search=Qwen3-8B&library=gguf"),
        ("qwen3:32b", "`model: Qwen/Qwen3-32B`,"),
        ("qwen3:30b", "models?search=qwen3+30b"),
        ("llama3.2:3b-instruct-q8_0", "`model: meta-llama/Llama-3.2-3B-Instruct`,"),
        ("gemma3:4b-it", "`model: google/gemma-3-4b-it`,"),
        ("phi4:latest", "`model: microsoft/phi-4`,"),
        ("qwen3:4b-thinking-2507", "models?search=qwen3+4b-thinking-2507"),
        ("unknown:7b", "https://huggingface.co/models?search=unknown+7b"),
        ("mistral:latest", "models?search=mistral"),
        ("https://example.com/a/b/c", "is not a Hugging Face id (organization/name). Start a local path with"),
        ("org/{name}", "is not a Hugging Face id (organization/name)"),
    ],
)
def test_models_that_are_no_hub_id_are_explained(value: str, advice: str) -> None:
    (found,) = mistakes(f"name: a\nmodels: [{{model: {value!r}, engine: vllm}}]\n")
    assert found.path == "models[0].model"
    assert advice in found.message


@pytest.mark.parametrize(
    ("value", "message"), [("2027-02-30", "the calendar has no such day"), ("'2027-02-30'", "the calendar has no such")]
)
def test_an_impossible_date_is_reported_at_its_field(value: str, message: str) -> None:
    text = (
        f"name: a\nmodels: [{{model: x/y, engine: vllm}}]\ngateway:\n  keys:\n    - name: k\n      expires: {value}\n"
    )
    (found,) = mistakes(text)
    assert (found.path, found.line) == ("gateway.keys[0].expires", 6)
    assert message in found.message


@pytest.mark.parametrize(
    "name", ["...", "-a", "a..b", "1.2.3.999", "a*b", ":::::", "*", "http://x", "a:80", "fe80::1%eth0"]
)
def test_a_certificate_name_must_be_a_name_or_an_address(name: str) -> None:
    (found,) = mistakes(f"name: a\nmodels: [{{model: x/y, engine: vllm}}]\ngateway: {{tls: {{names: ['{name}']}}}}\n")
    assert found.path == "gateway.tls.names[0]" and "must be a host name or an IP address" in found.message


@pytest.mark.parametrize("name", ["gpu1.example.org", "*.example.org", "gpu_1", "192.168.1.20", "fe80::1", "a.b."])
def test_names_and_addresses_are_valid_in_a_certificate(name: str) -> None:
    text = f"name: a\nmodels: [{{model: x/y, engine: vllm}}]\ngateway: {{tls: {{names: ['{name}']}}}}\n"
    assert parse_stack(text).gateway.tls.names == (name,)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "file", ["../../secret.gguf", "a/../../b.gguf", "/etc/passwd", "~/m.gguf", "a\\b.gguf", "folder/"]
)
def test_a_file_of_a_model_is_inside_of_the_model(file: str) -> None:
    (found,) = mistakes(f"name: a\nmodels: [{{model: x/y, engine: llamacpp, file: '{file}'}}]\n")
    assert found.path == "models[0].file" and "inside the repository or folder of the model" in found.message


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ('"0"', "Write `none` for no GPU, or the list [0]"),
        ('"65"', "must be a count"),
        ('"0,1"', "Write [0, 1]"),
        ('"0, 1"', "Write [0, 1]"),
        ("device=1", "Write [1]"),
        ('"GPU-8a1b,GPU-9c2d"', "Write [GPU-8a1b, GPU-9c2d]"),
    ],
)
def test_gpus_as_text_are_explained(value: str, advice: str) -> None:
    (found,) = mistakes(f"name: a\nmodels: [{{model: x/y, engine: vllm, gpus: {value}}}]\n")
    assert found.path == "models[0].gpus" and advice in found.message


@pytest.mark.parametrize(("value", "advice"), [("true", "Write `ui: open-webui`"), ("false", "remove `ui`")])
def test_a_switch_for_the_chat_ui_shows_the_form_that_works(value: str, advice: str) -> None:
    (found,) = mistakes(f"name: a\nmodels: [{{model: x/y, engine: vllm}}]\nui: {value}\n")
    assert found.path == "ui" and advice in found.message
