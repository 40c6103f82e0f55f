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
)
