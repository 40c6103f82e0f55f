"""The shared volumes outlive every stack, and no folder takes over another folder's stack. With the stand-in engine."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

PORT = 18127
STORE = "sgtest-store-models"
NAME = "sgtest-store"


def docker(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *args], capture_output=True, text=True)


def has_store() -> bool:
    return docker("volume", "inspect", STORE).returncode == 0


def data(image: str, **fields: Any) -> dict[str, Any]:
    # offline: the engine mounts the store, and no download is needed
    model = {"model": "org/m", "engine": "vllm", "image": image, "revision": "abc", "served_names": ["m"],
             "max_model_len": 512}  # fmt: skip
    return {"name": NAME, "port": PORT, "gateway": False, "storage": {"volume": STORE, "offline": True},
            "models": [model]} | fields  # fmt: skip


@pytest.fixture
def stack(standin_image: str, tmp_path: Path) -> Iterator[LiveStack]:
    folder = tmp_path / "first"
    folder.mkdir()
    docker("volume", "rm", "--force", STORE)
    try:
        with LiveStack(folder, data(standin_image)) as made:
            yield made
    finally:
        docker("volume", "rm", "--force", STORE)


def declare_as_before(folder: Path) -> None:
    """Writes compose.yaml and its checksum as version 0.2.0 rendered them: the volumes belong to the stack."""
    compose, lock = folder / "compose.yaml", folder / "stackgen.lock"
    text = re.sub(r"\n    external: true[^\n]*", "", compose.read_text())
    assert "external" not in text
    compose.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    lock.write_text(re.sub(r"\w{64}(?=  compose.yaml)", digest, lock.read_text()))


def test_weights_of_an_earlier_version_are_kept_and_only_storage_remove_deletes_them(stack: LiveStack) -> None:
    folder = str(stack.folder)
    # `render` has created it, so that plain Compose works
    assert has_store()
    docker("volume", "rm", STORE)
    declare_as_before(stack.folder)
    stack.up()
    container = stack.inspect("vllm-m")["Id"]
    helper = [
        "run",
        "--rm",
        # a new volume belongs to root
        "--user=0:0",
        "-v",
        f"{STORE}:/models",
        "--entrypoint",
        "python3",
        stack.data["models"][0]["image"],
        "-c",
    ]
    assert docker(*helper, "open('/models/marker', 'w').close()").returncode == 0
    # the file of the earlier version would remove the volume with `docker compose down --volumes`
    stack.stackgen("up", folder)
    assert stack.inspect("vllm-m")["Id"] == container
    refused = stack.run_stackgen("storage", "remove", STORE, "--yes")
    assert (
        refused.returncode == 2 and f"{NAME} ({folder})" in refused.stderr and "Nothing was removed" in refused.stderr
    )
    stack.compose("stop")
    assert stack.run_stackgen("storage", "remove", STORE, "--yes").returncode == 2, "a stopped stack uses it, too"
    # plain Compose keeps it as well
    done = stack.compose("down", "--volumes")
    assert done.returncode == 0 and has_store(), done.stderr
    declare_as_before(stack.folder)
    shown = stack.stackgen("down", folder, "--volumes", "--json")
    assert STORE in json.loads(shown)["kept"] and json.loads(shown)["removed"] == []
    assert docker(*helper, "open('/models/marker').close()").returncode == 0
    # nobody answers the question
    assert stack.run_stackgen("storage", "remove", STORE).returncode == 2 and has_store()
    stack.stackgen("storage", "remove", STORE, "--yes")
    assert not has_store()
    # plain Compose says how to create it
    stack.stackgen("render", folder, "--no-validate")
    assert f"`docker volume create {STORE}` creates it" in (stack.folder / "compose.yaml").read_text()
    assert STORE in stack.compose("up", "--detach").stderr and not has_store()


def doctor(stack: LiveStack, folder: Path) -> dict[str, Any]:
    """The finding about the folder of the containers."""
    findings = json.loads(stack.run_stackgen("doctor", str(folder), "--offline", "--json").stdout)["findings"]
    return next(one for one in findings if one["id"] == "SG-P084")  # type: ignore[no-any-return]


def test_a_second_folder_with_the_same_name_is_refused_and_a_moved_one_is_not(
    stack: LiveStack, standin_image: str, tmp_path: Path
) -> None:
    stack.up()
    container = stack.inspect("vllm-m")["Id"]
    second = tmp_path / "second"
    second.mkdir()
    (second / "stack.yaml").write_text(yaml.safe_dump(data(standin_image, gateway=True, port=PORT + 1)))
    stack.stackgen("render", str(second))
    for command in (
        ["up", str(second)], ["update", str(second), "--yes"], ["scale", "m=2", str(second), "--yes"],
        ["down", str(second)], ["keys", "new", "alice", "--stack", str(second)], ["status", str(second)],
        ["logs", str(second)],
    ):  # fmt: skip
        done = stack.run_stackgen(*command)
        assert done.returncode == 2, (command, done.stderr)
        assert f"its containers belong to {stack.folder}, not to {second}" in done.stderr, command
    assert stack.inspect("vllm-m")["Id"] == container and stack.inspect("vllm-m")["State"]["Running"]
    found = doctor(stack, second)
    assert found["status"] == "fail" and str(stack.folder) in found["evidence"]
    # a link to the folder is the same folder
    (tmp_path / "link").symlink_to(stack.folder)
    assert doctor(stack, tmp_path / "link")["status"] == "ok"
    moved = tmp_path / "moved"
    shutil.move(stack.folder, moved)
    stack.folder = moved
    done = stack.run_stackgen("down", str(moved))
    assert done.returncode == 0 and f"{moved} takes over the containers" in done.stderr
    assert docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={NAME}").stdout == ""
