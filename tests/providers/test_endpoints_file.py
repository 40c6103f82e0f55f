"""`endpoints.yaml`: endpoints by name, and all errors in the file reported at once."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from stackgen.check.dialects import TOGETHER
from stackgen.errors import SpecError, StackgenError
from stackgen.providers.endpoints import resolve_targets
from stackgen.stack.load import load_endpoints, parse_stack

STACK = """
name: two
gateway: false
models:
  - {model: o/a, engine: vllm, gpus: [0], served_names: [a]}
  - {model: o/b, engine: fastchat, gpus: [1], served_names: [b]}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY", "TOGETHER_BASE_URL", "STACKGEN_API_KEY", "OPENAI_API_KEY",
                 "VLLM_API_KEY", "OPENAI_BASE_URL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


def write(text: str, name: str = "endpoints.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def load_errors(text: str) -> dict[str, tuple[int | None, str, str]]:
    with pytest.raises(SpecError) as caught:
        load_endpoints(write(text))
    return {one.path: (one.line, one.message, one.hint) for one in caught.value.mistakes}


def test_all_errors_are_reported_at_once_with_line_and_fix() -> None:
    errors = load_errors("""endpoints:
  - name: cloud
    provider: togehter
    max_tfft: 1
  - name: cloud
    base_url: ftp://somewhere
    dialect: vlm
  - name: nothing
  - {name: both, stack: ./x, base_url: "http://h/v1"}
  - {name: "a,b", provider: vllm, max_ttft: 0}
""")
    assert errors["endpoints[0].provider"] == (3, "unknown provider 'togehter'", "did you mean together?")
    assert errors["endpoints[0].max_tfft"] == (4, "unknown field", "did you mean max_ttft?")
    assert errors["endpoints[1].name"] == (5, "'cloud' is used twice", "give each endpoint its own name")
    assert errors["endpoints[1].base_url"][:2] == (
        6, "must look like http://127.0.0.1:8000/v1, without credentials, query or fragment",
    )  # fmt: skip
    assert errors["endpoints[1].dialect"] == (7, "unknown dialect 'vlm'", "did you mean vllm?")
    assert errors["endpoints[2]"][:2] == (8, "needs one of `provider`, `base_url` and `stack`")
    assert errors["endpoints[3]"][:2] == (
        9,
        "has both `stack` and base_url. Remove `stack`, or remove base_url: if `stack` is set, the other stack "
        "determines base_url",
    )
    assert errors["endpoints[4].name"][0] == errors["endpoints[4].max_ttft"][0] == 10


@pytest.mark.parametrize("key", ["sk-very-secret-1", "0123abcd" * 8, "abcdef" * 10, "TOP SECRET", "gsk_SECRET"])
@pytest.mark.parametrize("field", ["api_key_env", "api_key", "base_url"])
def test_a_literal_key_is_refused_and_not_printed(key: str, field: str) -> None:
    value = f"http://user:{key}@host/v1" if field == "base_url" else key
    with pytest.raises(SpecError) as caught:
        load_endpoints(write(f"endpoints:\n- {{name: x, provider: together, {field}: '{value}'}}\n"))
    assert key not in f"{caught.value} {caught.value.hint}"
    if field != "base_url":
        assert "api_key_env" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "endpoints: x", "endpoints: [x]", "endpoints:", "other: 1", "endpoints: ["])
def test_a_file_without_a_list_of_endpoints_is_refused(text: str) -> None:
    assert load_errors(text)


def test_a_provider_entry_gets_url_dialect_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    write("endpoints: [{name: cloud, provider: together, models: [m], max_ttft: 2, min_tokens_per_second: 9}]")
    monkeypatch.setenv("TOGETHERAI_API_KEY", "of-the-cloud")
    (one,) = resolve_targets(Namespace())
    target = one.target
    assert (target.name, target.base_url, target.api_key) == ("cloud", "https://api.together.ai/v1", "of-the-cloud")
    assert (target.models, target.dialect, target.exposed) == (("m",), TOGETHER, True)
    assert (target.max_ttft, target.min_tokens_per_second) == (2, 9)
    assert one.stack is None and "of-the-cloud" not in repr(one)


def test_api_key_env_replaces_the_providers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    write("endpoints: [{name: cloud, provider: together, api_key_env: MY_KEY}]")
    monkeypatch.setenv("TOGETHER_API_KEY", "another-account")
    assert resolve_targets(Namespace())[0].target.api_key is None
    write("MY_KEY=mine\n", ".env")
    assert resolve_targets(Namespace())[0].target.api_key == "mine"


def test_keys_are_read_from_the_env_file_next_to_the_endpoints_file() -> None:
    write("endpoints: [{name: cloud, provider: together}]", "far/endpoints.yaml")
    write("TOGETHER_API_KEY=far\n", "far/.env")
    assert [one.target.api_key for one in resolve_targets(Namespace(stack="far"))] == ["far"]


def test_a_stack_entry_expands_to_all_endpoints_of_that_stack() -> None:
    write(STACK, "llama/stack.yaml")
    write("STACKGEN_API_KEY=of-the-stack\n", "llama/.env")
    write("endpoints: [{name: local, stack: ./llama, max_ttft: 3}]")
    first, second = resolve_targets(Namespace())
    assert [first.target.name, second.target.name] == ["local/vllm-a", "local/fastchat"]
    assert first.target.api_key == "of-the-stack" and first.target.max_ttft == 3
    assert first.stack and first.stack.spec.name == "two"
    assert first.endpoint and first.endpoint.service == "vllm-a"


def test_two_stacks_that_name_each_other_do_not_recurse() -> None:
    write(STACK + "endpoints: [{name: other, stack: ../b}]\n", "a/stack.yaml")
    write(STACK + "endpoints: [{name: other, stack: ../a}]\n", "b/stack.yaml")
    assert len(resolve_targets(Namespace(stack="a"))) == 4


def test_a_stack_file_can_list_endpoints_that_run_elsewhere() -> None:
    write(STACK + "endpoints: [{name: cloud, provider: together}]\n", "stack.yaml")
    resolved = resolve_targets(Namespace())
    assert [one.target.name for one in resolved] == ["vllm-a", "fastchat", "cloud"]
    assert [one.stack is not None for one in resolved] == [True, True, False]
    assert [one.target.name for one in resolve_targets(Namespace(provider=["cloud"]))] == ["cloud"]


def test_errors_in_the_endpoints_of_a_stack_file_have_line_numbers() -> None:
    with pytest.raises(SpecError) as caught:
        parse_stack(
            "name: X\nmodels: [{model: o/a, engine: vllm}]\nendpoints:\n- {name: c, provider: vlm}\n- {name: c}\n"
        )
    assert [(one.line, one.path) for one in caught.value.mistakes] == [
        (1, "name"), (4, "endpoints[0].provider"), (5, "endpoints[1].name"), (5, "endpoints[1]"),
    ]  # fmt: skip


def test_an_endpoints_file_may_have_any_name() -> None:
    write("endpoints: [{name: x, base_url: 'http://127.0.0.1:1'}]", "servers.yml")
    (one,) = resolve_targets(Namespace(stack="servers.yml"))
    # a URL without a path gets its /v1
    assert (one.target.name, one.target.base_url, one.target.dialect) == ("x", "http://127.0.0.1:1/v1", None)


def test_an_entry_can_set_the_dialect() -> None:
    write("endpoints: [{name: x, base_url: 'http://127.0.0.1:1/v1', dialect: fastchat}]")
    dialect = resolve_targets(Namespace())[0].target.dialect
    assert dialect and dialect.name == "fastchat"


def test_an_entry_with_a_missing_stack_raises() -> None:
    write("endpoints: [{name: x, stack: ./nowhere}]")
    with pytest.raises(SpecError, match="nowhere"):
        resolve_targets(Namespace())


def test_an_empty_endpoints_list_raises() -> None:
    write("endpoints: []")
    with pytest.raises(StackgenError, match="defines no endpoints"):
        resolve_targets(Namespace())
