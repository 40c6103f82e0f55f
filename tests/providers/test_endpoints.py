"""Which endpoints a command line means, and that what it names is what is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.check.target import Target
from stackgen.cli.main import build_parser
from stackgen.errors import SpecError, StackgenError
from stackgen.providers.endpoints import found, from_words

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


def targets(*words: str) -> list[tuple[tuple[str, ...], str | None]]:
    return [(target.models, target.api_key) for target in from_words(build_parser().parse_args(["check", *words]))]


def test_a_stack_means_all_its_endpoints(folder: str) -> None:
    assert targets(folder) == [(("a", "alias"), "of-the-stack"), (("b",), "of-the-stack")]


def test_a_model_picks_the_endpoint_that_serves_it(folder: str) -> None:
    assert targets(folder, "--model", "b") == [(("b",), "of-the-stack")]
    assert targets(folder, "--model", "alias") == [(("alias",), "of-the-stack")]


def test_a_model_that_no_endpoint_serves_is_asked_for_all_the_same(folder: str) -> None:
    """Else the check of a misspelled name would pass on another model."""
    assert targets(folder, "--model", "A") == [(("A",), "of-the-stack")]


def test_a_key_on_the_command_line_wins(folder: str) -> None:
    assert {key for _, key in targets(folder, "--api-key", "other")} == {"other"}


# what is named instead of the stack


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and no key anywhere."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY", "TOGETHER_BASE_URL", "STACKGEN_API_KEY", "OPENAI_API_KEY",
                 "VLLM_API_KEY", "OPENAI_BASE_URL"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return here


def chosen(*words: str) -> list[Target]:
    return from_words(build_parser().parse_args(["check", *words]))


def names(*words: str) -> list[str]:
    return [target.name for target in chosen(*words)]


def test_urls_and_providers_add_up_in_their_order(bare: Path) -> None:
    words = ("--base-url", "http://127.0.0.1:1/v1", "--base-url", "http://127.0.0.1:2", "--provider", "together, vllm",
             "--provider", "fastchat")  # fmt: skip
    assert names(*words) == ["127.0.0.1:1", "127.0.0.1:2", "together", "vllm", "fastchat"]


def test_an_engine_means_the_stacks_endpoints_of_it_where_there_is_a_stack(bare: Path, folder: str) -> None:
    assert [target.base_url for target in chosen("--provider", "vllm")] == ["http://127.0.0.1:8000/v1"]
    assert names(folder, "--provider", "vllm") == ["vllm-a", "vllm-b"]
    assert names(folder, "--provider", "vllm-b,vllm") == ["vllm-b", "vllm-a"]
    # this stack has none
    assert [target.base_url for target in chosen(folder, "--provider", "llamacpp")] == ["http://127.0.0.1:8080/v1"]


def test_a_named_endpoint_goes_before_all_else(bare: Path, folder: str) -> None:
    Path(folder, "endpoints.yaml").write_text("endpoints: [{name: vllm, base_url: 'http://gpu:9/v1'}]")
    (bare / "endpoints.yaml").write_text("endpoints: [{name: mine, provider: together}]")
    assert [target.base_url for target in chosen(folder, "--provider", "vllm")] == ["http://gpu:9/v1"]
    assert names(folder, "--provider", "mine") == ["mine"]
    # without a name a stack means what it starts
    assert names(folder) == ["vllm-a", "vllm-b"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tohether", "did you mean together?"), ("VLLM", "did you mean vllm?"), ("vllm-aa", "did you mean vllm-a?"),
     ("zzz", "known are: vllm-a, vllm, vllm-b, together, fastchat, llamacpp, openai")],
)  # fmt: skip
def test_an_unknown_name_gets_a_suggestion(bare: Path, folder: str, name: str, hint: str) -> None:
    with pytest.raises(StackgenError) as caught:
        chosen(folder, "--provider", name)
    assert (caught.value.message, caught.value.hint) == (f"there is no provider or endpoint {name!r}", hint)


def test_here_is_the_stack_else_the_endpoints_else_an_error_that_says_what_to_do(bare: Path, folder: str) -> None:
    with pytest.raises(StackgenError) as caught:
        chosen()
    assert "holds no stack.yaml and no endpoints.yaml" in caught.value.message
    assert "stackgen init" in caught.value.hint and "--provider" in caught.value.hint
    (bare / "endpoints.yaml").write_text("endpoints: [{name: mine, provider: together}]")
    assert names() == ["mine"]
    (bare / "stack.yaml").write_text(STACK)
    assert names() == ["vllm-a", "vllm-b"]
    with pytest.raises(SpecError):
        chosen("nowhere.yaml")


def test_a_model_is_asked_of_every_endpoint_that_was_named(bare: Path, folder: str) -> None:
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
def test_a_key_goes_to_its_own_hosts_only(
    bare: Path, monkeypatch: pytest.MonkeyPatch, url: str, key: str | None
) -> None:
    for name, value in (("TOGETHER_API_KEY", "of-together"), ("OPENAI_API_KEY", "of-openai"),
                        ("STACKGEN_API_KEY", "of-the-stack")):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert [target.api_key for target in chosen("--base-url", url)] == [key]
    assert [target.api_key for target in chosen("--base-url", url, "--api-key", "given")] == ["given"]


def test_a_stack_knows_what_runs_each_endpoint(folder: str) -> None:
    one, _ = found(build_parser().parse_args(["check", folder]))
    assert one.stack and one.endpoint
    assert (one.stack.spec.name, one.endpoint.service, one.target.name) == ("two", "vllm-a", one.endpoint.name)
    (cloud,) = found(build_parser().parse_args(["check", folder, "--provider", "together"]))
    assert (cloud.stack, cloud.endpoint) == (None, None)
