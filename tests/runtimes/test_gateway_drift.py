"""Which services Compose would recreate, by its own hashes, and the files for a rollback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.render.write import LOCK, compare, write_files
from stackgen.runtimes.rollout import drift
from stackgen.runtimes.rollout.drift import (
    Container,
    find_changed_services,
    find_previous_files,
    restore_files,
    save_applied_files,
)
from stackgen.stack.envfile import API_KEY, complete_env, create_env, read_api_key
from stackgen.stack.folder import Stack, open_stack

pytestmark = pytest.mark.compose


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setattr(drift, "_image_ids", lambda plan: {})
    create_env(tmp_path)
    complete_env(tmp_path, ["STACKGEN_ENGINE_KEY"])
    return tmp_path


def rendered(folder: Path, **fields: Any) -> Stack:
    model = {"model": "./m", "engine": "vllm", "replicas": 2, **fields}
    (folder / "stack.yaml").write_text(yaml.safe_dump({"name": "n", "models": [model]}))
    stack = open_stack(str(folder))
    write_files(compare(stack.files(), folder), folder)
    return stack


def text(folder: Path) -> str:
    return (folder / "compose.yaml").read_text()


def running(stack: Stack) -> dict[str, Container]:
    """The containers as if the rendered files had just been started."""
    hashes = drift._config_hashes(stack.folder, text(stack.folder))
    assert set(hashes) == {service.name for service in stack.plan.services}
    env = (f"{API_KEY}={read_api_key(stack.folder)}",)
    return {
        name: Container(
            service=name, id=name, hash=one, image="image", running=True, completed=False, gpus=frozenset(),
            environment=env if name == "gateway" else (),
        )
        for name, one in hashes.items()
    }  # fmt: skip


def test_only_changed_services_are_found(folder: Path) -> None:
    ran = running(rendered(folder))
    stack = rendered(folder, max_num_seqs=8)
    assert find_changed_services(stack.plan, folder, text(folder), ran) == ["vllm-m", "vllm-m-2"]
    # a third replica changes nothing for the others, although their comments change
    stack = rendered(folder, replicas=3)
    assert find_changed_services(stack.plan, folder, text(folder), ran) == []


def test_service_whose_tag_moved_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = rendered(folder)
    ran = running(stack)
    image = stack.plan.service("vllm-m").image
    monkeypatch.setattr(drift, "_image_ids", lambda plan: {image: "image"})
    assert find_changed_services(stack.plan, folder, text(folder), ran) == []
    ran["vllm-m"] = replace(ran["vllm-m"], image="older")
    assert find_changed_services(stack.plan, folder, text(folder), ran) == ["vllm-m"]


def test_new_key_in_env_does_not_recreate_the_gateway(folder: Path) -> None:
    stack = rendered(folder)
    ran = running(stack)
    (folder / ".env").write_text((folder / ".env").read_text().replace(read_api_key(folder), "sk-new"))
    assert find_changed_services(stack.plan, folder, text(folder), ran) == []


def test_previous_files_are_on_disk_or_were_saved(folder: Path) -> None:
    stack = rendered(folder)
    ran, before = running(stack), text(folder)
    save_applied_files(folder)
    assert (folder / drift.APPLIED_FILE).stat().st_mode & 0o777 == 0o600
    changed = ["vllm-m"]
    assert find_previous_files(folder, {}, changed, ran) == {}  # nothing was written since
    rendered(folder, max_num_seqs=8)
    assert find_previous_files(folder, {"compose.yaml": before}, changed, ran) == {"compose.yaml": before}
    # rendered again before the update, so the disk no longer holds the old files
    kept = find_previous_files(folder, {}, changed, ran)
    assert kept and kept["compose.yaml"] == before
    restore_files(folder, {**kept, "gateway/new.map": None})
    assert text(folder) == before
    assert all(change.kind == "same" for change in compare(stack.files(), folder))
    (folder / drift.APPLIED_FILE).unlink()
    rendered(folder, max_num_seqs=8)
    assert find_previous_files(folder, {}, changed, ran) is None


def test_restoring_removes_new_files_and_keeps_modes(folder: Path) -> None:
    rendered(folder)
    (folder / "stack.yaml").chmod(0o640)
    (folder / "new").write_text("x")
    restore_files(folder, {"new": None, "stack.yaml": "name: n\n", LOCK: "x"})
    assert not (folder / "new").exists()
    assert (folder / "stack.yaml").stat().st_mode & 0o777 == 0o640
