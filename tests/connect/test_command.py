"""`stackgen connect`: which model, URL and key it prints, what it warns of, and what `--try` reports."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.connect.recipe import KEY, load_recipe, recipe_names
from stackgen.stack.keys import create_key
from tests.check.conftest import start as start
from tests.check.fake import Fake, events, json_answer

SECRET = "sk-0123456789abcdef0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a key, outside of which no key is known."""
    for name in ("STACKGEN_API_KEY", KEY):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text(f"STACKGEN_API_KEY={SECRET}\n")
    return tmp_path


def write(folder: Path, *models: dict[str, Any], **fields: Any) -> None:
    entries = [{"model": "org/m", "revision": "abc"} | model for model in models]
    (folder / "stack.yaml").write_text(yaml.safe_dump({"name": "demo", "models": entries} | fields))


VLLM = {"engine": "vllm", "served_names": ["m"]}


class Output:
    """What a run printed; `data` is its JSON."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.out)
        return data

    def problems(self, level: str) -> list[tuple[str, str]]:
        return [(one["field"] or "", one["text"]) for one in self.data["problems"] if one["level"] == level]


@pytest.fixture
def connect(capsys: pytest.CaptureFixture[str]) -> Callable[..., Output]:
    def run(*arguments: str | Path) -> Output:
        code = cli.main(["connect", *map(str, arguments)])
        return Output(code, *capsys.readouterr())

    return run


# list, model, URL


def test_without_a_client_all_clients_are_listed(connect: Callable[..., Output]) -> None:
    shown = connect()
    assert shown.code == 0
    for name in recipe_names():
        line = next(line for line in shown.out.splitlines() if line.startswith(f"{name} "))
        recipe = load_recipe(name)
        assert recipe.version in line and recipe.needs[0] in line and recipe.about in line
    assert {one["name"] for one in connect("--json").data["clients"]} == set(recipe_names())


def test_a_misspelled_client_is_suggested(folder: Path, connect: Callable[..., Output]) -> None:
    shown = connect("claude-cod", folder)
    assert shown.code == 2 and "did you mean claude-code?" in shown.err and shown.out == ""
    shown = connect(folder)
    assert shown.code == 2 and f"stackgen connect CLIENT {folder}" in shown.err


@pytest.mark.parametrize("name", ["cursor", "Cursor"])
def test_cursor_is_explained_instead_of_curl_being_suggested(
    folder: Path, connect: Callable[..., Output], name: str
) -> None:
    shown = connect(name, folder)
    assert shown.code == 2 and "Cursor's servers send the requests" in shown.err and "curl" not in shown.err
    # too different from every client
    shown = connect("courser", folder)
    assert shown.code == 2 and "`stackgen connect` lists the clients" in shown.err


def test_several_models_need_a_choice(folder: Path, connect: Callable[..., Output]) -> None:
    write(folder, VLLM, {"engine": "llamacpp", "file": "a.gguf", "served_names": ["other", "alias"]})
    shown = connect("curl", folder)
    assert shown.code == 2 and "m, other" in shown.err and "--model" in shown.err
    assert connect("curl", folder, "--model", "alias", "--json").data["model"] == "alias"
    wrong = connect("curl", folder, "--model", "othr")
    assert wrong.code == 2 and "did you mean other?" in wrong.err
    # a client that lists the models needs none, and hears of every model
    assert connect("open-webui", folder, "--json").data["model"] is None


@pytest.mark.parametrize("gateway", [True, False])
@pytest.mark.parametrize("client", ["openai-sdk", "claude-code"])
def test_the_base_url_is_that_of_the_stack_in_the_form_of_the_client(
    folder: Path, connect: Callable[..., Output], gateway: bool, client: str
) -> None:
    write(folder, VLLM | {"replicas": 2}, port=18123, gateway=gateway)
    data = connect(client, folder, "--json").data
    url = "http://127.0.0.1:18123" + ("/v1" if client == "openai-sdk" else "")
    assert data["base_url"] == url and url in data["environment"].values()
    assert data["gateway"] is gateway
    # without a gateway, the other replica has an URL of its own
    assert any("127.0.0.1:18124" in one["text"] for one in data["problems"]) is not gateway


def test_a_lora_adapter_is_a_model_of_its_own(folder: Path, connect: Callable[..., Output]) -> None:
    write(folder, VLLM | {"lora_adapters": [{"name": "tuned", "path": "org/lora"}]})
    assert connect("curl", folder, "--json").data["model"] == "m"
    assert connect("curl", folder, "--json", "--model", "tuned").data["model"] == "tuned"


def test_local_processes_have_their_own_urls(folder: Path, connect: Callable[..., Output]) -> None:
    write(folder, VLLM, {"engine": "llamacpp", "file": "a.gguf", "served_names": ["l"]}, port=18130, gateway=True)
    data = connect("curl", folder, "--model", "l", "--json", "--runtime", "process").data
    assert not data["gateway"] and data["base_url"] == "http://127.0.0.1:18131/v1"


@pytest.mark.parametrize(
    ("client", "variable"),
    [("openai-sdk", "SSL_CERT_FILE"), ("claude-code", "NODE_EXTRA_CA_CERTS"), ("curl", "CURL_CA_BUNDLE")],
)
def test_a_generated_certificate_is_passed_to_the_client(
    folder: Path, connect: Callable[..., Output], client: str, variable: str
) -> None:
    write(folder, VLLM, gateway={"tls": "generate"})
    certificate = folder / "gateway" / "tls" / "site.crt"
    certificate.parent.mkdir(parents=True)
    certificate.write_text("")
    data = connect(client, folder, "--json").data
    assert data["environment"][variable] == str(certificate) and data["base_url"].startswith("https://")
    assert any("certificates" in text for _, text in connect("zed", folder, "--json").problems("warning"))


# key


@pytest.mark.parametrize("client", recipe_names())
def test_no_output_contains_the_key(folder: Path, connect: Callable[..., Output], client: str) -> None:
    write(folder, VLLM)
    for arguments in ([], ["--json"]):
        shown = connect(client, folder, *arguments)
        assert shown.code == 0 and SECRET not in shown.out + shown.err
    assert SECRET in connect(client, folder, "--show-key").out


@pytest.mark.parametrize(
    "line",
    [
        f"STACKGEN_API_KEY={SECRET}",
        f'STACKGEN_API_KEY="{SECRET}"',
        f"STACKGEN_API_KEY='{SECRET}'  # mine",
        f"export STACKGEN_API_KEY = {SECRET} # mine",
        f"STACKGEN_API_KEY=old\nOTHER=x\nSTACKGEN_API_KEY={SECRET}",
        f"# STACKGEN_API_KEY=old\nSTACKGEN_API_KEY={SECRET}",
    ],
)
def test_the_printed_command_reads_the_key_as_compose_does(
    folder: Path, connect: Callable[..., Output], line: str
) -> None:
    place = folder / "it's a folder"
    place.mkdir()
    write(place, VLLM)
    (place / ".env").write_text(f"{line}\nSTACKGEN_ENGINE_KEY=wrong\n")
    command = connect("curl", place, "--json").data["key"]["command"]
    done = subprocess.run(["sh", "-c", f'{command}\nprintf %s "${KEY}"'], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (SECRET, "")


def test_the_environment_overrides_the_file(
    folder: Path, connect: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, VLLM)
    monkeypatch.setenv("STACKGEN_API_KEY", "sk-from-the-environment-0123456789")
    command = connect("curl", folder, "--json").data["key"]["command"]
    done = subprocess.run(["sh", "-c", f'{command}\nprintf %s "${KEY}"'], capture_output=True, text=True)
    assert done.stdout == os.environ["STACKGEN_API_KEY"]


def test_a_missing_key_is_reported(folder: Path, connect: Callable[..., Output]) -> None:
    write(folder, VLLM)
    (folder / ".env").unlink()
    assert any("stackgen up" in text for _, text in connect("curl", folder, "--json").problems("does not work"))
    assert connect("curl", folder, "--show-key").code == 2
    assert connect("curl", folder, "--try").code == 2


def test_a_named_key_is_asked_for_because_only_its_hash_is_stored(
    folder: Path, connect: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, VLLM, gateway={"keys": [{"name": "alice"}, {"name": "bob"}]})
    (folder / "gateway").mkdir()
    key = create_key(folder, "alice")
    shown = connect("curl", folder, "--key", "alice", "--json")
    assert shown.data["key"]["name"] == "alice" and ".env" not in shown.data["key"]["command"]
    assert connect("curl", folder, "--key", "alice", "--show-key").code == 2
    assert any(
        "keys new bob" in text
        for _, text in connect("curl", folder, "--key", "bob", "--json").problems("does not work")
    )
    wrong = connect("curl", folder, "--key", "alic")
    assert wrong.code == 2 and "did you mean alice?" in wrong.err
    monkeypatch.setenv(KEY, key)
    assert key in connect("curl", folder, "--key", "alice", "--show-key").out
    # another key in the variable is not alice's
    monkeypatch.setenv(KEY, SECRET)
    assert connect("curl", folder, "--key", "alice", "--show-key").code == 2


def test_a_named_key_needs_a_gateway(folder: Path, connect: Callable[..., Output]) -> None:
    write(folder, VLLM)
    shown = connect("curl", folder, "--key", "alice")
    assert shown.code == 2 and "gateway" in shown.err


# problems


@pytest.mark.parametrize("client", ["claude-code", "opencode"])
@pytest.mark.parametrize("gateway", [True, False])
def test_vllm_without_a_tool_parser_does_not_work_with_agents(
    folder: Path, connect: Callable[..., Output], client: str, gateway: bool
) -> None:
    write(folder, {"engine": "fastchat", "served_names": ["f"]}, VLLM | {"max_model_len": 65536}, gateway=gateway)
    shown = connect(client, folder, "--model", "m", "--json")
    assert shown.code == 0 and shown.data["works"] is False
    assert [field for field, _ in shown.problems("does not work")] == ["models[1].tool_call_parser"]
    assert "does not work" in connect(client, folder, "--model", "m").err
    # vLLM's documentation knows the parser of some families
    assert "`hermes`" not in shown.out
    write(folder, VLLM | {"model": "Qwen/Qwen2.5-7B-Instruct"}, gateway=gateway)
    assert "`hermes`" in connect(client, folder).err
    for fields in ({"tool_call_parser": "hermes"}, {"extra_args": ["--tool_call_parser=hermes"]}):
        write(folder, VLLM | {"max_model_len": 65536} | fields, gateway=gateway)
        assert connect(client, folder, "--json").data["works"] is True


@pytest.mark.parametrize(("client", "api"), [("codex", "/v1/responses"), ("claude-code", "/v1/messages")])
def test_an_api_that_the_engine_lacks_is_named_with_engines_that_have_it(
    folder: Path, connect: Callable[..., Output], client: str, api: str
) -> None:
    write(folder, {"engine": "fastchat", "served_names": ["f"]})
    field, text = connect(client, folder, "--json").problems("does not work")[0]
    assert field == "models[0].engine" and api in text and "vllm" in text and "llamacpp" in text


def test_a_schema_that_the_engine_does_not_honour_is_a_warning(folder: Path, connect: Callable[..., Output]) -> None:
    write(folder, {"engine": "fastchat", "served_names": ["f"]})
    assert any("JSON schema" in text for _, text in connect("langchain", folder, "--json").problems("warning"))
    # every request of an agent has tools
    assert any("refuses them" in text for _, text in connect("opencode", folder, "--json").problems("does not work"))
    write(folder, {"engine": "llamacpp", "file": "a.gguf", "served_names": ["f"]})
    assert not connect("langchain", folder, "--json").problems("warning")


@pytest.mark.parametrize(
    ("engine", "fields", "works"),
    [
        ("vllm", {"max_model_len": "4K", "tool_call_parser": "hermes"}, False),
        ("vllm", {"max_model_len": 8192, "tool_call_parser": "hermes"}, True),
        # a flag counts as the field does
        ("vllm", {"extra_args": ["--max-model-len", "2048"]}, False),
        ("vllm", {"max_model_len": "auto"}, True),
        ("llamacpp", {"max_model_len": 4096, "file": "a.gguf"}, False),
        # each slot has the whole length
        ("llamacpp", {"max_model_len": 8192, "max_num_seqs": 4, "file": "a.gguf"}, True),
    ],
)
def test_codex_needs_a_context_for_its_first_prompt(
    folder: Path, connect: Callable[..., Output], engine: str, fields: dict[str, Any], works: bool
) -> None:
    write(folder, {"engine": engine, "served_names": ["m"]} | fields)
    shown = connect("codex", folder, "--json")
    assert shown.data["works"] is works
    if not works:
        field, text = shown.problems("does not work")[0]
        assert field == "models[0].max_model_len" and "4,580" in text


def test_a_small_context_lowers_the_output_limit_of_claude_code(folder: Path, connect: Callable[..., Output]) -> None:
    variable = "CLAUDE_CODE_MAX_OUTPUT_TOKENS"
    write(folder, VLLM | {"max_model_len": 16384, "tool_call_parser": "hermes"})
    shown = connect("claude-code", folder, "--json")
    assert 0 < int(shown.data["environment"][variable]) < 16384
    assert any(field == "models[0].max_model_len" and "32,000" in text for field, text in shown.problems("warning"))
    write(folder, VLLM | {"max_model_len": "128k", "tool_call_parser": "hermes"})
    shown = connect("claude-code", folder, "--json")
    assert variable not in shown.data["environment"] and not shown.problems("warning")


def test_without_max_model_len_the_catalog_names_the_context(folder: Path, connect: Callable[..., Output]) -> None:
    variable = "CLAUDE_CODE_MAX_OUTPUT_TOKENS"
    model = {"model": "Qwen/Qwen3-32B", "engine": "vllm", "served_names": ["m"], "tool_call_parser": "hermes"}
    write(folder, model | {"gpus": 2})
    shown = connect("claude-code", folder, "--json")
    assert 0 < int(shown.data["environment"][variable]) < 40_960 - 20_000
    assert not shown.problems("does not work")
    (text,) = [text for field, text in shown.problems("warning") if field == "models[0].max_model_len"]
    assert "the context has 40,960 (from the catalog of models)" in text
    assert '"context": 40960' in connect("opencode", folder).out
    # the engine chooses the length, or the model is not in the catalog
    for change in ({"max_model_len": "auto"}, {"extra_args": ["--hf-overrides", "{}"]}, {"model": "org/m"}):
        write(folder, model | {"gpus": 2} | change)
        shown = connect("claude-code", folder, "--json")
        assert variable not in shown.data["environment"]
        assert any("own context length must be larger" in text for _, text in shown.problems("note"))
    # max_model_len counts more
    write(folder, model | {"gpus": 2, "max_model_len": 16384})
    texts = [text for _, text in connect("claude-code", folder, "--json").problems("warning")]
    assert any("16,384" in text for text in texts) and not any("catalog" in text for text in texts)


@pytest.mark.parametrize("gateway", [True, False])
def test_a_note_on_missing_gateways_needs_a_missing_gateway(
    folder: Path, connect: Callable[..., Output], gateway: bool
) -> None:
    write(folder, VLLM, gateway=gateway)
    assert ("note: Unset ANTHROPIC_API_KEY" in connect("claude-code", folder).err) is not gateway


def test_text_output_is_shell_and_comments_and_problems_go_to_stderr(
    folder: Path, connect: Callable[..., Output]
) -> None:
    write(folder, VLLM)
    shown = connect("claude-code", folder)
    assert "does not work" in shown.err and "does not work" not in shown.out
    exports = [line for line in shown.out.splitlines() if line.startswith("export ")]
    words = [word for line in exports[1:] for word in shlex.split(line) if word != "export"]
    assert f"ANTHROPIC_AUTH_TOKEN=${KEY}" in words and "ANTHROPIC_MODEL=m" in words


# --try


@pytest.fixture
def served(folder: Path, start: Callable[..., Fake]) -> Fake:
    """A fake upstream at the URL of the stack: its responses are recorded from vLLM, others are written here."""
    fake = start("vllm", SECRET)
    write(
        folder, VLLM | {"served_names": ["tiny"], "tool_call_parser": "hermes", "max_model_len": 65536}, port=fake.port
    )
    return fake


def test_try_sends_the_first_requests_with_the_key(folder: Path, connect: Callable[..., Output], served: Fake) -> None:
    shown = connect("openai-sdk", folder, "--try")
    assert shown.code == 0, shown.out
    assert [one.route for one in served.seen] == ["GET /v1/models", *["POST /v1/chat/completions"] * 2]
    assert all(one.authorization == f"Bearer {SECRET}" for one in served.seen)
    assert shown.out.count("# works") == 3 and SECRET not in shown.out + shown.err


def test_try_reports_the_error_of_the_endpoint_for_each_request(
    folder: Path, connect: Callable[..., Output], served: Fake
) -> None:
    message = f"no such thing for {SECRET}"
    served.routes["POST /v1/chat/completions"] = json_answer({"error": {"message": message}}, 400)
    shown = connect("openai-sdk", folder, "--try", "--json")
    assert shown.code == 1
    first, *rest = shown.data["attempts"]
    assert first["works"] and all(not one["works"] and one["status"] == 400 for one in rest)
    assert all("no such thing" in one["problem"] for one in rest) and SECRET not in shown.out


def test_try_hides_a_key_that_only_the_user_knows(
    folder: Path, connect: Callable[..., Output], served: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, VLLM | {"served_names": ["tiny"]}, port=served.port, gateway={"keys": [{"name": "alice"}]})
    (folder / "gateway").mkdir()
    served.key = key = create_key(folder, "alice")
    served.routes["POST /v1/chat/completions"] = json_answer({"error": {"message": f"no quota for {key}"}}, 429)
    monkeypatch.setenv(KEY, key)
    shown = connect("curl", folder, "--key", "alice", "--try")
    assert shown.code == 1 and "no quota for" in shown.out and key not in shown.out
    assert {one.authorization for one in served.seen} == {f"Bearer {key}"}


@pytest.mark.parametrize(
    ("client", "route", "good", "bad"),
    [
        ("codex", "POST /v1/responses",
         [{"type": "response.created", "error": None}, {"type": "response.output_text.delta", "delta": "Par"}],
         [{"type": "response.created"}, {"type": "response.failed", "response": {"error": {"message": "full"}}}]),
        ("claude-code", "POST /v1/messages?beta=true",
         [{"type": "message_start"}, {"type": "content_block_delta", "delta": {"text": "Par"}}],
         [{"type": "error", "error": {"type": "overloaded_error", "message": "full"}}]),
        ("zed", "POST /v1/chat/completions", [{"choices": [{"delta": {"reasoning_content": "hm"}}]}],
         [{"choices": [{"delta": {"role": "assistant"}}]}, {"error": {"message": "full"}}]),
    ],
)  # fmt: skip
def test_try_reads_the_streams_of_each_api(
    folder: Path, connect: Callable[..., Output], served: Fake, client: str, route: str, good: list[Any],
    bad: list[Any],
) -> None:  # fmt: skip
    served.routes[route] = events(*good)
    assert connect(client, folder, "--try").code == 0
    served.routes[route] = events(*bad)
    shown = connect(client, folder, "--try", "--json")
    assert shown.code == 1 and "full" in str(shown.data["attempts"])
    # a stream that only ends is no answer
    served.routes[route] = events(bad[0] if client != "claude-code" else {"type": "message_stop"})
    assert connect(client, folder, "--try").code == 1


def test_try_reads_a_text_with_unicode_line_separators(
    folder: Path, connect: Callable[..., Output], served: Fake
) -> None:
    first = json.dumps({"choices": [{"delta": {"content": "one\u2028two\x85three"}}]}, ensure_ascii=False)
    served.routes["POST /v1/chat/completions"] = events(first)
    assert connect("zed", folder, "--try").code == 0


def test_try_sees_limits_and_forms_that_are_ignored(folder: Path, connect: Callable[..., Output], served: Fake) -> None:
    answer = {
        "choices": [{"message": {"content": "prose"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 121},
    }
    served.routes["POST /v1/chat/completions"] = json_answer(answer)
    shown = connect("pydantic-ai", folder, "--try", "--json")
    text, typed = shown.data["attempts"]
    assert "121 tokens" in text["problem"] and "no tool call" in typed["problem"]
    answer["usage"] = {"completion_tokens": 3}
    served.routes["POST /v1/chat/completions"] = json_answer(answer)
    problems = {one["name"]: one["problem"] for one in connect("langchain", folder, "--try", "--json").data["attempts"]}
    assert problems["invoke"] is None and "not JSON" in problems["structured output"]


def test_try_reports_that_nothing_listens(folder: Path, connect: Callable[..., Output], free_port: int) -> None:
    write(folder, VLLM, port=free_port)
    shown = connect("curl", folder, "--try")
    assert shown.code == 1 and "nothing listens" in shown.out


def test_completion_completes_clients(tmp_path: Path) -> None:
    """Does what the shell's completion script does."""
    out = tmp_path / "out"
    line = "stackgen connect open"
    env = os.environ | {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": " ",
                        "_ARGCOMPLETE_STDOUT_FILENAME": str(out)}  # fmt: skip
    subprocess.run([sys.executable, "-m", "stackgen"], env=env, check=False)
    assert out.read_text().split() == ["open-webui", "openai-sdk", "opencode"]


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({}, "run `kubectl -n lab port-forward service/gateway 8000`, and use 127.0.0.1 instead of the name"),
        (
            {"gateway": {"tls": "generate"}, "kubernetes": {"namespace": "lab", "tls_secret": "c"}},
            "certificate is valid",
        ),
    ],
)
def test_a_name_inside_a_cluster_is_explained(
    fields: dict[str, Any], hint: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, VLLM | {"gpus": 1}, **{"target": "kubernetes", "kubernetes": {"namespace": "lab"}} | fields)
    assert cli.main(["connect", "curl", str(folder)]) == 0
    run = capsys.readouterr()
    assert "gateway.lab.svc.cluster.local" in run.out
    assert "note: only pods of the cluster know the name gateway.lab.svc.cluster.local" in run.err and hint in run.err


@pytest.mark.parametrize("place", [["{}"], ["--stack", "{}"]])
def test_connect_takes_the_folder_in_both_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: list[str]
) -> None:
    (tmp_path / "stack.yaml").write_text("name: demo\nmodels: [{model: org/m, engine: vllm, gpus: 1}]\n")
    assert cli.main(["connect", "open-webui", *(word.format(tmp_path) for word in place)]) == 0
    assert "8000" in capsys.readouterr().out
