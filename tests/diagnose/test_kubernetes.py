"""Rules for pods: messages of Kubernetes' own programs, as the objects of a cluster contain them.

`tests/cluster` has most of them from a real scheduler and API server. No kubelet runs there, so its messages are here.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from stackgen.diagnose import Evidence, ServiceEvidence, diagnose

NODES = "0/3 nodes are available: "
# rule, message, and words of the cause
MESSAGES = (
    ("SG-K001", NODES + "3 Insufficient nvidia.com/gpu.", "nvidia.com/gpu"),
    ("SG-K001", NODES + "1 Insufficient cpu, 2 Insufficient amd.com/gpu.", "amd.com/gpu"),
    ("SG-K002", NODES + "3 node(s) had taint {dedicated: llm}, that the pod didn't tolerate.", "dedicated: llm"),
    ("SG-K002", NODES + "3 node(s) had untolerated taint {dedicated: llm}. preemption: 0/3 nodes are available",
     "dedicated: llm"),
    ("SG-K003", NODES + "3 pod has unbound immediate PersistentVolumeClaims.", "no volume"),
    ("SG-K003", "pod has unbound PersistentVolumeClaims (repeated 8 times)", "no volume"),
    ("SG-K003", '0/4 nodes are available: persistentvolumeclaim "models" bound to non-existent persistentvolume '
     '"pvc-2395". preemption: 0/4 nodes are available: 4 Preemption is not helpful for scheduling.', "no volume"),
    ("SG-K003", 'claim models: storageclass.storage.k8s.io "fast" not found', "no volume"),
    ("SG-K003", NODES + "3 node(s) didn't find available persistent volumes to bind.", "no volume"),
    ("SG-K003", 'persistentvolumeclaim "models" not found', "no volume"),
    ("SG-K004", 'pods "a-1" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2',
     "few, requested: pods=1"),
    ("SG-K004", 'pods "a-1" is forbidden: failed quota: few: must specify memory', "must specify memory"),
    ("SG-K005", NODES + "3 node(s) didn't match Pod's node affinity/selector.", "node_selector"),
    ("SG-K005", NODES + "3 node(s) didn't match node selector.", "node_selector"),
    ("SG-K006", NODES + "3 Insufficient memory.", "free memory"),
    ("SG-K007", 'pods "a-1" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
     "restricted:latest"),
    ("SG-K008", 'ImagePullBackOff: Back-off pulling image "acme/vllm:1"', "can't pull"),
    ("SG-K008", 'Failed to pull image "acme/vllm:1": rpc error: code = NotFound desc = failed to pull and unpack image '
     '"docker.io/acme/vllm:1": failed to resolve reference "docker.io/acme/vllm:1": not found', "can't pull"),
    ("SG-K009", "container engine ended: OOMKilled, exit code 137", "OOMKilled"),
    ("SG-K011", 'CreateContainerConfigError: secret "engine-key" not found', "missing"),
    ("SG-K023", 'MountVolume.SetUp failed for volume "scripts" : configmap "scripts" not found', "configmap `scripts`"),
    ("SG-K012", "no pod exists for a", "no pod"),
    ("SG-K016", NODES + "1 node(s) were unschedulable, 2 node(s) had volume node affinity conflict. preemption: 0/3 "
     "nodes are available: 3 Preemption is not helpful for scheduling.", "1 node(s) were unschedulable, 2 node(s)"),
    ("SG-K013", "no nodes available to schedule pods", "no node in the cluster"),
    ("SG-K019", 'admission webhook "vgpu.hami.io" denied the request: pod has node assigned', "nodeName"),
    ("SG-K020", 'Internal error occurred: failed calling webhook "a.acme.io": failed to call webhook: Post '
     '"https://a.llm.svc:443/mutate?timeout=10s": no endpoints available for service "a"', "in the namespace llm"),
    ("SG-K021", "Allocate failed due to requested number of devices unavailable for nvidia.com/gpu. Requested: 2, "
     "Available: 1, which is unexpected", "needs 2 `nvidia.com/gpu`"),
    ("SG-K024", "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi.",
     "too little memory"),
    ("SG-K025", 'pods "a-1" is forbidden: maximum cpu usage per Container is 8, but limit is 16',
     "is 8, but limit is 16"),
)  # fmt: skip


@pytest.mark.parametrize(("rule", "message", "words"), MESSAGES, ids=lambda one: one[:60])
def test_a_message_has_its_cause(rule: str, message: str, words: str) -> None:
    first = diagnose(Evidence((ServiceEvidence("a", engine="vllm", state="created", error=message),)))[0]
    assert (first.id, first.service) == (rule, "a")
    assert words in first.cause and first.evidence == (message,)


def test_events_of_a_restart_ask_for_the_log() -> None:
    event = (
        "Warning  BackOff  40s (x26 over 8m)  kubelet  Back-off restarting failed container vllm in pod a-1_llm(6f0b)"
    )
    pasted = ServiceEvidence("log", log=event)
    first = diagnose(Evidence((pasted,)))[0]
    assert first.id == "SG-K026" and "kubectl logs a-1 --previous" in first.fix
    # a log that has an error is a better answer
    with_log = replace(pasted, log=f"ValueError: the frobnicator is out of plums\n{event}")
    assert diagnose(Evidence((with_log,)))[0].id == "SG-0000"


def test_a_failing_probe_counts_only_after_the_first_start() -> None:
    message = "Liveness probe failed: HTTP probe failed with statuscode: 503"
    loading = ServiceEvidence("a", engine="vllm", state="running", health="starting", error=message)
    assert "SG-K010" not in [one.id for one in diagnose(Evidence((loading,)))]
    restarted = ServiceEvidence("a", engine="vllm", state="running", health="starting", restarts=2, error=message)
    assert [one.id for one in diagnose(Evidence((restarted,)))] == ["SG-K010"]


def test_the_log_of_a_crash_explains_more_than_the_state_of_its_pod() -> None:
    log = (
        "  Value error, User-specified max_model_len (1000000) is greater than the derived max_model_len "
        "(max_position_embeddings=2048.0 or model_max_length=None in model's config.json)."
    )
    error = "CrashLoopBackOff: back-off 40s restarting failed container\ncontainer engine ended: Error, exit code 1"
    crashed = ServiceEvidence("a", engine="vllm", state="exited", exit_code=1, restarts=4, error=error, log=log)
    assert [one.id for one in diagnose(Evidence((crashed,)))] == ["SG-V001"]
    # Docker's rule about restarts names settings that a cluster does not have
    (found,) = diagnose(Evidence((replace(crashed, log="mystery"),)))
    assert found.id == "SG-K014" and "--previous" in found.fix and found.evidence[0].startswith("CrashLoopBackOff")


def test_a_stack_without_pods_is_one_finding() -> None:
    services = tuple(ServiceEvidence(one, state="created", error=f"no pod exists for {one}") for one in "abc")
    assert [(one.id, one.service) for one in diagnose(Evidence(services))] == [("SG-K012", "")]
