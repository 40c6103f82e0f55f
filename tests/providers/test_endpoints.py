"""Which endpoints a command line addresses, with which model and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.check.target import Target
from stackgen.cli.main import build_parser
from stackgen.errors import SpecError, StackgenError
from stackgen.providers.endpoints import find_targets, resolve_targets

STACK = """
name: two
gateway: false
models:
  - {model: o/a, engine: vllm, gpus: [0], served_names: [a, alias]}
  - {model: o/b, engine: vllm, gpus: [1], served_names: [b]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "stack.yaml").write_text(STACK)
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=of-the-stack\n")
    return str(tmp_path)


def targets(*args: str) -> list[tuple[tuple[str, ...], str | None]]:
    return [(target.models, target.api_key) for target in find_targets(build_parser().parse_args(["check", *args]))]


def test_a_stack_path_addresses_all_its_endpoints(folder: str) -> None:
    assert targets(folder) == [(("a", "alias"), "of-the-stack"), (("b",), "of-the-stack")]


def test_model_selects_the_endpoint_that_serves_it(folder: str) -> None:
    assert targets(folder, "--model", "b") == [(("b",), "of-the-stack")]
    assert targets(folder, "--model", "alias") == [(("alias",), "of-the-stack")]


def test_an_unserved_model_is_still_requested(folder: str) -> None:
    """Otherwise the check of a misspelled name would pass on another model."""
    assert targets(folder, "--model", "A") == [(("A",), "of-the-stack")]


def test_api_key_overrides_the_stacks_key(folder: str) -> None:
    assert {key for _, key in targets(folder, "--api-key", "other")} == {"other"}


# endpoints named instead of the stack


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with no key in the environment."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY", "TOGETHER_BASE_URL", "STACKGEN_API_KEY", "OPENAI_API_KEY",
                 "VLLM_API_KEY", "OPENAI_BASE_URL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return here


def chosen(*args: str) -> list[Target]:
    return find_targets(build_parser().parse_args(["check", *args]))


def names(*args: str) -> list[str]:
    return [target.name for target in chosen(*args)]


def test_urls_come_before_providers_each_in_the_given_order(bare: Path) -> None:
    args = ("--base-url", "http://127.0.0.1:1/v1", "--base-url", "http://127.0.0.1:2", "--provider", "together, vllm",
             "--provider", "fastchat")  # fmt: skip
    assert names(*args) == ["127.0.0.1:1", "127.0.0.1:2", "together", "vllm", "fastchat"]


def test_an_engine_name_prefers_the_stacks_endpoints_of_that_engine(bare: Path, folder: str) -> None:
    assert [target.base_url for target in chosen("--provider", "vllm")] == ["http://127.0.0.1:8000/v1"]
    assert names(folder, "--provider", "vllm") == ["vllm-a", "vllm-b"]
    assert names(folder, "--provider", "vllm-b,vllm") == ["vllm-b", "vllm-a"]
    # the stack has no llama.cpp endpoint
    assert [target.base_url for target in chosen(folder, "--provider", "llamacpp")] == ["http://127.0.0.1:8080/v1"]


def test_a_named_endpoint_overrides_engines_and_providers(bare: Path, folder: str) -> None:
    Path(folder, "endpoints.yaml").write_text("endpoints: [{name: vllm, base_url: 'http://gpu:9/v1'}]")
    (bare / "endpoints.yaml").write_text("endpoints: [{name: mine, provider: together}]")
    assert [target.base_url for target in chosen(folder, "--provider", "vllm")] == ["http://gpu:9/v1"]
    assert names(folder, "--provider", "mine") == ["mine"]
    # without a name, only the endpoints that the stack itself serves
    assert names(folder) == ["vllm-a", "vllm-b"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tohether", "did you mean together?"), ("VLLM", "did you mean vllm?"), ("vllm-aa", "did you mean vllm-a?"),
     ("zzz", "known names: vllm-a, vllm, vllm-b, together, fastchat, llamacpp, sglang, openai")],
)  # fmt: skip
def test_an_unknown_name_raises_with_a_suggestion(bare: Path, folder: str, name: str, hint: str) -> None:
    with pytest.raises(StackgenError) as caught:
        chosen(folder, "--provider", name)
    assert (caught.value.message, caught.value.hint) == (f"unknown provider or endpoint {name!r}", hint)


def test_the_current_folder_means_its_stack_else_its_endpoints_file(bare: Path, folder: str) -> None:
    with pytest.raises(StackgenError) as caught:
        chosen()
    assert "contains no stack.yaml and no endpoints.yaml" in caught.value.message
    assert "stackgen init" in caught.value.hint and "--provider" in caught.value.hint
    (bare / "endpoints.yaml").write_text("endpoints: [{name: mine, provider: together}]")
    assert names() == ["mine"]
    (bare / "stack.yaml").write_text(STACK)
    assert names() == ["vllm-a", "vllm-b"]
    with pytest.raises(SpecError):
        chosen("nowhere.yaml")


def test_model_applies_to_every_named_endpoint(bare: Path, folder: str) -> None:
    targets = chosen(folder, "--provider", "vllm-a,together", "--model", "alias")
    assert [target.models for target in targets] == [("alias",), ("alias",)]


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.together.ai/v1", "of-together"),
        ("https://api.together.xyz/v1", "of-together"),
        ("https://together.example.org/v1", None),
        ("https://api.together.ai.example.org/v1", None),
        ("https://api.openai.com/v1", "of-openai"),
        ("http://127.0.0.1:8000/v1", "of-the-stack"),
        ("http://gpu.example.org:8000/v1", None),
    ],
)
def test_keys_are_sent_only_to_their_own_hosts(
    bare: Path, monkeypatch: pytest.MonkeyPatch, url: str, key: str | None
) -> None:
    for name, value in (("TOGETHER_API_KEY", "of-together"), ("OPENAI_API_KEY", "of-openai"),
                        ("STACKGEN_API_KEY", "of-the-stack")):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert [target.api_key for target in chosen("--base-url", url)] == [key]
    assert [target.api_key for target in chosen("--base-url", url, "--api-key", "given")] == ["given"]


def test_a_resolved_target_knows_the_stack_behind_it(folder: str) -> None:
    one, _ = resolve_targets(build_parser().parse_args(["check", folder]))
    assert one.stack and one.endpoint
    assert (one.stack.spec.name, one.endpoint.service, one.target.name) == ("two", "vllm-a", one.endpoint.name)
    (cloud,) = resolve_targets(build_parser().parse_args(["check", folder, "--provider", "together"]))
    assert (cloud.stack, cloud.endpoint) == (None, None)
