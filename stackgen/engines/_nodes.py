"""One replica of vLLM on several nodes: the flags of its ranks, without Ray.

Flags: vLLM 0.32.0, `vllm serve --help` (`--nnodes`, `--node-rank`, `--master-addr`, `--master-port`, `--headless`), and
its documentation "Parallelism and scaling", multi-node with the executor `mp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.engines.base import Replica, format_flags
from stackgen.errors import Mistake
from stackgen.flags.parallel import count_model_groups
from stackgen.plan import Asset, Group, HealthCheck, Site

__all__ = ["GROUP_ASSETS", "find_node_mistakes", "group_of", "node_flags"]

# of torch's store, where the ranks meet; 29501 is the default of `--master-port`
MASTER_PORT = 29501
GROUP_ASSETS = (Asset("engines/group_health.py", "scripts/group_health.py"),)


def node_flags(replica: Replica, site: Site) -> tuple[str, ...]:
    """The flags that each node of `replica` gets."""
    node = site.group_node()
    return format_flags((
        ("--distributed-executor-backend", "mp"),
        ("--nnodes", replica.nodes),
        ("--node-rank", node.rank),
        ("--master-addr", node.leader),
        ("--master-port", MASTER_PORT),
        # without NVLink between the nodes, its rendezvous hangs
        ("--disable-custom-all-reduce", True),
    ))  # fmt: skip


def group_of(replica: Replica, site: Site, command: tuple[str, ...]) -> Group | None:
    """The other nodes of `replica`, whose first node runs `command`: they compute, and answer no requests.

    None if it has one node.
    """
    if replica.nodes < 2:
        return None
    check = ("python3", site.script("group_health.py"), site.group_node().leader, str(MASTER_PORT))
    # they answer no HTTP; half an hour, because the first node also has to be pulled and started
    health = HealthCheck(check, timeout=10, start_period=1800)
    return Group(replica.nodes, (*command, "--headless"), health, MASTER_PORT)


def find_node_mistakes(replica: Replica) -> Iterator[Mistake]:
    """Data parallel groups over several nodes, and GPUs that the nodes can't share evenly."""
    if replica.nodes < 2:
        return
    if (count_model_groups(replica.spec) or 1) > 1:
        yield Mistake(
            f"{replica.path}.extra_args",
            f"data parallelism can't be combined with {replica.nodes} nodes for each replica",
            hint="remove the flag, and increase `replicas`, among which the gateway distributes requests",
        )
    groups = replica.spec.pipeline_parallel_size
    if groups > 1 and groups % replica.nodes and not replica.spec.tensor_parallel_size:
        yield Mistake(
            f"{replica.path}.pipeline_parallel_size",
            f"{groups} stages can't be divided among {replica.nodes} nodes",
            hint=f"set {replica.nodes}, or a multiple of {replica.nodes}",
        )
