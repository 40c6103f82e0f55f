"""The matrix of providers; keys are found in the documented order and never printed."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from pathlib import Path

import pytest

from stackgen import engines
from stackgen.check.dialects import BUILTIN
from stackgen.cli.commands.providers import providers as command
from stackgen.cli.parsers.base import Subcommands
from stackgen.cli.parsers.providers import add_providers
from stackgen.errors import StackgenError
from stackgen.plan import Dialect
from stackgen.providers.catalog import Provider, find_key, find_provider, providers
from stackgen.providers.endpoints import find_targets
from stackgen.spec import StackSpec

SECRET = "sk-never-printed"
VARIABLES = ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY", "TOGETHER_BASE_URL", "STACKGEN_API_KEY", "OPENAI_API_KEY",
             "VLLM_API_KEY", "LLAMA_API_KEY", "OPENAI_BASE_URL")  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def matrix(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, dict[str, dict[str, object]]]:
    parser = argparse.ArgumentParser()
    add_providers(Subcommands(parser.add_subparsers()))
    assert command(parser.parse_args(["providers", *args])) == 0
    text = capsys.readouterr().out
    assert command(parser.parse_args(["providers", "--json", *args])) == 0
    data = json.loads(capsys.readouterr().out)
    assert SECRET not in text and SECRET not in json.dumps(data)
    return text, {row["name"]: row for row in data["providers"]} | {"here": data["endpoints"]}


def test_every_engine_and_every_dialect_is_a_provider() -> None:
    assert set(providers()) == {*engines.names(), *BUILTIN}
    for provider in providers().values():
        assert provider.title and provider.source and provider.key_names
        assert provider.base_url.endswith("/v1")


def test_provider_names_match_those_allowed_in_files() -> None:
    """The loader of stack files can't import the table of providers, so it has its own list of names."""
    from stackgen.stack.load import CLOUDS

    assert {*engines.names(), *CLOUDS} == set(providers())
    assert "endpoints" in StackSpec.model_fields


def test_default_urls_and_key_variables() -> None:
    urls = {name: provider.base_url for name, provider in providers().items()}
    assert urls == {
        "together": "https://api.together.ai/v1",
        "vllm": "http://127.0.0.1:8000/v1",
        "fastchat": "http://127.0.0.1:8000/v1",
        "llamacpp": "http://127.0.0.1:8080/v1",
        "sglang": "http://127.0.0.1:30000/v1",
        "openai": "https://api.openai.com/v1",
    }
    assert providers()["together"].key_names == ("TOGETHER_API_KEY", "TOGETHERAI_API_KEY")
    assert providers()["vllm"].key_names == ("STACKGEN_API_KEY", "VLLM_API_KEY")


def test_feature_support_comes_from_the_dialects() -> None:
    dialect = Dialect("x", claims=("a",), lacks=("b",), ignores=("c",))
    provider = Provider("x", title="X", url="http://127.0.0.1:1/v1", dialect=dialect, key_names=())
    assert provider.feature_support() == {"a": "yes", "b": "no", "c": "ignored", "stream-usage": "yes"}
    for name in engines.names():
        dialect, supports = engines.get(name).dialect, providers()[name].feature_support()
        assert {supports[feature] for feature in dialect.ignores} <= {"ignored"}
        assert supports["stream-usage"] == ("yes" if dialect.stream_usage else "no")
    assert providers()["together"].feature_support()["tools"] == "depends"


def test_together_base_url_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Together's SDK expects it without /v1, the OpenAI SDK with it
    for url in ("http://127.0.0.1:9", "http://127.0.0.1:9/v1/"):
        monkeypatch.setenv("TOGETHER_BASE_URL", url)
        assert providers()["together"].base_url == "http://127.0.0.1:9/v1"
    moved = find_provider("http://127.0.0.1:9/v1")
    assert moved and moved.name == "together"
    assert find_provider("http://127.0.0.1:8/v1") is None
    monkeypatch.setenv("TOGETHER_BASE_URL", "nowhere")
    with pytest.raises(StackgenError, match=r"^TOGETHER_BASE_URL: the base URL 'nowhere' has no http:// or https://"):
        _ = providers()["together"].base_url


def test_an_empty_url_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    # unlike in the SDK: findings/openai-empty-base-url.sh
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert providers()["openai"].base_url == "https://api.openai.com/v1"


@pytest.mark.parametrize("variable", ["TOGETHER_BASE_URL", "OPENAI_BASE_URL"])
def test_an_invalid_url_variable_affects_only_its_own_provider(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "foo")
    name = variable.partition("_")[0].lower()
    url = "http://127.0.0.1:8/v1"
    assert find_provider(url) is None
    assert [one.base_url for one in find_targets(Namespace(base_url=[url]))] == [url]
    with pytest.raises(StackgenError, match=f"^{variable}: "):
        find_targets(Namespace(provider=[name]))
    text, rows = matrix(capsys)
    assert f"{variable}: the base URL 'foo' has no http" in text and "None" not in text
    assert rows[name]["base_url"] is None and str(rows[name]["problem"]).startswith(variable)
    assert rows["vllm"]["base_url"] == "http://127.0.0.1:8000/v1" and rows["vllm"]["problem"] is None


def test_the_dialect_behind_another_openai_compatible_url_is_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = providers()["openai"]
    assert openai.dialect_at("https://api.openai.com/v1") is openai.dialect
    assert openai.dialect_at("http://127.0.0.1:8000/v1") is None
    together = providers()["together"]
    assert together.dialect_at("http://127.0.0.1:8000/v1") is together.dialect


def test_keys_are_found_in_the_documented_order(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = here / "stack"
    stack.mkdir()
    names, folders = ("FIRST", "SECOND"), (Path(), stack)

    def place() -> tuple[str, str]:
        key = find_key(names, folders)
        assert key and SECRET not in f"{key} {key!r}" and key.value == SECRET
        return key.name, key.place

    assert find_key(names, folders) is None
    (stack / ".env").write_text(f"SECOND={SECRET}\n")
    assert place() == ("SECOND", str(stack / ".env"))
    (here / ".env").write_text(f"SECOND={SECRET}\n")
    assert place() == ("SECOND", ".env")
    monkeypatch.setenv("SECOND", f"{SECRET}\n")
    assert place() == ("SECOND", "environment")
    monkeypatch.setenv("FIRST", SECRET)
    assert place() == ("FIRST", "environment")
    # an empty value counts as missing
    monkeypatch.setenv("FIRST", "")
    assert place() == ("SECOND", "environment")
    given = find_key(names, folders, "given")
    assert given and (given.value, str(given)) == ("given", "--api-key")


def test_the_command_prints_where_keys_are_found_but_never_a_key(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, rows = matrix(capsys)
    assert "none of TOGETHER_API_KEY, TOGETHERAI_API_KEY" in text and rows["together"]["key_found"] is None
    monkeypatch.setenv("TOGETHERAI_API_KEY", SECRET)
    (here / ".env").write_text(f"STACKGEN_API_KEY={SECRET}\n")
    text, rows = matrix(capsys)
    assert "TOGETHERAI_API_KEY (environment)" in text and "STACKGEN_API_KEY (.env)" in text
    assert rows["together"]["key_found"] == {"name": "TOGETHERAI_API_KEY", "place": "environment"}
    assert rows["vllm"]["keys"] == ["--api-key", "STACKGEN_API_KEY", "VLLM_API_KEY"]
    assert rows["here"] == []


def test_the_command_lists_the_endpoints_defined_here(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "endpoints.yaml").write_text("endpoints: [{name: cloud, provider: together, api_key_env: MY_KEY}]")
    (here / ".env").write_text(f"MY_KEY={SECRET}\n")
    text, rows = matrix(capsys)
    assert "cloud" in text
    (one,) = rows["here"]
    assert (one["name"], one["has_key"], one["dialect"]) == ("cloud", True, "together")


def test_every_row_of_the_matrix_has_a_cell_per_provider(capsys: pytest.CaptureFixture[str]) -> None:
    text, _ = matrix(capsys)
    lines = text.split("\n\n")[1].splitlines()
    assert lines[0].split() == ["supports", *providers()]
    assert {len(line.split()) for line in lines} == {1 + len(providers())}
    assert not any(word in text for word in ("None", "[]"))


def test_an_invalid_endpoints_file_raises(here: Path) -> None:
    (here / "endpoints.yaml").write_text("endpoints: [{name: x}]")
    with pytest.raises(StackgenError, match="needs one of"):
        command(Namespace(stack=".", json=False))
