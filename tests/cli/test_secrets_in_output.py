"""No command prints a value of `.env`, of a secret's field in stack.yaml, or of a file that these name."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.cli.commands import keys as keys_command
from stackgen.cli.commands import scale as scale_command
from stackgen.diagnose.stack_edit import Edit, apply_edit
from tests.check.fake import KEY as FAKE_KEY
from tests.check.fake import Answer, Fake, serve

# none of them looks like a key
SECRETS = (
    "gatewayword", "some odd value", "tokenfilecontents", "correct horse battery", "it's \"quoted\" $money",
    "firstlineofpem", "lastlineofpem", "flagvalue1", "envfirstline", "envlastline", "tlskeyfirstline", "listedvalue1",
)  # fmt: skip
# too short to be recognized outside of its field
SHORT = "4711"
STACK = """\
name: s
gateway: { tls: { certificate: site.crt, key: site.key } }
models:
  - model: org/m
    engine: vllm
    gpus: none
    replicas: 2
    extra_args: [--hf-token, flagvalue1, --api-keys=listedvalue1]
    extra_env:
      DB_PASSWORD: correct horse battery
      ADMIN_PASSPHRASE: "it's \\"quoted\\" $money"
      PIN_TOKEN: "4711"
      LOG_LEVEL: DEBUG
      PEM_KEY: |
        firstlineofpem
        lastlineofpem
"""
ENV = """\
# a comment
STACKGEN_API_KEY=gatewayword # comment
export MY_SETTING='some odd value'
MULTI="envfirstline
envlastline"
PIN_TOKEN=4711
HF_TOKEN_FILE=token.txt
HF_ENDPOINT=https://hub.example.com
COMPOSE_PROJECT_NAME=projectname
"""
LOG = "".join(f"ValueError: {secret} in {json.dumps(secret)}\n" for secret in SECRETS) + f"PIN_TOKEN={SHORT}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {
        "stack.yaml": STACK, ".env": ENV, "token.txt": "tokenfilecontents\n", "a.log": LOG, "site.crt": "",
        "site.key": "-----BEGIN PRIVATE KEY-----\ntlskeyfirstline\n-----END PRIVATE KEY-----\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
    return tmp_path


@pytest.fixture
def echo(folder: Path) -> Iterator[Fake]:
    """A server that answers with every secret, although it got none of them."""
    with serve("vllm") as fake:
        fake.routes["POST /v1/chat/completions"] = Answer(500, json.dumps({"error": {"message": LOG}}).encode())
        fake.routes["GET /health"] = Answer(500, LOG.encode())
        yield fake


def leaks(text: str) -> list[str]:
    spellings = {(one, form) for one in SECRETS for form in (one, json.dumps(one)[1:-1], one.replace("'", "&#39;"))}
    found = sorted({one for one, form in spellings if form in text})
    return found + [field for field in (f"PIN_TOKEN={SHORT}", f"PIN_TOKEN: {SHORT}", f'"{SHORT}"') if field in text]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    cli.main([*arguments])
    out, err = capsys.readouterr()
    return out + err


def test_the_log_would_leak() -> None:
    assert len(leaks(LOG + "".join(map(json.dumps, SECRETS)))) == len(SECRETS) + 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["diagnose", "--logs", "a.log"],
        ["diagnose", "--logs", "a.log", "--json"],
        ["doctor", "--offline", "--verbose"],
        ["doctor", "--offline", "--json"],
        ["render", "--no-validate"],
        ["render", "--no-validate", "--diff"],
        ["render", "--no-validate", "--check"],
        ["render", "--no-validate", "--json"],
    ],
    ids=" ".join,
)
def test_no_command_prints_a_secret(folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    text = printed(capsys, *arguments)
    assert text and not leaks(text), text


def test_diffs_of_rendered_files_show_what_changed_and_no_secret(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, "render", "--no-validate")
    # the old secrets are in compose.yaml only
    text = STACK.replace("correct horse battery", "another secret phrase").replace(
        "LOG_LEVEL: DEBUG", "LOG_LEVEL: INFO"
    )
    (folder / "stack.yaml").write_text(text)
    for arguments in (["--diff"], ["--check"], []):
        shown = printed(capsys, "render", "--no-validate", *arguments)
        assert "+      LOG_LEVEL: INFO" in shown and "another secret phrase" not in shown
        assert not leaks(shown), shown


def test_the_diff_of_scale_shows_no_secret(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled(*_: Any) -> tuple[None, str, list[str]]:
        after = apply_edit(STACK, Edit(("models", 0, "replicas"), "3"))
        before = STACK.splitlines()
        return None, after, [f" {one}" for one in before[:6]] + ["-    replicas: 2", "+    replicas: 3"] + [
            f" {one}" for one in before[7:]
        ]  # fmt: skip

    monkeypatch.setattr(scale_command, "scale_stack", scaled)
    monkeypatch.setattr(scale_command, "plan_rollout", lambda *_: None)
    monkeypatch.setattr(scale_command, "confirm_and_run", lambda *_: 0)
    text = printed(capsys, "scale", "m=3")
    assert "+    replicas: 3" in text and "DB_PASSWORD" in text
    assert not leaks(text), text


@pytest.mark.parametrize(
    "arguments", [[], ["--json"], ["--verbose"], ["--debug"], ["--watch", "0", "--rounds", "1"]], ids=" ".join
)
def test_reports_contain_no_secret(
    echo: Fake, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    first = [one for one in arguments if one == "--debug"]
    rest = [one for one in arguments if one not in first]
    text = printed(capsys, *first, "check", "--base-url", echo.url, "--api-key", FAKE_KEY, "--junit", "a.xml", "--html",
                   "a.html", "--timeout", "20", *rest)  # fmt: skip
    for shown in (text, (folder / "a.xml").read_text(), (folder / "a.html").read_text()):
        assert "HTTP 500" in shown or "500" in shown
        assert not leaks(shown), shown


def test_a_bundle_of_a_log_contains_no_secret(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "diagnose", "--logs", "a.log", "--bundle", "b.tar.gz")
    with tarfile.open(fileobj=io.BytesIO((folder / "b.tar.gz").read_bytes())) as tar:
        texts = {one.name: tar.extractfile(one).read().decode() for one in tar.getmembers()}  # type: ignore[union-attr]
    assert len(texts) > 3
    for name, text in texts.items():
        assert not leaks(text), (name, text)


def test_a_long_line_is_cut_after_the_secrets_are_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for padding in range(60, 180, 7):
        (folder / "a.log").write_text(f"RuntimeError: {'x' * padding} gatewayword\n")
        assert "gatew" not in printed(capsys, "diagnose", "--logs", "a.log")


@pytest.mark.parametrize("padding", [0, 100, 285, 290, 295, 1480, 1490])
def test_a_report_contains_no_half_of_a_secret(
    echo: Fake, folder: Path, capsys: pytest.CaptureFixture[str], padding: int
) -> None:
    """Excerpts are cut before they are printed, so the check itself must know the secrets."""
    echo.routes["POST /v1/chat/completions"] = Answer(500, f"{'x' * padding} gatewayword".encode())
    text = printed(capsys, "--debug", "check", "--base-url", echo.url, "--api-key", FAKE_KEY, "--timeout", "20")
    assert "HTTP 500" in text and "gate" not in text.replace("gateway:", "")


@pytest.mark.parametrize("text", [STACK.replace("engine: vllm", "engin: vllm"), STACK + "  broken: [\n"])
def test_errors_in_the_stack_file_show_no_secret(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (folder / "stack.yaml").write_text(text)
    shown = printed(capsys, "render") + printed(capsys, "render", "--json")
    assert "stack.yaml" in shown and not leaks(shown), shown


def test_an_error_that_names_a_secret_is_masked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "diagnose", "--logs", "gatewayword/x.log")
    assert "[key]/x.log can't be read" in text


def test_settings_in_env_are_not_taken_for_secrets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "RuntimeError: can't reach https://hub.example.com from projectname with token.txt at DEBUG"
    (folder / "a.log").write_text(f"{line}\n")
    assert line in printed(capsys, "diagnose", "--logs", "a.log")


def test_a_new_key_is_printed_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_command, "_load", lambda *_: False)
    monkeypatch.setattr(keys_command, "report_drains", lambda *_: None)
    printed(capsys, "render", "--no-validate")
    assert cli.main(["keys", "rotate", "default", "--json"]) == 0
    key = json.loads(capsys.readouterr().out)["key"]
    assert key.startswith("sk-") and f"STACKGEN_API_KEY={key}" in (folder / ".env").read_text()
    # from now on, it is as secret as the old one
    (folder / "a.log").write_text(f"ValueError: {key} and gatewayword\n")
    assert key not in printed(capsys, "diagnose", "--logs", "a.log")


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o027, 0o640)])
def test_files_that_may_contain_secrets_follow_the_umask(
    echo: Fake, folder: Path, capsys: pytest.CaptureFixture[str], umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        printed(capsys, "render", "--no-validate")
        printed(capsys, "check", "--base-url", echo.url, "--junit", "a.xml", "--html", "a.html", "--timeout", "20")
    finally:
        os.umask(before)
    for name in ("compose.yaml", "stackgen.lock", "a.xml", "a.html"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == mode, name
    # containers read mounted files as other users
    assert stat.S_IMODE((folder / "scripts" / "supervise.sh").stat().st_mode) == 0o644


def test_a_file_that_was_made_private_stays_private(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "render", "--no-validate")
    (folder / "compose.yaml").chmod(0o600)
    (folder / "stack.yaml").write_text(STACK.replace("DEBUG", "INFO"))
    printed(capsys, "render", "--no-validate")
    assert "LOG_LEVEL: INFO" in (folder / "compose.yaml").read_text()
    assert stat.S_IMODE((folder / "compose.yaml").stat().st_mode) == 0o600


def test_every_command_prints_through_the_scrubber() -> None:
    """A `print` of its own would show what the scrubber hides. These print no text that could contain a secret."""
    allowed = {
        "status_watch.py",  # prints JSON through `scrub_json`
        "output.py", "ask.py",  # ask has a redactor of its own, because a stream arrives in pieces
        "check.py", "exporter.py", "render.py",  # verified above
            "bench.py",  # prints a number of seconds
        "__init__.py", "schema.py", "completion.py", "confirm.py",  # print constant text
    }  # fmt: skip
    place = Path(sys.modules["stackgen.cli.commands"].__path__[0])
    printing = {
        one.name for one in place.glob("*.py") if re.search(r"(?m)^\s+(print|sys\.std\w+\.write)\(", one.read_text())
    }
    assert printing <= allowed
