"""Replicas come, go, die and change behind the gateway under load, and no request is lost. Counts are printed."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.runtimes.compose.gateway import running_gateway
from tests.live.load import Load
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.front, pytest.mark.timeout(1200)]

PORT = 18810
FIRST, SECOND = "vllm-tiny", "vllm-tiny-2"


@pytest.fixture(scope="module")
def stack(
    vllm_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    """Two tiny replicas behind the gateway."""
    model = {
        "model": str(tiny_model), "engine": "vllm", "served_names": ["tiny"], "image": vllm_image, "replicas": 2,
        "max_model_len": 1024, "cpu_kv_cache_gib": 1, "dtype": "bfloat16", "enforce_eager": True,
        # two replicas would both bind the first core
        "extra_env": {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
    }  # fmt: skip
    data = {"name": "roll-test", "port": PORT, "gateway": {"image": haproxy_image}, "models": [model]}
    with LiveStack(tmp_path_factory.mktemp("rolling"), data) as started:
        yield started


@pytest.fixture
def running(stack: LiveStack) -> LiveStack:
    """Both replicas up. Tests leave it so, and with a stack.yaml that is what runs: each start takes long."""
    if stack.stopped:
        stack.stackgen("up", str(stack.folder), "--timeout", "900")
        stack.stopped = False
    return stack


def load(stack: LiveStack) -> Load:
    return Load(PORT, [stack.key])


def change(stack: LiveStack, **fields: Any) -> None:
    path = stack.folder / "stack.yaml"
    data = yaml.safe_load(path.read_text())
    data["models"][0] |= fields
    path.write_text("# ours\n" + yaml.safe_dump(data, sort_keys=False))


def change_stack(stack: LiveStack, **fields: Any) -> None:
    path = stack.folder / "stack.yaml"
    path.write_text("# ours\n" + yaml.safe_dump(yaml.safe_load(path.read_text()) | fields, sort_keys=False))


def update(stack: LiveStack, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = stack.stackgen_raw("update", str(stack.folder), "--progress", "plain", "--timeout", "900", *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def report(capsys: pytest.CaptureFixture[str], under: Load, what: str) -> None:
    with capsys.disabled():
        print(f"\n  {under.told(what)}")
    assert not under.failures, under.failures[:5]


def names(stack: LiveStack) -> set[str]:
    return set(stack.compose("ps", "--services", "--status", "running").stdout.split())


def created(stack: LiveStack, service: str) -> str:
    return str(stack.inspect(service)["Id"])


def test_scaling_down_and_up_loses_no_request(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    change(running)
    first = created(running, FIRST)
    with load(running) as under:
        running.stackgen("scale", "tiny=1", str(running.folder))
        assert names(running) == {FIRST, "gateway"}
        under.more(20)
    report(capsys, under, "scale 2 → 1")
    _a_gap_is_told_and_asked_for(running)
    assert (running.folder / "stack.yaml").read_text().startswith("# ours\n")
    with load(running) as under:
        running.stackgen("scale", "tiny=2", str(running.folder), "--timeout", "900")
        under.more(40)
    report(capsys, under, "scale 1 → 2")
    assert under.servers.keys() == {FIRST, SECOND}
    assert created(running, FIRST) == first  # nothing that was not scaled was started anew


def _a_gap_is_told_and_asked_for(running: LiveStack) -> None:
    """While there is one replica only; nothing is started."""
    change(running, max_num_seqs=4)
    first = created(running, FIRST)
    done = running.stackgen_raw("update", str(running.folder))
    assert done.returncode == 2
    assert "no other replica" in done.stderr
    assert "its last start took" in done.stderr
    assert created(running, FIRST) == first
    change(running, max_num_seqs=None)


def test_a_killed_replica_loses_only_what_it_was_streaming(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(running) as under:
        running.compose("kill", SECOND)
        under.more(60)
        before = under.servers.get(SECOND, 0)
        under.more(20)
        assert under.servers.get(SECOND, 0) == before
        # `update` starts what is down
        update(running)
        under.more(60)
    report(capsys, under, "kill one of two, and start it again")
    assert under.cut <= 4
    assert under.servers[SECOND] > before


def test_a_rolling_update_loses_no_request(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = created(running, FIRST), created(running, SECOND), created(running, "gateway")
    change(running, max_num_seqs=8)
    with load(running) as under:
        done = update(running)
        under.more(20)
    report(capsys, under, "rolling update of a flag")
    after = created(running, FIRST), created(running, SECOND), created(running, "gateway")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert under.cut == 0
    assert "a gap" not in done.stderr
    assert "8" in running.inspect(FIRST)["Config"]["Cmd"]
    assert "all runs as it is rendered" in update(running).stdout


def test_an_update_that_fails_is_rolled_back(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    rendered, second = (running.folder / "compose.yaml").read_text(), created(running, SECOND)
    ours = (running.folder / "stack.yaml").read_text()
    # the second changes the gateway's files as well
    change(running, extra_args=["--no-such-flag"], max_num_seqs=6)
    # so what runs is on no disk any more, but for what was kept when it was last known to work
    running.stackgen("render", str(running.folder))
    with load(running) as under:
        done = update(running, code=1)
        under.more(40)
    report(capsys, under, "update to a broken flag, rolled back")
    assert under.cut == 0
    assert "--no-such-flag" in done.stderr
    assert "rolled back" in done.stderr
    assert (running.folder / "compose.yaml").read_text() == rendered
    assert created(running, SECOND) == second  # it never came to its turn
    assert "--no-such-flag" in (running.folder / "stack.yaml").read_text()
    assert running.inspect(FIRST)["State"]["Health"]["Status"] == "healthy"
    (running.folder / "stack.yaml").write_text(ours)
    assert "all runs as it is rendered" in update(running).stdout


def test_a_replica_that_does_not_come_up_is_taken_away_again(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (running.folder / name).read_text() for name in ("stack.yaml", "compose.yaml", "stackgen.lock")}
    with load(running) as under:
        done = running.stackgen_raw("scale", "tiny=3", str(running.folder), "--timeout", "5")
        under.more(20)
    report(capsys, under, "scale to a third replica that does not come up in time")
    assert done.returncode == 1, done.stderr
    assert "no answer in time" in done.stderr
    assert "stack.yaml is as it was" in done.stderr
    assert {name: (running.folder / name).read_text() for name in before} == before
    assert names(running) == {FIRST, SECOND, "gateway"}


def test_a_replica_that_was_to_go_stays_when_the_rest_fails(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, second = (running.folder / "stack.yaml").read_text(), running.inspect(SECOND)
    change(running, replicas=1, extra_args=["--no-such-flag"])
    done = update(running, "--yes", code=1)
    assert "rolled back" in done.stderr
    assert names(running) == {FIRST, SECOND, "gateway"}
    after = running.inspect(SECOND)
    assert (after["Id"], after["State"]["StartedAt"]) == (second["Id"], second["State"]["StartedAt"])
    (running.folder / "stack.yaml").write_text(ours)
    assert "all runs as it is rendered" in update(running).stdout
    with load(running) as under:
        under.more(20)
    report(capsys, under, "after a rollback of a removal")
    assert under.servers.keys() == {FIRST, SECOND}


def test_a_gateway_that_can_not_start_is_rolled_back(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """Its new port is somebody else's, which shows when the old container is gone."""
    ours = (running.folder / "stack.yaml").read_text()
    with socket.create_server(("127.0.0.1", PORT + 1)):
        change_stack(running, port=PORT + 1)
        done = update(running, "--yes", code=1)
    assert "the gateway itself is made anew" in done.stderr
    assert "rolled back: what ran before runs again" in done.stderr
    (running.folder / "stack.yaml").write_text(ours)
    with load(running) as under:
        under.more(20)
    report(capsys, under, "after a rollback of the gateway")
    assert "all runs as it is rendered" in update(running).stdout


def test_a_router_comes_and_goes(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """With a network that neither the old gateway nor the old replicas are on."""
    built = subprocess.run(["scripts/build-image", "vllm-router"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ours = (running.folder / "stack.yaml").read_text()
    change(running, cache_aware=True)
    done = update(running, "--yes")
    assert "no other replica" not in done.stderr
    assert names(running) == {FIRST, SECOND, "gateway", "router-tiny"}
    with load(running) as under:
        under.more(20)
    report(capsys, under, "a router more")
    assert under.servers.keys() == {"router-tiny"}
    (running.folder / "stack.yaml").write_text(ours)
    update(running, "--yes")
    assert names(running) == {FIRST, SECOND, "gateway"}
    with load(running) as under:
        under.more(20)
    report(capsys, under, "and away again")


def test_up_reloads_a_gateway_whose_files_changed(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    path = running.folder / "stack.yaml"
    before, data = created(running, "gateway"), yaml.safe_load(path.read_text())
    data["gateway"]["keys"] = [{"name": "team", "requests_per_minute": 60}]
    path.write_text("# ours\n" + yaml.safe_dump(data, sort_keys=False))
    with load(running) as under:
        running.stackgen("up", str(running.folder), "--timeout", "900")
        under.more(20)
    report(capsys, under, "reload by up")
    gateway = running_gateway("roll-test")
    assert gateway and not gateway.behind(running.folder)
    assert created(running, "gateway") == before
    assert "team 60" in running.execute("gateway", "cat", "/gateway/rates.map").stdout


def test_a_broken_configuration_of_the_gateway_is_not_loaded(running: LiveStack) -> None:
    path = running.folder / "gateway" / "haproxy.cfg"
    good = path.read_text()
    path.write_text(good + "nonsense\n")
    try:
        done = running.stackgen_raw("up", str(running.folder))
        assert done.returncode == 1, done.stderr
        assert "refuses its new configuration" in done.stderr
        assert "nonsense" in done.stderr
        with load(running) as under:
            under.more(8)
        assert not under.failures
    finally:
        path.write_text(good)


def test_a_model_that_nobody_has(running: LiveStack) -> None:
    before = (running.folder / "stack.yaml").read_text()
    done = running.stackgen_raw("scale", "tinny=2", str(running.folder))
    assert done.returncode == 2
    assert "did you mean tiny?" in done.stderr
    assert (running.folder / "stack.yaml").read_text() == before
