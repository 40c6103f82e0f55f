"""A rolling update and a failover on real vLLM replicas under load; test_rolling.py has the rest, on a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.rolling import (
    FIRST,
    SECOND,
    assert_no_failures,
    container_id,
    edit_model,
    load,
    rolling_data,
    update,
)
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.front, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def running(
    vllm_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    """Two tiny replicas behind the gateway, both up. Tests leave both up, and stack.yaml as it runs."""
    with LiveStack(tmp_path_factory.mktemp("rolling"), rolling_data(vllm_image, haproxy_image, tiny_model)) as started:
        started.stackgen("up", str(started.folder), "--timeout", "900")
        yield started


def test_a_killed_replica_interrupts_only_its_own_streams(
    running: LiveStack, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(running) as traffic:
        running.compose("kill", SECOND)
        traffic.wait_for_requests(60)
        before = traffic.servers.get(SECOND, 0)
        traffic.wait_for_requests(20)
        assert traffic.servers.get(SECOND, 0) == before
        # `update` starts stopped services too
        update(running)
        traffic.wait_for_requests(60)
    assert_no_failures(capsys, traffic, "kill one of two, and start it again")
    assert traffic.interrupted <= 4
    assert traffic.servers[SECOND] > before


def test_a_rolling_update_loses_no_request(running: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = container_id(running, FIRST), container_id(running, SECOND), container_id(running, "gateway")
    edit_model(running, max_num_seqs=8)
    with load(running) as traffic:
        done = update(running)
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "rolling update of a flag")
    after = container_id(running, FIRST), container_id(running, SECOND), container_id(running, "gateway")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert traffic.interrupted == 0
    assert "downtime:" not in done.stderr
    assert "8" in running.inspect(FIRST)["Config"]["Cmd"]
    assert "everything runs as rendered" in update(running).stdout
