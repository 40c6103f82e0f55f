"""`stackgen upgrade` and `update` between two real builds of llama.cpp under load: no request is lost.

It has a stack of its own: the models of the shared stacks have an image of their own, or one replica.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stackgen.images.tags import VERSIONS, cpu_image_tag
from tests.live.containers import docker
from tests.live.load import Load
from tests.live.rolling import assert_no_failures, running_services, update
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]

PORT = 18950
OLD, NEW = "11401", VERSIONS["llamacpp"]
# no build of llama.cpp: the image of this number contains no llama-server, so its container exits at once
BROKEN = "999999"
REPLICAS = ("llamacpp-smol", "llamacpp-smol-2")


@pytest.fixture(scope="module")
def stack(
    llamacpp_image: str, old_llamacpp_image: str, haproxy_image: str, smollm2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LiveStack]:  # fmt: skip
    gguf = next(smollm2.with_name("smollm2-GGUF").glob("*.gguf"))
    model = {"model": str(gguf), "engine": "llamacpp", "served_names": ["smol"], "replicas": 2, "max_model_len": "1K",
             "engine_version": int(OLD), "extra_args": ["--threads", "1"]}  # fmt: skip
    data = {"name": "upgrade-test", "port": PORT, "gateway": {"image": haproxy_image}, "models": [model]}
    broken = cpu_image_tag("llamacpp", BROKEN)
    docker("tag", haproxy_image, broken)
    try:
        with LiveStack(tmp_path_factory.mktemp("upgrade"), data) as live:
            live.up()
            yield live
    finally:
        subprocess.run(["docker", "rmi", broken], capture_output=True)


def images(stack: LiveStack) -> list[str]:
    return [str(stack.inspect(name)["Config"]["Image"]) for name in REPLICAS]


def upgrade(stack: LiveStack, version: str) -> str:
    done = stack.run_stackgen("upgrade", str(stack.folder), "--to", version, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_upgrade_replaces_one_replica_at_a_time(stack: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    assert images(stack) == [cpu_image_tag("llamacpp", OLD)] * 2
    shown = upgrade(stack, NEW)
    assert f"llamacpp {OLD} -> {NEW}" in shown and f'+  engine_version: "{NEW}"' in shown
    assert "stackgen has no table of one of the versions (known: 11434)" in shown
    with Load(PORT, [stack.key], "smol") as traffic:
        update(stack)
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, f"upgrade of llama.cpp from {OLD} to {NEW}")
    assert traffic.interrupted == 0 and set(REPLICAS) <= traffic.servers.keys()
    assert images(stack) == [cpu_image_tag("llamacpp")] * 2


def test_a_version_that_does_not_start_is_rolled_back(stack: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    before = images(stack)
    assert "unknown: stackgen has no table" in upgrade(stack, BROKEN)
    with Load(PORT, [stack.key], "smol") as traffic:
        done = update(stack, code=1)
        traffic.wait_for_requests(20)
    assert_no_failures(capsys, traffic, "upgrade to a version that does not start, rolled back")
    assert traffic.interrupted == 0 and "rolled back" in done.stderr
    assert images(stack) == before and running_services(stack) == {*REPLICAS, "gateway"}
