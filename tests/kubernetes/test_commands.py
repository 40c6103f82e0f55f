"""The commands on a cluster's objects that were recorded from a real control plane (Kubernetes 1.20).

kubectl is a fake here, because a cluster takes seconds to start, and no kubelet runs in it: the states of containers
were written through the status subresource. `tests/cluster` has the same commands with the real kubectl and server.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.examples import MANIFESTS
from stackgen.cli import main as cli
from stackgen.runtimes.kubernetes.lifecycle import KINDS
from stackgen.targets.kubernetes import FOLDER

STACK = """
name: rec
target: kubernetes
kubernetes: {registry: registry.example.com/llm, gateway_replicas: 1}
gateway: true
models:
  - {model: Qwen/Qwen3-32B, revision: 9216db5781bf21249d130ec9da846c4624c16137, engine: vllm, gpus: 4}
"""
ENGINE = "vllm-qwen3-32b"
FAKE = """#!{python}
import json, os, sys
words = sys.argv[1:]
with open({calls!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
state = json.load(open({states!r}))[os.environ["STATE"]]
if os.environ.get("REFUSAL"):
    sys.exit(os.environ["REFUSAL"])
if words[0] == "config":
    print(json.dumps({{"contexts": [{{"name": "lab"}}], "clusters": [{{"cluster": {{"server": "https://lab:6443"}}}}]}}))
    sys.exit()
command, what = words[4:6]
if command == "get" and "events" in what:
    print(json.dumps({{"items": state["events"]}}))
elif command == "get" and words[-1].startswith("jsonpath"):
    print(os.environ.get("FORMER", ""))
elif command == "get" and "json" in words:
    print(json.dumps({{"items": state["objects"]}}))
elif command == "get":
    kinds = what.split(",")
    print("persistentvolumeclaim/models" if "persistentvolumeclaims" in kinds else "deployment.apps/gateway")
elif command == "api-resources":
    print("pods\\npersistentvolumeclaims\\nsecrets\\nconfigmaps\\ndeployments.apps")
elif command == "logs":
    print("  Value error, User-specified max_model_len (1000000) is greater than the derived max_model_len "
          "(max_position_embeddings=2048.0 or model_max_length=None in model's config.json).")
"""
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """Puts the fake kubectl into the PATH, and returns what its calls were."""
    folder, log = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    states = Path(__file__).parent / "recorded" / "states.json"
    program = folder / "kubectl"
    program.write_text(FAKE.format(python=sys.executable, calls=str(log), states=str(states)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("STATE", "ready")
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path, calls: object, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the stack. Returns its exit code, its JSON, and its messages."""
    stack = tmp_path / "stack"
    stack.mkdir()
    (stack / "stack.yaml").write_text(STACK)
    assert cli.main(["render", str(stack)]) == 0

    def run(command: str, *words: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = cli.main([command, str(stack), "--json", *words])
        shown = capsys.readouterr()
        return code, json.loads(shown.out or "{}"), shown.err

    return run


@pytest.mark.parametrize(
    ("state", "code", "shown"),
    [
        ("ready", 0, {"download": "complete", ENGINE: "ready", "gateway": "ready"}),
        ("unbound", 1, {"download": "pending", ENGINE: "pending", "gateway": "starting"}),
        ("crashed", 1, {"download": "complete", ENGINE: "failing", "gateway": "ready"}),
    ],
)
def test_status_reads_the_state_of_each_service(
    run: Run, monkeypatch: pytest.MonkeyPatch, state: str, code: int, shown: dict[str, str]
) -> None:
    monkeypatch.setenv("STATE", state)
    result, data, messages = run("status")
    assert (result, {one["service"]: one["state"] for one in data["services"]}) == (code, shown)
    assert "context lab (https://lab:6443), namespace rec" in messages
    engine = data["services"][1]
    assert engine["nodes"] == ([] if state == "unbound" else ["gpu-node-2"]) or state == "crashed"
    assert bool(engine["reason"]) == (state != "ready")


def test_diagnose_reads_the_log_of_the_container_that_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch, calls: Callable[[], list[list[str]]]
) -> None:
    monkeypatch.setenv("STATE", "crashed")
    code, data, _ = run("diagnose")
    (found,) = data["findings"]
    assert (code, found["id"], found["service"]) == (1, "SG-V001", ENGINE)
    assert found["change"]["path"] == ["models", 0, "max_model_len"]
    (logs,) = (one for one in calls() if one[4] == "logs")
    assert logs[-1] == "--previous" and "engine" in logs


def test_up_ends_when_waiting_can_not_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE", "crashed")
    code, _, messages = run("up", "--yes")
    assert code == 1
    assert "can't become ready" in messages and "CrashLoopBackOff" in messages and "stackgen diagnose" in messages


def test_up_applies_on_the_server_in_the_chosen_context(run: Run, calls: Callable[[], list[list[str]]]) -> None:
    # this fake forwards no port: test_access.py requests the completion
    code, _, messages = run("up", "--yes", "--context", "lab")
    assert code == 1 and "port-forward" in messages
    (apply,) = (one for one in calls() if one[4] == "apply")
    assert apply[:4] == ["--context", "lab", "--namespace", "rec"]
    assert "--server-side" in apply and apply[-1].endswith("/kubernetes")


@pytest.mark.parametrize("command", ["up", "down"])
def test_nothing_changes_in_a_cluster_that_nobody_has_confirmed(
    run: Run, calls: Callable[[], list[list[str]]], command: str
) -> None:
    code, _, messages = run(command)
    assert code == 2 and "context lab" in messages and "--yes" in messages
    # reads tell what a former version has left
    assert {one[4] for one in calls() if one[0] == "--context"} <= {"get", "api-resources"}


@pytest.mark.parametrize("volumes", [False, True])
def test_down_keeps_the_claims_unless_told_otherwise(
    run: Run, calls: Callable[[], list[list[str]]], volumes: bool
) -> None:
    code, data, _ = run("down", "--yes", *(["--volumes"] if volumes else []))
    claim = "persistentvolumeclaim/models"
    assert code == 0 and (claim in data["removed"]) == volumes and (claim in data["kept"]) != volumes
    found = next(one for one in calls() if one[4] == "get")
    assert ("persistentvolumeclaims" in found[5].split(",")) == volumes
    assert "app.kubernetes.io/part-of=rec,app.kubernetes.io/managed-by=stackgen" in found
    assert not any("namespace/" in word for one in calls() for word in one)


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ("The connection to the server lab:6443 was refused", 3, "the cluster does not answer"),
        ('Error from server (Forbidden): pods is forbidden: User "a" cannot list', 3, "refuses this user"),
        ('error: resource mapping not found: no matches for kind "PodMonitor"', 1, "operator"),
        ("Apply failed with 1 conflict: conflict with \"helm\"", 1, "another program has changed"),
    ],
)  # fmt: skip
def test_a_refusal_of_the_cluster_has_a_remedy(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: str, code: int, words: str
) -> None:
    # only `apply` fails
    program = tmp_path / "bin" / "kubectl"
    program.write_text(program.read_text().replace('if os.environ.get("REFUSAL")', 'if "apply" in words'))
    monkeypatch.setenv("REFUSAL", refusal)
    result, _, messages = run("up", "--yes")
    assert result == code and words in messages


def test_without_kubectl_the_message_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, messages = run("status")
    assert code == 3 and "kubectl is not installed" in messages


@pytest.mark.parametrize("folder", MANIFESTS, ids=lambda folder: folder.name)
def test_down_knows_every_kind_that_render_writes(folder: Path) -> None:
    kinds = set()
    for path in (folder / FOLDER).glob("*.yaml"):
        kinds |= {
            one["kind"].lower() for one in yaml.load_all(path.read_text(), yaml.CSafeLoader) if one and "kind" in one
        }
    known = {one.partition(".")[0] for one in KINDS}
    # kubectl's own file, and the namespace, which stays
    missing = {one for one in kinds - {"kustomization", "namespace"} if not known & {f"{one}s", f"{one[:-1]}ies"}}
    assert missing == set()
