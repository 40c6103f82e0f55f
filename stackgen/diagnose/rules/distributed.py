"""Rules for the connections between the processes of one model on several machines.

The failure was not reproduced. `source` names the program and the reports that quote the messages.
"""

from __future__ import annotations

import re

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.rule import Rule, Variant, compile_patterns

__all__ = ["RULES"]

INTERFACE = (
    "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME on every machine to the network interface that reaches the others "
    "(`ip -br address` shows them), and VLLM_HOST_IP to its address"
)

FAILED = compile_patterns(r"Gloo connectFullMesh failed")
LOOPBACK = re.compile(r"remote=\[(?:127\.[\d.]+|::1)\]|Using the\s+loopback\s+address as fallback")


def _uses_loopback(evidence: Evidence, service: str) -> bool:
    return bool(LOOPBACK.search(evidence.read_log(service)))


RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C013",
        title="the processes of a model do not reach each other (Gloo)",
        cause="Gloo, which vLLM's processes use next to NCCL, could not connect all processes: it may have chosen a "
        "network interface that the other machine can't reach",
        fix=f"{INTERFACE}; if they are right, look whether the machines reach each other on all ports",
        source="The messages come from torch (csrc/distributed/c10d/ProcessGroupGloo.cpp), and are quoted in "
        "vllm-project/vllm issue 6329 (2024-07), sgl-project/sglang issue 3226 (2025-02) and aws-samples/aws-do-eks "
        "pull request 50 (2026-08).",
        explain="On one machine, the warning `Unable to resolve hostname to a (local) address` alone is harmless. "
        "Memory, /dev/shm and the settings of peer-to-peer transfers are not involved.",
        patterns=FAILED,
        variants=(
            Variant(
                FAILED,
                cause="Gloo, which vLLM's processes use next to NCCL, uses the loopback address, with which a machine "
                "only reaches itself: the machine's name does not resolve to an address of its network",
                fix=f"{INTERFACE}; or let the name of each machine (`hostname`) resolve to this address (/etc/hosts)",
                applies=_uses_loopback,
                condition="the log shows a loopback address, or that Gloo chose it",
            ),
        ),
        inputs=("log",),
    ),
)
