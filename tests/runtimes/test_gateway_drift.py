"""What Compose would make anew, by its own hashes; and the files that lead back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.errors import StackgenError
from stackgen.render.write import LOCK, compare, write_files
from stackgen.runtimes.rollout import drift
from stackgen.runtimes.rollout.drift import Container, differing, one_at_a_time, previous_files, remember, restore
from stackgen.stack.envfile import API_KEY, complete_env, create_env, key_of
from stackgen.stack.folder import Stack, open_stack

pytestmark = pytest.mark.compose


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(API_KEY, raising=False)
    monkeypatch.setattr(drift, "_images", lambda plan: {})
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
    """As if what is rendered now had been started."""
    hashes = drift._hashes(stack.folder, text(stack.folder))
    assert set(hashes) == {service.name for service in stack.plan.services}
    env = (f"{API_KEY}={key_of(stack.folder)}",)
    return {
        name: Container(name, name, one, "image", True, False, frozenset(), env if name == "gateway" else ())
        for name, one in hashes.items()
    }


def test_only_what_changed_differs(folder: Path) -> None:
    ran = running(rendered(folder))
    stack = rendered(folder, max_num_seqs=8)
    assert differing(stack.plan, folder, text(folder), ran) == ["vllm-m", "vllm-m-2"]
    # a third replica changes nothing for the others, although their comments change
    stack = rendered(folder, replicas=3)
    assert differing(stack.plan, folder, text(folder), ran) == []


def test_a_tag_that_moved_differs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = rendered(folder)
    ran = running(stack)
    image = stack.plan.service("vllm-m").image
    monkeypatch.setattr(drift, "_images", lambda plan: {image: "image"})
    assert differing(stack.plan, folder, text(folder), ran) == []
    ran["vllm-m"] = replace(ran["vllm-m"], image="older")
    assert differing(stack.plan, folder, text(folder), ran) == ["vllm-m"]


def test_a_new_key_in_env_is_no_reason_for_a_new_gateway(folder: Path) -> None:
    stack = rendered(folder)
    ran = running(stack)
    (folder / ".env").write_text((folder / ".env").read_text().replace(key_of(folder), "sk-new"))
    assert differing(stack.plan, folder, text(folder), ran) == []


def test_the_way_back_is_on_disk_or_was_kept(folder: Path) -> None:
    stack = rendered(folder)
    ran, before = running(stack), text(folder)
    remember(folder)
    assert (folder / drift.APPLIED).stat().st_mode & 0o777 == 0o600
    changed = ["vllm-m"]
    assert previous_files(folder, {}, changed, ran) == {}  # nothing was written since
    rendered(folder, max_num_seqs=8)
    assert previous_files(folder, {"compose.yaml": before}, changed, ran) == {"compose.yaml": before}
    # rendered again before the update, so that the disk does not tell any more
    kept = previous_files(folder, {}, changed, ran)
    assert kept and kept["compose.yaml"] == before
    restore(folder, {**kept, "gateway/new.map": None})
    assert text(folder) == before
    assert all(change.kind == "same" for change in compare(stack.files(), folder))
    (folder / drift.APPLIED).unlink()
    rendered(folder, max_num_seqs=8)
    assert previous_files(folder, {}, changed, ran) is None


def test_restoring_takes_new_files_away_and_keeps_modes(folder: Path) -> None:
    rendered(folder)
    (folder / "stack.yaml").chmod(0o640)
    (folder / "new").write_text("x")
    restore(folder, {"new": None, "stack.yaml": "name: n\n", LOCK: "x"})
    assert not (folder / "new").exists()
    assert (folder / "stack.yaml").stat().st_mode & 0o777 == 0o640


def test_two_updates_at_once(folder: Path) -> None:
    with one_at_a_time(folder), pytest.raises(StackgenError, match="another"), one_at_a_time(folder):
        pass
    with one_at_a_time(folder):
        pass
