"""Rules for the connections between the processes of one model on several machines.

The failure was not reproduced. `source` names the program and the reports that quote the messages.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

INTERFACE = (
    "on every machine, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface that reaches the other "
    "machines (`ip -br address` lists interfaces), and VLLM_HOST_IP to the address of this interface"
)

FAILED = compile_patterns(r"Gloo connectFullMesh failed")
LOOPBACK = re.compile(r"remote=\[(?:127\.[\d.]+|::1)\]|Using the\s+loopback\s+address as fallback")


def _uses_loopback(evidence: Evidence, service: str) -> bool:
    return bool(LOOPBACK.search(evidence.read_log(service)))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C013",
        title="the processes of a model can't connect to each other (Gloo)",
        cause="vLLM's processes use Gloo next to NCCL, and Gloo could not connect all processes. It may have chosen "
        "a network interface that the other machine can't reach",
        fix=f"{INTERFACE}; if these variables are right, check that the machines reach each other on all ports",
        source="The messages come from torch (csrc/distributed/c10d/ProcessGroupGloo.cpp), and are quoted in "
        "vllm-project/vllm issue 6329 (2024-07), sgl-project/sglang issue 3226 (2025-02) and aws-samples/aws-do-eks "
        "pull request 50 (2026-08).",
        explain="On a single machine, the warning `Unable to resolve hostname to a (local) address` is harmless by "
        "itself. Memory, /dev/shm and the settings of peer-to-peer transfers are not the cause.",
        patterns=FAILED,
        variants=(
            Variant(
                FAILED,
                cause="vLLM's processes use Gloo next to NCCL, and Gloo uses the loopback address, which reaches "
                "only the machine itself. The name of the machine does not resolve to an address of its network",
                fix=f"{INTERFACE}; or make the name of each machine (`hostname`) resolve to this address, for "
                "example in /etc/hosts",
                applies=_uses_loopback,
                condition="the log shows a loopback address, or that Gloo chose it",
            ),
        ),
        inputs=("log",),
    ),
    Rule(
        "SG-C014",
        title="NCCL can't use the RDMA adapter",
        cause="NCCL connects the machines with RDMA (InfiniBand or RoCE), and a call to the adapter failed: {call} "
        "({problem})",
        fix="check on every machine that the port is active (`ibv_devinfo`), that the container has /dev/infiniband, "
        'and that NCCL_IB_HCA and NCCL_IB_GID_INDEX name the right port; as a test, set NCCL_IB_DISABLE to "1" in '
        "extra_env, which uses TCP instead and is slower",
        source="The message comes from NCCL 2.30 (src/misc/ibvwrap.cc), and is quoted in NVIDIA/nccl-tests issue 206, "
        "eugr/spark-vllm-docker issue 389 and MiaAI-Lab/DeepSeek-v4.1-Flash-DGX-Sparks issue 14 (2026-09). The failure "
        "was not reproduced.",
        explain="`Cannot allocate memory` is not about the GPU's memory or /dev/shm. RDMA needs memory that the kernel "
        "may not move, and a limit (`ulimit -l`) says how much.",
        patterns=compile_patterns(r"Call to (?P<call>ibv_\w+) failed with error (?P<problem>[A-Z][\w ]{2,60})"),
        variants=(
            Variant(
                compile_patterns(r"Call to (?P<call>ibv_\w+) failed with error (?P<problem>Cannot allocate memory)"),
                cause="NCCL could not register memory with the RDMA adapter: {call} ({problem}). Either the "
                "container's limit of locked memory is too low, or the kernel refuses",
                fix="run `ulimit -l` in the container: if it does not print `unlimited`, set `ulimits: {memlock: -1}` "
                "in the Compose file (`docker run --ulimit memlock=-1`); if it does, the kernel is the cause: on DGX "
                "Spark (GB10), kernels 7.0.0-1019 and 7.0.0-31 have this fault, so boot the previous kernel, for "
                'example 6.17.0-1032; as a test, set NCCL_IB_DISABLE to "1" in extra_env, which uses TCP instead '
                "and is slower",
            ),
        ),
    ),
)
