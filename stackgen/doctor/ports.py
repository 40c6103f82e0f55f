"""Ports and addresses: free, present on this machine, and who would be able to reach them."""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.doctor.facts import Host
from stackgen.doctor.finding import Case, Results, fail, good, unknown, warn

__all__ = ["address", "exposure", "free"]

ANY = ("0.0.0.0", "::")


def free(case: Case) -> Results:
    """Every published port is free, or held by this very stack."""
    taken = case.host.listeners
    for service in case.services():
        for port in service.ports:
            holders = list(_holders(case.host, port.address.strip("[]"), port.host))
            others = [holder for holder, project in holders if not project or project != _project(case)]
            if others:
                yield fail(
                    f"port {port.host} is taken",
                    f"held by {', '.join(others)}",
                    f"stop it, or set another port, e.g. port: {_next(case.host, port.host)}",
                    _place(case, port.host),
                )
            elif holders:
                yield good(f"port {port.host} is held by this stack itself", "it runs already")
            elif taken is None:
                yield unknown(f"whether port {port.host} is free is unknown", "the list of ports can't be read")
            else:
                yield good(f"port {port.host} is free")


def address(case: Case) -> Results:
    """The address that ports bind is one of this machine's."""
    if case.stack is None:
        return
    bind, own = case.stack.spec.bind.strip("[]"), case.host.addresses
    if bind in ANY or bind.startswith("127.") or bind == "::1":
        yield good(f"{bind} can be bound")
    elif own is None or ":" in bind:
        yield unknown(f"whether {bind} is an address of this machine is unknown", place="bind")
    elif bind in own:
        yield good(f"{bind} is an address of this machine")
    else:
        yield fail(f"{bind} is no address of this machine", f"these are: {', '.join(own)}",
                   "set bind to one of them, or to 0.0.0.0", "bind")  # fmt: skip


def exposure(case: Case) -> Results:
    """Who reaches the ports, and what answers without a key."""
    for endpoint in case.stack.plan.endpoints if case.stack else ():
        if not endpoint.exposed:
            yield good(f"{endpoint.name} is reached from this machine only", endpoint.base_url)
        elif case.stack and case.stack.plan.service(endpoint.service).role == "gateway":
            if endpoint.base_url.startswith("https:"):
                yield good("others reach the gateway, over TLS and with a key", endpoint.base_url)
            else:
                yield warn(
                    "others reach the gateway, and read keys and texts on the way: it is plain HTTP",
                    endpoint.base_url,
                    "gateway: {tls: generate}, or a certificate of your own",
                    "gateway",
                )
            break
        else:
            paths = ", ".join(endpoint.dialect.open_paths[:3])
            told = f"without a key answer: {paths}, …" if paths else "all but the health path ask for the key"
            yield warn(f"{endpoint.name} is open to all who reach this machine", told,
                       "bind: 127.0.0.1, or a proxy with an allow-list of paths and TLS in front", "bind")  # fmt: skip
            break


def _project(case: Case) -> str:
    return case.stack.plan.name if case.stack else ""


def _holders(host: Host, address: str, port: int) -> Iterator[tuple[str, str]]:
    """Who holds the port, as (words, Compose project); containers first, as their proxy is all that the system sees."""
    found = False
    for container in host.containers or ():
        if any(p == port and _clash(address, a.strip("[]")) for a, p in container.ports):
            found = True
            project = f" of the stack {container.project}" if container.project else ""
            yield f"container {container.name}{project}", container.project
    for one in () if found else host.listeners or ():
        if one.port == port and _clash(address, one.address):
            yield one.holder or "a process of another user (`sudo ss -ltnp` names it)", ""
            return


def _clash(one: str, other: str) -> bool:
    """Whether two addresses can't be bound at the same port; `::` takes IPv4 as well."""
    one, other = (text.removeprefix("::ffff:") for text in (one, other))
    if (":" in one and other == "0.0.0.0") or (one == "0.0.0.0" and ":" in other and other != "::"):
        return False
    return one == other or one in ANY or other in ANY


def _next(host: Host, port: int) -> int:
    taken = {one.port for one in host.listeners or ()} | {p for c in host.containers or () for _, p in c.ports}
    return next((free for free in range(port + 1, 65536) if free not in taken), port)


def _place(case: Case, port: int) -> str:
    return next((f"{place}.port" for place, model in case.specs() if model.port == port), "port")
