"""Changes to a running stack behind a made-up Docker engine: their order, their gaps, and the way back from each."""

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
from stackgen.runtimes.compose.gateway import reload_changed
from stackgen.runtimes.rollout.rolling import Done, carry_out, look
from stackgen.stack.folder import open_stack
from tests.runtimes.world import World

VLLM = {"model": "./m", "engine": "vllm", "served_names": ["m"]}
IMAGE, NEW = "haproxy:3.2.26", "haproxy:3.2.99"
PLAIN: dict[str, Any] = {"image": IMAGE}


class Stack:
    """The stack of a test: what runs, and what is asked for next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told: list[str] = []

    def write(self, *models: dict[str, Any], gateway: Any = PLAIN, **more: Any) -> None:
        data = {"name": "n", "gateway": gateway, "models": list(models), **more}
        (self.world.folder / "stack.yaml").write_text(yaml.safe_dump(data))

    def run(self, *models: dict[str, Any], gateway: Any = PLAIN, **more: Any) -> None:
        self.write(*models, gateway=gateway, **more)
        stack = open_stack(str(self.world.folder))
        write_files(compare(stack.files(), self.world.folder), self.world.folder)
        if "tls" in (gateway if isinstance(gateway, dict) else {}):
            from stackgen.runtimes.compose.certificate import ensure_certificate

            ensure_certificate(stack.spec, stack.plan, stack.folder)
        self.world.up()

    def update(self, *models: dict[str, Any], gateway: Any = PLAIN, **more: Any) -> Done:
        if models:
            self.write(*models, gateway=gateway, **more)
        stack = open_stack(str(self.world.folder))
        work = look(stack)
        self.told = list(work.gaps)
        return carry_out(stack, work, lambda service, phase: None)

    def fails(self, *models: dict[str, Any], gateway: Any = PLAIN, **more: Any) -> str:
        """An update that fails, after which all is as it was; what it says."""
        before, files = self.world.runs(), self.files()
        with pytest.raises(StartError) as caught:
            self.update(*models, gateway=gateway, **more)
        assert "rolled back: what ran before runs again" in caught.value.message
        assert self.world.runs() == before
        assert self.files() == files
        (front,) = [one for name, one in self.world.containers.items() if name == "gateway"] or [None]
        assert not front or not front.drained
        return caught.value.message

    def files(self) -> dict[str, str]:
        found = {"compose.yaml": (self.world.folder / "compose.yaml").read_text()}
        if (path := self.world.folder / "gateway" / "haproxy.cfg").exists():
            found["haproxy.cfg"] = path.read_text()
        return found


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=sk-a\nSTACKGEN_ENGINE_KEY=sk-b\n")
    world = World(tmp_path, monkeypatch)
    with world.handles:
        yield Stack(world)


def two(**fields: Any) -> dict[str, Any]:
    return {**VLLM, "replicas": 2, **fields}


def flag(service: str, word: str = "--no-such") -> Callable[[str, dict[str, Any]], bool]:
    return lambda name, definition: name == service and word in definition["command"]


def test_a_replica_at_a_time(stack: Stack) -> None:
    stack.run(two())
    done = stack.update(two(max_num_seqs=8))
    assert (done.updated, stack.told) == (["vllm-m", "vllm-m-2"], [])
    assert stack.world.order("drain vllm-m", "up vllm-m", "ready vllm-m", "drain vllm-m-2", "up vllm-m-2")


def test_a_new_gateway_that_does_not_come_up(stack: Stack) -> None:
    stack.run(two())
    stack.world.broken = lambda name, definition: definition["image"] == NEW
    assert "gateway" in stack.fails(two(), gateway={"image": NEW})


def test_a_gateway_that_fails_after_it_was_rendered(stack: Stack) -> None:
    """What ran is on no disk then, but for what was kept."""
    stack.run(two())
    stack.update(two(max_num_seqs=8))
    files = stack.files()
    stack.write(two(max_num_seqs=8), gateway={"image": NEW})
    write_files(compare(open_stack(str(stack.world.folder)).files(), stack.world.folder), stack.world.folder)
    stack.world.broken = lambda name, definition: definition["image"] == NEW
    before = stack.world.runs()
    with pytest.raises(StartError, match="rolled back: what ran before"):
        stack.update()
    assert (stack.world.runs(), stack.files()) == (before, files)


def test_a_new_gateway_and_a_replica_that_does_not_come_up(stack: Stack) -> None:
    stack.run(two())
    stack.world.broken = flag("vllm-m-2")
    stack.fails(two(extra_args=["--no-such"]), gateway={"image": NEW})
    assert stack.world.order("up gateway", "up vllm-m", "up vllm-m-2", "up gateway", "up vllm-m-2", "up vllm-m")


def test_without_its_gateway(stack: Stack) -> None:
    """An engine gets its port, so it goes first; nothing can be drained after it."""
    stack.run(two())
    done = stack.update(two(), gateway=False)
    assert stack.world.runs().keys() == {"vllm-m", "vllm-m-2"}
    assert done.removed == ["gateway"]
    assert stack.world.order("stop gateway", "up vllm-m", "up vllm-m-2", "remove gateway")
    assert len([gap for gap in stack.told if "no gateway before it" in gap]) == 2
    assert "the gateway goes" in stack.told[-1]


def test_without_its_gateway_and_a_replica_that_does_not_come_up(stack: Stack) -> None:
    stack.run(two())
    stack.world.broken = flag("vllm-m-2")
    stack.fails(two(extra_args=["--no-such"]), gateway=False)
    assert stack.world.said[-1] == "start again gateway"


def test_a_gateway_where_none_was(stack: Stack) -> None:
    """It gets the port that an engine gives up."""
    stack.run(VLLM, gateway=False)
    stack.world.broken = lambda name, definition: definition["image"] == NEW
    stack.fails(VLLM, gateway={"image": NEW})
    stack.world.broken = lambda name, definition: False
    assert stack.update(VLLM).started == ["gateway"]
    assert "no gateway before it" in stack.told[0] and "took 41 s" in stack.told[0]
    assert "the gateway is new" in stack.told[-1]


def test_a_router_needs_replicas_on_its_network_and_a_gateway_too(stack: Stack) -> None:
    stack.run(two())
    done = stack.update(two(cache_aware=True))
    assert (done.started, done.updated) == (["router-m"], ["gateway", "vllm-m", "vllm-m-2"])
    assert stack.world.order("up gateway", "up vllm-m", "up vllm-m-2", "up router-m", "ready router-m")
    assert [gap[:18] for gap in stack.told] == ["the gateway itself"]
    assert not stack.world.containers["gateway"].drained
    # and away again
    done = stack.update(two())
    assert done.removed == ["router-m"]
    assert stack.world.runs().keys() == {"gateway", "vllm-m", "vllm-m-2"}


def test_a_router_that_does_not_come_up(stack: Stack) -> None:
    stack.run(two())
    stack.world.broken = lambda name, definition: name == "router-m"
    stack.fails(two(cache_aware=True))


def test_one_replica_more_behind_a_router(stack: Stack) -> None:
    stack.run(two(cache_aware=True))
    done = stack.update(two(cache_aware=True, replicas=3))
    assert (done.started, done.updated, stack.told) == (["vllm-m-3"], ["router-m"], [])
    assert stack.world.order("drain router-m", "up vllm-m-3", "reload", "up router-m", "ready router-m")
    stack.world.broken = flag("vllm-m-2")
    stack.fails(two(cache_aware=True, replicas=3, extra_args=["--no-such"]))


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
def test_tls_and_one_replica_more(stack: Stack) -> None:
    """The old gateway could not load the new configuration."""
    stack.run(two())
    encrypted = {**PLAIN, "tls": "generate"}
    done = stack.update(two(replicas=3), gateway=encrypted)
    assert (done.started, done.updated) == (["vllm-m-3"], ["gateway"])
    assert stack.world.order("up vllm-m-3", "up gateway")
    # the way back from its end, where the new gateway could not load the old configuration
    stack.world.broken = flag("vllm-m")
    stack.fails(two(replicas=3, extra_args=["--no-such"]))


def test_fewer_replicas_and_a_flag_that_fails(stack: Stack) -> None:
    """What is to go stays until the rest went well."""
    stack.run(two())
    stack.world.broken = flag("vllm-m")
    stack.fails({**VLLM, "extra_args": ["--no-such"]})
    assert "stop vllm-m-2" not in stack.world.said
    stack.world.broken = lambda name, definition: False
    assert stack.update(VLLM).removed == ["vllm-m-2"]
    assert stack.world.order("drain vllm-m-2", "reload", "up vllm-m", "stop vllm-m-2", "remove vllm-m-2")


def test_another_model_on_the_only_gpu(stack: Stack) -> None:
    stack.run({**VLLM, "gpus": [0]})
    other = {**VLLM, "model": "./q", "served_names": ["q"], "gpus": [0]}
    stack.world.broken = lambda name, definition: name == "vllm-q"
    stack.fails(other)
    assert stack.world.order(
        "drain vllm-m", "stop vllm-m", "up vllm-q", "reload", "remove vllm-q", "start again vllm-m"
    )
    (gap,) = stack.told
    assert "vllm-m is stopped before vllm-q starts, which gets its GPU" in gap and "last start took 41 s" in gap
    stack.world.broken = lambda name, definition: False
    done = stack.update(other)
    assert (done.started, done.removed) == (["vllm-q"], ["vllm-m"])


def test_another_model_on_a_gpu_of_a_second_replica(stack: Stack) -> None:
    """The first goes on answering, so there is no gap."""
    stack.run(two(gpus=[0, 1]))
    other = {**VLLM, "model": "./q", "served_names": ["q"], "gpus": [1]}
    assert stack.update({**VLLM, "gpus": [0]}, other).removed == ["vllm-m-2"]
    assert stack.told == []
    assert stack.world.order("drain vllm-m-2", "stop vllm-m-2", "up vllm-q")


def test_a_replica_that_gets_the_gpu_of_one_that_goes(stack: Stack) -> None:
    stack.run(two(gpus=[0, 1]))
    whole = {**VLLM, "gpus": [0, 1]}
    stack.world.broken = flag("vllm-m")
    stack.fails({**whole, "extra_args": ["--no-such"]})
    assert stack.world.order("stop vllm-m-2", "up vllm-m", "up vllm-m", "start again vllm-m-2")
    stack.world.broken = lambda name, definition: False
    assert stack.update(whole).updated == ["vllm-m"]


def test_gpus_that_are_swapped(stack: Stack) -> None:
    """One has to stop first; and it is told."""
    first, second = {**VLLM, "gpus": [0]}, {**VLLM, "model": "./q", "served_names": ["q"], "gpus": [1]}
    stack.run(first, second)
    stack.world.broken = flag("vllm-q")
    stack.fails({**first, "gpus": [1]}, {**second, "gpus": [0], "extra_args": ["--no-such"]})
    stack.world.broken = flag("vllm-m")
    stack.fails({**first, "gpus": [1], "extra_args": ["--no-such"]}, {**second, "gpus": [0]})
    stack.world.broken = lambda name, definition: False
    assert stack.update({**first, "gpus": [1]}, {**second, "gpus": [0]}).updated == ["vllm-m", "vllm-q"]
    assert len(stack.told) == 2
    # replicas of one model too, where none would be left
    stack.run(two(gpus=[0, 1]))
    stack.update(two(gpus=[1, 0]))
    assert "it answers nothing meanwhile" in stack.told[0]


def test_gpus_that_move_up_need_no_stop(stack: Stack) -> None:
    a, b = two(gpus=1), two(gpus=1, model="./q", served_names=["q"])
    stack.run({**a, "replicas": 2}, {**b, "replicas": 4})
    done = stack.update({**a, "replicas": 3}, {**b, "replicas": 4})
    assert (done.started, done.updated) == (["vllm-m-3"], ["vllm-q-4", "vllm-q-3"])
    assert stack.told == []


def test_fastchat_comes_and_goes(stack: Stack) -> None:
    chat = {"model": "./c", "engine": "fastchat", "served_names": ["c"], "replicas": 2}
    stack.run(chat)
    assert stack.update({**chat, "replicas": 1}).removed == ["fastchat-c-2"]
    assert "can't drain a worker" in stack.told[0]
    assert stack.update(chat).started == ["fastchat-c-2"]
    stack.world.broken = flag("fastchat-c-2", "3")
    stack.fails({**chat, "worker_concurrency": 3})
    # the engine of a name changes, on the CPU: both run until the new one is there
    stack.world.broken = lambda name, definition: False
    done = stack.update({**VLLM, "model": "./c", "served_names": ["c"]})
    assert done.started == ["vllm-c"] and "fastchat-api" in done.removed
    assert stack.world.runs().keys() == {"gateway", "vllm-c"}


def test_nothing_is_written_where_no_certificate_can_be_made(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.run(two())
    before = stack.files()
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(stack.world.folder))
    stack.write(two(), gateway={**PLAIN, "tls": "generate"})
    assert main(["update", str(stack.world.folder), "--yes"]) == 3
    monkeypatch.setenv("PATH", path)
    assert stack.files() == before


def test_ones_own_certificate_renewed(stack: Stack) -> None:
    folder = stack.world.folder
    own = {**PLAIN, "tls": {"certificate": "./own.crt", "key": "./own.key"}}
    (folder / "own.crt").write_text("first")
    (folder / "own.key").write_text("key")
    stack.run(two(), gateway=own)
    assert stack.update().updated == [] and stack.told == []
    # written in place: a reload reads it, though its time of writing is an old one
    (folder / "own.crt").write_text("second")
    os.utime(folder / "own.crt", (1, 1))
    assert stack.update().reloaded
    assert stack.told == []
    # another file of the same name: the container holds the old one
    (folder / "new").write_text("third")
    (folder / "new").replace(folder / "own.crt")
    stack.world.said.clear()
    plan = open_stack(str(folder)).plan
    reload_changed(plan, folder, restart=False)
    assert "restart gateway" not in stack.world.said
    assert stack.update().updated == ["gateway"]
    assert "the gateway itself" in stack.told[0]
    assert "restart gateway" in stack.world.said
    assert not stack.update().reloaded
    # `up` does it without a question
    (folder / "new").write_text("fourth")
    (folder / "new").replace(folder / "own.crt")
    assert reload_changed(plan, folder)
    assert stack.world.said[-1] == "restart gateway"


def test_warnings_are_told(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stack.run(two())
    stack.write(two(), gateway=False)
    assert main(["update", str(stack.world.folder)]) == 2
    said = capsys.readouterr().err
    assert "warning: gateway: false leaves paths open" in said
    assert "--yes goes on" in said
