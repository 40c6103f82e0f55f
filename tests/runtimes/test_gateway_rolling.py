"""Rollouts on a fake Docker engine: the order of their steps, the downtime they report, and the rollback of each."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.cli.main import main
from stackgen.errors import StartError
from stackgen.render.write import compare, write_files
from stackgen.runtimes.compose.gateway import reload_if_changed
from stackgen.runtimes.rollout.rolling import RolloutResult, plan_rollout, run_rollout
from stackgen.stack.folder import open_stack
from tests.runtimes.world import World

VLLM = {"model": "./m", "engine": "vllm", "served_names": ["m"]}
IMAGE, NEW = "haproxy:3.2.26", "haproxy:3.2.99"
PLAIN: dict[str, Any] = {"image": IMAGE}


class Stack:
    """The stack under test: what runs, and the next stack.yaml. `downtime` is what the last update reported."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.downtime: list[str] = []

    def write(self, *models: dict[str, Any], gateway: Any = PLAIN, **fields: Any) -> None:
        data = {"name": "n", "gateway": gateway, "models": list(models), **fields}
        (self.world.folder / "stack.yaml").write_text(yaml.safe_dump(data))

    def run(self, *models: dict[str, Any], gateway: Any = PLAIN, **fields: Any) -> None:
        self.write(*models, gateway=gateway, **fields)
        stack = open_stack(str(self.world.folder))
        write_files(compare(stack.files(), self.world.folder), self.world.folder)
        if "tls" in (gateway if isinstance(gateway, dict) else {}):
            from stackgen.runtimes.compose.certificate import ensure_certificate

            ensure_certificate(stack.spec, stack.plan, stack.folder)
        self.world.up()

    def update(self, *models: dict[str, Any], gateway: Any = PLAIN, **fields: Any) -> RolloutResult:
        if models:
            self.write(*models, gateway=gateway, **fields)
        stack = open_stack(str(self.world.folder))
        rollout = plan_rollout(stack)
        self.downtime = list(rollout.downtime)
        return run_rollout(stack, rollout, lambda service, phase: None)

    def fail_update(self, *models: dict[str, Any], gateway: Any = PLAIN, **fields: Any) -> str:
        """Updates, asserts that it fails and that everything is rolled back, and returns the message."""
        before, files = self.world.running(), self.files()
        with pytest.raises(StartError) as caught:
            self.update(*models, gateway=gateway, **fields)
        assert "rolled back: the previous services run again" in caught.value.message
        assert self.world.running() == before
        assert self.files() == files
        gateway_container = self.world.containers.get("gateway")
        assert not gateway_container or not gateway_container.drained
        return caught.value.message

    def files(self) -> dict[str, str]:
        texts = {"compose.yaml": (self.world.folder / "compose.yaml").read_text()}
        if (path := self.world.folder / "gateway" / "haproxy.cfg").exists():
            texts["haproxy.cfg"] = path.read_text()
        return texts


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=sk-a\nSTACKGEN_ENGINE_KEY=sk-b\n")
    world = World(tmp_path, monkeypatch)
    with world.handles:
        yield Stack(world)


def two_replicas(**fields: Any) -> dict[str, Any]:
    return {**VLLM, "replicas": 2, **fields}


def fails_with(service: str, arg: str = "--no-such") -> Callable[[str, dict[str, Any]], bool]:
    """A service that fails to start if its command contains `arg`."""
    return lambda name, definition: name == service and arg in definition["command"]


def test_update_recreates_one_replica_at_a_time(stack: Stack) -> None:
    stack.run(two_replicas())
    done = stack.update(two_replicas(max_num_seqs=8))
    assert (done.updated, stack.downtime) == (["vllm-m", "vllm-m-2"], [])
    assert stack.world.happened_in_order("drain vllm-m", "up vllm-m", "ready vllm-m", "drain vllm-m-2", "up vllm-m-2")


def test_new_gateway_that_fails_to_start_is_rolled_back(stack: Stack) -> None:
    stack.run(two_replicas())
    stack.world.is_broken = lambda name, definition: definition["image"] == NEW
    assert "gateway" in stack.fail_update(two_replicas(), gateway={"image": NEW})


def test_rollback_uses_the_applied_files_after_a_render(stack: Stack) -> None:
    """`render` has overwritten the files that created what runs; only the applied files still hold them."""
    stack.run(two_replicas())
    stack.update(two_replicas(max_num_seqs=8))
    files = stack.files()
    stack.write(two_replicas(max_num_seqs=8), gateway={"image": NEW})
    write_files(compare(open_stack(str(stack.world.folder)).files(), stack.world.folder), stack.world.folder)
    stack.world.is_broken = lambda name, definition: definition["image"] == NEW
    before = stack.world.running()
    with pytest.raises(StartError, match="rolled back: the previous services run again"):
        stack.update()
    assert (stack.world.running(), stack.files()) == (before, files)


def test_replica_that_fails_behind_a_new_gateway_rolls_back_both(stack: Stack) -> None:
    stack.run(two_replicas())
    stack.world.is_broken = fails_with("vllm-m-2")
    stack.fail_update(two_replicas(extra_args=["--no-such"]), gateway={"image": NEW})
    assert stack.world.happened_in_order(
        "up gateway", "up vllm-m", "up vllm-m-2", "up gateway", "up vllm-m-2", "up vllm-m"
    )


def test_removing_the_gateway_frees_its_port_first(stack: Stack) -> None:
    """An engine takes over its port, so it stops first; nothing can be drained after that."""
    stack.run(two_replicas())
    done = stack.update(two_replicas(), gateway=False)
    assert stack.world.running().keys() == {"vllm-m", "vllm-m-2"}
    assert done.removed == ["gateway"]
    assert stack.world.happened_in_order("stop gateway", "up vllm-m", "up vllm-m-2", "remove gateway")
    assert len([line for line in stack.downtime if "is not behind a gateway" in line]) == 2
    assert "the gateway is removed" in stack.downtime[-1]


def test_failed_replica_brings_the_removed_gateway_back(stack: Stack) -> None:
    stack.run(two_replicas())
    stack.world.is_broken = fails_with("vllm-m-2")
    stack.fail_update(two_replicas(extra_args=["--no-such"]), gateway=False)
    assert stack.world.actions[-1] == "restart stopped gateway"


def test_added_gateway_takes_over_the_port_of_an_engine(stack: Stack) -> None:
    stack.run(VLLM, gateway=False)
    stack.world.is_broken = lambda name, definition: definition["image"] == NEW
    stack.fail_update(VLLM, gateway={"image": NEW})
    stack.world.is_broken = lambda name, definition: False
    assert stack.update(VLLM).started == ["gateway"]
    assert "is not behind a gateway" in stack.downtime[0] and "took 41 s" in stack.downtime[0]
    assert "a gateway is added" in stack.downtime[-1]


def test_router_starts_after_the_gateway_and_replicas_joined_its_network(stack: Stack) -> None:
    stack.run(two_replicas())
    done = stack.update(two_replicas(cache_aware=True))
    assert (done.started, done.updated) == (["router-m"], ["gateway", "vllm-m", "vllm-m-2"])
    assert stack.world.happened_in_order("up gateway", "up vllm-m", "up vllm-m-2", "up router-m", "ready router-m")
    assert [line[:18] for line in stack.downtime] == ["the gateway itself"]
    assert not stack.world.containers["gateway"].drained
    # and removed again
    done = stack.update(two_replicas())
    assert done.removed == ["router-m"]
    assert stack.world.running().keys() == {"gateway", "vllm-m", "vllm-m-2"}


def test_router_that_fails_to_start_is_rolled_back(stack: Stack) -> None:
    stack.run(two_replicas())
    stack.world.is_broken = lambda name, definition: name == "router-m"
    stack.fail_update(two_replicas(cache_aware=True))


def test_added_replica_behind_a_router_causes_no_downtime(stack: Stack) -> None:
    stack.run(two_replicas(cache_aware=True))
    done = stack.update(two_replicas(cache_aware=True, replicas=3))
    assert (done.started, done.updated, stack.downtime) == (["vllm-m-3"], ["router-m"], [])
    assert stack.world.happened_in_order("drain router-m", "up vllm-m-3", "reload", "up router-m", "ready router-m")
    stack.world.is_broken = fails_with("vllm-m-2")
    stack.fail_update(two_replicas(cache_aware=True, replicas=3, extra_args=["--no-such"]))


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_tls_and_an_added_replica_need_a_new_gateway(stack: Stack) -> None:
    """The old gateway has no certificate mounted, so it could not load the new configuration."""
    stack.run(two_replicas())
    encrypted = {**PLAIN, "tls": "generate"}
    done = stack.update(two_replicas(replicas=3), gateway=encrypted)
    assert (done.started, done.updated) == (["vllm-m-3"], ["gateway"])
    assert stack.world.happened_in_order("up vllm-m-3", "up gateway")
    # a rollback from the last step, after which the new gateway could not load the old configuration
    stack.world.is_broken = fails_with("vllm-m")
    stack.fail_update(two_replicas(replicas=3, extra_args=["--no-such"]))


def test_surplus_replica_is_kept_until_the_rest_succeeded(stack: Stack) -> None:
    stack.run(two_replicas())
    stack.world.is_broken = fails_with("vllm-m")
    stack.fail_update({**VLLM, "extra_args": ["--no-such"]})
    assert "stop vllm-m-2" not in stack.world.actions
    stack.world.is_broken = lambda name, definition: False
    assert stack.update(VLLM).removed == ["vllm-m-2"]
    assert stack.world.happened_in_order("drain vllm-m-2", "reload", "up vllm-m", "stop vllm-m-2", "remove vllm-m-2")


def test_model_on_the_only_gpu_is_stopped_before_its_successor_starts(stack: Stack) -> None:
    stack.run({**VLLM, "gpus": [0]})
    other = {**VLLM, "model": "./q", "served_names": ["q"], "gpus": [0]}
    stack.world.is_broken = lambda name, definition: name == "vllm-q"
    stack.fail_update(other)
    assert stack.world.happened_in_order(
        "drain vllm-m", "stop vllm-m", "up vllm-q", "reload", "remove vllm-q", "restart stopped vllm-m"
    )
    (line,) = stack.downtime
    assert "vllm-m stops before vllm-q starts on the same GPU" in line and "the last start of vllm-m took 41 s" in line
    stack.world.is_broken = lambda name, definition: False
    done = stack.update(other)
    assert (done.started, done.removed) == (["vllm-q"], ["vllm-m"])


def test_gpu_of_a_second_replica_changes_hands_without_downtime(stack: Stack) -> None:
    """The first replica keeps answering."""
    stack.run(two_replicas(gpus=[0, 1]))
    other = {**VLLM, "model": "./q", "served_names": ["q"], "gpus": [1]}
    assert stack.update({**VLLM, "gpus": [0]}, other).removed == ["vllm-m-2"]
    assert stack.downtime == []
    assert stack.world.happened_in_order("drain vllm-m-2", "stop vllm-m-2", "up vllm-q")


def test_replica_takes_over_the_gpu_of_a_removed_one(stack: Stack) -> None:
    stack.run(two_replicas(gpus=[0, 1]))
    whole = {**VLLM, "gpus": [0, 1]}
    stack.world.is_broken = fails_with("vllm-m")
    stack.fail_update({**whole, "extra_args": ["--no-such"]})
    assert stack.world.happened_in_order("stop vllm-m-2", "up vllm-m", "up vllm-m", "restart stopped vllm-m-2")
    stack.world.is_broken = lambda name, definition: False
    assert stack.update(whole).updated == ["vllm-m"]


def test_swapped_gpus_report_downtime(stack: Stack) -> None:
    """One of the two has to stop first."""
    first, second = {**VLLM, "gpus": [0]}, {**VLLM, "model": "./q", "served_names": ["q"], "gpus": [1]}
    stack.run(first, second)
    stack.world.is_broken = fails_with("vllm-q")
    stack.fail_update({**first, "gpus": [1]}, {**second, "gpus": [0], "extra_args": ["--no-such"]})
    stack.world.is_broken = fails_with("vllm-m")
    stack.fail_update({**first, "gpus": [1], "extra_args": ["--no-such"]}, {**second, "gpus": [0]})
    stack.world.is_broken = lambda name, definition: False
    assert stack.update({**first, "gpus": [1]}, {**second, "gpus": [0]}).updated == ["vllm-m", "vllm-q"]
    assert len(stack.downtime) == 2
    # also between two replicas of one model, as none would be left
    stack.run(two_replicas(gpus=[0, 1]))
    stack.update(two_replicas(gpus=[1, 0]))
    assert "is down until then" in stack.downtime[0]


def test_shifted_gpus_need_no_stop(stack: Stack) -> None:
    a, b = two_replicas(gpus=1), two_replicas(gpus=1, model="./q", served_names=["q"])
    stack.run({**a, "replicas": 2}, {**b, "replicas": 4})
    done = stack.update({**a, "replicas": 3}, {**b, "replicas": 4})
    assert (done.started, done.updated) == (["vllm-m-3"], ["vllm-q-4", "vllm-q-3"])
    assert stack.downtime == []


def test_fastchat_workers_are_added_and_removed(stack: Stack) -> None:
    chat = {"model": "./c", "engine": "fastchat", "served_names": ["c"], "replicas": 2}
    stack.run(chat)
    assert stack.update({**chat, "replicas": 1}).removed == ["fastchat-c-2"]
    assert "can't drain a worker" in stack.downtime[0]
    assert stack.update(chat).started == ["fastchat-c-2"]
    stack.world.is_broken = fails_with("fastchat-c-2", "3")
    stack.fail_update({**chat, "worker_concurrency": 3})
    # another engine for the same name, on the CPU: both run until the new one is ready
    stack.world.is_broken = lambda name, definition: False
    done = stack.update({**VLLM, "model": "./c", "served_names": ["c"]})
    assert done.started == ["vllm-c"] and "fastchat-api" in done.removed
    assert stack.world.running().keys() == {"gateway", "vllm-c"}


def test_nothing_is_written_if_no_certificate_can_be_created(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.run(two_replicas())
    before = stack.files()
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(stack.world.folder))
    stack.write(two_replicas(), gateway={**PLAIN, "tls": "generate"})
    assert main(["update", str(stack.world.folder), "--yes"]) == 3
    monkeypatch.setenv("PATH", path)
    assert stack.files() == before


def test_renewed_certificate_is_reloaded_or_the_gateway_restarted(stack: Stack) -> None:
    folder = stack.world.folder
    own = {**PLAIN, "tls": {"certificate": "./own.crt", "key": "./own.key"}}
    (folder / "own.crt").write_text("first")
    (folder / "own.key").write_text("key")
    stack.run(two_replicas(), gateway=own)
    assert stack.update().updated == [] and stack.downtime == []
    # written in place: a reload reads it, although its mtime is old
    (folder / "own.crt").write_text("second")
    os.utime(folder / "own.crt", (1, 1))
    assert stack.update().reloaded
    assert stack.downtime == []
    # replaced by another file: the container still sees the old one
    (folder / "new").write_text("third")
    (folder / "new").replace(folder / "own.crt")
    stack.world.actions.clear()
    plan = open_stack(str(folder)).plan
    reload_if_changed(plan, folder, restart=False)
    assert "restart gateway" not in stack.world.actions
    assert stack.update().updated == ["gateway"]
    assert "the gateway itself" in stack.downtime[0]
    assert "restart gateway" in stack.world.actions
    assert not stack.update().reloaded
    # `up` restarts it without asking
    (folder / "new").write_text("fourth")
    (folder / "new").replace(folder / "own.crt")
    assert reload_if_changed(plan, folder)
    assert stack.world.actions[-1] == "restart gateway"


def test_update_prints_the_warnings_of_the_plan(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stack.run(two_replicas())
    stack.write(two_replicas(), gateway=False)
    assert main(["update", str(stack.world.folder)]) == 2
    output = capsys.readouterr().err
    assert "warning: with `gateway: false`, these paths answer without a key" in output
    assert "To continue despite the downtime, add --yes" in output
