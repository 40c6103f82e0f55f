"""The examples in compose/: importing the rendered Compose file gives the plan of its stack.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stackgen.importing.source import import_text
from stackgen.importing.stack_file import build_text, plan_of
from stackgen.stack.folder import open_stack

EXAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "compose").glob("*/compose.yaml"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda path: path.name)
def test_importing_an_example_gives_the_same_plan(folder: Path) -> None:
    path = folder / "compose.yaml"
    found = import_text(path.read_text(), str(path), folder)
    _, plan = plan_of(build_text(found, path.name), folder)
    # the texts of warnings name fields of the file, and nothing that runs
    assert replace(plan, warnings=()) == replace(open_stack(str(folder)).plan, warnings=())
    # the gateway's configuration has more settings than an import reads, and the import says so
    named = {item.place for item in found.ledger.items if item.outcome == "dropped"}
    assert named <= {"gateway/haproxy.cfg"}
    assert found.assembled.unsupported == []


def test_settings_of_a_rendered_stack_come_back(tmp_path: Path) -> None:
    from stackgen.cli.main import main

    (tmp_path / "stack.yaml").write_text(
        "name: mine\nport: 9000\nrestart: 'no'\nstorage: {path: /srv/models}\nlogging: {max_size: 5m}\n"
        "models:\n- model: Qwen/Qwen3-8B\n  engine: vllm\n  gpus: [2]\n  served_names: [a, b]\n  shm_size: 3g\n"
        "  max_num_seqs: 7\n  extra_args: [--seed, '1']\n  extra_env: {NCCL_DEBUG: INFO}\n  hang_timeout: 99\n"
        "  labels: {team: x}\n  mounts: [{source: ./data, target: /data}]\n"
    )
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    path = tmp_path / "compose.yaml"
    found = import_text(path.read_text(), str(path), tmp_path)
    _, plan = plan_of(build_text(found, path.name), tmp_path)
    assert replace(plan, warnings=()) == replace(open_stack(str(tmp_path)).plan, warnings=())
    assert found.assembled.data["models"][0]["hang_timeout"] == 99
