"""Rules for the connections between the processes of one model on several machines.

The failure was not reproduced. `source` names the program and the reports that quote the messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stackgen.diagnose.evidence import Evidence
from stackgen.diagnose.log_lines import lines_since_ready, strip_prefix
from stackgen.diagnose.rule import Hit, Rule, Variant, compile_patterns

__all__ = ["RULES"]

INTERFACE = (
    "on every machine, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network interface that reaches the other "
    "machines (`ip -br address` lists interfaces), and VLLM_HOST_IP to the address of this interface"
)

FAILED = compile_patterns(r"Gloo connectFullMesh failed")
LOOPBACK = re.compile(r"remote=\[(?:127\.[\d.]+|::1)\]|Using the\s+loopback\s+address as fallback")


def _uses_loopback(evidence: Evidence, service: str) -> bool:
    return bool(LOOPBACK.search(evidence.read_log(service)))


# what templates/engines/group_node.py prints before it ends a rank
LOST = re.compile(
    r"^stackgen: no connection to the first machine \((?P<address>\S+) port (?P<port>\d+)\) for (?P<seconds>[\d.]+) s"
)
CLOSED = re.compile(r"gloo.{0,200}Connection closed by peer \[(?P<address>[^\]]+)\]")


def _find_lost_rank(evidence: Evidence) -> Iterator[Hit]:
    """A rank of a model lost its connection to another rank, and the service does not work."""
    for service in evidence.services:
        # a service that works has started again since then
        lines = [] if service.is_working else [strip_prefix(line).strip() for line in lines_since_ready(service.log)]
        for pattern, variant in ((LOST, None), (CLOSED, CLOSED_BY_PEER)):
            found = next((one for line in reversed(lines) if (one := pattern.search(line))), None)
            if found:
                yield Hit(service.service, (found.string,), found.groupdict(), found[0], variant=variant)
                break


NIXL = compile_patterns(r"nixlBackendError: NIXL_ERR_BACKEND")
NO_CUDA_TRANSPORT = re.compile(r"UCX +WARN +transports? .{0,60}?cuda\S* (?:are|is) not available")


def _lacks_cuda_transport(evidence: Evidence, service: str) -> bool:
    return bool(NO_CUDA_TRANSPORT.search(evidence.read_log(service)))


CLOSED_BY_PEER = Variant(
    (),
    title="another process of the model ended",
    cause="Gloo lost the connection to another process of the same model ({address}). This process has ended, or its "
    "machine or network has failed. The reason is in the log of that process, not in this line",
    fix="with a model on several machines (`split_hosts`), read the log of the other machines from the same time: the "
    "first error there is the cause; on a single machine, look for the first error of another worker above; check the "
    "kernel log for the OOM killer (`sudo dmesg`); don't restart stackgen's services, because they restart by "
    "themselves",
    condition="the message comes from Gloo",
    consequence_of=("*",),
)

RULES: tuple[Rule, ...] = (
    Rule(
        "SG-C013",
        title="the processes of a model can't connect to each other (Gloo)",
        cause="vLLM's processes use Gloo next to NCCL, and Gloo could not connect all processes. Gloo may have "
        "chosen a network interface that the other machine can't reach",
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
        "eugr/spark-vllm-docker issue 389 and MiaAI-Lab/DeepSeek-v4.1-Flash-DGX-Sparks issue 14 (2026-09). In "
        "vllm-project/vllm issue 19613 (2025-06), NCCL_BUFFSIZE was the cause. The failure was not reproduced.",
        explain="`Cannot allocate memory` is not about the GPU's memory or /dev/shm. RDMA needs memory that the kernel "
        "is not allowed to move (locked memory). The limit `ulimit -l` restricts the amount of this memory.",
        patterns=compile_patterns(r"Call to (?P<call>ibv_\w+) failed with error (?P<problem>[A-Z][\w ]{2,60})"),
        variants=(
            Variant(
                compile_patterns(r"Call to (?P<call>ibv_\w+) failed with error (?P<problem>Cannot allocate memory)"),
                cause="NCCL could not register memory with the RDMA adapter: {call} ({problem}). Either the "
                "container's limit of locked memory is too low, or a variable of NCCL asks for too much, or the kernel "
                "refuses",
                fix="run `env | grep NCCL` in the container, and remove the variables that you have set, as a test "
                "(first NCCL_BUFFSIZE, because NCCL registers buffers of this size); run `ulimit -l` in the container; "
                "if it does not print `unlimited`, set `ulimits: {memlock: -1}` in the Compose file (`docker run "
                "--ulimit memlock=-1`); if it prints `unlimited`, the kernel is the cause; on DGX Spark (GB10), "
                "kernels 7.0.0-1019 and 7.0.0-31 have this bug, so boot the previous kernel, for example 6.17.0-1032; "
                'as a test, set NCCL_IB_DISABLE to "1" in extra_env, which uses TCP instead and is slower',
            ),
        ),
    ),
    Rule(
        "SG-C015",
        title="Ray finds no node for a part of the model",
        cause="no node of the Ray cluster has these resources free: {request}",
        fix="run `ray status`, which shows the nodes and their free resources; if a node is missing, start Ray there; "
        "if the GPUs are in use, end the program that holds them, or lower tensor_parallel_size",
        source="The message comes from Ray (autoscaler/_private/autoscaler.py). vLLM's page about distributed "
        "troubleshooting and eugr/spark-vllm-docker issue 227 (2026-05) describe the addresses. The failure was not "
        "reproduced.",
        explain="vLLM asks Ray for one GPU on the node that has vLLM's own address, and for the other GPUs on any "
        "node. On a machine with several network interfaces, vLLM and Ray may choose different addresses.",
        patterns=compile_patterns(
            r"No available node types can fulfill resource requests? (?P<request>\{(?![^}]*'node:)[^}]{0,200}\})"
        ),
        variants=(
            Variant(
                compile_patterns(
                    r"No available node types can fulfill resource requests? \{[^}]{0,200}'node:(?P<node>[^']+)'"
                ),
                title="vLLM and Ray use different addresses of a machine",
                cause="vLLM asks for a GPU on the Ray node with the address {node}, but no node with a free GPU has "
                "this address. Most often, the machine has several network interfaces, and Ray registered the machine "
                "under the address of another interface",
                fix="run `ray status` and `ray list nodes`, which show the addresses of the nodes; start Ray on each "
                "machine with `ray start --node-ip-address=ADDRESS`, and set VLLM_HOST_IP there to the same address; "
                "if a node does have the address {node}, its GPU is in use by another program",
            ),
        ),
        inputs=("log",),
    ),
    Rule(
        "SG-C025",
        title="Ray has too few GPUs for the model",
        cause="vLLM runs on Ray, and Ray has too few free GPUs: {problem}",
        fix="run `ray status`, which lists the machines and the free GPUs; if a machine is missing, look at the log of "
        "`ray start` there, and whether it reaches the head's port (6379); if GPUs are missing, start Ray on each "
        "machine inside a container that sees its GPUs "
        "(`nvidia-smi` there lists them), or give `ray start` the option `--num-gpus`; if they are in use, end the "
        "program that holds them; with GPUs of one machine only, remove `--distributed-executor-backend ray`",
        source="The messages come from vLLM (v1/executor/ray_utils.py, initialize_ray_cluster). The failure was not "
        "reproduced.",
        explain="Ray counts GPUs when it starts, and does not notice GPUs that a container gets later.",
        patterns=compile_patterns(
            r"(?P<problem>Current node has no GPU available)",
            r"(?P<problem>The number of required \w+ exceeds the total number of available \w+ in the (?:placement "
            r"group|"
            r"cluster))",
            r"(?P<problem>Cannot provide a placement group (?:requiring [\d.]+ \w+|of placement_group_specs)).{0,2000}?"
            r"within \d+ seconds",
        ),
        inputs=("log",),
    ),
    Rule(
        "SG-C016",
        title="a rank lost its connection to the first machine",
        cause="the rank had no connection to the first machine ({address}, port {port}) for {seconds} seconds, so "
        "stackgen ended the rank. Most often, the engine on the first machine has ended",
        fix="read the log of the first machine from the same time: its first error is the cause; if the engine there "
        "works, check that the network and the firewalls between the machines allow this port; don't restart the rank, "
        "because it restarts by itself and waits for the first machine",
        source="The line is stackgen's own (templates/engines/group_node.py), and the message of Gloo comes from "
        "gloo/transport/tcp/pair.cc. Both were reproduced with vLLM 0.32.0 on two addresses of one machine.",
        explain="With `split_hosts`, the processes of one model run on several machines. None of them can compute "
        "without the others.",
        find=_find_lost_rank,
        variants=(CLOSED_BY_PEER,),
    ),
    Rule(
        "SG-C022",
        title="a port between the processes of a model is in use",
        cause="the processes of the model connect to each other through port {port} of this machine, and another "
        "program already uses it",
        fix="run `ss -ltnp` on the machine (with the host's network) or in the container; if a process of an earlier "
        "start still uses the port, end it; give each engine that shares a network its own ports (SGLang: "
        "`--nccl-port` and `--dist-init-addr`, vLLM: VLLM_PORT and `--master-port`), or run the containers without the "
        "host's network; if no program uses the port, start again, because two engines may choose the same port at "
        "random",
        source="The messages come from torch (csrc/distributed/c10d/socket.cpp) and pyzmq. sgl-project/sglang issue "
        "37215 (2026), NovaSky-AI/SkyRL issue 284 (2025-09) and vllm-project/vllm issue 7196 (2024-08) quote them. "
        "The failure was not reproduced.",
        explain="This is not the port of the API. The GPUs and NCCL are not the cause.",
        patterns=compile_patterns(
            r"The server socket has failed to listen on any local network address\..{0,40}?port: (?P<port>\d+),.{0,80}?"
            r"EADDRINUSE",
            r"The server socket has failed to (?:bind|listen) (?:to|on) \[\S*\]:(?P<port>\d+) .{0,60}?already in use",
            r"ZMQError: Address already in use \(addr='tcp://[^']{0,200}?:(?P<port>\d+)'\)",
        ),
    ),
    Rule(
        "SG-C023",
        title="NIXL can't register the KV cache",
        cause="NIXL, which transfers the KV cache between engines, could not register its memory with the transport "
        "(UCX)",
        fix="run `ucx_info -d | grep -i cuda` in the container; if the command prints nothing, the image's UCX does "
        "not support CUDA, so use an image that contains NIXL (for example of llm-d or Dynamo); remove UCX_TLS from "
        "the environment, or add cuda_copy and cuda_ipc to it; with RDMA, the container also needs /dev/infiniband and "
        "`ulimit -l unlimited`",
        source="The message comes from NIXL (nixlBackendError). LMCache/LMCache issue 605 (2025-05), "
        "vllm-project/vllm issues 18322 (2025-05) and 22430 (2025-08) and vllm-project/aibrix issue 1433 (2025-08) "
        "quote it. The failure was not reproduced.",
        explain="The model and its memory are not the cause. The lines of UCX above the error name the transport.",
        patterns=NIXL,
        variants=(
            Variant(
                NIXL,
                cause="NIXL transfers the KV cache between engines with UCX, but UCX in this container has no "
                "transports for GPU memory (cuda_copy, cuda_ipc)",
                applies=_lacks_cuda_transport,
                condition="UCX logs that its transports for CUDA are not available",
            ),
        ),
    ),
    Rule(
        "SG-C024",
        title="the path of a socket is too long",
        cause="the processes of the engine connect through a file whose path is longer than Linux allows: {path}",
        fix="set TMPDIR in extra_env (or in the shell) to a short folder such as /tmp; for vLLM, VLLM_RPC_BASE_PATH "
        "alone is enough",
        source="The message comes from pyzmq (zmq/backend/cython/_zmq.py), and the limit of 107 characters from the "
        "kernel "
        "(sockaddr_un). The failure was not reproduced.",
        explain="Batch systems and some shells set TMPDIR to a long path.",
        patterns=compile_patterns(r"ipc path [\"'](?P<path>[^\"']+)[\"'] is longer than \d+ characters"),
    ),
)
