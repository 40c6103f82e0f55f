"""A worker of FastChat in a cluster that its controller does not know. The states are written here: no kubelet runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stackgen.diagnose import diagnose
from stackgen.runtimes.kubernetes import evidence
from stackgen.runtimes.kubernetes.kubectl import Kubectl
from stackgen.runtimes.kubernetes.states import ClusterService, PodState
from stackgen.stack.folder import open_stack

STACK = """
name: demo
target: kubernetes
kubernetes: {registry: registry.example.com/llm}
models: [{model: lmsys/vicuna-7b-v1.5, engine: fastchat, gpus: 1}]
"""
# the kubelet's words (pkg/kubelet/prober/prober.go), and those of the health check in the pod
LINE = "Startup probe failed: the controller does not know http://10.1.2.3:21002"


def test_a_worker_that_did_not_register_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stack.yaml").write_text(STACK)
    stack = open_stack(str(tmp_path))
    worker = next(one.name for one in stack.plan.services if one.role == "worker")
    states = tuple(
        ClusterService(one.name, one.role, "starting", 0, 1, (PodState(f"{one.name}-1", "starting", "node"),), (LINE,))
        if one.name == worker else ClusterService(one.name, one.role, "ready", 1, 1)
        for one in stack.plan.services
    )  # fmt: skip
    monkeypatch.setattr(evidence, "observe", lambda cluster, plan: states)
    monkeypatch.setattr(evidence, "_read_log", lambda cluster, pod: "")
    found = diagnose(evidence.collect_from_cluster(Kubectl("lab", "", "demo"), stack.plan, stack.spec, ()))
    assert [(one.id, one.service) for one in found] == [("SG-F007", worker)]
