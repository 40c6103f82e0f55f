"""`bundle create --dry-run`: what a bundle would contain, and what is missing. Docker and the Hub are stubs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stackgen.bundle import preview
from stackgen.check.huggingface import HubLookup
from stackgen.cli.commands import bundle_preview
from stackgen.cli.main import main
from stackgen.runtimes.compose.image_archive import EngineFacts, LocalImage
from tests.bundle.bundles import make_bundle, snapshot_files

GIB = 2**30
WEIGHTS = bytes(3000)
STACK = """\
name: tiny
storage: {path: ./store}
gateway: true
models:
  - {model: org/tiny, engine: vllm, gpus: none, image: "example/vllm:1", revision: main}
  - {model: org/other, engine: vllm, gpus: none, image: "example/vllm:1", revision: main}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack with one model in its store and one on the Hub, and an engine that has one of two images."""
    local = LocalImage("sha256:" + "1" * 64, "linux/amd64", (), (), 5 * GIB)
    monkeypatch.setattr(preview, "inspect_image", {"example/vllm:1": local}.get)
    monkeypatch.setattr(preview, "read_engine", lambda: EngineFacts("linux/amd64", "", False))
    monkeypatch.setattr(bundle_preview, "look_up_model", lambda *_, **__: HubLookup("ok", download_bytes=2 * GIB))
    (tmp_path / "stack.yaml").write_text(STACK)
    for path, content in snapshot_files(WEIGHTS).items():
        target = tmp_path / "store" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.symlink_to(content)
        else:
            target.write_bytes(content)
    return tmp_path


def dry_run(folder: Path, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, Any]]:
    before = sorted(folder.rglob("*"))
    code = main(["bundle", "create", str(folder), "--dry-run", "--json", "-o", str(folder / "out"), *args])
    assert sorted(folder.rglob("*")) == before, "a dry run must write nothing"
    return code, json.loads(capsys.readouterr().out)


def states(data: dict[str, Any]) -> dict[str, tuple[str, int | None]]:
    return {one["name"]: (one["state"], one["bytes"]) for one in data["items"] if one["kind"] != "packages"}


def test_dry_run_lists_what_is_here_and_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data = dry_run(folder, capsys, "--part-size", "1GiB", "--no-wheels")
    found = states(data)
    assert code == 0 and data["platform"] == "linux/amd64"
    assert found["example/vllm:1"] == ("here", 5 * GIB)
    assert found["org/tiny"] == ("here", len(WEIGHTS)) and found["org/other"] == ("download", 2 * GIB)
    (gateway,) = [name for name in found if name.startswith("haproxy")]
    assert found[gateway] == ("pull", None) and data["unknown"] == [gateway]
    assert data["bytes"] == 7 * GIB + len(WEIGHTS) and data["parts"] == 8
    assert main(["bundle", "create", str(folder), "--dry-run", "-o", str(folder / "out")]) == 0
    shown = capsys.readouterr()
    assert "2.0 GiB" in shown.out and "must be downloaded" in shown.out and "must be pulled" in shown.out
    assert "nothing was written" in shown.err


def test_another_platform_needs_other_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, data = dry_run(folder, capsys, "--platform", "linux/arm64")
    assert states(data)["example/vllm:1"] == ("pull", 5 * GIB)


def test_what_an_earlier_bundle_has_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_bundle(folder.parent / "base", WEIGHTS)
    _, data = dry_run(folder, capsys, "--base", str(base))
    assert states(data)["org/tiny"][0] == "base" and data["bytes"] == 7 * GIB


def test_weights_that_create_must_not_download_are_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "stack.yaml").write_text(STACK.replace("path: ./store", "path: ./store, offline: true"))
    code, data = dry_run(folder, capsys)
    assert code == 1 and states(data)["org/other"] == ("forbidden", None)


def test_without_the_hub_the_size_of_an_adapter_is_unknown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_preview, "look_up_model", lambda *_, **__: HubLookup("unreachable"))
    adapter = "acme/llama-3.1-8b-sql-lora"
    lora = f"lora_adapters: [{{name: sql, path: {adapter}, revision: main}}]"
    (folder / "stack.yaml").write_text(STACK.replace("model: org/other,", f"model: org/other-8b, {lora},"))
    _, data = dry_run(folder, capsys)
    assert states(data)[adapter] == ("download", None) and states(data)["org/other-8b"] == ("download", 16 * 10**9)


def test_dry_run_fails_as_create_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "file").write_text("")
    command = ["bundle", "create", str(folder), "--dry-run", "-o", str(folder / "out")]
    assert main(command) == 2 and "is not empty, and is not a bundle" in capsys.readouterr().err
    assert main(["bundle", "verify", str(folder / "out"), "--dry-run"]) == 2
    assert "--dry-run is only for `bundle create`" in capsys.readouterr().err
