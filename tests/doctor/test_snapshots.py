"""Models in a snapshot of the Hub cache: the repository is mounted, and judged as the container sees it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stackgen.plan import Bind
from stackgen.stack.folder import open_stack
from tests.doctor.hosts import ONE_24, findings, problem_ids, single_problem, write_model, write_stack

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_snapshot(cache: Path) -> Path:
    """A repository as huggingface_hub writes it: the files of the snapshot are links to blobs."""
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    files = write_model(cache / "files")
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(files.iterdir())):
        shutil.move(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def mounts(path: Path) -> dict[str, str]:
    """The files that the container sees: path in the container -> file on this machine."""
    service = open_stack(str(path)).plan.service("vllm-m")
    return {one.target: os.path.join(path.parent, one.source) for one in service.mounts if isinstance(one, Bind)}


def served_path(path: Path) -> str:
    return open_stack(str(path)).plan.service("vllm-m").command[2]


def can_open(path: Path, file: str) -> bool:
    """Whether the container can open a file of the model: follows links below the mounts only."""
    target = os.path.join(served_path(path), file)
    for inside, outside in mounts(path).items():
        if target.startswith(f"{inside}/"):
            real = os.path.realpath(outside + target[len(inside) :])
            return os.path.exists(real) and real.startswith(f"{os.path.realpath(outside)}/")
    return False


@pytest.mark.parametrize("way", ["absolute", "relative", "link", "link to the repository's parent"])
def test_every_file_of_a_snapshot_can_be_opened(tmp_path: Path, way: str) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    if way == "link":
        (tmp_path / "stack").mkdir()
        (tmp_path / "stack" / "linked").symlink_to(snapshot)
    if way == "link to the repository's parent":
        (tmp_path / "stack").mkdir()
        (tmp_path / "stack" / "cache").symlink_to(tmp_path / "hub")
    model = {
        "absolute": str(snapshot), "relative": f"../hub/models--org--name/snapshots/{COMMIT}/", "link": "./linked",
        "link to the repository's parent": f"./cache/models--org--name/snapshots/{COMMIT}",
    }[way]  # fmt: skip
    path = write_stack(tmp_path / "stack", model=model)
    assert all(can_open(path, name) for name in os.listdir(snapshot))
    assert not problem_ids(findings(ONE_24, path))


def test_a_snapshot_is_served_under_its_repository(tmp_path: Path) -> None:
    path = write_stack(tmp_path, model=str(write_snapshot(tmp_path / "hub")), served_names=[])
    (endpoint,) = open_stack(str(path)).plan.endpoints
    assert endpoint.models == ("org/name",) and endpoint.service == "vllm-name"


def test_files_of_one_repository_are_mounted_once(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    fields: dict[str, Any] = {"chat_template": str(snapshot / "chat_template.jinja")}
    path = write_stack(tmp_path, model=str(snapshot), **fields)
    service = open_stack(str(path)).plan.service("vllm-m")
    targets = [one.target for one in service.mounts]
    assert len(targets) == len(set(targets))
    assert f"{served_path(path)}/chat_template.jinja" in service.command


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_link_out_of_the_mounted_folder_is_a_failure(tmp_path: Path, name: str) -> None:
    path = write_stack(tmp_path / "stack")
    shutil.move(tmp_path / "stack" / "model" / name, tmp_path / name)
    (tmp_path / "stack" / "model" / name).symlink_to(tmp_path / name)
    found = single_problem(findings(ONE_24, path), "SG-P053", "fail")
    assert f"{name}: links to a file outside of the mounted folder" in found.evidence and "cp -rL" in found.fix
    assert not can_open(path, name)


def test_a_missing_blob_is_a_failure(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    (snapshot / "model.safetensors").resolve().unlink()
    path = write_stack(tmp_path / "stack", model=str(snapshot))
    assert "model.safetensors: is missing" in single_problem(findings(ONE_24, path), "SG-P053", "fail").evidence


@pytest.mark.parametrize("folder", ["blobs", "snapshots", "."])
def test_a_folder_of_the_repository_that_only_its_owner_can_enter_is_a_failure(tmp_path: Path, folder: str) -> None:
    snapshot = write_snapshot(tmp_path / "hub")
    (snapshot.parents[1] / folder).chmod(0o700)
    path = write_stack(tmp_path / "stack", model=str(snapshot), user="4242:4242")
    assert "mode 0700" in single_problem(findings(ONE_24, path), "SG-P054", "fail").evidence
