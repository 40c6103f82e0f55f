"""stack.yaml is edited while a command asks its question or works: the edit is never lost."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stackgen.cli.commands import fix, rollout
from stackgen.cli.main import main
from stackgen.diagnose import Finding
from stackgen.diagnose.rule import Edit
from stackgen.render.write import compare, write_files
from stackgen.runtimes.rollout.rolling import plan_rollout, run_rollout
from stackgen.runtimes.rollout.scaling import scale_stack
from stackgen.stack.edit import StackChangedError
from stackgen.stack.folder import open_stack
from tests.runtimes.world import World

TEXT = """\
name: n
gateway: {image: "haproxy:3.2.26"}
models:
  - model: ./m  # ours
    engine: vllm
    served_names: [m]
    gpus: none
    replicas: 2
"""
EDITED = TEXT + "    max_model_len: 4096\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    (tmp_path / "stack.yaml").write_text(TEXT)
    (tmp_path / "m").mkdir()
    monkeypatch.setenv("STACKGEN_API_KEY", "x")
    world = World(tmp_path, monkeypatch)
    with world.handles:
        write_files(compare(open_stack(str(tmp_path)).files(), tmp_path), tmp_path)
        world.up()
        yield world


def answer(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[str]:
    """Lets the user agree to every question, after an editor has saved stack.yaml. Returns the questions."""
    questions: list[str] = []

    def confirm(question: str, yes: bool, without_terminal: str) -> bool:
        questions.append(question)
        path.write_text(EDITED)
        return True

    for module in (rollout, fix):
        monkeypatch.setattr(module, "confirm", confirm)
    return questions


@pytest.mark.parametrize("command", [["scale", "m=1"], ["update"], ["up"]], ids=lambda args: args[0])
def test_edit_during_the_question_is_kept_and_refused(
    world: World, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world.folder / "stack.yaml"
    if command[0] != "scale":
        path.write_text(TEXT.replace("replicas: 2", "replicas: 1\n    max_num_seqs: 8"))
    else:
        # with a single replica, scaling to two is without downtime, so another reason for a question is needed
        path.write_text(TEXT.replace('"haproxy:3.2.26"', '"haproxy:3.2.99"'))
    questions, running = answer(monkeypatch, path), world.running()
    compose = (world.folder / "compose.yaml").read_text()
    assert main([*command, str(world.folder)]) == 2
    assert len(questions) == 1
    assert f"{path} was edited while this command was running, so nothing was changed" in capsys.readouterr().err
    assert path.read_text() == EDITED
    assert (world.folder / "compose.yaml").read_text() == compose
    assert world.running() == running


def test_edit_during_the_question_of_fix_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = world.folder / "stack.yaml"
    answer(monkeypatch, path)
    finding = Finding("SG-X001", "title", "", "cause", (), "fix", edit=Edit(("models", 0, "replicas"), "1"))
    with pytest.raises(StackChangedError, match="was edited"):
        fix.fix(Namespace(command="diagnose", wait=0.0, yes=False, json=False), (finding,), path)
    assert path.read_text() == EDITED


def scale_and_fail(world: World, during: Callable[[], object]) -> str:
    """Scales to three replicas. The third fails, after `during` has run. Returns the error."""

    def is_broken(service: str, definition: object) -> bool:
        if service == "vllm-m-3":
            during()
        return service == "vllm-m-3"

    world.is_broken = is_broken
    stack, text, _ = scale_stack(str(world.folder), {"m": 3})
    with pytest.raises(Exception, match="rolled back") as caught:
        run_rollout(stack, plan_rollout(stack, text), lambda service, phase: None)
    return str(caught.value)


def test_rollback_does_not_overwrite_an_edit_that_was_made_meanwhile(world: World) -> None:
    path = world.folder / "stack.yaml"
    edited = EDITED.replace("replicas: 2", "replicas: 3")
    assert "still contains the new number of replicas" in scale_and_fail(world, lambda: path.write_text(edited))
    assert path.read_text() == edited


def test_rollback_restores_the_stack_file_that_nobody_edited(world: World) -> None:
    assert "stack.yaml is unchanged" in scale_and_fail(world, lambda: None)
    assert (world.folder / "stack.yaml").read_text() == TEXT


def test_scale_keeps_a_linked_stack_file_and_its_mode(world: World) -> None:
    path, target = world.folder / "stack.yaml", world.folder / "shared.yaml"
    path.rename(target)
    target.chmod(0o640)
    path.symlink_to(target.name)
    stack, text, _ = scale_stack(str(world.folder), {"m": 3})
    run_rollout(stack, plan_rollout(stack, text), lambda service, phase: None)
    assert path.is_symlink()
    assert "replicas: 3" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o640
