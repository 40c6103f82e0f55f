"""Every golden manifest, and every planted mistake, in front of a real API server; and where the scheduler puts pods.

Kubernetes 1.20 of Debian has no policy/v1, no resource.k8s.io and no field checks on the server: kubectl compares the
fields with the server's OpenAPI definitions instead. `tests/kubernetes` compares all kinds with the newest schemas.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.examples import MANIFESTS
from stackgen.cli import main as cli
from stackgen.targets.kubernetes import FOLDER
from tests.cluster.conftest import kubectl, read

# kinds that this server doesn't have
TOO_NEW = ("policy/v1", "resource.k8s.io/v1", "autoscaling/v2")
by_stack = pytest.mark.parametrize("folder", MANIFESTS, ids=lambda folder: folder.name)
Object = dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def _definitions() -> None:
    """Kinds of LeaderWorkerSet, prometheus-operator and KEDA."""
    kubectl("apply", "-f", str(Path(__file__).with_name("crds.yaml")))
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[Object]]:
    """Renders a stack as a user does, and returns the objects that kustomize makes of it."""

    @cache
    def build(folder: Path) -> list[Object]:
        copied = tmp_path_factory.mktemp(folder.name) / folder.name
        shutil.copytree(folder, copied, ignore=shutil.ignore_patterns(FOLDER, ".env", "stackgen.lock"))
        if folder.name == "several-nodes":
            make_certificate(copied)
            # a provider's key, which the stack names as well
            (copied / ".env").write_text("TOGETHER_API_KEY=not-a-key\n")
        assert cli.main(["render", str(copied), "--target", "kubernetes"]) == 0
        done = subprocess.run(
            ["kubectl", "kustomize", str(copied / FOLDER)], capture_output=True, text=True, check=True
        )
        return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]

    return build


def make_certificate(folder: Path) -> None:
    """The certificate and key that the stack names."""
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=models.example.com",
    ]
    subprocess.run([*words, "-keyout", "site.key", "-out", "site.crt"], cwd=folder, capture_output=True, check=True)


def create(objects: list[Object], namespace: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Sends objects to the server, in `namespace`."""
    for one in objects:
        one["metadata"]["namespace"] = namespace
    return kubectl("create", "-f", "-", *words, stdin=yaml.safe_dump_all(objects), check=False)


def sendable(objects: list[Object]) -> list[Object]:
    """Copies of the objects that this server knows, without the namespace itself, and without resource claims."""
    found = [copy.deepcopy(one) for one in objects if one["apiVersion"] not in TOO_NEW and one["kind"] != "Namespace"]
    for spec in (template["spec"] for one in found for template in pod_templates(one)):
        spec.pop("resourceClaims", None)
        for container in spec["containers"]:
            container.get("resources", {}).pop("claims", None)
    return found


def pod_templates(one: Object) -> list[Object]:
    """The pod templates in an object: of a workload, or both of a LeaderWorkerSet."""
    spec = one.get("spec", {})
    group = spec.get("leaderWorkerTemplate", {})
    found = [spec.get("template"), group.get("leaderTemplate"), group.get("workerTemplate")]
    return [template for template in found if template]


@by_stack
def test_the_server_accepts_every_object(folder: Path, namespace: str, built: Callable[[Path], list[Object]]) -> None:
    objects = sendable(built(folder))
    done = create(objects, namespace, "--dry-run=server", "--validate=strict")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(objects)


@by_stack
def test_the_server_accepts_every_pod_template_as_a_pod(
    folder: Path, namespace: str, built: Callable[[Path], list[Object]]
) -> None:
    """The definitions of other projects' kinds leave pod templates open, and so hide their mistakes."""
    templates = [template for one in sendable(built(folder)) for template in pod_templates(one)]
    pods = []
    for number, template in enumerate(templates):
        spec = template["spec"]
        # the server asks for these objects only for pods, and a cluster's administrator creates them
        spec.pop("runtimeClassName", None)
        metadata = {**template["metadata"], "name": f"pod-{number}"}
        pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec}})
    done = create(pods, namespace, "--dry-run=server", "--validate=strict")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(pods) > 0


STACK = """
name: placed
target: kubernetes
kubernetes: {registry: registry.example.com/llm}
models:
  - {model: Qwen/Qwen2.5-72B-Instruct, revision: 495f39366efef23836d0cfae4fbe635880d2be31, engine: vllm, gpus: 8}
  - {model: Qwen/Qwen3-32B, revision: 9216db5781bf21249d130ec9da846c4624c16137, engine: vllm, gpus: 4, replicas: 3}
"""
VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: 1Ti}}
  accessModes: [ReadWriteMany]
  persistentVolumeReclaimPolicy: Retain
  claimRef: {{namespace: {namespace}, name: {claim}}}
  nfs: {{server: files.example.com, path: /{claim}}}
"""


def _nodes_of_pods(namespace: str, component: str) -> dict[str, list[str]]:
    """The nodes of a component's pods by service of the plan, "" for a pod without a node."""
    label = f"app.kubernetes.io/component={component}"
    found: dict[str, list[str]] = {}
    for pod in read("get", "pods", "-n", namespace, "-l", label)["items"]:
        found.setdefault(pod["metadata"]["labels"]["app.kubernetes.io/name"], []).append(
            pod["spec"].get("nodeName", "")
        )
    return {name: sorted(places) for name, places in found.items()}


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


@contextmanager
def _volumes(objects: list[Object], namespace: str) -> Iterator[None]:
    """Volumes for all claims in `objects`: without them, no pod gets a node."""
    names = []
    for one in objects:
        if one["kind"] == "PersistentVolumeClaim":
            claim = one["metadata"]["name"]
            names.append(f"{namespace}-{claim}")
            kubectl("create", "-f", "-", stdin=VOLUME.format(name=names[-1], namespace=namespace, claim=claim))
    try:
        yield
    finally:
        kubectl("delete", "pv", *names, "--wait=false")


def test_pods_get_the_nodes_with_enough_gpus(
    nodes: dict[str, int], namespace: str, built: Callable[[Path], list[Object]], tmp_path: Path
) -> None:
    """16 GPUs on nodes of 4, 4 and 8: one pod with 8, two of three pods with 4. Claims hold all of them back before."""
    objects = _send(STACK, namespace, built, tmp_path)
    big, small = "vllm-qwen2-5-72b-instruct", "vllm-qwen3-32b"
    _wait(lambda: len(_nodes_of_pods(namespace, "engine").get(small, [])) == 3, "the controller made no pods")
    assert _nodes_of_pods(namespace, "engine") == {big: [""], small: ["", "", ""]}
    with _volumes(objects, namespace):
        _wait(lambda: _nodes_of_pods(namespace, "engine")[small].count("") == 1, "pods were not placed")
        assert _nodes_of_pods(namespace, "engine") == {big: ["gpu-node-3"], small: ["", "gpu-node-1", "gpu-node-2"]}
        # both gateways and the download need no GPU, and the gateways are spread over nodes
        _wait(lambda: len(set(_nodes_of_pods(namespace, "gateway")["gateway"])) == 2, "the gateways share a node")
        assert "" not in _nodes_of_pods(namespace, "download")["download"]


PACKED = """
name: packed
target: kubernetes
kubernetes: {registry: registry.example.com/llm, gpus_per_node: 4}
models:
  - {model: Qwen/Qwen3-32B, revision: 9216db5781bf21249d130ec9da846c4624c16137, engine: vllm, gpus: 4, replicas: 2}
  - {model: Qwen/Qwen3-8B, revision: 895c8d171bc03c30e113cd7a28c02494b5e068b7, engine: vllm, gpus: 1, replicas: 3}
"""


def test_replicas_are_packed_if_another_model_needs_whole_nodes(
    nodes: dict[str, int], namespace: str, built: Callable[[Path], list[Object]], tmp_path: Path
) -> None:
    objects = _send(PACKED, namespace, built, tmp_path)
    with _volumes(objects, namespace):
        _wait(lambda: len(places := _places(namespace)) == 5 and "" not in places, "pods were not placed")
        # without packing, the scheduler would use all three nodes
        assert len(set(_nodes_of_pods(namespace, "engine")["vllm-qwen3-8b"])) == 1


def _places(namespace: str) -> list[str]:
    return [node for nodes in _nodes_of_pods(namespace, "engine").values() for node in nodes]


def _send(stack: str, namespace: str, built: Callable[[Path], list[Object]], tmp_path: Path) -> list[Object]:
    folder = tmp_path / "stack"
    folder.mkdir()
    (folder / "stack.yaml").write_text(stack)
    objects = sendable(built(folder))
    done = create(objects, namespace)
    assert done.returncode == 0, done.stderr
    return objects
