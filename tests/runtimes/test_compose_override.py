"""An override file next to compose.yaml counts for stackgen's commands exactly as for plain `docker compose`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from stackgen.runtimes.compose.command import compose_command
from stackgen.runtimes.rollout import drift

BASE = "name: n\nservices:\n  a:\n    image: x\n"
NAMES = ("compose.override.yml", "compose.override.yaml", "docker-compose.override.yml", "docker-compose.override.yaml")


def config(args: list[str], folder: Path) -> str:
    # the caller's own settings may name other files
    env = {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}
    done = subprocess.run([*args, "config", "--hash", "*"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("names", [(), NAMES[1:2], NAMES[2:], NAMES], ids=lambda names: "+".join(names))
def test_override_counts_as_in_plain_compose(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "compose.yaml").write_text(BASE)
    for name in names:
        (tmp_path / name).write_text(f"services:\n  a:\n    labels: {{from: {name}}}\n")
    plain = config(["docker", "compose"], tmp_path)
    assert config(compose_command(tmp_path), tmp_path) == plain
    # drift compares these hashes with the labels of the running containers
    assert drift._config_hashes(tmp_path, BASE) == dict([plain.split()])
