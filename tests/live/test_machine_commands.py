"""`list`, `storage`, `gpus` and `status --watch` with a running stack. With the stand-in engine and a stub nvidia-smi.

The stack is this module's own, because its containers are stopped, and the list of stacks is in a state folder of its
own. It starts in two seconds.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.containers import docker, wait_until
from tests.live.stacks import LiveStack

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

NAME, STORE, PORT = "sgtest-machine", "sgtest-machine-models", 18129
# an ordinary user's uid, and the group that may use Docker
NOBODY = 65534


@pytest.fixture(scope="module")
def stack(standin_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    model = {"model": "org/used", "engine": "vllm", "image": standin_image, "served_names": ["m"], "gpus": "none",
             "replicas": 2, "max_model_len": 512}  # fmt: skip
    data = {"name": NAME, "port": PORT, "gateway": False, "models": [model],
            "storage": {"volume": STORE, "offline": True}}  # fmt: skip
    try:
        with LiveStack(tmp_path_factory.mktemp("machine"), data) as made:
            made.up()
            yield made
    finally:
        docker("volume", "rm", "--force", STORE)


def run_json(stack: LiveStack, *args: str) -> Any:
    return json.loads(stack.stackgen(*args, "--json"))


def test_a_stack_is_listed_with_its_state(stack: LiveStack) -> None:
    def entry() -> dict[str, Any]:
        return next(one for one in run_json(stack, "list")["stacks"] if one["name"] == NAME)

    found = entry()
    assert (found["state"], found["folder"], found["runtime"]) == ("up", str(stack.folder), "compose")
    assert found["urls"] == [f"http://127.0.0.1:{PORT}/v1", f"http://127.0.0.1:{PORT + 1}/v1"]
    assert [one["health"] for one in found["services"]] == ["healthy", "healthy"]
    stack.compose("stop", "--timeout", "1", "vllm-m")
    found = entry()
    assert found["state"] == "unhealthy" and found["reason"].startswith("vllm-m is exited")
    stack.up()
    assert entry()["state"] == "up"


FILL = (
    "cd /models; for m in org--used org--old; do mkdir -p hub/models--$m/blobs .stackgen by-name; "
    "head -c 300000 /dev/urandom > hub/models--$m/blobs/x; echo {} > .stackgen/$m@main+all.json; done; "
    "chmod -R go-rwx /models/hub"
)


def test_a_user_without_access_to_dockers_folder_sees_and_removes_models(stack: LiveStack, standin_image: str) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    docker("run", "--rm", "--volume", f"{STORE}:/models", "--user", "0:0", "--entrypoint", "sh", standin_image, "-c",
           FILL)  # fmt: skip
    group = Path("/var/run/docker.sock").stat().st_gid

    def as_nobody(*args: str) -> subprocess.CompletedProcess[str]:
        # runs in this process's checkout, which the other user may not be allowed to enter
        code = (
            "import os, sys; import stackgen.cli.main as m, stackgen.cli.commands.storage, rich, docker.errors; "
            "import stackgen.check.transport.redact; "
            "from stackgen.runtimes.compose.docker_sdk import sdk; sdk(); "
            f"os.setgroups([{group}]); os.setgid({NOBODY}); os.setuid({NOBODY}); "
            "os.environ.update(HOME='/nonexistent', XDG_STATE_HOME=''); sys.exit(m.main(sys.argv[1:]))"
        )
        return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)

    done = as_nobody("storage", "list", "--json")
    assert done.returncode == 0, done.stderr
    (store,) = (one for one in json.loads(done.stdout)["stores"] if one["name"] == STORE)
    assert [(one["model"], one["downloaded"]) for one in store["models"]] == [("org/old", True), ("org/used", True)]
    assert all(one["bytes"] >= 300_000 for one in store["models"])
    # root knows the stack, and sees the same
    (known,) = (one for one in run_json(stack, "storage", "list")["stores"] if one["name"] == STORE)
    assert [list(one["stacks"].values()) for one in known["models"]] == [[], [NAME]]
    refused = stack.run_stackgen("storage", "remove", "org/used", "--yes")
    assert refused.returncode == 2 and f"{NAME} ({stack.folder})" in refused.stderr
    removed = run_json(stack, "storage", "remove", "org/old", "--yes")
    assert removed["removed"] == ["org/old"]
    (left,) = (one for one in run_json(stack, "storage", "list")["stores"] if one["name"] == STORE)
    assert [one["model"] for one in left["models"]] == ["org/used"]


def test_a_process_on_a_gpu_is_named_by_its_container(
    stack: LiveStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = stack.inspect("vllm-m")
    uuid = "GPU-5d3b1c2a-0f1e-4d2c-9b8a-7f6e5d4c3b2a"
    stub = tmp_path / "nvidia-smi"
    # what the driver's own program prints, with the id of a process that really runs in a container
    stub.write_text(f"""#!/bin/sh
case "$*" in
*query-gpu*) echo "0, {uuid}, NVIDIA H100 80GB HBM3, 81559, 8123, 9.0, Disabled, 0, Enabled, 580.95.05, 73010";;
*compute-apps*) echo "{uuid}, {about["State"]["Pid"]}, VLLM::EngineCore, 72990";;
esac
""")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (gpu,) = (one for one in run_json(stack, "gpus")["gpus"] if one["uuid"] == uuid)
    # containers of other tests may reserve the first GPU at the same time
    (holder,) = (one for one in gpu["holders"] if one["kind"] == "process")
    assert holder["stack"] == NAME
    assert holder["name"] == f"VLLM::EngineCore in {about['Name'].lstrip('/')}"


def watch(stack: LiveStack, *args: str) -> list[str]:
    return [sys.executable, "-m", "stackgen", "status", str(stack.folder), "--watch", "0.5", *args]


def test_a_watch_draws_on_the_terminal_and_leaves_it_clean(stack: LiveStack) -> None:
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = subprocess.Popen(watch(stack), stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    seen = ""

    def read_until(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    seen += os.read(leader, 65536).decode(errors="replace")
                except OSError:
                    break
        assert text in seen

    read_until("newest log lines")
    # xterm's alternate screen
    assert "\x1b[?1049h" in seen and "\x1b[?1049l" not in seen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert NAME in plain and "healthy" in plain and "MiB" in plain
    process.send_signal(signal.SIGINT)
    read_until("\x1b[?1049l")
    assert "\x1b[?25h" in seen, "the cursor is visible again"
    assert process.wait(10) == 0
    os.close(leader)


def test_without_a_terminal_a_watch_prints_a_line_for_each_change(stack: LiveStack, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as file:
        process = subprocess.Popen(watch(stack), stdout=file, stderr=subprocess.DEVNULL)
    wait_until(lambda: out.read_text().count("running, healthy") == 2, 20, "the watch does not print the services")
    stack.compose("stop", "--timeout", "1", "vllm-m-2")
    wait_until(lambda: "vllm-m-2  exited" in out.read_text(), 20, "the watch does not notice the stop")
    process.send_signal(signal.SIGINT)
    # the last look saw a stopped service
    assert process.wait(10) == 1
    assert out.read_text().count("vllm-m  ") == 1, "only changes are printed"
    stack.up()


def test_a_watch_as_json_prints_one_document_each_round(stack: LiveStack) -> None:
    with subprocess.Popen(watch(stack, "--json"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
    assert [one["service"] for one in looks[0]["services"]] == ["vllm-m", "vllm-m-2"]
    # CPU is a rate, so the first look has none
    assert looks[0]["services"][0]["cpu"] is None and looks[1]["services"][0]["cpu"] >= 0
    assert looks[1]["services"][0]["memory"] > 1_000_000
    assert looks[1]["error"] == ""
