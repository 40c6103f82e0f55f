"""`stackgen doctor` on a cluster. kubectl is a fake that answers with objects in the format of Kubernetes 1.37."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stackgen.cli import main as cli

STACK = """
name: demo
target: kubernetes
kubernetes: {create_namespace: false, tolerations: [{key: dedicated, value: llm}]}
monitoring: true
models:
  - {model: Qwen/Qwen3-32B, revision: 9216db5781bf21249d130ec9da846c4624c16137, engine: vllm, gpus: 4, replicas: 2}
"""
# files of the folder are the answers: a shell, because each run of doctor asks ten times
FAKE = """#!/bin/sh
case "$*" in
  config*) what=config ;;
  *"get --raw"*) what=version ;;
  *--all-namespaces*) what=all-pods ;;
  *api-versions*) what=api-versions ;;
  *) what=$6 ;;
esac
[ ! -e {answers}/$what.refused ] || {{ cat {answers}/$what.refused >&2; exit 1; }}
exec cat {answers}/$what
"""
CONFIG = {"contexts": [{"name": "lab"}], "clusters": [{"cluster": {"server": "https://lab:6443"}}]}
FORBIDDEN = 'Error from server (Forbidden): {0} is forbidden: User "a" cannot list resource "{0}"'
VERSIONS = "v1\napps/v1\nbatch/v1\npolicy/v1\nnetworking.k8s.io/v1\nmonitoring.coreos.com/v1"


def node(name: str, gpus: int, **spec: Any) -> dict[str, Any]:
    status = {"allocatable": {"nvidia.com/gpu": str(gpus)}, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": {}}, "spec": spec, "status": status}


def pod(on: str, gpus: int, phase: str = "Running") -> dict[str, Any]:
    container = {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    return {"metadata": {"name": "x", "namespace": "other"}, "spec": {"nodeName": on, "containers": [container]},
            "status": {"phase": phase}}  # fmt: skip


def storage_class(name: str, provisioner: str, default: str = "true") -> dict[str, Any]:
    annotations = {"storageclass.kubernetes.io/is-default-class": default}
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner}


GOOD: dict[str, Any] = {
    "version": {"major": "1", "minor": "34+"},
    "api-versions": VERSIONS,
    "namespace": {"metadata": {"name": "demo", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}},
    "nodes": [node("a", 4), node("b", 8, taints=[{"key": "dedicated", "value": "llm", "effect": "NoSchedule"}])],
    "all-pods": [pod("b", 4), pod("a", 4, "Succeeded")],
    "storageclasses": [storage_class("files", "nfs.csi.k8s.io")],
    "pvc": [{"metadata": {"name": "models"}, "status": {"phase": "Bound"}}],
    "resourcequotas": [],
    "pods": [],
}
Doctor = Callable[..., tuple[int, dict[str, list[tuple[str, str]]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the rendered stack, with the fake kubectl."""
    folder = tmp_path_factory.mktemp("stack")
    (folder / "bin").mkdir()
    (folder / "stack.yaml").write_text(STACK)
    program = folder / "bin" / "kubectl"
    program.write_text(FAKE.format(answers=folder / "answers"))
    program.chmod(0o755)
    assert cli.main(["render", str(folder)]) == 0
    return folder


@pytest.fixture
def doctor(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs doctor with these answers of the cluster. Returns the exit code and (status, message) by id."""
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    answers = folder / "answers"
    shutil.rmtree(answers, ignore_errors=True)
    answers.mkdir()

    def run(**changed: Any) -> tuple[int, dict[str, list[tuple[str, str]]]]:
        for name, answer in {**GOOD, "config": CONFIG, **changed}.items():
            is_refused = isinstance(answer, str) and answer.startswith("Error")
            text = answer if isinstance(answer, str) else json.dumps(
                {"items": answer} if isinstance(answer, list) else answer
            )  # fmt: skip
            (answers / (f"{name}.refused" if is_refused else name)).write_text(text)
        capsys.readouterr()
        code = cli.main(["doctor", str(folder), "--offline", "--json"])
        found: dict[str, list[tuple[str, str]]] = {}
        for one in json.loads(capsys.readouterr().out)["findings"]:
            text = f"{one['message']} {one['evidence']} {one['fix']}"
            found.setdefault(one["id"], []).append((one["status"], text))
        return code, found

    return run


def test_a_good_cluster_has_no_failure_and_this_machine_is_not_looked_at(doctor: Doctor) -> None:
    code, found = doctor()
    assert code == 0
    # only the driver's documentation says whether several nodes can mount its volumes
    statuses = {id: {status for status, _ in ones} for id, ones in found.items() if id >= "SG-P100"}
    assert statuses == {
        "SG-P100": {"ok"}, "SG-P101": {"ok"}, "SG-P102": {"ok"}, "SG-P103": {"ok", "unknown"}, "SG-P104": {"ok"},
        "SG-P105": {"ok"},
    }  # fmt: skip
    assert not {"SG-P001", "SG-P006", "SG-P020", "SG-P030"} & set(found)


LARGE = """
  - {model: meta-llama/Llama-3.1-405B-Instruct, revision: be673f326cab4cd22ccfef76109faf68e41aa5f1, engine: vllm,
     gpus: 16}
"""


@pytest.mark.parametrize(
    ("nodes", "selectors", "status"),
    [
        # two replicas with 4 GPUs on two nodes leave one whole node
        (3, False, "warn"),
        # even then, two nodes remain
        (4, False, "ok"),
        (3, True, "ok"),
    ],
)
def test_doctor_tries_the_places_that_a_scheduler_may_choose(
    doctor: Doctor, folder: Path, nodes: int, selectors: bool, status: str
) -> None:
    small, large = (f", kubernetes: {{node_selector: {{llm: {one}}}}}" * selectors for one in ("small", "whole"))
    text = STACK.replace("replicas: 2", f"replicas: 2{small}") + LARGE.lstrip("\n").replace("16}", f"16{large}}}")
    cluster = [node(f"n{number}", 8) for number in range(nodes)]
    for number, one in enumerate(cluster):
        one["metadata"]["labels"] = {"llm": "whole" if number else "small"}
    (folder / "stack.yaml").write_text(text)
    try:
        _, found = doctor(nodes=cluster, **{"all-pods": [], "api-versions": f"{VERSIONS}\nleaderworkerset.x-k8s.io/v1"})
    finally:
        (folder / "stack.yaml").write_text(STACK)
    assert [one for one, _ in found["SG-P102"]] == [status], found["SG-P102"]
    if status == "warn":
        assert "1 pod of vllm-llama-3-1-405b-instruct-nodes may wait forever" in found["SG-P102"][0][1]
        assert "vllm-qwen3-32b" in found["SG-P102"][0][1] and "node_selector" in found["SG-P102"][0][1]


@pytest.mark.parametrize(
    ("changed", "id", "status", "words"),
    [
        ({"nodes": [node("a", 0)]}, "SG-P102", "fail", "no node offers nvidia.com/gpu"),
        ({"nodes": [node("a", 2), node("b", 2)]}, "SG-P102", "fail", "has 4 × nvidia.com/gpu"),
        ({"nodes": [node("a", 4)]}, "SG-P102", "warn", "1 pod of vllm-qwen3-32b will wait"),
        ({"nodes": [node("a", 8, taints=[{"key": "other", "effect": "NoSchedule"}])]}, "SG-P102", "fail", "may use"),
        ({"nodes": [node("a", 8, unschedulable=True)]}, "SG-P102", "fail", "may use"),
        ({"api-versions": VERSIONS.replace("policy/v1\n", "")}, "SG-P101", "fail", "Kubernetes 1.21 or newer"),
        ({"api-versions": VERSIONS.replace("monitoring.coreos.com/v1", "")}, "SG-P101", "fail", "Prometheus operator"),
        ({"version": {"major": "1", "minor": "20"}}, "SG-P100", "warn", "Kubernetes 1.20"),
        ({"version": {"major": "", "minor": "", "gitVersion": "v0.0.0-master"}}, "SG-P100", "unknown", "no version"),
        ({"version": {"major": "", "minor": "", "gitVersion": "v1.24.1"}}, "SG-P100", "warn", "Kubernetes 1.24"),
        ({"storageclasses": []}, "SG-P103", "fail", "no default storage class"),
        ({"storageclasses": [storage_class("disk", "ebs.csi.aws.com")]}, "SG-P103", "warn", "for a single node"),
        ({"pvc": [{"metadata": {"name": "models"}, "status": {"phase": "Pending"}}]}, "SG-P103", "warn", "is Pending"),
        ({"namespace": ""}, "SG-P104", "fail", "the namespace demo does not exist"),
        ({"resourcequotas": [{"metadata": {"name": "few"}, "spec": {},
                              "status": {"hard": {"requests.nvidia.com/gpu": "8"},
                                         "used": {"requests.nvidia.com/gpu": "4"}}}]},
         "SG-P105", "fail", "4 of 8 used, and the stack requests 8"),
        ({"nodes": FORBIDDEN.format("nodes")}, "SG-P102", "unknown", "cannot list resource"),
        ({"all-pods": FORBIDDEN.format("pods")}, "SG-P102", "unknown", "if no other pod uses them"),
        ({"storageclasses": FORBIDDEN.format("storageclasses")}, "SG-P103", "unknown", "not checked"),
        ({"namespace": FORBIDDEN.format("namespaces")}, "SG-P104", "unknown", "not checked"),
        ({"resourcequotas": FORBIDDEN.format("resourcequotas")}, "SG-P105", "unknown", "not checked"),
    ],
)  # fmt: skip
def test_doctor_finds_what_a_cluster_lacks(
    doctor: Doctor, changed: dict[str, Any], id: str, status: str, words: str
) -> None:
    code, found = doctor(**changed)
    assert any(one[0] == status and words in one[1] for one in found[id]), found[id]
    # what was not read is no failure, and not ok either
    assert (code == 3) == (status == "fail")


def test_doctor_compares_other_devices_with_the_nodes_too(doctor: Doctor, folder: Path) -> None:
    text = STACK.replace("replicas: 2", "replicas: 2, kubernetes: {resources: {rdma/hca: 1}}")
    (folder / "stack.yaml").write_text(text)
    nodes, used = [node("a", 8), node("b", 8)], pod("a", 0)
    try:
        assert ("fail", "no node offers rdma/hca") in [
            (status, text[:23]) for status, text in doctor(nodes=nodes)[1]["SG-P102"]]  # fmt: skip
        for one in nodes:
            one["status"]["allocatable"]["rdma/hca"] = "1"
        assert {status for status, _ in doctor(nodes=nodes)[1]["SG-P102"]} == {"ok"}
        used["spec"]["containers"][0]["resources"]["limits"]["rdma/hca"] = "1"
        found = doctor(nodes=nodes, **{"all-pods": [used]})[1]["SG-P102"]
        assert any("will wait for free devices (rdma/hca)" in text for _, text in found), found
    finally:
        (folder / "stack.yaml").write_text(STACK)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"config": "Error: current-context must exist in order to minify"}, "kubectl has no current context"),
        ({"version": "Error: The connection to the server lab:6443 was refused"}, "the cluster does not answer"),
    ],
)
def test_without_a_cluster_the_other_checks_run(
    answer: dict[str, str], message: str, doctor: Doctor, folder: Path
) -> None:
    code, found = doctor(**answer)
    [(status, text)] = found["SG-P100"]
    assert (code, status) == (3, "fail") and message in text
    assert not set(found) & {f"SG-P10{number}" for number in range(1, 6)}
    # the stack file, the parsers, .env, and the rendered files
    assert {"SG-P064", "SG-P067", "SG-P072", "SG-P080", "SG-P081"} <= set(found)
    manifest = folder / "kubernetes" / "gateway.yaml"
    before = manifest.read_text()
    manifest.unlink()
    [(_, text)] = doctor(**answer)[1]["SG-P081"]
    manifest.write_text(before)
    assert "some rendered files don't match" in text
