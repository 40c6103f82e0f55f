"""A new key must not work before the gateway's files have its limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.stack.keys import load_keys

STACK = """
name: limits
models: [{{model: Qwen/Qwen3-8B, revision: b968826d9c46dd6066d109eabc6255188de91218, engine: vllm, gpus: 1}}]
gateway: {{keys: [{keys}]}}
"""


def write(folder: Path, keys: str) -> None:
    (folder / "stack.yaml").write_text(STACK.format(keys=keys))


def names(folder: Path) -> set[str]:
    return {one.name for one in load_keys(folder)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "{name: alice}, {name: carol, tokens_per_day: 1000}")
    assert cli.main(["render", str(tmp_path), "--no-validate"]) == 0
    return tmp_path


@pytest.mark.parametrize(
    "limit",
    [
        "expires: 2030-01-01",
        "requests_per_minute: 5",
        "concurrent_requests: 2",
        "tokens_per_day: 100",
        "models: [Qwen/Qwen3-8B]",
    ],
)
def test_no_key_is_created_before_its_limits_are_rendered(
    folder: Path, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, f"{{name: alice}}, {{name: carol, tokens_per_day: 1000}}, {{name: bob, {limit}}}")
    assert cli.main(["keys", "new", "bob", "--stack", str(folder)]) == 2
    assert "stack.yaml sets limits for bob" in (said := capsys.readouterr().err) and f"stackgen update {folder}" in said
    assert "bob" not in names(folder)
    # keys without a changed limit
    assert cli.main(["keys", "new", "alice", "--stack", str(folder)]) == 0
    assert cli.main(["keys", "new", "carol", "--stack", str(folder)]) == 0
    assert cli.main(["render", str(folder), "--no-validate"]) == 0
    assert cli.main(["keys", "new", "bob", "--stack", str(folder)]) == 0
    assert names(folder) >= {"alice", "bob", "carol"}


def test_a_removed_or_changed_limit_is_pending_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for keys in ("{name: alice}, {name: carol}", "{name: alice}, {name: carol, tokens_per_day: 2000}"):
        write(folder, keys)
        assert cli.main(["keys", "list", str(folder)]) == 0
        assert "limits of carol are not in effect yet" in capsys.readouterr().err
