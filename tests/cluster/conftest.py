"""A real control plane (scripts/cluster), nodes that exist as objects only, and a namespace for each test."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

KUBECONFIG = os.environ.get("STACKGEN_TEST_KUBECONFIG", "")
HERE = Path(__file__).parent
# nodes by name, and the GPUs of each
NODES = {"gpu-node-1": 4, "gpu-node-2": 4, "gpu-node-3": 8}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def kubectl(*words: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs kubectl on the test cluster. `check`: a failure fails the test."""
    done = subprocess.run(
        ["kubectl", "--kubeconfig", KUBECONFIG, *words], input=stdin, capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
    return done


def read(*words: str) -> Any:
    """Returns what kubectl prints as JSON."""
    return json.loads(kubectl(*words, "-o", "json").stdout)


# what the API server requires of a node's description, and no test reads
NODE_INFO = dict.fromkeys(
    (
        "machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion",
        "kubeProxyVersion", "operatingSystem", "architecture",
    ),
    "",
)  # fmt: skip


def _describe_node(name: str, gpus: int) -> dict[str, Any]:
    """A node as a kubelet would report it. No kubelet runs here, so nothing ever starts on it."""
    capacity = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(gpus)}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "described by a test"}
    labels = {"kubernetes.io/hostname": name, "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready], "nodeInfo": NODE_INFO}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status}


@pytest.fixture(scope="session")
def nodes() -> Iterator[dict[str, int]]:
    """Nodes with GPUs, by name, with the number of GPUs."""
    for name, gpus in NODES.items():
        kubectl("create", "-f", "-", stdin=json.dumps(_describe_node(name, gpus)))
        # the node controller taints a new node until its conditions were seen once
        kubectl("taint", "nodes", name, "node.kubernetes.io/not-ready:NoSchedule-", check=False)
    yield dict(NODES)
    kubectl("delete", "node", *NODES)


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, with its default service account. Deleted afterwards, without waiting."""
    name = f"test-{abs(hash(request.node.nodeid)) % 10**9}"
    kubectl("create", "namespace", name)
    yield name
    # controllers would make deleted pods again, and without a kubelet, a deleted pod would keep its GPUs forever
    kubectl("delete", "deployments,jobs,replicasets", "--all", "-n", name, "--cascade=orphan", "--wait=false")
    kubectl("delete", "pods", "--all", "-n", name, "--force", "--grace-period=0", "--wait=false")
    kubectl("delete", "namespace", name, "--wait=false")
