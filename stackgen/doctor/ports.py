"""Checks of ports and addresses: ports are free, `bind` belongs to this machine, and who can reach the ports."""

from __future__ import annotations

from collections.abc import Iterator

from stackgen.doctor.facts import Host
from stackgen.doctor.finding import DoctorInputs, Results, fail, ok, unknown, warn

__all__ = ["check_bind_address", "check_exposure", "check_ports_free"]

ANY_ADDRESS = ("0.0.0.0", "::")


def check_ports_free(inputs: DoctorInputs) -> Results:
    """Every published port is free, or used by this stack itself."""
    listeners = inputs.host.listeners
    for service in inputs.services():
        for port in service.ports:
            # IPv6 addresses are in brackets, as Compose wants them
            holders = list(_find_port_holders(inputs.host, port.address.strip("[]"), port.host))
            others = [holder for holder, project in holders if not project or project != _project_name(inputs)]
            if others:
                yield fail(
                    f"port {port.host} is taken",
                    evidence=f"used by {', '.join(others)}",
                    fix="stop the program that uses the port, or set another port, e.g. "
                    f"`port: {_next_free_port(inputs.host, port.host)}`",
                    place=_port_field(inputs, port.host),
                )
            elif holders:
                yield ok(f"port {port.host} is used by this stack itself", evidence="the stack is already running")
            elif listeners is None:
                yield unknown(
                    f"can't tell whether port {port.host} is free",
                    evidence="the list of listening ports can't be read",
                )
            else:
                # with containers known, also ports that Docker forwards without a listening process
                looked = "listening sockets" if inputs.host.containers is None else "listening sockets and containers"
                yield ok(f"port {port.host} is free", evidence=f"compared with this machine's {looked}")


def check_bind_address(inputs: DoctorInputs) -> Results:
    """The address that ports bind to belongs to this machine."""
    if inputs.stack is None:
        return
    bind = inputs.stack.spec.bind.strip("[]")
    if bind in ANY_ADDRESS or _is_loopback(bind):
        yield ok(f"ports can be bound to {bind}", evidence="every machine has loopback and wildcard addresses")
        return
    own = inputs.host.addresses
    # only IPv4 addresses are collected
    if own is None or ":" in bind:
        yield unknown(f"can't tell whether {bind} is an address of this machine", place="bind")
    elif bind in own:
        yield ok(f"{bind} is an address of this machine")
    else:
        yield fail(
            f"{bind} is not an address of this machine",
            evidence=f"the addresses of this machine are {', '.join(own)}",
            fix="set `bind` to an address of this machine, or to 0.0.0.0",
            place="bind",
        )


def check_exposure(inputs: DoctorInputs) -> Results:
    """Reports who can reach the ports, and which paths answer without a key."""
    endpoints = inputs.stack.plan.endpoints if inputs.stack else ()
    if own := [endpoint for endpoint in endpoints if not endpoint.exposed]:
        urls = dict.fromkeys(endpoint.base_url for endpoint in own)
        yield ok("only this machine can reach the API", evidence=", ".join(urls))
    yield from _check_page(inputs)
    for endpoint in endpoints:
        if not endpoint.exposed:
            continue
        if inputs.stack and inputs.stack.plan.service(endpoint.service).role == "gateway":
            if endpoint.base_url.startswith("https:"):
                yield ok("other machines can reach the gateway over TLS, with a key", evidence=endpoint.base_url)
            elif inputs.stack.spec.is_behind_front:
                # TLS is only for clients, which use the first machine
                yield ok(
                    "the first machine reaches this gateway over plain HTTP, with a key, in the private network of "
                    "`hosts`",
                    evidence=endpoint.base_url,
                )
            else:
                yield warn(
                    "the gateway uses plain HTTP: other machines on the network can read keys and prompts",
                    evidence=endpoint.base_url,
                    fix="set `gateway: {tls: generate}`, or use your own certificate",
                    place="gateway",
                )
            # all endpoints share `bind`, so the first exposed endpoint is enough
            break
        else:
            # an engine may have dozens of open paths: three show what is open
            paths = ", ".join(endpoint.open_paths[:3])
            yield warn(
                f"every machine that can reach this machine can also reach {endpoint.name}",
                evidence=f"paths that need no key: {paths}, …" if paths else "only health paths answer without a key",
                fix="set `bind: 127.0.0.1`, or put a proxy with TLS and a list of allowed paths in front of the port",
                place="bind",
            )
            break


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _check_page(inputs: DoctorInputs) -> Results:
    """The chat page has an address of its own, `ui.bind`."""
    ui = inputs.stack.spec.ui if inputs.stack else None
    if inputs.stack is None or ui is None:
        return
    # Kubernetes has no `bind`, and no page
    if ui.is_left_behind(inputs.stack.spec.bind) and inputs.stack.spec.target == "compose":
        yield warn(
            f"the chat page is reachable from this machine only, although `bind` is {inputs.stack.spec.bind}",
            evidence=f"{ui.bind}:{ui.port}",
            fix=f'set `ui: {{bind: "{inputs.stack.spec.bind}"}}`, or `ui: {{bind: "{ui.bind}"}}` to keep it as it is',
            place="ui",
        )
    if _is_loopback(ui.bind.strip("[]")):
        return
    gateway, address = inputs.stack.spec.gateway, f"{ui.bind}:{ui.port}"
    if gateway and gateway.tls:
        yield ok("other machines can reach the chat page over TLS, with an account", evidence=address)
    else:
        yield warn(
            "the chat page uses plain HTTP: other machines on the network can read passwords and prompts",
            evidence=address,
            fix="set `gateway: {tls: generate}`, or use your own certificate",
            place="ui.bind",
        )


def _project_name(inputs: DoctorInputs) -> str:
    return inputs.stack.plan.name if inputs.stack else ""


def _find_port_holders(host: Host, address: str, port: int) -> Iterator[tuple[str, str]]:
    """The programs and containers that use the port, as (text, Compose project)."""
    found = False
    # containers first: the list of sockets shows only Docker's proxy
    for container in host.containers or ():
        if any(p == port and _addresses_conflict(address, a.strip("[]")) for a, p in container.ports):
            found = True
            project = f" of the stack {container.project}" if container.project else ""
            yield f"container {container.name}{project}", container.project
    for one in () if found else host.listeners or ():
        if one.port == port and _addresses_conflict(address, one.address):
            yield one.process or "a process of another user (`sudo ss -ltnp` shows the process)", ""
            return


def _addresses_conflict(one: str, other: str) -> bool:
    """Whether two addresses can't be bound at the same port; `::` includes IPv4."""
    # a socket for IPv4 and IPv6 may report an IPv4 address as ::ffff:127.0.0.1
    one, other = (text.removeprefix("::ffff:") for text in (one, other))
    # 0.0.0.0 does not include IPv6
    if (":" in one and other == "0.0.0.0") or (one == "0.0.0.0" and ":" in other and other != "::"):
        return False
    return one == other or one in ANY_ADDRESS or other in ANY_ADDRESS


def _next_free_port(host: Host, port: int) -> int:
    taken = {one.port for one in host.listeners or ()} | {p for c in host.containers or () for _, p in c.ports}
    return next((free for free in range(port + 1, 65536) if free not in taken), port)


def _port_field(inputs: DoctorInputs, port: int) -> str:
    return next((f"{place}.port" for place, model in inputs.model_specs() if model.port == port), "port")
