"""Files of a stack that the users of the containers can't read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.doctor.hosts import NO_GPU, ONE_24, findings, write_model, write_stack

CONFIG = '{"r": 8, "base_model_name_or_path": "org/base"}'


def about(path: Path, machine: Any = ONE_24) -> dict[str, tuple[str, str]]:
    found = [one for one in findings(machine, path) if one.id == "SG-P054"]
    return {one.place: (one.status, one.message) for one in found if one.status != "ok"}


def write_files(folder: Path) -> dict[str, Any]:
    """A chat template, an adapter, and a plugin and a folder that only their owner may read."""
    (folder / "adapter").mkdir()
    for name, text in (("t.jinja", "{}"), ("p.py", ""), ("adapter/adapter_config.json", CONFIG)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    (folder / "tools").mkdir(mode=0o700)
    return {
        "chat_template": "./t.jinja", "lora_adapters": [{"name": "a", "path": "./adapter"}], "max_lora_rank": 8,
        "extra_args": ["--tool-parser-plugin", "./p.py"], "mounts": [{"source": "./tools", "target": "/tools"}],
    }  # fmt: skip


def test_files_that_the_containers_user_cannot_read_are_reported(tmp_path: Path) -> None:
    found = about(write_stack(tmp_path, **write_files(tmp_path)))
    assert {place: status for place, (status, _) in found.items()} == {
        "models[0].chat_template": "fail", "models[0].lora_adapters[0].path": "fail",
        "models[0].extra_args[1]": "warn", "models[0].mounts[0].source": "warn",
    }  # fmt: skip
    assert found["models[0].chat_template"][1] == "the container's user can't read ./t.jinja"
    (tmp_path / "t.jinja").chmod(0o644)
    assert "models[0].chat_template" not in about(tmp_path / "stack.yaml")


@pytest.mark.skipif(bool(os.getuid()), reason="the container's root owns only the files of root")
def test_the_owner_and_the_group_may_read(tmp_path: Path) -> None:
    assert not about(write_stack(tmp_path, user="0:5", **write_files(tmp_path)))
    # group 0 is that of vLLM's user
    for one in [tmp_path, *tmp_path.rglob("*")]:
        one.chmod(0o750 if one.is_dir() else 0o640)
    assert not about(tmp_path / "stack.yaml")
    path = write_stack(tmp_path, user="2000:2000", **{"chat_template": "./t.jinja"})
    assert set(about(path)) == {"models[0].model", "models[0].chat_template"}
    assert not about(write_stack(tmp_path, user="2000:2000", group_add=["0"], chat_template="./t.jinja"))


def test_certificates_are_for_all_users_and_a_closed_folder_is_enough(tmp_path: Path) -> None:
    (tmp_path / "corp.pem").write_text("x")
    (tmp_path / "corp.pem").chmod(0o600)
    path = write_stack(tmp_path, model="org/m", gpus="none", stack_ca_certificates="./corp.pem")
    assert about(path, NO_GPU)["ca_certificates"][0] == "warn"
    write_model(tmp_path / "stack" / "adapter").chmod(0o711)
    lora = {"lora_adapters": [{"name": "a", "path": "./adapter"}], "max_lora_rank": 8}
    assert set(about(write_stack(tmp_path / "stack", **lora))) == {"models[0].lora_adapters[0].path"}
