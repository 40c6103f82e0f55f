"""A rolling update of FastChat's workers under load: the gap is told before, and no more than it says is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.load import Load
from tests.live.stacks import LiveStack
from tests.live.test_rolling import change, created, update

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


def test_workers_are_made_anew_one_by_one(stack: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = [created(stack, name) for name in (*WORKERS, "fastchat-api", "gateway")]
    change(stack, extra_args=["--limit-worker-concurrency", "4"])
    # FastChat can't drain a worker: that is told, and wants a yes
    refused = update(stack, code=2)
    assert refused.stderr.count("FastChat can't drain a worker") == 2 and "nothing was changed" in refused.stderr
    assert [created(stack, name) for name in WORKERS] == before[:2]
    with Load(PORT, [stack.key]) as under:
        update(stack, "--yes")
        at_most = len(under.failures)
        under.more(40)
    with capsys.disabled():
        print(f"\n  {under.told('rolling update of FastChat workers')}, of whom none afterwards")
    # what a worker was at work on when it was stopped, and nothing besides: each client has one request at a time
    assert at_most <= under.clients * len(WORKERS) and under.cut <= under.clients * len(WORKERS)
    assert len(under.failures) == at_most, under.failures
    assert under.requests > 10 * at_most
    after = [created(stack, name) for name in (*WORKERS, "fastchat-api", "gateway")]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True, True]
