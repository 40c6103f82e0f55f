"""The commands that send requests to a stack in a cluster: `up`, `check`, `ask`, `logs`, `status --watch`, `keys`.

Stand-ins, because a cluster takes minutes to compile: a kubectl that answers with recorded objects (test_commands.py),
and whose `port-forward` really forwards a port of this machine, to the stand-in for vLLM (tests/standin). The messages
of `port-forward` are those of kubectl 1.32. `tests/cluster` has the real kubectl and server.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.stack.envfile import read_env
from stackgen.stack.keys import read_map
from tests.kubernetes.standin import standin_engine
from tests.kubernetes.test_commands import ENGINE, FAKE, STACK

MODEL = "Qwen/Qwen3-32B"
MORE = """
elif command == "port-forward":
    import shutil, socket, threading
    open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
    local, remote = words[-1].split(":")
    if os.environ.get("FORWARD_REFUSAL"):
        sys.exit(os.environ["FORWARD_REFUSAL"])
    server = socket.create_server(("127.0.0.1", int(local or 0)))
    print(f"Forwarding from 127.0.0.1:{{server.getsockname()[1]}} -> {{remote}}", flush=True)

    def copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    while True:
        client, _ = server.accept()
        engine = socket.create_connection(("127.0.0.1", int(os.environ["ENGINE_PORT"])))
        for pair in ((client, engine), (engine, client)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
elif command == "kustomize":
    import subprocess
    os.environ["PATH"] = os.environ["REAL_PATH"]
    sys.exit(subprocess.run(["kubectl", *words[4:]]).returncode)
elif command == "exec":
    print(open(os.environ["LOADED"]).read())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the rendered stack."""
    stack = tmp_path / "stack"
    stack.mkdir()
    (stack / "stack.yaml").write_text(STACK)
    assert cli.main(["render", str(stack)]) == 0
    return stack


@pytest.fixture
def pids(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Puts the fake kubectl into the PATH. Returns the processes that have forwarded a port."""
    programs, written = tmp_path / "bin", tmp_path / "pids"
    programs.mkdir()
    states = Path(__file__).parent / "recorded" / "states.json"
    text = (FAKE + MORE.lstrip("\n")).format(
        python=sys.executable, calls=str(tmp_path / "calls"), states=str(states), pids=str(written)
    )
    (programs / "kubectl").write_text(text)
    (programs / "kubectl").chmod(0o755)
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("STATE", "ready")
    return lambda: [int(line) for line in written.read_text().split()] if written.exists() else []


@pytest.fixture
def engine(folder: Path, pids: object, free_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of the stand-in for vLLM, which accepts the key of the stack."""
    monkeypatch.setenv("ENGINE_PORT", str(free_port))
    with standin_engine(free_port, read_env(folder)["STACKGEN_API_KEY"], MODEL):
        yield free_port


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_up_requests_a_completion_through_a_forwarded_port(
    folder: Path, engine: int, pids: Callable[[], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main(["up", str(folder), "--yes", "--json", "--timeout", "30"])
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (code, report["ok"]) == (0, True), shown.err
    chat = next(one for one in report["endpoints"][0]["results"] if one["name"] == "chat")
    assert chat["status"] == "pass"
    # the fake cluster is ready at once
    assert report["start"] is None
    assert len(pids()) == 1 and is_gone(pids()[0])


def test_up_reports_a_gateway_that_kubectl_can_not_reach(
    folder: Path, pids: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "FORWARD_REFUSAL", "error: unable to forward port because pod is not running. Current status=Pending"
    )
    assert cli.main(["up", str(folder), "--yes"]) == 1
    shown = capsys.readouterr().err
    assert "Current status=Pending" in shown and "--url" in shown


def test_up_requests_a_completion_at_a_given_address(
    folder: Path, engine: int, pids: Callable[[], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["up", str(folder), "--yes", "--json", "--url", f"http://127.0.0.1:{engine}/v1"]) == 0
    assert json.loads(capsys.readouterr().out)["endpoints"][0]["base_url"] == f"http://127.0.0.1:{engine}/v1"
    assert pids() == []


def test_ask_gets_an_answer_and_ends_kubectl(
    folder: Path, engine: int, pids: Callable[[], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ask", "Who are you?", str(folder), "--context", "lab", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"]
    assert len(pids()) == 1 and is_gone(pids()[0])


def test_check_ends_kubectl_also_when_it_is_killed(folder: Path, engine: int, pids: Callable[[], list[int]]) -> None:
    words = [sys.executable, "-m", "stackgen", "check", str(folder), "--quick", "--watch", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline()
        # another pod took the place of the one that kubectl had chosen
        os.kill(pids()[0], signal.SIGTERM)
        deadline = time.monotonic() + 30
        while len(pids()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(pids()) == 2
        process.kill()
    assert all(map(is_gone, pids()))


def test_logs_name_service_and_pod(
    folder: Path, pids: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["logs", str(folder), ENGINE, "--json", "--tail", "5"]) == 0
    shown = capsys.readouterr()
    # the line of the fake has no pod, as an error of kubectl
    assert shown.out == "" and "max_model_len" in shown.err
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    (words,) = (one for one in calls if one[4:5] == ["logs"])
    assert f"app.kubernetes.io/name in ({ENGINE})" in words[words.index("--selector") + 1] and "--tail=5" in words
    assert cli.main(["logs", str(folder), "nothing"]) == 2
    assert f"services: download, {ENGINE}, gateway" in capsys.readouterr().err


def test_status_can_be_followed(folder: Path, pids: object) -> None:
    words = [sys.executable, "-m", "stackgen", "status", str(folder), "--watch", "1", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        look = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert {one["service"]: one["state"] for one in look["services"]} == {
        "download": "exited", ENGINE: "running", "gateway": "running",
    }  # fmt: skip


def test_a_new_key_is_valid_when_the_gateway_has_loaded_it(
    folder: Path, pids: object, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tmp_path / "loaded"
    loaded.write_text("")
    monkeypatch.setenv("LOADED", str(loaded))
    # nobody has agreed to a change of the cluster: the key is saved here only
    assert cli.main(["keys", "new", "first", "--stack", str(folder), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["reloaded"] is False
    assert "saved only on this machine" in shown.err and "context lab" in shown.err

    # HAProxy's answer to "show map", with the keys that the folder will have after the next command
    monkeypatch.setattr("stackgen.runtimes.kubernetes.keys.LIMIT", 5.0)
    monkeypatch.setattr(
        "stackgen.cli.commands.cluster_keys.read_map",
        lambda folder: [loaded.write_text("".join(f"0x1 {key} {name}\n" for key, name in read_map(folder).items())),
                        read_map(folder)][1],
    )  # fmt: skip
    assert cli.main(["keys", "new", "second", "--stack", str(folder), "--json", "--yes"]) == 0
    assert json.loads(capsys.readouterr().out)["reloaded"] is True
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert next(one for one in calls if "apply" in one)[5:] == [
        "--server-side", "--field-manager", "stackgen", "-f", "-",
    ]  # fmt: skip
    assert re.search("second", loaded.read_text())


def test_up_deletes_what_the_stack_no_longer_has_and_shows_it_before(
    folder: Path, engine: int, pids: object, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # kind, version, name and owners, as kubectl prints them: a removed model, its files, and what a controller made
    former = ["Deployment|apps/v1|vllm-old|", "ConfigMap|v1|scripts-0ld|", "Deployment|apps/v1|owned|ScaledObject"]
    monkeypatch.setenv("FORMER", "\n".join([*former, f"Deployment|apps/v1|{ENGINE}|"]))

    def deleted() -> list[list[str]]:
        calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
        return [[word for word in one[5:] if not word.startswith("-")] for one in calls if one[4:5] == ["delete"]]

    assert cli.main(["up", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "deployment.apps/vllm-old" in shown and ENGINE not in shown and deleted() == []
    assert cli.main(["up", str(folder), "--yes", "--json", "--url", f"http://127.0.0.1:{engine}/v1"]) == 0
    assert "configmap/scripts-0ld" in capsys.readouterr().err
    assert deleted() == [["deployment.apps/vllm-old"], ["configmap/scripts-0ld"]]
