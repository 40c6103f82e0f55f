"""Replicas that hung: the newest hang is the cause, until the service ends for another reason."""

from __future__ import annotations

import pytest

from stackgen.diagnose import Evidence, Finding, ServiceEvidence, diagnose
from stackgen.runtimes.observation.evidence import collect_from_log

READY = "INFO:     Application startup complete.\n"
RESTARTED = (
    "stackgen: the service was healthy and ended with code 137 after 300s because it hung: starting it again in 1s\n"
)
CRASHED = "stackgen: the service was healthy and ended with code 1 after 40s: starting it again in 2s\n"
GAVE_UP = 'stackgen: the service hung 3 times within an hour: giving up. "the service hangs" above shows why\n'
# what Python prints for SIGABRT, which is no crash of the engine
STACKS = """Fatal Python error: Aborted

Thread 0x00007f2bd5b3b700 (most recent call first):
  File "/opt/venv/lib/python3.11/threading.py", line 320 in wait
  File "/opt/venv/lib/python3.11/site-packages/vllm/v1/engine/core.py", line 1560 in run_busy_loop
"""
REASONS = {
    "SG-S010": "process 57 (VLLM::EngineCore) is stopped",
    "SG-S011": "its processes are asleep",
    "SG-S012": "its processes compute without a result",
}


def hang(reason: str) -> str:
    return (
        f"stackgen: the service hangs: no progress for 26s, 2 requests running and 1 waiting, no answer to a request "
        f"for one token, {reason}\n"
        "stackgen: hang: process 57 (VLLM::EngineCore): state T, 120.4 s of CPU time\n"
        "stackgen: hang: ending its processes; Python prints their stacks\n" + STACKS
    )


def first(log: str, **fields: object) -> Finding | None:
    states: dict[str, object] = {"engine": "vllm", "state": "running", "health": "healthy"} | fields
    found = diagnose(Evidence((ServiceEvidence("vllm-m", log=log, **states),)))  # type: ignore[arg-type]
    return found[0] if found else None


@pytest.mark.parametrize("rule", REASONS)
def test_each_reason_has_its_own_cause(rule: str) -> None:
    log = READY + hang(REASONS[rule]) + RESTARTED + READY
    found = first(log)
    assert found is not None
    assert (found.id, found.service) == (rule, "vllm-m")
    assert "hung once" in found.cause and "26 s" in found.cause
    assert REASONS[rule] in found.evidence[0]
    assert "because it hung: starting it again" in found.evidence[1]
    # a log that somebody pasted has no states
    assert [one.id for one in diagnose(collect_from_log(log))][:1] == [rule]


def test_a_container_that_gave_up_shows_how_often_it_hung() -> None:
    log = (READY + hang(REASONS["SG-S010"]) + RESTARTED) * 2 + READY + hang(REASONS["SG-S010"]) + GAVE_UP
    found = first(log, state="exited", health="unhealthy", exit_code=1)
    assert found is not None and found.id == "SG-S010"
    assert "hung 3 times" in found.cause
    assert "giving up" in found.evidence[1]


@pytest.mark.parametrize(
    "after",
    [
        READY + "torch.OutOfMemoryError: CUDA out of memory.\n" + CRASHED,
        "OSError: [Errno 28] No space left on device\nstackgen: the service ended with code 1 after 9s and was never "
        "healthy: see the reason above\n",
    ],
)
def test_a_newer_failure_of_another_kind_is_the_cause(after: str) -> None:
    found = first(READY + hang(REASONS["SG-S011"]) + RESTARTED + after, state="restarting", health="")
    assert found is None or not found.id.startswith("SG-S01")


def test_a_replica_that_works_again_does_not_hide_another_failure() -> None:
    healed = ServiceEvidence("vllm-m", engine="vllm", state="running", health="healthy",
                             log=READY + hang(REASONS["SG-S011"]) + RESTARTED + READY)  # fmt: skip
    memory = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    failed = ServiceEvidence("vllm-n", engine="vllm", state="exited", exit_code=1, log=memory)
    found = diagnose(Evidence((healed, failed)))
    assert found and found[0].service == "vllm-n"
