"""What the other tests of this folder rely on: the scheduler packs pods onto nodes that exist as objects only."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from tests.cluster.conftest import kubectl, read


def _pod(index: int, gpus: int) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": str(gpus)}
    container = {"name": "engine", "image": "example/engine:1", "resources": {"limits": limits}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{index}"},
        "spec": {"containers": [container]},
    }


def test_pods_are_placed_by_free_gpus_and_the_rest_stays_pending(nodes: dict[str, int], namespace: str) -> None:
    # 16 GPUs on three nodes hold 4 pods of 4 GPUs
    pods = {"apiVersion": "v1", "kind": "List", "items": [_pod(index, 4) for index in range(5)]}
    kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(pods))
    deadline = time.monotonic() + 30
    placed: Counter[str] = Counter()
    while time.monotonic() < deadline and placed.total() < 4:
        found = read("get", "pods", "-n", namespace)["items"]
        placed = Counter(pod["spec"]["nodeName"] for pod in found if "nodeName" in pod["spec"])
        time.sleep(0.2)
    assert placed == {name: gpus // 4 for name, gpus in nodes.items()}
    events = read("get", "events", "-n", namespace, "--field-selector", "reason=FailedScheduling")["items"]
    assert any("Insufficient nvidia.com/gpu" in event["message"] for event in events)
