"""One replica of the real vLLM on two machines: both answer together, and both start again after a loss.

The CPU computes tensor parallel across the machines through Gloo. Both machines are this one, with an address each in a
network of its own, so that every connection between them goes through the machines' addresses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from stackgen.cli import main as cli
from stackgen.stack.envfile import read_env

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.timeout(1800)]

PORT = 18475
NETWORKS = {"sgtest-split-1": "10.213.78", "sgtest-split-2": "10.213.79"}
FIRST, SECOND = (f"{network}.1" for network in NETWORKS.values())
RANK = "sgtest-split-2-vllm-m-1"
LEADER = "sgtest-split-vllm-m-1"


def docker(*words: str | Path, check: bool = True) -> str:
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@dataclass
class Split:
    """The stack in `folder`. Compose's name for the second machine differs, because both are this machine."""

    folder: Path

    def second(self, *words: str) -> None:
        docker("compose", "-p", "sgtest-split-2", "--project-directory", self.folder / "box2",
               "-f", self.folder / "box2" / "compose.yaml", *words)  # fmt: skip

    def ask(self) -> tuple[int, str]:
        """Requests a completion through the gateway."""
        body = json.dumps({"model": "m", "prompt": "Hello", "max_tokens": 4}).encode()
        key = read_env(self.folder / "box1")["STACKGEN_API_KEY"]
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/completions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_until_it_answers(self) -> None:
        end = time.monotonic() + 900
        while (answer := self.ask())[0] != 200:
            assert time.monotonic() < end, answer
            time.sleep(1)


def kill(container: str, name: str) -> None:
    """Kills the process `name` of a container, as the kernel does when memory is short."""
    rows = docker("top", container, "-eo", "pid,args").splitlines()[1:]
    pids = [int(row.split()[0]) for row in rows if name in row]
    assert pids, rows
    os.kill(pids[0], signal.SIGKILL)


def wait_for_log(container: str, text: str, since: float) -> str:
    """Waits until the log has `text`, and returns the log since then."""
    end = time.monotonic() + 600
    while text not in (found := docker("logs", "--since", str(int(since)), container)):
        assert time.monotonic() < end, found[-3000:]
        time.sleep(1)
    return found


@pytest.fixture(scope="module")
def split(
    vllm_image: str, haproxy_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Split]:
    folder = tmp_path_factory.mktemp("split")
    model = {
        "model": str(tiny_model), "engine": "vllm", "image": vllm_image, "gpus": "none", "served_names": ["m"],
        "tensor_parallel_size": 2, "max_model_len": 512, "cpu_kv_cache_gib": 1, "enforce_eager": True,
        "host": ["box1", "box2"], "split_hosts": True,
    }  # fmt: skip
    data = {"name": "sgtest-split", "port": PORT, "gateway": {"image": haproxy_image},
            "hosts": {"box1": {"address": FIRST}, "box2": {"address": SECOND}}, "models": [model]}  # fmt: skip
    (folder / "stack.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    assert cli.main(["render", str(folder)]) == 0
    found = Split(folder)
    try:
        for name, network in NETWORKS.items():
            docker("network", "create", "--subnet", f"{network}.0/24", name)
        found.second("up", "--detach")
        yield found
    finally:
        found.second("down", "--timeout", "1")
        cli.main(["down", str(folder / "box1")])
        docker("network", "rm", *NETWORKS, check=False)


def test_two_machines_answer_together(split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", str(split.folder / "box1"), "--timeout", "1200"]) == 0
    status, body = split.ask()
    assert status == 200 and json.loads(body)["usage"]["completion_tokens"] > 0
    states = docker("inspect", "--format", "{{.State.Health.Status}}", RANK, LEADER).split()
    assert states == ["healthy", "healthy"]
    # no other address of the machine reaches the engine
    listening = subprocess.run(["ss", "-Hltn", "sport = :29502"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[3] for line in listening.splitlines()] == [f"{FIRST}:29502"]


def test_a_lost_rank_restarts_both_and_the_log_names_the_reason(split: Split) -> None:
    split.wait_until_it_answers()
    since = time.time()
    kill(RANK, "vllm serve")
    wait_for_log(RANK, "was healthy and ended", since)
    # the first machine notices at its next request, or at its next health check
    wait_for_log(LEADER, "was healthy and ended", since)
    split.wait_until_it_answers()


def test_a_lost_first_machine_restarts_the_rank_and_the_log_names_the_reason(split: Split) -> None:
    split.wait_until_it_answers()
    since = time.time()
    kill(LEADER, "vllm serve")
    assert FIRST in wait_for_log(RANK, "no connection to the first machine", since)
    split.wait_until_it_answers()
