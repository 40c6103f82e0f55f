"""One replica of vLLM on several nodes: the flags of its ranks, without Ray.

The nodes are pods of a cluster, or machines of `hosts`, each with a stack of its own. Flags: vLLM 0.32.0, `vllm serve
--help` (`--nnodes`, `--node-rank`, `--master-addr`, `--master-port`, `--headless`), and its documentation "Parallelism
and scaling", multi-node with the executor `mp`.
"""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.engines.base import Replica, format_flags
from stackgen.errors import Mistake
from stackgen.flags.parallel import count_model_groups
from stackgen.plan import Asset, Group, GroupNode, HealthCheck, Site

__all__ = ["GROUP_ASSETS", "HOST_ASSETS", "find_node_mistakes", "follow", "follower_health", "group_of", "node_flags",
           "node_of", "own_url", "setup_of", "watch_of"]  # fmt: skip

GROUP_ASSETS = (Asset("engines/group_health.py", "scripts/group_health.py"),)
# of machines whose containers use the machine's network
HOST_ASSETS = (*GROUP_ASSETS, Asset("engines/group_node.py", "scripts/group_node.py"))
# seconds without a connection to the first machine after which a rank is started again
PATIENCE = 20


def node_of(replica: Replica, site: Site) -> GroupNode:
    """The node that asks: of a cluster, or this machine."""
    return replica.node or site.group_node()


def node_flags(replica: Replica, site: Site) -> tuple[str, ...]:
    """The flags that each node of `replica` gets."""
    node = node_of(replica, site)
    return format_flags((
        ("--distributed-executor-backend", "mp"),
        ("--nnodes", replica.nodes),
        ("--node-rank", node.rank),
        ("--master-addr", node.leader),
        ("--master-port", node.store_port),
        # without NVLink between the nodes, its rendezvous hangs
        ("--disable-custom-all-reduce", True),
        ("--headless", bool(replica.follows)),
    ))  # fmt: skip


def group_of(replica: Replica, site: Site, command: tuple[str, ...]) -> Group | None:
    """The other nodes of `replica`, whose first node runs `command`: they compute, and answer no requests.

    None if it has one node, or if this machine's stack has no other node of it.
    """
    if replica.nodes < 2 or replica.node:
        return None
    return Group(replica.nodes, (*command, "--headless"), follower_health(replica, site), site.group_node().store_port)


def follower_health(replica: Replica, site: Site) -> HealthCheck:
    """The check of a node that answers no HTTP: whether it is connected to the first node."""
    node = node_of(replica, site)
    check = ("python3", site.script("group_health.py"), node.leader, str(node.store_port))
    # half an hour, because the first node also has to be pulled and started
    return HealthCheck(check, timeout=10, start_period=1800)


def follow(replica: Replica, site: Site, command: tuple[str, ...]) -> tuple[str, ...]:
    """`command` of a machine that follows another one: it starts when the other one accepts connections."""
    node = node_of(replica, site)
    return ("python3", site.script("group_node.py"), "run", node.leader, str(node.store_port), *command)


def watch_of(replica: Replica, site: Site) -> str:
    """The command that ends a follower whose connection to the first machine is lost: it does not return by itself."""
    node = node_of(replica, site)
    return f"python3 {site.script('group_node.py')} watch {node.leader} {node.store_port} {PATIENCE}"


def setup_of(replica: Replica, site: Site, setup: str) -> str:
    """The command that prints the variables for a machine's network interface, and those of the command `setup`."""
    return f"python3 {site.script('group_node.py')} setup {node_of(replica, site).address} {setup}".rstrip()


def own_url(replica: Replica, port: int) -> str:
    """The URL at which the container of `replica` reaches its engine."""
    host = replica.node.address if replica.node else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def find_node_mistakes(replica: Replica) -> Iterator[Mistake]:
    """Data parallel groups over several nodes, and GPUs that the nodes can't share evenly."""
    if replica.nodes < 2:
        return
    if (count_model_groups(replica.spec) or 1) > 1:
        field = "data_parallel_size" if getattr(replica.spec, "data_parallel_size", None) else "extra_args"
        yield Mistake(
            f"{replica.path}.{field}",
            f"data parallelism can't be combined with {replica.nodes} nodes for each replica",
            hint=f"remove {'the flag' if field == 'extra_args' else field}, and increase `replicas`, among which the "
            "gateway distributes requests",
        )
    groups = replica.spec.pipeline_parallel_size
    if groups > 1 and groups % replica.nodes and not replica.spec.tensor_parallel_size:
        yield Mistake(
            f"{replica.path}.pipeline_parallel_size",
            f"{groups} stages can't be divided among {replica.nodes} nodes",
            hint=f"set {replica.nodes}, or a multiple of {replica.nodes}",
        )
