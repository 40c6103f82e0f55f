"""`.env`: written once with mode 0600 and new keys, and read as Compose reads it."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stackgen.cli import main as cli
from stackgen.errors import StackgenError
from stackgen.render.write import TEMPORARY
from stackgen.resources import read_env_example
from stackgen.stack.envfile import (
    API_KEY,
    GENERATED_SECRETS,
    complete_env,
    create_env,
    generate_key,
    read_api_key,
    read_env,
)
from stackgen.stack.keys import rotate_key


@pytest.fixture(autouse=True)
def no_key_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)


def test_keys_are_long_and_never_repeat(tmp_path: Path) -> None:
    keys = set()
    for name in "abc":
        folder = tmp_path / name
        assert create_env(folder)
        key = read_api_key(folder)
        assert len(key.removeprefix("sk-")) * 6 // 8 >= 32  # base64 has six bits per character
        assert key.isascii()
        keys.add(key)
    assert len(keys) == 3
    assert len({generate_key() for _ in range(50)}) == 50


def test_env_is_written_with_mode_0600_and_no_temporary_file_stays(tmp_path: Path) -> None:
    create_env(tmp_path)
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_other_lines_are_those_of_the_example(tmp_path: Path) -> None:
    create_env(tmp_path)
    lines = (tmp_path / ".env").read_text("utf-8").splitlines()
    generated = tuple(f"{name}=" for name in GENERATED_SECRETS)
    assert [line for line in lines if not line.startswith(generated)] == [
        line for line in read_env_example().splitlines() if not line.startswith(generated)
    ]
    values = [line.partition("=")[2] for line in lines if line.startswith(generated)]
    assert len(set(values)) == len(GENERATED_SECRETS) and all(len(value) > 40 for value in values)
    assert f"{API_KEY}=\n" in read_env_example()  # the committed example holds no key


def test_an_existing_env_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER=1\n")
    assert not create_env(tmp_path)
    assert (tmp_path / ".env").read_text() == "OTHER=1\n"


def test_a_missing_key_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(StackgenError, match=r"\.env does not set STACKGEN_API_KEY") as caught:
        read_api_key(tmp_path)
    assert "stackgen init" in caught.value.hint


def test_the_environment_overrides_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"{API_KEY}=from-file\nOTHER=file\n")
    assert read_api_key(tmp_path) == "from-file"
    monkeypatch.setenv(API_KEY, "from-environment")
    monkeypatch.setenv("UNRELATED", "x")
    assert read_api_key(tmp_path) == "from-environment"
    assert read_env(tmp_path) == {API_KEY: "from-environment", "OTHER": "file"}
    assert read_env(tmp_path / "nowhere") == {API_KEY: "from-environment"}


def write_env(folder: Path, way: str) -> None:
    """Each way to write .env, from a file that lacks what this way adds."""
    if way == "complete":
        (folder / ".env").write_text(f"{API_KEY}=mine\n")
        assert complete_env(folder, GENERATED_SECRETS)
    elif way == "rotate":
        (folder / ".env").write_text(f"{API_KEY}=mine\n")
        rotate_key(folder, "default")
    else:
        assert create_env(folder)


@pytest.mark.parametrize("way", ["create", "complete", "rotate"])
def test_a_linked_env_stays_a_link(tmp_path: Path, way: str) -> None:
    """Keys are often kept in one place, with a link from each folder."""
    folder, vault = tmp_path / "stack", tmp_path / "vault"
    folder.mkdir()
    vault.mkdir()
    leftover = vault / f".keys.a1b2{TEMPORARY}"
    leftover.write_text("sk-secret")
    (folder / "link").symlink_to(vault / "keys")
    (folder / ".env").symlink_to("link")
    write_env(folder, way)
    assert (folder / ".env").is_symlink() and (folder / "link").is_symlink()
    assert API_KEY in (vault / "keys").read_text() and (vault / "keys").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in vault.iterdir()] == ["keys"]


@pytest.mark.parametrize("gateway", [True, False])
def test_render_leaves_the_keys_that_plain_compose_needs(
    tmp_path: Path, gateway: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in GENERATED_SECRETS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "stack.yaml").write_text(
        f"name: demo\ngateway: {str(gateway).lower()}\nmodels: [{{model: org/name, engine: vllm, revision: abc}}]\n"
    )
    render = ["render", str(tmp_path), "--no-validate"]
    assert cli.main([*render, "--check"]) == 1 and not (tmp_path / ".env").exists()
    assert cli.main(render) == 0
    shown = capsys.readouterr()
    assert f"wrote {tmp_path / '.env'} with new keys" in shown.err
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    required = set(re.findall(r"\$\{(\w+):\?", (tmp_path / "compose.yaml").read_text()))
    values = read_env(tmp_path)
    assert required and all(values[name] for name in required)
    assert not any(values[name] in shown.out + shown.err for name in required)
    # told once, never overwritten, and completed if a key is missing
    text = (tmp_path / ".env").read_text()
    assert cli.main(render) == 0
    assert ".env" not in capsys.readouterr().err and (tmp_path / ".env").read_text() == text
    (tmp_path / ".env").write_text(f"{API_KEY}=mine\n")
    assert cli.main(render) == 0
    assert (f"added to {tmp_path / '.env'}: STACKGEN_ENGINE_KEY" in capsys.readouterr().err) == gateway
    assert read_env(tmp_path)[API_KEY] == "mine"


LINES = [
    ("K=plain", "plain"),
    ("K=", ""),
    ("K='single'", "single"),
    ('K="double"', "double"),
    ("  K = spaced  ", "spaced"),
    ("export K=exported", "exported"),
    ("K=a # comment", "a"),
    ("K=a#b", "a#b"),
    ("K='a # b'", "a # b"),
    ('K="a # b"', "a # b"),
    ("K=a=b==", "a=b=="),
    ("# K=no", None),
    ("K=first\nK=last", "last"),
    ("\nK=after-blank", "after-blank"),
    ("K='a' # comment", "a"),
    ('K="a" # comment', "a"),
]


@pytest.mark.parametrize(("text", "value"), LINES, ids=[repr(text) for text, _ in LINES])
def test_lines_are_parsed_as_compose_parses_them(tmp_path: Path, text: str, value: str | None) -> None:
    (tmp_path / ".env").write_text(text + "\n")
    assert read_env(tmp_path).get("K") == value


def test_windows_line_ends_and_byte_order_mark_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfA=1\r\nK=x\r\n")
    assert read_env(tmp_path) == {"A": "1", "K": "x"}


def test_invalid_utf_8_is_reported_with_its_line_and_without_the_key(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=1\nK=sk-secret-\xe9\n")
    for read in (read_env, read_api_key, lambda folder: complete_env(folder, GENERATED_SECRETS)):
        with pytest.raises(StackgenError) as caught:
            read(tmp_path)
        assert caught.value.message == f"{tmp_path / '.env'} line 2 is not UTF-8" and caught.value.hint
        assert caught.value.__context__ is None and "secret" not in str(caught.value)


FRAGMENTS = [b"A=", b"\n", b"\r\n", b"'", b'"', b" #", b"export ", b"\x0c", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\0"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=12) | st.sampled_from(FRAGMENTS), max_size=15))
def test_any_bytes_give_variables_or_an_error_with_the_line(tmp_path: Path, parts: list[bytes]) -> None:
    data = b"".join(parts)
    (tmp_path / ".env").write_bytes(data)
    try:
        found = read_env(tmp_path)
    except StackgenError as error:
        line = int(error.message.split(" line ")[1].split()[0])
        # the reported line is invalid, and all lines before it are valid
        lines = data.split(b"\n")
        with pytest.raises(UnicodeDecodeError):
            lines[line - 1].decode()
        assert b"\n".join(lines[: line - 1]).decode() is not None
        return
    assert all(name.isidentifier() and "\n" not in value for name, value in found.items())


def test_values_may_contain_unicode_line_separators(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("K='a\u2028B=b\x0cc'\nC=d\n", "utf-8")
    assert read_env(tmp_path) == {"K": "a\u2028B=b\x0cc", "C": "d"}


@pytest.mark.compose
def test_compose_reads_the_same_values(tmp_path: Path) -> None:
    """The check must send the key that the containers got, so the real Compose is the reference."""
    names = [f"V{index}" for index in range(len(LINES))]
    text = "".join(line.replace("K", name) + "\n" for name, (line, _) in zip(names, LINES, strict=True))
    (tmp_path / ".env").write_text(text)
    environment = "".join(f'      {name}: "${{{name}-unset}}"\n' for name in names)
    (tmp_path / "compose.yaml").write_text(f"services:\n  a:\n    image: x\n    environment:\n{environment}")
    done = subprocess.run(
        ["docker", "compose", "config", "--format", "json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    actual = json.loads(done.stdout)["services"]["a"]["environment"]
    values = read_env(tmp_path)
    assert {name: values.get(name, "unset") for name in names} == actual
