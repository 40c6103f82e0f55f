"""What a stack's folder contains besides rendered files: .env, .gitignore, and whose containers have its name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.doctor.collect import collect_inputs, try_open_stack
from stackgen.doctor.table import run_checks
from stackgen.stack.envfile import API_KEY, GENERATED_SECRETS, add_values, read_api_key, read_env
from stackgen.stack.keys import create_key, rotate_key
from stackgen.stack.project import OtherFolders, compare_folders
from tests.doctor.hosts import make_host

STACK = """\
name: sgtest-files
gateway: {tls: {certificate: tls.crt, key: ./private/site.pem}}
models: [{model: org/name, engine: vllm, revision: abc}]
"""
SECRETS = [".env", ".env.old", "private/site.pem", "token", "gateway/tls/site.key", ".stackgen/state.json",
           ".stackgen.applied.json", ".env.a1b2.stackgen-tmp"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in GENERATED_SECRETS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "stack.yaml").write_text(STACK)
    return tmp_path


def render(folder: Path) -> int:
    return cli.main(["render", str(folder), "--no-validate"])


def staged(folder: Path) -> set[str]:
    """What `git add --all` would stage."""
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    done = subprocess.run(["git", "-C", str(folder), "add", "--all", "--dry-run"], capture_output=True, text=True)
    return set(re.findall(r"add '(.+)'", done.stdout))


@pytest.mark.parametrize("before", [None, "", "*.log", "# mine\n.env\n\xff"], ids=["none", "empty", "mine", "bytes"])
def test_git_stages_neither_keys_nor_state(folder: Path, before: str | None) -> None:
    if before is not None:
        (folder / ".gitignore").write_text(before, "latin-1")
    (folder / ".env").write_text(f"{API_KEY}=x\nHF_TOKEN_FILE=./token\n")
    for name in SECRETS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name != ".env":
            (folder / name).write_text("secret")
    assert render(folder) == 0
    text = (folder / ".gitignore").read_bytes()
    assert text.startswith((before or "").encode("latin-1"))
    found = staged(folder)
    assert not found & set(SECRETS)
    assert {"stack.yaml", "compose.yaml", "stackgen.lock", ".gitignore"} <= found
    # completed once
    assert render(folder) == 0
    assert (folder / ".gitignore").read_bytes() == text


def test_a_gitignore_that_excludes_everything_is_left_alone(folder: Path) -> None:
    (folder / ".gitignore").write_text("*\n")
    assert render(folder) == 0
    assert (folder / ".gitignore").read_text() == "*\n"


def test_a_gitignore_that_cannot_be_read_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".gitignore").mkdir()
    assert render(folder) == 0
    assert "keep .env and TLS keys out of version control" in capsys.readouterr().err


# .env


@pytest.mark.parametrize("text", ["", "HF_TOKEN_FILE=/t\n", f"{API_KEY}=\nX=1\n"], ids=["empty", "other", "no value"])
def test_render_adds_the_key_to_an_env_of_a_stack_that_never_ran(folder: Path, text: str) -> None:
    (folder / ".env").write_text(text)
    assert render(folder) == 0
    assert len(read_api_key(folder)) > 40
    assert set(read_env(folder)) >= {"STACKGEN_ENGINE_KEY"}
    kept = [line for line in text.splitlines() if not line.startswith(API_KEY)]
    assert all(line in (folder / ".env").read_text().splitlines() for line in kept)


@pytest.mark.parametrize("trace", [".stackgen.applied.json", "gateway/keys.map"])
def test_the_lost_key_of_a_stack_that_ran_is_not_replaced(folder: Path, trace: str) -> None:
    (folder / trace).parent.mkdir(exist_ok=True)
    (folder / trace).write_text("")
    (folder / ".env").write_text("X=1\n")
    assert render(folder) == 0
    assert API_KEY not in (folder / ".env").read_text()


def test_render_ends_with_the_next_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(folder) == 0
    volumes = "`docker volume create stackgen-models` and `docker volume create stackgen-vllm-cpu-cache` and "
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"next, after the to-dos: `stackgen up {folder}`, or {volumes}`docker compose up -d` in that folder. The first "
        "start downloads the weights of org/name"
    )
    assert render(folder) == 0
    assert "next" not in capsys.readouterr().err


def test_render_estimates_the_size_of_the_download(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "stack.yaml"
    path.write_text(path.read_text().replace("org/name", "Qwen/Qwen3-8B"))
    assert render(folder) == 0
    assert "the weights of Qwen/Qwen3-8B (about 15.3 GiB, estimated)" in capsys.readouterr().err


def test_the_name_of_an_adapter_says_nothing_about_its_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text("""\
name: sgtest-files
models:
  - model: org/name
    engine: vllm
    lora_adapters: [{name: sql, path: acme/llama-3.1-8b-sql-lora}]
""")
    assert render(folder) == 0
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.endswith("the weights of org/name, acme/llama-3.1-8b-sql-lora (a LoRA adapter)")


def test_many_keys_are_written_into_files_instead_of_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = "gateway: {"
    text = (folder / "stack.yaml").read_text()
    for count, option in ((3, ""), (4, " --write-to FOLDER")):
        keys = ", ".join(f"{{name: k{index}}}" for index in range(count))
        (folder / "stack.yaml").write_text(text.replace(tls, f"{tls}keys: [{keys}], "))
        assert render(folder) == 0
        assert f"`stackgen keys new --missing --stack {folder}{option}`" in capsys.readouterr().err


def test_render_lists_what_only_the_user_can_do_until_it_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (folder / "stack.yaml").write_text("""\
name: sgtest-files
gateway: {keys: [{name: ada}, {name: bob}]}
models:
  - {model: meta-llama/Llama-3.1-8B-Instruct, engine: vllm, revision: abc, chat_template: ./chat.jinja,
     fallback: "openai:gpt-4o-mini"}
""")

    def to_do() -> list[str]:
        assert render(folder) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("to do: ")]

    values, template, token, keys = to_do()
    assert f"set OPENAI_API_KEY in {folder / '.env'}" in values
    assert "create ./chat.jinja, or correct `models[0].chat_template`" in template
    assert "is gated" in token and "HF_TOKEN_FILE" in token
    assert f"create keys for ada, bob: `stackgen keys new --missing --stack {folder}`" in keys
    add_values(folder, {"OPENAI_API_KEY": "sk-x", "HF_TOKEN_FILE": "/srv/token"})
    (folder / "chat.jinja").write_text("{{ messages }}")
    create_key(folder, "ada")
    create_key(folder, "bob")
    assert to_do() == []


def test_a_hand_written_stack_needs_no_init(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`keys new` names `render`, which writes .env; `init` refuses, and names it too."""
    assert cli.main(["keys", "new", "alice", "--stack", str(folder)]) == 2
    assert f"`stackgen render {folder}` writes a .env" in capsys.readouterr().err
    assert cli.main(["init", str(folder)]) == 2
    assert f"`stackgen render {folder}` writes missing files" in capsys.readouterr().err
    assert render(folder) == 0
    assert cli.main(["keys", "new", "alice", "--stack", str(folder)]) in (0, 1)


def test_a_key_that_the_gateway_refuses_is_reported_until_it_is_rotated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def status() -> str:
        stack, mistakes, source = try_open_stack(str(folder))
        findings = run_checks(collect_inputs(make_host(), stack, mistakes, source))
        return next(one.status for one in findings if one.check == "key-accepted")

    assert render(folder) == 0 and status() == "ok"
    create_key(folder, "alice")
    assert render(folder) == 0 and status() == "ok"
    capsys.readouterr()
    key = read_env(folder)[API_KEY]
    (folder / ".env").unlink()
    # the map has no key, only hashes, and a new key would be refused
    assert render(folder) == 0
    assert f"lacks {API_KEY}" in capsys.readouterr().err and not read_env(folder)[API_KEY]
    add_values(folder, {API_KEY: key[::-1]})
    assert render(folder) == 0
    assert "the gateway refuses the key" in capsys.readouterr().err and status() == "fail"
    rotate_key(folder, "default")
    assert render(folder) == 0
    assert "refuses" not in capsys.readouterr().err and status() == "ok"


# secrets in clear text


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("HF_TOKEN", "hf_0123456789abcdefghij", "HF_TOKEN_FILE"),
        ("WANDB_API_KEY", "0123456789abcdef", "{from_env: WANDB_API_KEY}"),
        ("SETTING", "sk-proj-0123456789abcdef", "{from_env: SETTING}"),
        ("PROXY", "http://user:pa55word@proxy:8080", "{from_env: PROXY}"),
        ("DB_PASSWORD", "x1", "{from_env: DB_PASSWORD}"),
        ("LOG_LEVEL", "DEBUG", ""),
        ("MAX_TOKENS", "4096", ""),
        ("VLLM_TOKEN_LIMIT", "5", ""),
        ("API_KEY_FILE", "/run/secrets/key", ""),
        ("PAD_TOKEN", "<pad>", ""),
        ("EMPTY_KEY", "", ""),
    ],
)
def test_a_secret_in_clear_text_is_a_warning_without_its_value(
    folder: Path, name: str, value: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "stack.yaml").write_text(
        f"name: demo\nmodels: [{{model: org/name, engine: vllm, revision: abc, extra_env: {{{name}: '{value}'}}}}]\n"
    )
    assert render(folder) == 0
    shown = capsys.readouterr().err
    assert (f"extra_env.{name}" in shown) == bool(advice)
    assert advice in shown and (not advice or value not in shown)


@pytest.mark.parametrize("engine", ["vllm", "fastchat", "llamacpp"])
def test_a_variable_is_read_from_env_at_the_start(
    folder: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = "file: m.gguf, " if engine == "llamacpp" else ""
    entry = f"{{model: ./m, engine: {engine}, {file}extra_env: {{WANDB_API_KEY: {{from_env: TEAM_KEY}}}}}}"
    (folder / "stack.yaml").write_text(f"name: demo\nmodels: [{entry}]\n")
    assert render(folder) == 0
    assert 'WANDB_API_KEY: "${TEAM_KEY:?set TEAM_KEY in .env' in (folder / "compose.yaml").read_text()
    assert "clear text" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["{from_env: 5}", "{from_env: 'a b'}", "{from: X}", "{from_env: X, y: 1}", "[X]"])
def test_other_forms_of_a_variable_are_errors(folder: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text(
        f"name: demo\nmodels: [{{model: org/name, engine: vllm, extra_env: {{X: {value}}}}}]\n"
    )
    assert render(folder) == 2
    assert "models[0].extra_env.X: must be text" in capsys.readouterr().err


def test_a_reference_as_in_compose_names_from_env(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text(
        "name: demo\nmodels: [{model: org/name, engine: vllm, extra_env: {X: '${TEAM_KEY}'}}]\n"
    )
    assert render(folder) == 2
    assert "`{from_env: TEAM_KEY}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ("[--hf-token, hf_abcdefghijklmnopqrstuvwx]", "--hf-token"),
        ("[--x, '1', --ssl-keyfile-password=hunter2hunter2]", "--ssl-keyfile-password"),
        ("[--other, hf_abcdefghijklmnopqrstuvwx]", "--other"),
        ("[--api-key-file, /run/secrets/key, --max-logprobs, '5', --token-budget, --enforce-eager]", ""),
    ],
)
def test_a_secret_in_a_flag_is_a_warning_without_its_value(
    folder: Path, arguments: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "stack.yaml").write_text(
        f"name: demo\nmodels: [{{model: org/name, engine: vllm, revision: abc, extra_args: {arguments}}}]\n"
    )
    assert render(folder) == 0
    shown = capsys.readouterr().err
    assert (
        (f"models[0].extra_args: the secret after {flag} is in clear text" in shown)
        if flag
        else "the secret after" not in shown
    )
    assert "hf_" not in shown and "hunter2" not in shown


@pytest.mark.parametrize(("engine", "name"), [("vllm", "VLLM_API_KEY"), ("llamacpp", "LLAMA_API_KEY")])
def test_the_engines_key_can_not_be_replaced(
    folder: Path, engine: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = "file: m.gguf, " if engine == "llamacpp" else ""
    for value in ("mine", "{from_env: MINE}"):
        entry = f"{{model: ./m, engine: {engine}, {file}extra_env: {{{name}: {value}}}}}"
        (folder / "stack.yaml").write_text(f"name: demo\nmodels:\n  - {entry}\n")
        assert render(folder) == 2
        shown = capsys.readouterr().err
        assert f"stack.yaml:3: models[0].extra_env.{name}: is the engine's key" in shown
        assert "change STACKGEN_API_KEY in .env" in shown


@pytest.mark.parametrize("engine", ["vllm", "fastchat", "llamacpp"])
def test_a_variable_of_stackgen_is_replaced_with_a_warning(
    folder: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = "file: m.gguf, " if engine == "llamacpp" else ""
    entry = f"{{model: ./m, engine: {engine}, {file}extra_env: {{HOME: /mine, NEW: '1'}}}}"
    (folder / "stack.yaml").write_text(f"name: demo\nmodels: [{entry}]\n")
    assert render(folder) == 0
    shown = capsys.readouterr().err
    assert "stack.yaml:2: models[0].extra_env.HOME replaces the value that stackgen sets: '/tmp'" in shown
    assert "extra_env.NEW" not in shown
    assert "HOME: /mine" in (folder / "compose.yaml").read_text()


def test_a_hub_token_that_no_container_reads_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(folder) == 0
    env = (folder / ".env").read_text()
    (folder / ".env").write_text(f"{env}HF_TOKEN=hf_abcdefghijklmnopqrstuvwx\n")
    assert render(folder) == 0
    shown = capsys.readouterr().err
    assert ".env sets HF_TOKEN, which the download does not read" in shown and "HF_TOKEN_FILE=PATH" in shown
    assert "hf_abc" not in shown
    (folder / ".env").write_text(f"{env}HF_TOKEN=hf_abcdefghijklmnopqrstuvwx\nHF_TOKEN_FILE=~/token\n")
    assert render(folder) == 0
    assert "which the download does not read" not in capsys.readouterr().err


def test_a_token_file_that_does_not_exist_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render(folder) == 0
    env = (folder / ".env").read_text()
    for value, said in (("./token", "names ./token, which is no file"), ("hf_abcdefgh", "contains a token, but must")):
        (folder / ".env").write_text(f"{env}HF_TOKEN_FILE={value}\n")
        assert render(folder) == 0
        shown = capsys.readouterr().err
        # git would stage a token in .gitignore
        assert f".env: HF_TOKEN_FILE {said}" in shown and "hf_abc" not in shown + (folder / ".gitignore").read_text()
    for name in ("token", "hf_token"):
        (folder / name).write_text("hf_x")
        (folder / ".env").write_text(f"{env}HF_TOKEN_FILE={name}\n")
        assert render(folder) == 0
        assert "HF_TOKEN_FILE" not in capsys.readouterr().err
        assert f"/{name}\n" in (folder / ".gitignore").read_text()


# the folder of the containers


def test_folders_are_compared_by_their_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    for name in ("here", "other", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "compose.yaml").write_text("")
    (tmp_path / "link").symlink_to("here")
    here, other, empty, gone = (str(tmp_path / name) for name in ("here", "other", "empty", "gone"))
    assert compare_folders([here, "", str(tmp_path / "link"), f"{here}/../here"], tmp_path / "link") == OtherFolders()
    assert compare_folders([here, other, gone, empty], tmp_path / "here") == OtherFolders((other,), (gone, empty))
    monkeypatch.chdir(tmp_path / "here")
    assert compare_folders([here], Path()) == OtherFolders()
    # on another machine, the folder can exist although it does not exist here
    monkeypatch.setenv("DOCKER_HOST", "ssh://gpu-box")
    assert compare_folders([gone], tmp_path / "here") == OtherFolders((gone,))
