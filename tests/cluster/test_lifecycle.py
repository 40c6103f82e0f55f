"""`doctor` before a start, and what `up` deletes after a change of stack.yaml, in front of a real API server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli
from stackgen.errors import StartError
from stackgen.runtimes.kubernetes.kubectl import connect
from stackgen.stack.envfile import read_env
from tests.cluster.conftest import KUBECONFIG, kubectl, read
from tests.cluster.test_commands import DONE, READY, Run, report, wait
from tests.cluster.test_commands import run as run
from tests.cluster.test_commands import volumes as volumes
from tests.kubernetes.standin import standin_engine

BIG, SMALL = "vllm-qwen3-32b", "vllm-qwen3-8b"
HEAD = """
name: {namespace}
target: kubernetes
kubernetes: {{create_namespace: false, gateway_replicas: 1}}
gateway: true
models:
"""
MODELS = {
    BIG: "  - {model: Qwen/Qwen3-32B, revision: 9216db5781bf21249d130ec9da846c4624c16137, engine: vllm, gpus: 4}\n",
    SMALL: "  - {model: Qwen/Qwen3-8B, revision: b968826d9c46dd6066d109eabc6255188de91218, engine: vllm, gpus: 1}\n",
}
KINDS = "deployments,services,networkpolicies,configmaps,secrets,jobs,pvc"


@pytest.fixture
def folder(tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stack with two models, whose namespace is the test's own."""
    monkeypatch.setenv("KUBECONFIG", KUBECONFIG)
    write(tmp_path, namespace, BIG, SMALL)
    return tmp_path


def write(folder: Path, namespace: str, *models: str) -> None:
    text = HEAD.format(namespace=namespace) + "".join(MODELS[one] for one in models)
    (folder / "stack.yaml").write_text(text)


def names(namespace: str) -> set[str]:
    """All objects of the stack: KIND/NAME."""
    found = read("get", KINDS, "-n", namespace, "-l", f"app.kubernetes.io/part-of={namespace}")["items"]
    return {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in found}


def up(folder: Path, run: Run, port: int, *models: str) -> dict[str, Any]:
    """Starts the stack, while a stand-in for vLLM answers for its models."""
    with standin_engine(port, read_env(folder)["STACKGEN_API_KEY"], *models):
        code, data = run("up", "--yes", "--timeout", "60", "--url", f"http://127.0.0.1:{port}/v1")
    assert code == 0, data
    return data


def make_ready(namespace: str) -> Callable[[], bool]:
    """Reports all pods as ready, as their kubelets would; whether there are pods."""

    def is_done() -> bool:
        pods = read("get", "pods", "-n", namespace)["items"]
        for name in {one["metadata"]["labels"]["app.kubernetes.io/name"] for one in pods}:
            report(namespace, name, DONE if name == "download" else READY)
        return bool(pods)

    return is_done


def test_up_deletes_what_stack_yaml_no_longer_names(
    nodes: dict[str, int], namespace: str, folder: Path, run: Run, volumes: Callable[[], None],
    capsys: pytest.CaptureFixture[str], free_port: int,
) -> None:  # fmt: skip
    assert cli.main(["up", str(folder), "--yes", "--timeout", "1"]) == 1
    volumes()
    wait(make_ready(namespace), "no pods")
    wait(lambda: make_ready(namespace)() and run("status")[0] == 0, "the stack did not become ready")
    up(folder, run, free_port, "Qwen/Qwen3-32B", "Qwen/Qwen3-8B")
    before = names(namespace)
    assert {f"deployment/{BIG}", f"deployment/{SMALL}", f"service/{BIG}", f"service/{SMALL}"} <= before
    kubectl("create", "configmap", "other", "-n", namespace)

    # without consent, everything stays, and the user sees what would go
    write(folder, namespace, BIG)
    capsys.readouterr()
    assert cli.main(["up", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert f"deployment.apps/{SMALL}" in shown and f"service/{SMALL}" in shown
    assert f"{BIG}\n" not in shown.partition("no longer part of")[2]
    assert names(namespace) == before

    # another Job of the download, for one model
    assert cli.main(["up", str(folder), "--yes", "--timeout", "1"]) == 1
    wait(lambda: f"deployment/{SMALL}" not in names(namespace), "the Deployment stays")
    wait(lambda: make_ready(namespace)() and run("status")[0] == 0, "the stack did not become ready")
    up(folder, run, free_port, "Qwen/Qwen3-32B")
    after = names(namespace)
    assert not [one for one in after if SMALL in one]
    assert {f"deployment/{BIG}", "deployment/gateway", f"service/{BIG}"} <= after
    # claims stay, and so do objects without the labels of the stack
    assert {one for one in before if one.startswith("persistentvolumeclaim/")} <= after
    assert kubectl("get", "configmap", "other", "-n", namespace).returncode == 0
    # of ConfigMaps and Secrets, only those that `kubectl kustomize` prints
    built = kubectl("kustomize", str(folder / "kubernetes")).stdout
    maps = {one.partition("/")[2] for one in after if one.startswith(("configmap/", "secret/"))}
    assert maps and all(f"name: {one}" in built for one in maps)


def results(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, list[tuple[str, str]]]:
    """The results of doctor by id: status and text."""
    capsys.readouterr()
    cli.main(["doctor", str(folder), "--offline", "--json"])
    found: dict[str, list[tuple[str, str]]] = {}
    for one in json.loads(capsys.readouterr().out)["findings"]:
        found.setdefault(one["id"], []).append((one["status"], one["message"]))
    return found


def test_doctor_reads_a_real_cluster(
    nodes: dict[str, int], namespace: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results(folder, capsys)
    # this server is older than what the manifests need, and has no storage class
    assert {status for status, _ in found["SG-P100"]} <= {"warn", "unknown"}
    assert {status for status, _ in found["SG-P103"]} == {"fail"}
    assert {status for status, _ in found["SG-P102"]} == {"ok"}
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"},
             "spec": {"hard": {"requests.nvidia.com/gpu": "2"}}}  # fmt: skip
    kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(quota))
    wait(lambda: "used" in read("get", "quota", "few", "-n", namespace)["status"], "the quota has no use")
    assert "fail" in {status for status, _ in results(folder, capsys)["SG-P105"]}


def test_fields_that_the_user_applied_with_kubectl_are_taken_over(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", KUBECONFIG)
    cluster = connect(None, namespace)
    one: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keys"}}

    def text(value: str) -> str:
        return json.dumps(one | {"data": {"keys.map": value}})

    kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=text("by hand"))
    cluster.apply("-f", "-", stdin=text("by stackgen"))
    assert read("get", "configmap", "keys", "-n", namespace)["data"] == {"keys.map": "by stackgen"}
    # another program's values are not overwritten
    words = ("apply", "--server-side", "--force-conflicts", "--field-manager", "other", "-n", namespace, "-f", "-")
    kubectl(*words, stdin=text("by another program"))
    with pytest.raises(StartError, match="conflict with"):
        cluster.apply("-f", "-", stdin=text("by stackgen again"))
    assert read("get", "configmap", "keys", "-n", namespace)["data"] == {"keys.map": "by another program"}
