"""Real FastChat that fails to start, up to the output of `stackgen diagnose`: the cause, its numbers, and the fix.

These starts mostly wait for a time-out, so they run beside other containers. test_diagnose.py has those of vLLM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from tests.live.small_stacks import find_causes
from tests.live.stacks import LiveStack
from tests.live.starts import Start, Starts, selected_names

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

AT_ONCE = 3
NOWHERE = "/models/not-there"


def truncate_weights(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])


# no controller runs
FASTCHAT = (
    Start("fastchat-alone", "SG-F004", cause="no controller at fastchat-controller:21001"),
    Start("fastchat-cut", "SG-L001", damage=truncate_weights, cause="a safetensors file is incomplete"),
    Start("fastchat-path", "SG-L007", override={"command": [
        "python3", "/opt/stackgen/launch.py", "worker", "--model-path", NOWHERE, "--model-names", "path",
        "--device", "cpu",
    ]}, cause=f"{NOWHERE} does not exist in the container"),
    # no log line shows it, only Docker's state of the container
    Start("fastchat-memory", "SG-M012", override={"mem_limit": "150m", "memswap_limit": "150m"}),
    Start("fastchat-api", "SG-F001", override={"environment": {"API_KEYS": "some-key"}}, cause="API_KEYS"),
)  # fmt: skip


@pytest.fixture(scope="module")
def starts(
    request: pytest.FixtureRequest, fastchat_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Starts]:
    """All starts that the selected tests need, in the background."""
    folder = tmp_path_factory.mktemp
    # with an image of one's own, stackgen does not compare the value of conv_template with the pinned version
    worker = {"model": str(tiny_model), "engine": "fastchat", "image": fastchat_image}
    with Starts(AT_ONCE, selected_names(request)) as found:
        models = [
            worker | {"served_names": ["tiny"], "conv_template": "no-such-template"},
            worker | {"served_names": ["local"]},
        ]
        data = {"name": "sgtest-worker", "port": 18125, "restart": "no", "gateway": False, "models": models}
        found.run("workers", LiveStack(folder("workers"), data), start_workers_twice)
        path = folder("fastchat")
        models = [start.entry({"engine": "fastchat"}, tiny_model, path) for start in FASTCHAT[:-1]]
        data = {"name": "sgtest-diagfast", "port": 18128, "restart": "no", "gateway": False, "models": models}
        found.run_services("fastchat", LiveStack(path, data), FASTCHAT)
        yield found


def register_under_localhost(stack: LiveStack) -> None:
    """Replaces an address, as in a Compose file of one's own: `render` refuses the flag in `extra_args`."""
    rendered = yaml.safe_load((stack.folder / "compose.yaml").read_text())
    command = rendered["services"]["fastchat-local"]["command"]
    command[command.index("--worker-address") + 1] = "http://localhost:21002"
    override = {"services": {"fastchat-local": {"command": command}}}
    (stack.folder / "compose.override.yaml").write_text(yaml.safe_dump(override))


def start_workers_twice(stack: LiveStack) -> None:
    """The other worker could still come up, so `up` waits for it until the timeout, and names the one that failed."""
    register_under_localhost(stack)
    for _ in range(2):  # a second start must not report the first one's dead containers as its own
        started = time.time()
        done = stack.run_stackgen("up", str(stack.folder), "--timeout", "90")
        assert done.returncode == 1, done.stdout
        assert "fastchat-tiny exited with code" in done.stderr and "no-such-template" in done.stderr
        finished = stack.inspect("fastchat-tiny")["State"]["FinishedAt"][:19]
        assert datetime.fromisoformat(finished + "+00:00").timestamp() >= started - 1


@pytest.fixture
def workers(starts: Starts) -> LiveStack:
    """FastChat with one worker that exits, and one that registered under localhost, after two starts."""
    starts.finish("workers")
    return starts.stacks["workers"]


@pytest.mark.parametrize("start", FASTCHAT, ids=[start.service for start in FASTCHAT])
def test_the_cause_of_a_failed_fastchat_start_is_reported(start: Start, starts: Starts) -> None:
    found = starts.diagnose("fastchat", FASTCHAT)
    start.prove(found)
    assert "some-key" not in json.dumps(found)


def test_a_worker_that_cannot_start_is_named_with_its_reason(workers: LiveStack) -> None:
    state = workers.inspect("fastchat-tiny")["State"]
    assert state["Status"] == "exited" and state["ExitCode"] != 0


def test_a_worker_registered_under_localhost_is_diagnosed(workers: LiveStack) -> None:
    end = time.monotonic() + 60
    while "http://localhost:21002" not in workers.compose("logs", "fastchat-controller").stdout:
        assert time.monotonic() < end, workers.logs()
        time.sleep(0.5)
    assert workers.inspect("fastchat-local")["State"]["Health"]["Status"] == "starting"
    found = next(one for one in find_causes(workers) if one["service"] == "fastchat-local")
    assert found["id"] == "SG-F003" and "--worker-address" in found["fix"]
