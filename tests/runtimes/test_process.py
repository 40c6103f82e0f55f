"""Stacks as local processes: real supervisors, and small real programs that behave like engines."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from stackgen.check.report import Report
from stackgen.cli import main as cli
from stackgen.errors import MachineError, StackgenError, StartError
from stackgen.runtimes.process.lifecycle import (
    down_processes,
    prepare_processes,
    process_status,
    start_processes,
)
from stackgen.runtimes.process.local_plan import open_process_stack
from stackgen.runtimes.process.logs import process_logs
from stackgen.runtimes.process.procfs import find_port_holder, read_state, session_processes, start_time
from stackgen.runtimes.process.task import Probe, Task
from stackgen.stack.envfile import read_api_key

ROOT = Path(__file__).parents[2]

# a fake vLLM server, as far as the health check and `stackgen check` use it; MODE makes it fail as vLLM does
VLLM = """#!PYTHON
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
mode, key = os.environ.get("MODE", ""), os.environ["VLLM_API_KEY"]
port, name = int(sys.argv[sys.argv.index("--port") + 1]), sys.argv[sys.argv.index("--served-model-name") + 1]
print("arguments", sys.argv, flush=True)
if mode == "broken":
    print("Traceback (most recent call last)")
    sys.exit("ValueError: the weights are not what the config says")
if mode == "flag":
    print("vllm: error: unrecognized arguments: --max-modle-len", file=sys.stderr)
    sys.exit(2)

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def answer(self, data, status=200, kind="application/json"):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def allowed(self):
        return not self.path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {key}"
    def do_GET(self):
        if not self.allowed(): return self.answer({"error": "Unauthorized"}, 401)
        if self.path == "/die": os._exit(0)
        if self.path == "/health": return self.answer(b"")
        if self.path == "/v1/models": return self.answer({"object": "list", "data": [{"id": name, "object": "model"}]})
        self.answer({"detail": "Not Found"}, 404)
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        if not self.allowed(): return self.answer({"error": "Unauthorized"}, 401)
        if not self.path.startswith("/v1"): return self.answer({"detail": "Not Found"}, 404)
        if body["model"] != name:
            error = {"message": "The model does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
            return self.answer({"error": error}, 404)
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        base = {"id": "chatcmpl-1", "created": 1, "model": name}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "Paris"}
            choice = {"index": 0, "message": message, "text": "Paris", "finish_reason": "stop"}
            return self.answer({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
        base["object"] = "chat.completion.chunk"
        first = {"index": 0, "delta": {"role": "assistant", "content": "Paris"}, "finish_reason": None}
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        chunks = [{**base, "choices": [first]}, {**base, "choices": [last]}, {**base, "choices": [], "usage": usage}]
        text = "".join(f"data: {json.dumps(chunk)}\\n\\n" for chunk in chunks) + "data: [DONE]\\n\\n"
        self.answer(text.encode(), kind="text/event-stream")

print("Application startup complete", flush=True)
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

# ---------------------------------------------------------------- the supervisor on its own


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """`supervise(*tasks)` starts a supervisor; the fixture stops it and every process that it leaves."""
    folder = tmp_path / ".stackgen"
    (folder / "logs").mkdir(parents=True)
    started: list[subprocess.Popen[str]] = []

    def start(*tasks: Task) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stackgen.runtimes.process.supervisor", str(folder)]
        one = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
        started.append(one)
        assert one.stdin
        with one.stdin as pipe:
            pipe.write(json.dumps([asdict(task) for task in tasks]))
        return one

    yield start  # type: ignore[misc]
    for one in started:
        one.terminate()
        one.wait(20)
    down_processes(tmp_path)


def task(folder: Path, name: str, script: str, **fields: Any) -> Task:
    """A service that runs a shell script in the test's folder."""
    ready = folder / ".stackgen" / "ready" / name
    environment = {"PATH": os.environ["PATH"], "T": str(folder), "STACKGEN_READY_FILE": str(ready)}
    environment |= fields.pop("environment", {})
    return Task(name, "engine", ["/bin/sh", "-c", script], environment, **({"stop_grace_period": 2} | fields))


def probe(script: str, **times: float) -> Probe:
    fast = {"interval": 0.3, "timeout": 5, "retries": 2, "start_period": 60, "start_interval": 0.1}
    return Probe(["/bin/sh", "-c", script], **(fast | times))  # type: ignore[arg-type]


def until(folder: Path, done: Callable[[dict[str, Any]], Any], seconds: float = 20) -> dict[str, Any]:
    """Waits until `done(services)` is true and returns the services by name."""
    end = time.monotonic() + seconds
    while True:
        services = {entry["service"]: entry for entry in read_state(folder / ".stackgen")["services"]}
        if services and done(services):
            return services
        assert time.monotonic() < end, f"not in time: {services}"
        time.sleep(0.05)


def log(folder: Path, name: str) -> str:
    return (folder / ".stackgen" / "logs" / f"{name}.log").read_text()


def test_services_start_only_when_their_dependencies_are_healthy(tmp_path: Path, supervise: Any) -> None:
    supervise(
        task(tmp_path, "api", "test -e $T/works && echo api >> $T/order; sleep 60",
             depends_on={"worker": "service_healthy"}),
        task(tmp_path, "worker", "echo worker >> $T/order; sleep 0.5; touch $T/works; sleep 60",
             depends_on={"download": "service_completed_successfully"}, probe=probe("test -e $T/works")),
        task(tmp_path, "download", "sleep 0.5; echo download >> $T/order", one_shot=True),
    )  # fmt: skip
    services = until(tmp_path, lambda s: s["api"]["state"] == "running")
    assert services["download"]["state"] == "exited" and services["worker"]["health"] == "healthy"
    until(tmp_path, lambda s: (tmp_path / "order").read_text().split()[-1] == "api")
    assert (tmp_path / "order").read_text().split() == ["download", "worker", "api"]


def test_failed_start_is_retried_and_then_stays_down(tmp_path: Path, supervise: Any) -> None:
    supervise(
        task(tmp_path, "bad", "echo try >> $T/tries; echo ValueError: no; exit 3", max_retries=2, probe=probe("false")),
        task(tmp_path, "behind", "sleep 60", depends_on={"bad": "service_healthy"}),
    )
    services = until(tmp_path, lambda s: s["bad"]["state"] == "exited")
    assert services["bad"]["exit_code"] == 3 and services["bad"]["restarts"] == 2
    assert (tmp_path / "tries").read_text().count("try") == 3
    assert services["behind"]["state"] == "waiting"
    assert "never healthy and ended with code 3" in log(tmp_path, "bad") and "stays down" in log(tmp_path, "bad")


def test_failed_download_does_not_start_the_engine(tmp_path: Path, supervise: Any) -> None:
    supervise(
        task(tmp_path, "download", "exit 10", one_shot=True, max_retries=0),
        task(tmp_path, "engine", "touch $T/started", depends_on={"download": "service_completed_successfully"}),
    )
    services = until(tmp_path, lambda s: s["download"]["state"] == "exited")
    time.sleep(0.5)
    assert services["download"]["exit_code"] == 10 and not (tmp_path / "started").exists()


def test_missing_program_counts_as_a_failed_start(tmp_path: Path, supervise: Any) -> None:
    supervise(Task("gone", "engine", ["/nowhere/program"], {}, max_retries=0))
    assert until(tmp_path, lambda s: s["gone"]["state"] == "exited")["gone"]["exit_code"] == 127
    assert "cannot start /nowhere/program" in log(tmp_path, "gone")


def test_healthy_service_that_exits_with_0_is_restarted(tmp_path: Path, supervise: Any) -> None:
    # as vLLM does when its engine dies; max_retries=0 limits failed starts only
    script = "touch $T/works; until test -e $T/die; do sleep 0.1; done; rm $T/die $T/works; exit 0"
    supervise(task(tmp_path, "vllm", script, max_retries=0, probe=probe("test -e $T/works")))
    first = until(tmp_path, lambda s: s["vllm"]["health"] == "healthy")["vllm"]
    (tmp_path / "die").touch()
    again = until(tmp_path, lambda s: s["vllm"]["restarts"] == 1 and s["vllm"]["health"] == "healthy")["vllm"]
    assert again["pid"] != first["pid"]
    assert "was healthy and ended with code 1" in log(tmp_path, "vllm")


def test_service_that_stops_answering_becomes_unhealthy_and_recovers(tmp_path: Path, supervise: Any) -> None:
    (tmp_path / "works").touch()
    supervise(task(tmp_path, "one", "sleep 60", probe=probe("test -e $T/works", interval=0.1)))
    until(tmp_path, lambda s: s["one"]["health"] == "healthy")
    (tmp_path / "works").unlink()
    until(tmp_path, lambda s: s["one"]["health"] == "unhealthy")
    (tmp_path / "works").touch()
    assert until(tmp_path, lambda s: s["one"]["health"] == "healthy")["one"]["restarts"] == 0


def test_hanging_health_check_is_killed_and_counts_as_failed(tmp_path: Path, supervise: Any) -> None:
    supervise(
        task(tmp_path, "one", "sleep 60", probe=probe("echo $$ >> $T/probes; sleep 60", timeout=0.3, start_period=0))
    )
    until(tmp_path, lambda s: s["one"]["health"] == "unhealthy")
    pids = [int(word) for word in (tmp_path / "probes").read_text().split()]
    assert len(pids) >= 2 and start_time(pids[0]) is None


def test_all_services_stop_and_dependents_stop_first(tmp_path: Path, supervise: Any) -> None:
    waits = "trap 'echo NAME >> $T/order; kill $!; exit 0' TERM; touch $T/NAME; sleep 60 & wait"
    one = supervise(
        task(tmp_path, "first", waits.replace("NAME", "first")),
        task(tmp_path, "second", waits.replace("NAME", "second"), depends_on={"first": "service_started"}),
        task(
            tmp_path,
            "deaf",
            "trap '' TERM; (trap '' TERM; sleep 61) & touch $T/deaf; wait; sleep 62",
            stop_grace_period=0.5,
        ),
    )
    until(tmp_path, lambda s: all((tmp_path / name).exists() for name in s))
    deaf = read_state(tmp_path / ".stackgen")["services"][2]
    assert len(session_processes(deaf["pid"], deaf["start"], "")) == 2, "a shell and its child"
    assert set(down_processes(tmp_path)) == {"first", "second", "deaf"}
    one.wait(10)
    assert (tmp_path / "order").read_text().split() == ["second", "first"]
    assert session_processes(deaf["pid"], deaf["start"], f"STACKGEN_READY_FILE={deaf['ready']}") == []
    assert [state.state for state in process_status(tmp_path)] == ["exited"] * 3


def test_stack_can_be_stopped_after_its_supervisor_was_killed(tmp_path: Path, supervise: Any) -> None:
    # the session leader is gone too: its children are found by their environment
    one = supervise(task(tmp_path, "one", "sleep 60"), task(tmp_path, "two", "sleep 63 & touch $T/on; sleep 64"))
    services = until(tmp_path, lambda s: (tmp_path / "on").exists() and s["one"]["pid"])
    one.kill()
    one.wait()
    os.kill(services["two"]["pid"], signal.SIGKILL)
    assert [(s.state, s.health) for s in process_status(tmp_path)] == [("running", "unsupervised")] * 2
    assert down_processes(tmp_path) == ["one", "two"]
    assert start_time(services["one"]["pid"]) is None
    assert [s.state for s in process_status(tmp_path)] == ["exited", "exited"] and down_processes(tmp_path) == []


def test_process_that_reuses_a_pid_is_not_signalled(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    state = tmp_path / ".stackgen" / "state.json"
    state.parent.mkdir()
    entry = {"service": "old", "role": "engine", "state": "running", "health": "", "restarts": 0, "exit_code": None,
             "ports": [], "grace": 1, "pid": stranger.pid, "start": 1, "ready": "/r"}  # fmt: skip
    state.write_text(json.dumps({"supervisor": {"pid": stranger.pid, "start": 1}, "services": [entry]}))
    try:
        assert down_processes(tmp_path) == [] and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_logs_are_rotated_and_printed_in_order(
    tmp_path: Path, supervise: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; [ $((i % 600)) != 0 ] || sleep 1.2; done"
    supervise(task(tmp_path, "one", f"{lines}; touch $T/done; sleep 60", log_bytes=4000, log_files=3))
    until(tmp_path, lambda s: (tmp_path / "done").exists())
    time.sleep(1.5)
    logs = tmp_path / ".stackgen" / "logs"
    assert sorted(path.name for path in logs.glob("one.log*")) == ["one.log", "one.log.1", "one.log.2"]
    assert sum(path.stat().st_size for path in logs.glob("one.log*")) < 20_000
    process_logs(tmp_path, ("one",))
    numbers = [int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert numbers == sorted(numbers) and numbers[-1] == 3000
    process_logs(tmp_path, (), tail="2")
    assert capsys.readouterr().out.splitlines() == ["one | line 2999", "one | line 3000"]
    with pytest.raises(StackgenError, match="not started: nine"):
        process_logs(tmp_path, ("nine",))


def test_second_supervisor_in_a_folder_starts_nothing(tmp_path: Path, supervise: Any) -> None:
    supervise(task(tmp_path, "one", "sleep 60"))
    until(tmp_path, lambda s: s["one"]["pid"])
    second = supervise(task(tmp_path, "one", "touch $T/second"))
    assert second.wait(10) == 4 and not (tmp_path / "second").exists()


# ---------------------------------------------------------------- the commands


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Iterator[Callable[..., Path]]:
    """`stack(**model fields)` writes a stack whose vLLM is the script above; it is stopped after the test."""
    program = tmp_path / "engines" / "vllm" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text(VLLM.replace("PYTHON", sys.executable))
    program.chmod(0o755)
    (program.parent / "python3").symlink_to(sys.executable)
    (program.parents[1] / "stackgen.env").write_text("FROM_IMAGE=yes\n")
    monkeypatch.setenv("STACKGEN_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("SOME_OTHER_SECRET", "s3cret")
    folder = tmp_path / "stack"
    folder.mkdir()

    def write(**fields: Any) -> Path:
        top = {name: fields.pop(name) for name in ("restart", "storage") if name in fields}
        model = {"model": str(tmp_path), "engine": "vllm", "served_names": ["tiny"], "start_timeout": 20, **fields}
        (folder / "stack.yaml").write_text(yaml.safe_dump({"name": "t", "port": free_port, "models": [model], **top}))
        return folder

    yield write
    down_processes(folder)


def start(stack_path: Path, timeout: float) -> Report:
    return start_processes(prepare_processes(stack_path, lambda line: None), lambda service, phase: None, timeout)


def test_up_starts_and_checks_a_stack_that_down_stops(
    stack: Callable[..., Path], capfd: pytest.CaptureFixture[str], free_port: int
) -> None:
    folder = stack()
    assert cli.main(["up", str(folder), "--runtime", "process", "--timeout", "60", "--progress", "plain"]) == 0
    out, err = capfd.readouterr()
    assert "PASS" in out and "Paris" in out
    assert "no isolation" in err and "ready" in err and "answered" in err
    (state,) = process_status(folder)
    assert (state.state, state.health, state.ports) == ("running", "healthy", (f"127.0.0.1:{free_port}",))
    with pytest.raises(StackgenError, match="t is already running"):
        start(folder, 60)
    assert down_processes(folder) == ["vllm-tiny"]
    assert process_status(folder)[0].state == "exited"


def test_commands_detect_that_the_stack_runs_as_processes(
    stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--runtime` is needed for `up` only."""
    folder = stack()
    assert cli.main(["up", str(folder), "--runtime", "process", "--progress", "none"]) == 0
    capsys.readouterr()
    assert cli.main(["status", str(folder)]) == 0
    assert "vllm-tiny  running  healthy" in capsys.readouterr().out
    assert cli.main(["logs", "--stack", str(folder), "--tail", "1"]) == 0
    assert capsys.readouterr().out.startswith("vllm-tiny | ")
    # `down` must work even if the stack file has become invalid
    (folder / "stack.yaml").write_text("models: 3\n")
    assert cli.main(["down", str(folder)]) == 0
    assert capsys.readouterr().out == "stopped vllm-tiny\n"


def test_up_prints_its_report_as_json(stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    stack_file = str(stack() / "stack.yaml")
    assert cli.main(["up", stack_file, "--runtime", "process", "--timeout", "60", "--progress", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_keys_are_in_no_command_line_state_or_log(stack: Callable[..., Path]) -> None:
    folder = stack()
    start(folder, 60)
    key, state = read_api_key(folder), read_state(folder / ".stackgen")
    files = [path for path in (folder / ".stackgen").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if key in path.read_text(errors="replace")]
    pids = [state["supervisor"]["pid"], state["services"][0]["pid"]]
    for pid in pids:
        assert key not in Path(f"/proc/{pid}/cmdline").read_text()
    seen = [Path(f"/proc/{pid}/environ").read_text() for pid in pids]
    assert key not in seen[0] and key in seen[1], "the engine needs the key, and its supervisor must not show it"
    assert "s3cret" not in "".join(seen) and "FROM_IMAGE=yes" in seen[1]
    assert stat.S_IMODE((folder / ".stackgen").stat().st_mode) == 0o700


def test_failed_start_reports_the_reason_and_leaves_nothing_running(stack: Callable[..., Path]) -> None:
    folder = stack(extra_env={"MODE": "broken"}, restart="on-failure:1")
    with pytest.raises(StartError) as caught:
        start(folder, 60)
    assert "exited with code 1 after 2 attempts" in caught.value.message
    assert caught.value.message.count("ValueError: the weights are not what the config says") == 1
    assert [state.state for state in process_status(folder)] == ["exited"]
    assert down_processes(folder) == []


def test_up_diagnoses_a_process_that_does_not_start(
    stack: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stack(extra_env={"MODE": "flag"}, restart="no")
    assert cli.main(["up", str(folder / "stack.yaml"), "--runtime", "process", "--progress", "none"]) == 1
    said = capsys.readouterr().err
    assert "SG-V" in said and "--max-modle-len" in said
    assert "stackgen diagnose" in said


def test_start_that_times_out_is_stopped(stack: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "engines" / "vllm" / "bin" / "vllm").write_text("#!/bin/sh\nsleep 60\n")
    with pytest.raises(
        StartError, match=r"start timed out: vllm-tiny is running, but .* reports starting\n(.*\n)*.*URLError"
    ):
        start(stack(), 4)


def test_engine_that_dies_after_up_is_restarted(stack: Callable[..., Path], free_port: int) -> None:
    folder = stack()
    start(folder, 60)
    with socket.create_connection(("127.0.0.1", free_port)) as connection:
        connection.sendall(b"GET /die HTTP/1.0\r\n\r\n")
        connection.recv(1)
    services = until(folder, lambda s: s["vllm-tiny"]["restarts"] == 1 and s["vllm-tiny"]["health"] == "healthy")
    assert services["vllm-tiny"]["state"] == "running"


def test_taken_port_is_reported_with_the_process_that_holds_it(stack: Callable[..., Path], free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        assert find_port_holder(free_port).endswith(f"(pid {os.getpid()})")
        with pytest.raises(MachineError, match=rf"port {free_port} is already in use by .*\(pid {os.getpid()}\)"):
            start(stack(), 60)


def test_missing_program_is_reported_with_a_fix(stack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKGEN_ENGINES", "/nowhere")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(MachineError, match="vllm-tiny needs the program vllm") as caught:
        start(stack(), 60)
    assert "scripts/engine-env vllm" in caught.value.hint


def test_missing_python_module_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACKGEN_ENGINES", "/nowhere")
    data = {"name": "t", "models": [{"model": str(tmp_path), "engine": "fastchat"}]}
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=k\n")
    with pytest.raises(MachineError, match="fastchat-controller needs the Python module fastchat"):
        open_process_stack(tmp_path, ".stackgen").check_ready()


def test_missing_key_is_reported(stack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STACKGEN_API_KEY", raising=False)
    folder = stack()
    (folder / ".env").write_text("STACKGEN_API_KEY=\n")
    with pytest.raises(StackgenError, match="STACKGEN_API_KEY is missing"):
        start(folder, 60)


def test_stack_that_never_ran_is_absent(stack: Callable[..., Path]) -> None:
    assert [state.state for state in process_status(stack())] == ["absent"]
    assert down_processes(stack()) == []


def test_only_the_download_gets_the_hub_token(stack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    folder = stack(model="org/name")
    (folder / ".env").write_text("STACKGEN_API_KEY=k\nHF_TOKEN_FILE=token\n")
    download, engine = open_process_stack(folder, ".stackgen").tasks()
    assert (
        download.one_shot
        and download.max_retries == 0
        and engine.depends_on == {"download": "service_completed_successfully"}
    )
    assert download.environment["HF_TOKEN_PATH"] == str(folder / "token") and download.environment["HF_TOKEN"] == "hf_x"
    assert "STACKGEN_API_KEY" not in download.environment and "HF_TOKEN" not in engine.environment
    assert download.argv[0] == "python3" and download.argv[1].endswith("images/common/download.py")


def test_fastchat_processes_get_ports_and_each_others_urls(tmp_path: Path) -> None:
    models = [{"model": str(tmp_path), "engine": "fastchat", "replicas": 2, "cpuset": "0-1,3"}]
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump({"name": "t", "port": 21002, "models": models}))
    (tmp_path / ".env").write_text("STACKGEN_API_KEY=k\n")
    controller, one, two, api = open_process_stack(tmp_path, ".stackgen").tasks()
    assert [task.ports for task in (controller, one, two, api)] == [
        [f"127.0.0.1:{port}"] for port in (21001, 21003, 21004, 21002)
    ]
    assert "http://127.0.0.1:21004" in two.argv and "http://127.0.0.1:21001" in two.argv
    assert api.probe and "http://127.0.0.1:21002" in api.probe.command
    assert api.argv[:2] == ["python3", api.argv[1]] and two.cpus == [0, 1, 3]
    assert len({task.environment["STACKGEN_READY_FILE"] for task in (controller, one, two, api)}) == 4


@pytest.fixture
def fastchat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> Iterator[Callable[..., Path]]:
    """`fastchat(*names)` writes a FastChat stack with a model for each name; a model named `broken` can't start.

    The programs are tests/standin/fastchat, whose worker exits with 3 for `broken`: a real worker needs minutes. The
    health checks are the real ones.
    """
    venv, standin = tmp_path / "engines" / "fastchat", ROOT / "tests/standin/fastchat/launch.py"
    (venv / "bin").mkdir(parents=True)
    (venv / "modules" / "fastchat").mkdir(parents=True)
    (venv / "modules" / "fastchat" / "__init__.py").touch()
    (venv / "stackgen.env").write_text(f"PYTHONPATH={venv / 'modules'}\n")
    program = venv / "bin" / "python3"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in */launch.py) shift; set -- {standin} "$@";; esac\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("STACKGEN_ENGINES", str(tmp_path / "engines"))
    folder = tmp_path / "stack"
    folder.mkdir()

    def write(*names: str) -> Path:
        models = []
        for name in names:
            (folder / name).mkdir()
            models.append({"model": f"./{name}", "engine": "fastchat", "served_names": [name], "start_timeout": 30})
        data = {"name": "t", "port": free_port, "restart": "on-failure:1", "gateway": False, "models": models}
        (folder / "stack.yaml").write_text(yaml.safe_dump(data))
        return folder

    yield write
    down_processes(folder)


def test_a_worker_that_can_not_start_leaves_the_other_models_available(
    fastchat: Callable[..., Path], capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    folder = fastchat("good", "broken")
    assert cli.main(["up", str(folder), "--runtime", "process", "--progress", "none"]) == 1
    assert "fastchat-broken exited with code 3 after 2 attempts" in capsys.readouterr().err
    states = {one.service: (one.state, one.health) for one in process_status(folder)}
    assert states.pop("fastchat-broken") == ("exited", "")
    assert set(states.values()) == {("running", "healthy")} and len(states) == 3
    request = urllib.request.Request(f"http://127.0.0.1:{free_port}/v1/chat/completions", b'{"model": "good"}')
    with urllib.request.urlopen(request, timeout=5) as response:
        assert response.status == 200
    assert len(down_processes(folder)) == 3


def test_if_no_model_is_left_nothing_keeps_running(fastchat: Callable[..., Path]) -> None:
    folder = fastchat("broken")
    with pytest.raises(StartError, match="fastchat-broken exited with code 3"):
        start(folder, 60)
    assert down_processes(folder) == []
