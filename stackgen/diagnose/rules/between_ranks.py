"""Rules for what connects the ranks of a model: torch's store, its symmetric memory, and NVSHMEM.

None of these failures was reproduced. `source` names the programs and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.error_lines import find_root_lines
from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

# vLLM's communicator, and torch's module: the frames of a traceback
SYMMETRIC = re.compile(r"symm_mem\.py\", line|_symmetric_memory/__init__\.py\", line|torch_symm_mem\.rendezvous\(")
FRAMES = 25
TIMED_OUT = r"client socket has timed out after \d+ms while trying to connect to \((?P<host>"
NOT_READY = re.compile(r"system not yet initialized|cudaErrorSystemNotReady")
NVSHMEM = r"(?:^|[/_])nvshmem/\S*?\w+\.(?:cpp|cuh?|h)\S*:\d+: "
NOT_CONNECTED = re.compile(
    NVSHMEM + r"(?:non-zero status: \d+|NULL value) (?P<problem>(?:ibv_\w+|ep_connect|transport create connect|"
    r"connect EPS|nvshmem setup connections) failed|Unable to create \w+)"
)
OFF = 'set VLLM_ALLREDUCE_USE_SYMM_MEM to "0" in extra_env, so that vLLM uses NCCL and its own all-reduce kernels '
"instead"


def _find_symmetric(evidence: Evidence) -> Iterator[Hit]:
    """An exception ended a start, and its traceback ends in torch's symmetric memory."""
    for service in evidence.services:
        lines = lines_since_ready(service.log) if "symm" in service.log and not service.is_working else []
        for one in find_root_lines(lines):
            above = lines[max(0, one.index - FRAMES) : one.index]
            if re.match(r"(?:\w+\.)*\w*Error: ", one.text) and any(SYMMETRIC.search(line) for line in above):
                problem = strip_prefix(one.text).partition(": ")[2].rstrip(".")
                variant = FABRIC if NOT_READY.search(problem) else None
                yield Hit(service.service, (one.text,), {"problem": problem}, highlight=problem[:200], variant=variant)
                break


def _find_nvshmem(evidence: Evidence) -> Iterator[Hit]:
    """NVSHMEM reports that it can't connect the ranks; its first line has the cause."""
    for service in evidence.services:
        lines = lines_since_ready(service.log) if "nvshmem" in service.log and not service.is_working else []
        hits = [(strip_prefix(line).strip(), found) for line in lines if (found := NOT_CONNECTED.search(line))]
        if hits:
            shown = tuple(dict.fromkeys(line for line, _ in hits))[:2]
            yield Hit(service.service, shown, {"problem": hits[0][1]["problem"]})


FABRIC = Variant(
    (),
    cause="vLLM uses torch's symmetric memory to connect the memory of the GPUs, and the CUDA driver reports that the "
    "NVLink fabric is not ready ({problem}). Either the fabric manager is not running, or the machine has no fabric "
    "that connects all GPUs",
    fix="run `systemctl status nvidia-fabricmanager` and `nvidia-smi -q | grep -A4 Fabric` on the host; on a machine "
    "with NVSwitches, start the fabric manager, which must have the same version as the driver; without NVSwitches, or "
    "until the fabric manager runs, " + OFF,
    condition="the message says that the system is not yet initialized",
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-G058",
        title="torch's symmetric memory can't connect the GPUs",
        cause="vLLM uses torch's symmetric memory to connect the memory of the GPUs, and this failed: {problem}. "
        "Symmetric memory needs GPUs that can read each other's memory, and all ranks must see the same GPUs under the "
        "same numbers. Some machines, virtual GPUs, and containers with only a part of the GPUs don't meet these "
        "conditions",
        fix=OFF + " (SGLang: remove `--enable-torch-symm-mem` and `--enable-symm-mem`); the model, its memory and "
        "PYTORCH_CUDA_ALLOC_CONF are not the cause",
        source="The messages come from torch (csrc/distributed/c10d/symm_mem/CUDASymmetricMemory.cu) below vLLM's "
        "symm_mem.py. vllm-project/vllm issue 25937 (2025-09) and pull request 26925 (2025-10), QwenLM/Qwen3-VL issue "
        "2018 (2026-01) and open-tinker/OpenTinker issue 23 (2026-01) quote them. The failure was not reproduced.",
        explain="Symmetric memory only speeds up the sum over the GPUs (all-reduce) of a model with tensor "
        "parallelism. The model works without it.",
        find=_find_symmetric,
        variants=(FABRIC,),
    ),
    Rule(
        "SG-C026",
        title="a rank can't reach the first rank of its model",
        cause="a process of the model could not connect to the first process (rank 0) at {host}, port {port}, before "
        "the time-out. Either this address can't be reached from here (another network interface, a firewall), or no "
        "process of the first rank listens there",
        fix="read the log of the first rank; if the first rank ended or waits, its first error is the cause; otherwise "
        "set the address of the first rank to one that every machine and container can reach (vLLM: VLLM_HOST_IP and "
        "`--master-addr`, SGLang: `--dist-init-addr`); set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface "
        "of this address, and open its ports in the firewall; test the connection with `nc -vz {host} {port}` while "
        "the first rank waits",
        source="The messages come from torch (csrc/distributed/c10d/socket.cpp), and are quoted in vllm-project/vllm "
        "issues 19670 (2025-06) and 14340 (2025-03) and nvidia-cosmos/cosmos-rl issue 681 (2026-05). The failure was "
        "not reproduced.",
        explain="All ranks connect to a store that the first rank opens. Engines choose its address from the machine's "
        "interfaces, and may choose an address that only this machine can reach.",
        patterns=compile_patterns(TIMED_OUT + r"[^,()]+), (?P<port>\d+)\)"),
        # the fabric of one machine is no network
        consequence_of=("SG-C016",),
        variants=(
            Variant(
                compile_patterns(TIMED_OUT + r"172\.(?:1[7-9]|2\d|3[01])\.\d+\.\d+), (?P<port>\d+)\)"),
                cause="a process of the model could not connect to the first process (rank 0) at {host}, port {port}, "
                "before the time-out. This is an address of a Docker network, which exists only on one machine and "
                "only in containers of that network",
                fix="start the containers of the ranks with the host's network (`network_mode: host`), and set "
                "VLLM_HOST_IP in each one to the address of its own machine; if all ranks run on one machine, read the "
                "log of the first rank, which may have ended; if all ranks run in one container, set VLLM_HOST_IP to "
                "127.0.0.1, because a firewall or VPN of this machine blocks the address",
            ),
        ),
    ),
    Rule(
        "SG-C027",
        title="NVSHMEM can't connect the GPUs",
        cause="DeepEP uses NVSHMEM to send tokens between the GPUs of an expert-parallel model. NVSHMEM could not "
        "connect the RDMA adapters of the ranks: {problem}",
        fix="compare `ibv_devinfo -v` and `show_gids` on all machines; set NVSHMEM_HCA_LIST to the adapters that "
        "connect the machines, and, with RoCE, NVSHMEM_IB_GID_INDEX to the index that NCCL_IB_GID_INDEX has; check "
        "that the containers have /dev/infiniband, `ulimit -l unlimited` and the same version of NVSHMEM; on one "
        "machine, or as a test, start without DeepEP (SGLang: `--moe-a2a-backend none`, vLLM: another "
        "`--all2all-backend`)",
        source="The messages come from NVSHMEM (src/modules/transport and src/host/init/init.cu), and are quoted in "
        "sgl-project/sglang issues 7450 (2025-06), 6017 and 7888 (2025-07). The failure was not reproduced.",
        explain="The first line has the cause. The lines that follow (`nvshmem setup connections failed`, `NVSHMEM API "
        "called before NVSHMEM initialization has completed`) repeat that the start failed.",
        find=_find_nvshmem,
        variants=(
            Variant(
                compile_patterns(
                    r"NVSHMEM device library version does not match with NVSHMEM host library version",
                    NVSHMEM + r"non-zero status: \d+ nvshmem_internal_init_thread failed",
                ),
                title="the image has NVSHMEM in two versions",
                cause="DeepEP was compiled with one version of NVSHMEM, but loads the library of another version",
                fix="use the engine's official image with its own DeepEP; in your own image, keep only one version of "
                "NVSHMEM (`pip list | grep nvshmem` and `echo $NVSHMEM_DIR $LD_LIBRARY_PATH` show all), and compile "
                "DeepEP with this version",
            ),
        ),
    ),
)
