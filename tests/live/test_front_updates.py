"""Real engines are killed and updated under load behind the gateway. test_failover.py does this on stand-ins.

These modules' tests run in the order of their file names, so these run last. Each leaves its model running.
"""

from __future__ import annotations

import json

import pytest

from stackgen.stack.envfile import read_env
from tests.live.containers import docker, wait_until
from tests.live.fallback import MODEL, Provider
from tests.live.front import FASTCHAT_ENTRY, NAME, PORT, ROUTER, TINY, WORKERS, all_answer, ask, container, stop_router
from tests.live.load import Load
from tests.live.rolling import assert_no_failures, edit_model, update
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("front"), pytest.mark.timeout(600)]

FIRST, SECOND = TINY
# seconds between two requests of a client: most of the machine is for the engines that start
PAUSE = 0.5
LLAMA = "llamacpp-llama/llamacpp-llama"


def ids(*services: str) -> list[str]:
    """Returns the containers' ids."""
    return docker("inspect", "--format", "{{.Id}}", *map(container, services)).split()


def environment(service: str) -> dict[str, str]:
    variables = json.loads(docker("inspect", "--format", "{{json .Config.Env}}", container(service)))
    return dict(one.split("=", 1) for one in variables)


def test_the_provider_answers_only_while_a_real_engine_is_down(front: LiveStack) -> None:
    cloud = Provider(f"{NAME}-provider")
    assert ask(front, "llama")[2] == LLAMA
    # it has been there since the stack started
    assert cloud.received() == []
    docker("kill", container("llamacpp-llama"))
    wait_until(
        lambda: ask(front, "llama")[2].startswith("fallback/"), 60, "the fallback did not answer within a minute"
    )
    status, text, by = ask(front, "llama")
    assert (status, json.loads(text)["model"], by) == (200, MODEL, f"fallback/provider:{MODEL}")
    status, text, by = ask(front, "llama", stream=True)
    assert status == 200 and text.count("data: ") == 5 and by.startswith("fallback/")
    # the engines have a key of their own, and the provider got no key but its own
    engine_key = read_env(front.folder)["STACKGEN_ENGINE_KEY"]
    assert environment("llamacpp-llama")["LLAMA_API_KEY"] == environment(FIRST)["VLLM_API_KEY"] == engine_key
    assert engine_key not in json.dumps(cloud.received())
    assert front.key not in json.dumps(cloud.received())
    for service in (*TINY, *WORKERS, "llamacpp-llama"):
        assert "PROVIDER_KEY" not in environment(service) and "tgp_" not in json.dumps(environment(service))
    front.up("llamacpp-llama")
    wait_until(lambda: ask(front, "llama")[2] == LLAMA, 60, "the gateway did not use the engine within a minute")
    count = len(cloud.received())
    assert [ask(front, "llama")[2] for _ in range(5)] == [LLAMA] * 5
    assert len(cloud.received()) == count


def test_a_killed_replica_interrupts_only_its_own_streams(front: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """The gateway notices it by itself: the router is stopped. The next test starts both again."""
    stop_router(front)
    with Load(PORT, [front.key]) as traffic:
        docker("kill", container(SECOND))
        traffic.wait_for_requests(60)
        before = traffic.servers.get(SECOND, 0)
        traffic.wait_for_requests(20)
        assert traffic.servers.get(SECOND, 0) == before
    assert_no_failures(capsys, traffic, "kill one of two real replicas")
    assert traffic.interrupted <= 4


def test_a_rolling_update_loses_no_request(front: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the two replicas and the router are down before the update, which starts the replica first."""
    for service in (SECOND, ROUTER):
        assert docker("inspect", "--format", "{{.State.Running}}", container(service)).strip() == "false"
    before = ids(FIRST, SECOND, "gateway")
    edit_model(front, max_num_seqs=8)
    with Load(PORT, [front.key], pause=PAUSE) as traffic:
        done = update(front)
        traffic.wait_for_requests(60)
    assert_no_failures(capsys, traffic, "rolling update of a flag, one of two real replicas down before")
    after = ids(FIRST, SECOND, "gateway")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True]
    assert traffic.interrupted == 0
    assert {FIRST, SECOND} <= traffic.servers.keys()
    assert "downtime:" not in done.stderr
    for service in (FIRST, SECOND):
        assert "8" in json.loads(docker("inspect", "--format", "{{json .Config.Cmd}}", container(service)))
    assert "the running services match the rendered files" in update(front).stdout
    wait_until(lambda: all_answer(front), 60, "the router is not used again")


def test_fastchat_workers_are_recreated_one_by_one(front: LiveStack, capsys: pytest.CaptureFixture[str]) -> None:
    """Downtime is announced first, and no more than that is lost."""
    before = ids(*WORKERS, "fastchat-api", "gateway")
    edit_model(front, FASTCHAT_ENTRY, extra_args=["--limit-worker-concurrency", "4"])
    # FastChat can't drain a worker, so the update asks for confirmation
    refused = update(front, code=2)
    assert refused.stderr.count("FastChat can't drain a worker") == 2 and "nothing was changed" in refused.stderr
    assert ids(*WORKERS) == before[:2]
    with Load(PORT, [front.key], "smol", pause=PAUSE) as traffic:
        update(front, "--yes")
        at_most = len(traffic.failures)
        traffic.wait_for_requests(40)
    with capsys.disabled():
        print(f"\n  {traffic.summary('rolling update of FastChat workers')}, none of them after the update")
    # only requests in flight on a stopped worker are lost, and each client has one request at a time
    assert at_most <= traffic.clients * len(WORKERS) and traffic.interrupted <= traffic.clients * len(WORKERS)
    assert len(traffic.failures) == at_most, traffic.failures
    assert traffic.requests > 10 * at_most
    after = ids(*WORKERS, "fastchat-api", "gateway")
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, False, True, True]
