"""Warnings about what other machines can read: ports over plain HTTP, and paths that answer without a key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stackgen.plan import Endpoint, Site
from stackgen.resolve.addons import gateway
from stackgen.spec import StackSpec

__all__ = ["find_exposure_warnings"]

TLS = "Set `gateway: {tls: generate}`, or use your own certificate"


def find_exposure_warnings(stack: StackSpec, site: Site, endpoints: Sequence[Endpoint]) -> list[str]:
    """Warns at most once; `endpoints` are the engines'."""
    return list(_find(stack, site, endpoints))[:1]


def _find(stack: StackSpec, site: Site, endpoints: Sequence[Endpoint]) -> Iterator[str]:
    page, has_tls = gateway.serves_page(stack), bool(stack.gateway and stack.gateway.tls)
    # `bind` has no effect in a cluster
    if site.is_cluster:
        kind = stack.cluster.service_type
        if kind != "ClusterIP" and not has_tls:
            yield (
                f"`kubernetes.service_type: {kind}` opens the gateway outside the cluster over plain HTTP: other "
                "machines on the network can read keys and prompts. Set `gateway: {tls: generate}` and "
                "`kubernetes.tls_secret`, unless a load balancer in front of the gateway adds TLS"
            )
        return
    if not gateway.is_enabled(stack, site):
        # a machine that only computes for another one has no endpoint
        if stack.exposed and endpoints:
            yield _describe_engines(stack, [one for one in endpoints if one.open_paths])
    # behind the first machine, the network is private; docs/how-to/serve-on-several-machines.md says so
    elif stack.exposed and not has_tls and not stack.is_behind_front:
        what = "keys, prompts, and passwords of the chat UI" if page else "keys and prompts"
        yield (
            f"the gateway is open on {stack.bind} over plain HTTP: other machines on the network can read {what}. {TLS}"
        )
    if page and site.uses_containers and not has_tls:
        yield (
            f"the chat UI is open on {stack.ui.bind if stack.ui else ''} over plain HTTP: other machines on the "
            f"network can read passwords and chats. {TLS}"
        )


def _describe_engines(stack: StackSpec, unguarded: Sequence[Endpoint]) -> str:
    if unguarded:
        names = ", ".join(one.name for one in unguarded)
        return (
            f"ports are open on {stack.bind}, and paths such as {unguarded[0].open_paths[0]} answer without a key "
            f"({names}). Set `gateway: true`, or put your own proxy with an allow-list of paths in front of the engines"
        )
    return (
        f"ports are open on {stack.bind} over plain HTTP: other machines on the network can read keys and prompts. Set "
        "`gateway: {tls: generate}`, or put your own proxy with TLS in front of the engines"
    )
