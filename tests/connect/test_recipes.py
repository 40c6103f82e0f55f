"""Every recipe: its schema, and settings that stay valid for every model name, path and key."""

from __future__ import annotations

import ast
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.connect.recipe import API_PATHS, KEY, RECIPES, Recipe, load_recipe, read_recipe, recipe_names
from stackgen.connect.requests import fill_requests
from stackgen.connect.settings import Connection, build_settings
from stackgen.errors import StackgenError

PROMISED = (
    "claude-code codex opencode continue aider zed open-webui langchain pydantic-ai llamaindex litellm anthropic-sdk"
    " openai-sdk together-sdk curl lm-eval guidellm"
)
PLAIN = Connection("smollm2", "http://127.0.0.1:8000/v1", "", "default", f'export {KEY}="$(cat key)"', 8192, 100)
# every character that ends a text in one of the languages, and a name that is a word of YAML
HOSTILE = ["org/Model-1.5", "it's", 'a"b', "a\\b", "$HOME", "`id`", "{{x}}", "<<model>>", "a: #b", "no", "ü ñ", "%s"]
NAMES = recipe_names()


def test_every_promised_client_has_a_recipe() -> None:
    assert set(PROMISED.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_matches_the_schema_and_names_its_source(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.source.startswith("https://")
    # the variables of two ways to give the key would contradict each other
    assert list(recipe.environment.values()).count(f"${KEY}") <= 1
    # what a user copies must contain the key's variable somewhere, or explain it
    text = str(recipe.environment) + "".join(one.text for one in recipe.files) + (recipe.command or "")
    assert KEY in text + " ".join(recipe.notes)


def load_file(language: str, text: str) -> Any:
    if language == "json":
        return json.loads(text)
    if language == "yaml":
        return yaml.safe_load(text)
    if language == "toml":
        return pytest.importorskip("tomllib").loads(text)  # of Python 3.11
    return {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}


def texts(data: Any) -> set[str]:
    """All texts in the data, keys too."""
    if isinstance(data, dict):
        return set().union(*(texts(one) for pair in data.items() for one in pair))
    if isinstance(data, (list, tuple, set)):
        return set().union(*map(texts, data))
    return {data} if isinstance(data, str) else set()


@pytest.mark.parametrize("name", NAMES)
def test_values_are_quoted_for_the_language_of_each_file(name: str) -> None:
    recipe, commands = load_recipe(name), list[str]()
    for model in HOSTILE:
        settings = build_settings(recipe, replace(PLAIN, model=model, ca_file=f"/tmp/{model}/ca.crt"))
        for snippet, (path, text) in zip(recipe.files, settings.files, strict=True):
            found = texts(load_file(snippet.language, text))
            assert "model" not in snippet.text or any(one.endswith(model) for one in found), f"{path}: {found}"
        commands += [settings.command, settings.run]
    # finds unbalanced quotes
    done = subprocess.run(["sh", "-n"], input="\n".join(commands), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def last_argument(command: str, program: str, folder: Path) -> str:
    """Runs `command` with a `program` that only prints its last argument."""
    (folder / program).write_text('#!/bin/sh\nfor last; do :; done; printf "%s" "$last"\n')
    (folder / program).chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", KEY: "sk-x"}
    return subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize("model", HOSTILE)
def test_the_shell_passes_a_model_name_unchanged(model: str, tmp_path: Path) -> None:
    connection = replace(PLAIN, model=model)
    aider = build_settings(load_recipe("aider"), connection).command
    assert last_argument(aider, "aider", tmp_path) == f"openai/{model}"
    curl = build_settings(load_recipe("curl"), connection).command
    assert json.loads(last_argument(curl, "curl", tmp_path))["model"] == model


def test_guidellm_verifies_the_certificate_and_gets_the_key_in_a_variable() -> None:
    """By default, GuideLLM 0.8.1 accepts any certificate."""
    settings = build_settings(load_recipe("guidellm"), replace(PLAIN, ca_file="/tmp/ca.crt"))
    assert {"GUIDELLM__SPEC__BACKEND__API_KEY": f"${KEY}", "SSL_CERT_FILE": "/tmp/ca.crt"} == dict(settings.environment)
    for command in (settings.command, settings.run):
        assert "target=http://127.0.0.1:8000," in command and "verify=true" in command and KEY not in command


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_without_a_known_context_is_complete(name: str) -> None:
    settings = build_settings(load_recipe(name), replace(PLAIN, context_length=None))
    for snippet, (_, text) in zip(load_recipe(name).files, settings.files, strict=True):
        load_file(snippet.language, text)
        assert "None" not in text and "null" not in text


@pytest.mark.parametrize("name", NAMES)
def test_requests_name_the_model_and_stay_below_the_path_of_their_api(name: str) -> None:
    for request in fill_requests(load_recipe(name), "some-model", 7):
        if request.method == "POST":
            assert request.body and request.body["model"] == "some-model"
        shown = json.dumps(request.body)
        assert "MODEL" not in shown and "PADDING" not in shown and '"OUTPUT"' not in shown
        if request.api in API_PATHS:
            assert request.path.startswith(API_PATHS[request.api])


def valid_data(name: str = "curl") -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needs": ["telepathy"]}, "needs.0"),
        ({"unknown": 1}, "unknown"),
        ({"base_url": "v1"}, "base_url"),
        ({"environment": {"A": f"Bearer ${KEY}"}}, "part of a value"),
        ({"needs": ["embeddings"]}, "no request tries embeddings"),
        ({"sends": {"output_setting": "X"}}, "output_setting is not in environment"),
        ({"measured": "soon"}, "measured"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "curl.yaml").write_text(yaml.safe_dump(valid_data() | change))
    with pytest.raises(StackgenError, match=message):
        read_recipe(tmp_path / "curl.yaml")


def test_a_recipe_has_the_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "wget.yaml").write_text(yaml.safe_dump(valid_data()))
    with pytest.raises(StackgenError, match="`name` is curl"):
        read_recipe(tmp_path / "wget.yaml")


def test_every_field_of_a_recipe_is_described() -> None:
    schema = Recipe.model_json_schema()
    fields = [*schema["properties"].values(), *(f for d in schema["$defs"].values() for f in d["properties"].values())]
    assert all(field.get("description") for field in fields)
