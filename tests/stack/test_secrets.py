"""Which values of a stack are secret: by their place and name, not by what they look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackgen.stack.secrets import collect_secrets, find_secrets, find_yaml_secrets, is_secret_name


@pytest.mark.parametrize(
    ("env", "secrets"),
    [
        ("A_KEY=plain", {"plain"}),
        ("export A_TOKEN='two words' # why", {"two words"}),
        ("A_TOKEN=abc # comment", {"abc"}),
        ('PEM="-----BEGIN X-----\nfirstline\nsecondline\n-----END X-----"', {"firstline", "secondline"}),
        ("ANYTHING=long enough", {"long enough"}),
        ("ANYTHING=short", set()),
        ("A_KEY=${OTHER}\nB_KEY=none\nC_KEY=", set()),
        ("HF_ENDPOINT=https://hub.example.com\nCOMPOSE_PROJECT_NAME=projectname\nCUDA_VISIBLE_DEVICES=0,1,2,3", set()),
        ("DATABASE_URL=postgres://me:word@host/db", {"postgres://me:word@host/db"}),
    ],
)  # fmt: skip
def test_values_of_env(tmp_path: Path, env: str, secrets: set[str]) -> None:
    (tmp_path / ".env").write_text(env + "\n")
    (tmp_path / "stack.yaml").write_text("name: s\n")
    found = set(collect_secrets(tmp_path))
    assert secrets <= found
    assert {one for one in found if "\n" not in one} == secrets


def test_without_a_stack_only_names_of_secrets_count(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ANYTHING=long enough\nA_KEY=plain\n")
    assert collect_secrets(tmp_path) == ("plain",)


def test_the_environment_replaces_a_value_and_both_are_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=fromfile\n")
    monkeypatch.setenv("STACKGEN_API_KEY", "fromshell")
    assert set(collect_secrets(tmp_path)) == {"fromfile", "fromshell"}


@pytest.mark.parametrize("where", ["token", "{}/token"])
def test_the_content_of_a_token_file(tmp_path: Path, where: str) -> None:
    (tmp_path / "token").write_text("tokeninfile\n")
    (tmp_path / ".env").write_text(f"HF_TOKEN_FILE={where.format(tmp_path)}\n")
    assert set(collect_secrets(tmp_path)) == {"tokeninfile"}


def test_the_key_of_a_generated_and_of_an_own_certificate(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir()
    pem = "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n"
    (tmp_path / "gateway" / "site.key").write_text(pem.format("generatedline"))
    (tmp_path / "own.pem").write_text(pem.format("ownkeyline"))
    (tmp_path / "stack.yaml").write_text("gateway: {tls: {certificate: own.crt, key: own.pem}}\n")
    found = set(collect_secrets(tmp_path))
    assert {"generatedline", "ownkeyline"} <= found and "-----END PRIVATE KEY-----" not in found


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("a: {b: [{MY_SECRET: x1}, {pad_token: y}]}", {"x1"}),
        ("environment: [DB_PASSWORD=x1, LEVEL=y]", {"x1"}),
        ("command: [--api-key, x1, --hf-token=x2, --max-tokens, '5']", {"x1", "x2"}),
        ("api_keys: [x1, x2]", {"x1", "x2"}),
        ("PIN_TOKEN: 4711", {"4711"}),
        ("DB_PASSWORD: x1\n  broken: [", {"x1"}),
        ("gateway: {keys: [{name: alice}]}\nsecrets: {hf_token: {file: /dev/null}}", set()),
        ("VLLM_API_KEY: ${STACKGEN_ENGINE_KEY:?text}", set()),
        ("[", set()),
    ],
)
def test_fields_of_yaml(text: str, secrets: set[str]) -> None:
    assert set(find_yaml_secrets(text)) == secrets


@given(st.text(), st.text())
def test_nothing_in_the_folder_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, env: str, stack: str) -> None:
    folder = tmp_path_factory.mktemp("stack")
    (folder / ".env").write_text(env, "utf-8", "surrogatepass")
    (folder / "stack.yaml").write_text(stack, "utf-8", "surrogatepass")
    assert isinstance(collect_secrets(folder), tuple)


def test_pipes_folders_and_missing_files_are_skipped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".env")
    (tmp_path / "stack.yaml").mkdir()
    assert collect_secrets(tmp_path) == () == collect_secrets(tmp_path / "missing")


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "dbPassword", "x-api-key", "MY_KEY", "--api-key", "DB_PASS", "Authorization"]
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name) and find_secrets([(name, "value")]) == ("value",)


def test_names_of_secrets_in_a_cluster_are_not_secret() -> None:
    """`render` prints the command that creates the secret, which needs its name."""
    text = "kubernetes: {tls_secret: gateway-certificate, image_pull_secrets: [registry-login]}"
    assert find_yaml_secrets(text) == ()
