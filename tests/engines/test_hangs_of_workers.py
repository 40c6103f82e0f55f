"""Engines whose web server and model share one process: FastChat's worker, and llama-server with its own watch."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.engines.replica import SECONDS, WHOLE_SECONDS, running, wait_until

pytestmark = pytest.mark.side_by_side


def test_a_stopped_fastchat_worker_is_found(tmp_path: Path) -> None:
    with running(tmp_path, "fastchat") as replica:
        os.kill(int(replica.get("/pid")), signal.SIGSTOP)
        wait_until(lambda: replica.restarts() == 1)
    assert "requests running or waiting, no answer" in replica.log
    assert "is stopped" in replica.log


def test_a_fastchat_worker_whose_places_are_lost_is_found(tmp_path: Path) -> None:
    with running(tmp_path, "fastchat") as replica:
        request = threading.Thread(target=replica.ask, args=("hold 300", "/worker_generate"))
        request.start()
        began = time.monotonic()
        wait_until(lambda: replica.restarts() == 1)
        # clients that read slowly look the same, so it gets four times as long
        assert time.monotonic() - began > 4 * SECONDS
        request.join()
    assert "1 requests running or waiting, no answer to a request for one token, its processes are asleep" in (
        replica.log
    )


@pytest.mark.parametrize("work", ["compute", "hold"])
def test_a_busy_fastchat_worker_is_no_hang(work: str, tmp_path: Path) -> None:
    with running(tmp_path, "fastchat") as replica:
        # a place that is held for less than four times the timeout may belong to a client that reads slowly
        replica.ask(f"{work} {3 * SECONDS}", "/worker_generate")
        time.sleep(SECONDS)
        assert "hang" not in replica.log


def test_a_stopped_llama_server_is_found(tmp_path: Path) -> None:
    with running(tmp_path, "llamacpp") as replica:
        os.kill(pid := int(replica.get("/pid")), signal.SIGSTOP)
        wait_until(lambda: replica.restarts() == 1)
        assert replica.quiet_seconds() <= 3 * WHOLE_SECONDS
        wait_until(replica.ready.exists)
        time.sleep(2 * WHOLE_SECONDS)
        assert replica.restarts() == 1
    assert f"0 requests running, no answer to a request for one token, process {pid} (llama-server) is stopped" in (
        replica.log
    )


def test_a_llama_server_that_waits_forever_is_found(tmp_path: Path) -> None:
    with running(tmp_path, "llamacpp") as replica:
        request = replica.start_request("hold 300")
        wait_until(lambda: replica.restarts() == 1)
        request.join()
    assert "1 requests running, no answer to a request for one token, its processes are asleep" in replica.log
    assert 'stackgen: hang: "n_decoded":' in replica.log


@pytest.mark.parametrize("work", ["compute", "none"])
def test_a_llama_server_that_computes_or_idles_is_no_hang(work: str, tmp_path: Path) -> None:
    with running(tmp_path, "llamacpp") as replica:
        replica.ask(f"{work} {3 * WHOLE_SECONDS}")
        time.sleep(WHOLE_SECONDS)
        assert "hang" not in replica.log
