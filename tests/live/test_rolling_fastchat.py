"""A rolling update of FastChat workers under load: downtime is announced first, and no more than that is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.load import Load
from tests.live.stacks import LiveStack
from tests.live.test_rolling import container_id, edit_model, update

pytestmark = [pytest.mark.docker, pytest.mark.front, pytest.mark.timeout(600)]

PORT = 18815
WORKERS = ("fastchat-tiny", "fastchat-tiny-2")


@pytest.fixture(scope="module")
def stack(
    fastchat_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveStack]:
    model = {"model": str(tiny_model), "engine": "fastchat", "served_names": ["tiny"], "replicas": 2,
             "image": fastchat_image}  # fmt: skip
    data = {"name": "roll-fastchat", "port": PORT, "gateway": {"image": haproxy_image}, "models": [model]}
    with LiveStack(tmp_path_factory.mktemp("rolling"), data) as started:
        started.stackgen("up", str(started.folder), "--timeout", "300")
        yield started


def test_workers_are_recreated_one_by_one(stack: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = [container_id(stack, name) for name in (*WORKERS, "fastchat-api", "gateway")]
    edit_model(stack, extra_args=["--limit-worker-concurrency", "4"])
    # FastChat can't drain a worker, so the update asks for confirmation
    refused = update(stack, code=2)
    assert refused.stderr.count("FastChat can't drain a worker") == 2 and "nothing was changed" in refused.stderr
    assert [container_id(stack, name) for name in WORKERS] == before[:2]
    with Load(PORT, [stack.key]) as traffic:
        update(stack, "--yes")
        at_most = len(traffic.failures)
        traffic.wait_for_requests(40)
    with capsys.disabled():
        print(f"\n  {traffic.summary('rolling update of FastChat workers')}, none of them after the update")
    # only requests in flight on a stopped worker are lost, and each client has one request at a time
    assert at_most <= traffic.clients * len(WORKERS) and traffic.interrupted <= traffic.clients * len(WORKERS)
    assert len(traffic.failures) == at_most, traffic.failures
    assert traffic.requests > 10 * at_most
    after = [container_id(stack, name) for name in (*WORKERS, "fastchat-api", "gateway")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True, True]
