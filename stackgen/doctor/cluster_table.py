"""The checks of a cluster, which doctor runs for a stack with `target: kubernetes`."""

from __future__ import annotations

from stackgen.doctor import cluster
from stackgen.doctor.finding import Check

__all__ = ["CLUSTER_ONLY"]

CLUSTER_ONLY: tuple[Check, ...] = (
    Check("SG-P100", name="cluster-version", description="the server of the cluster answers, and is new enough",
          run=cluster.check_version, machine=True),
    Check("SG-P101", name="cluster-kinds", description="the server supports the kinds of all manifests, including "
                                                       "those of LeaderWorkerSet, the Prometheus operator and KEDA "
                                                       "if the stack uses them",
          run=cluster.check_kinds, machine=True),
    Check("SG-P102", name="cluster-gpus", description="the nodes that the pods may use have enough free GPUs, "
                                                      "and other devices of `kubernetes.resources`",
          run=cluster.check_gpus, machine=True),
    Check("SG-P103", name="cluster-storage", description="each claim has a storage class. If several nodes use the "
                                                         "claim, the class does not create volumes for a single "
                                                         "node",
          run=cluster.check_storage, machine=True),
    Check("SG-P104", name="cluster-security", description="the Pod Security level of the namespace allows the pods",
          run=cluster.check_security, machine=True),
    Check("SG-P105", name="cluster-quota", description="the quotas of the namespace have room for the stack",
          run=cluster.check_quota, machine=True),
)  # fmt: skip
