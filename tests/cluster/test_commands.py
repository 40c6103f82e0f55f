"""`up`, `status`, `diagnose` and `down` in front of a real API server, scheduler and controllers.

No kubelet runs here, so tests write what kubelets would report through the status subresource. Logs of containers and
requests to a model are impossible.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.stack.envfile import read_env
from tests.cluster.conftest import KUBECONFIG, kubectl, read
from tests.cluster.test_manifests import VOLUME
from tests.kubernetes.standin import standin_engine

ENGINE = "vllm-qwen3-32b"
STACK = """
name: {namespace}
target: kubernetes
kubernetes: {{create_namespace: false, gateway_replicas: 1{more}}}
gateway: true
models:
  - {{model: Qwen/Qwen3-32B, revision: 9216db5781bf21249d130ec9da846c4624c16137, engine: vllm, gpus: {gpus}}}
"""
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def folder(tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stack, whose namespace is the test's own."""
    monkeypatch.setenv("KUBECONFIG", KUBECONFIG)
    write_stack(tmp_path, namespace)
    return tmp_path


def write_stack(folder: Path, namespace: str, gpus: int = 4, more: str = "") -> None:
    (folder / "stack.yaml").write_text(STACK.format(namespace=namespace, gpus=gpus, more=more))


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on the stack, and returns its exit code and its JSON."""

    def run(command: str, *words: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = cli.main([command, str(folder), "--json", *words])
        shown = capsys.readouterr()
        assert code < 2, shown.err
        return code, json.loads(shown.out or "{}")

    return run


@pytest.fixture
def volumes(namespace: str) -> Iterator[Callable[[], None]]:
    """Call it to give the claims of the stack their volumes."""
    names: list[str] = []

    def create() -> None:
        for claim in read("get", "pvc", "-n", namespace)["items"]:
            names.append(f"{namespace}-{claim['metadata']['name']}")
            text = VOLUME.format(name=names[-1], namespace=namespace, claim=claim["metadata"]["name"])
            kubectl("create", "-f", "-", stdin=text)

    yield create
    if names:
        kubectl("delete", "pv", *names, "--wait=false")


def services(run: Run) -> dict[str, dict[str, Any]]:
    _, data = run("status")
    return {one["service"]: one for one in data["services"]}


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def causes(run: Run, what: str) -> dict[str, str]:
    """The ids of the findings by service, as soon as `what` is one of them."""
    found: dict[str, str] = {}

    def is_found() -> bool:
        found.clear()
        found.update({one["service"]: one["id"] for one in reversed(run("diagnose")[1]["findings"])})
        return what in found.values()

    wait(is_found, f"no {what}")
    return found


def report(namespace: str, service: str, status: dict[str, Any]) -> None:
    """Writes the status of the service's pods, as their kubelet would."""
    for pod in read("get", "pods", "-n", namespace, "-l", f"app.kubernetes.io/name={service}")["items"]:
        name, patch = pod["metadata"]["name"], json.dumps({"status": status})
        kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def container(name: str, **state: Any) -> dict[str, Any]:
    fields = {"name": name, "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    return {**fields, **state}


READY = {"phase": "Running", "conditions": [{"type": one, "status": "True"} for one in ("PodScheduled", "Ready")]}
DONE = {"phase": "Succeeded", "conditions": [{"type": "PodScheduled", "status": "True"}]}
STARTED = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]


def test_a_stack_starts_works_and_ends(
    nodes: dict[str, int], namespace: str, folder: Path, run: Run, volumes: Callable[[], None],
    capsys: pytest.CaptureFixture[str], free_port: int,
) -> None:  # fmt: skip
    # the server sees nothing before the user has seen the context
    assert cli.main(["up", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert "context stackgen-test (https://127.0.0.1" in shown and "--yes" in shown
    assert read("get", "pvc", "-n", namespace)["items"] == []

    # nothing has a volume yet
    assert cli.main(["up", str(folder), "--yes", "--timeout", "3"]) == 1
    assert "not ready after 3 seconds" in capsys.readouterr().err
    # the engine waits for the same claim, so one finding is enough
    assert causes(run, "SG-K003") == {"download": "SG-K003"}
    volumes()
    wait(lambda: bool(services(run)[ENGINE]["nodes"]), "the engine has no node")
    assert services(run)[ENGINE]["state"] == "starting"

    # a rolling start that waits for the weights, then ends
    report(namespace, "download", DONE)
    for name in (ENGINE, "gateway"):
        report(namespace, name, READY)
    wait(lambda: run("status")[0] == 0, "the stack did not become ready")
    found = services(run)
    assert {name: (one["state"], one["ready"], one["wanted"]) for name, one in found.items()} == {
        "download": ("complete", 1, 1), ENGINE: ("ready", 1, 1), "gateway": ("ready", 1, 1),
    }  # fmt: skip
    assert found[ENGINE]["nodes"][0] in nodes
    # without a kubelet, no port can be forwarded: a stand-in for vLLM answers at the address that the user gives
    with standin_engine(free_port, read_env(folder)["STACKGEN_API_KEY"], "Qwen/Qwen3-32B"):
        code, data = run("up", "--yes", "--timeout", "30", "--url", f"http://127.0.0.1:{free_port}/v1")
    assert code == 0 and data["ok"] and data["endpoints"][0]["answer"]
    assert cli.main(["up", str(folder), "--yes", "--timeout", "30"]) in (1, 3)
    assert "port-forward" in capsys.readouterr().err
    assert run("diagnose") == (0, {"ok": True, "findings": [], "failed_requests": [], "hints": [], "gpus": None})

    # what has no label of the stack stays
    kubectl("create", "configmap", "other", "-n", namespace)
    code, data = run("down", "--yes")
    assert code == 0 and f"deployment.apps/{ENGINE}" in data["removed"]
    assert sorted(data["kept"]) == ["persistentvolumeclaim/models", "persistentvolumeclaim/vllm-cache"]
    kinds = "deployments,jobs,services,secrets,configmaps,networkpolicies"
    left = read("get", kinds, "-n", namespace, "-l", f"app.kubernetes.io/part-of={namespace}")["items"]
    assert left == []
    assert kubectl("get", "configmap", "other", "-n", namespace).returncode == 0

    def have_ended() -> bool:
        # without a kubelet, only force ends pods; a ReplicaSet that is being deleted may still have started new ones
        kubectl("delete", "pods", "--all", "-n", namespace, "--force", "--grace-period=0")
        return {one["state"] for one in services(run).values()} == {"absent"}

    wait(have_ended, "pods of the stack still run")
    assert causes(run, "SG-K012") == {"": "SG-K012"}
    assert sorted(run("down", "--yes", "--volumes")[1]["removed"]) == sorted(data["kept"])


def test_diagnose_explains_what_the_cluster_reports(
    nodes: dict[str, int], namespace: str, folder: Path, run: Run, volumes: Callable[[], None]
) -> None:
    write_stack(folder, namespace, 8, ", gpus_per_node: 16")
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
    kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(quota))
    assert cli.main(["up", str(folder), "--yes", "--timeout", "1"]) == 1
    assert "SG-K004" in causes(run, "SG-K004").values()
    kubectl("delete", "quota", "few", "-n", namespace)
    kubectl("delete", "deployments,jobs", "--all", "-n", namespace)

    # no node has 16 GPUs
    write_stack(folder, namespace, 16, ", gpus_per_node: 16")
    assert cli.main(["up", str(folder), "--yes", "--timeout", "1"]) == 1
    volumes()
    assert causes(run, "SG-K001")[ENGINE] == "SG-K001"
    # nodes of another kind, or of other users
    kubectl("taint", "nodes", *nodes, "dedicated=other:NoSchedule")
    try:
        write_stack(folder, namespace, 4)
        assert cli.main(["up", str(folder), "--yes", "--timeout", "1"]) == 1
        wait(lambda: causes(run, "SG-K002").get(ENGINE) == "SG-K002", "no taint")
    finally:
        kubectl("taint", "nodes", *nodes, "dedicated-")
    write_stack(folder, namespace, 4, ", node_selector: {gpu: none}")
    assert cli.main(["up", str(folder), "--yes", "--timeout", "1"]) == 1
    wait(lambda: causes(run, "SG-K005").get(ENGINE) == "SG-K005", "no selector")


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        ({"state": {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "x"'}}}, "SG-K008"),
        ({"restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
          "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}, "SG-K009"),
        ({"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "engine-key" not found'}}},
         "SG-K011"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_up_ends_with_a_cause_that_time_does_not_heal(
    nodes: dict[str, int], namespace: str, folder: Path, run: Run, volumes: Callable[[], None],
    capsys: pytest.CaptureFixture[str], status: dict[str, Any], cause: str,
) -> None:  # fmt: skip
    cli.main(["up", str(folder), "--yes", "--timeout", "1"])
    volumes()
    wait(lambda: bool(services(run)[ENGINE]["nodes"]), "the engine has no node")
    report(namespace, ENGINE, {"conditions": STARTED, "containerStatuses": [container("engine", **status)]})
    capsys.readouterr()
    # without --timeout, only the state of the container ends this
    assert cli.main(["up", str(folder), "--yes"]) == 1
    shown = capsys.readouterr().err
    assert "can't become ready" in shown and ENGINE in shown
    assert services(run)[ENGINE]["state"] == "failing"
    assert causes(run, cause)[ENGINE] == cause
