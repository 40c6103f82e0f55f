"""Reaches stacks in a cluster from this machine: the context, and ports that kubectl forwards to the gateways."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stackgen.cli.commands.output import note
from stackgen.providers.targets import ResolvedTarget

if TYPE_CHECKING:
    from stackgen.runtimes.kubernetes.kubectl import Kubectl
    from stackgen.stack.folder import Stack

__all__ = ["connect_to", "forwarded_url", "reach", "reword"]

# the Services of the gateway (`stackgen.kubernetes.workloads`), and the plain port of a gateway with HTTPS
GATEWAY, INTERNAL, PLAIN_PORT = "gateway", "gateway-internal", 8001


def connect_to(args: Namespace, stack: Stack, quiet: bool = False) -> Kubectl:
    """Returns kubectl for the stack, and prints the context unless `quiet`. Raises MachineError if there is none."""
    # most stacks run on one machine
    from stackgen.runtimes.kubernetes.kubectl import connect

    cluster = connect(getattr(args, "context", None), stack.spec.namespace)
    # the wrong cluster is the most expensive mistake here, so its name comes before everything else
    if not quiet:
        note(f"context {cluster.context} ({cluster.server}), namespace {cluster.namespace}")
    return cluster


def reword(stack: Stack) -> Callable[[str], str]:
    """Returns a function that replaces commands of Compose in a text, for a stack in a cluster."""
    from stackgen.targets.commands import for_cluster

    return partial(for_cluster, namespace=stack.spec.namespace) if stack.site.is_cluster else str


@contextmanager
def forwarded_url(cluster: Kubectl, stack: Stack) -> Iterator[str]:
    """Within the block, the URL leads to the stack's gateway. Raises StartError or MachineError if kubectl can't."""
    from stackgen.runtimes.kubernetes.forward import Forward

    service, port = GATEWAY, stack.spec.port
    if stack.spec.gateway and stack.spec.gateway.tls:
        # the certificate is for the public name, which a forwarded port does not have
        service, port = INTERNAL, PLAIN_PORT
        note("HTTPS is not tested: a forwarded port leads to the gateway's plain port. `check --base-url` tests HTTPS")
    with Forward(cluster, service, port) as forward:
        yield f"http://127.0.0.1:{forward.port}/v1"


@contextmanager
def reach(args: Namespace, resolved: Sequence[ResolvedTarget]) -> Iterator[list[ResolvedTarget]]:
    """Within the block, the endpoints of stacks in a cluster have addresses that this machine reaches.

    Other endpoints are unchanged. Raises StartError or MachineError if a gateway can't be reached.
    """
    urls: dict[Path, tuple[Kubectl, str]] = {}
    with ExitStack() as forwards:
        found = []
        for one in resolved:
            if one.stack is None or one.endpoint is None or not one.stack.site.is_cluster:
                found.append(one)
                continue
            if one.stack.folder not in urls:
                cluster = connect_to(args, one.stack)
                urls[one.stack.folder] = (cluster, forwards.enter_context(forwarded_url(cluster, one.stack)))
            from stackgen.runtimes.kubernetes.topology import ClusterObserver

            cluster, url = urls[one.stack.folder]
            observer = ClusterObserver(cluster, one.stack.plan, one.endpoint)
            target = replace(one.target, base_url=url, observer=observer, reword=reword(one.stack))
            found.append(replace(one, target=target))
        yield found
