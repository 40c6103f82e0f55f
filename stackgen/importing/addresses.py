"""The ports and addresses of the stack: those that the source publishes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from stackgen.importing.container import Container, PortMap
from stackgen.importing.flags import Flag
from stackgen.importing.ledger import Draft, Item, Ledger
from stackgen.spec.types import is_exposed
from stackgen.stack.envfile import API_KEY

__all__ = ["Address", "choose_addresses", "find_address"]

DEFAULT_PORTS = {"vllm": 8000, "llamacpp": 8080, "fastchat": 8000, "sglang": 30000}
# what a server listens to if no flag says otherwise
DEFAULT_HOSTS = {"vllm": "0.0.0.0", "llamacpp": "127.0.0.1", "fastchat": "127.0.0.1", "sglang": "127.0.0.1"}
INSIDE = "inside its container, the engine listens on the address that stackgen sets"


@dataclass(slots=True)
class Address:
    """Where clients of the source reach a model; port 0: nowhere on this machine."""

    bind: str = ""
    port: int = 0
    items: list[Item] = field(default_factory=list)
    # the items of the address alone
    hosts: list[Item] = field(default_factory=list)


def find_address(container: Container, draft: Draft | None, role: str, flags: dict[str, Flag] | None = None) -> Address:
    """The address of the server in `container`. Its flags `--host` and `--port` get an outcome if they are no field."""
    engine = draft.engine if draft else "fastchat"
    given = dict(flags or {})
    if draft:
        for name in ("host", "port"):
            if isinstance(flag := draft.fields.pop(f"_{name}", None), Flag):
                given[name] = flag
    if "worker" in role:
        for flag in given.values():
            flag.build_in(INSIDE)
        return _drop_worker_ports(container)
    inside = _number(given.get("port")) or DEFAULT_PORTS[engine]
    if container.is_bare or container.host_network:
        host = given["host"].text if "host" in given and not given["host"].unknown else DEFAULT_HOSTS[engine]
        address = Address(_as_ip(host), inside)
        for name, flag in given.items():
            if name == "port" and not _number(flag):
                flag.drop(
                    f"the source does not show the number of this port, so the stack uses port {inside}. To "
                    f"change this, set `port`"
                )
                continue
            kept = address.hosts if name == "host" else address.items
            kept += [word.item for word in (flag.word, *flag.values)]
        for port in container.ports:
            port.item.build_in("with the host's network, Docker ignores published ports")
        return address
    for flag in given.values():
        flag.build_in(INSIDE)
    # ports that Docker chooses come last
    published = sorted((port for port in container.ports if port.container == inside), key=lambda port: not port.host)
    for port in container.ports:
        if port not in published[:1]:
            reason = (
                f"the engine does not listen at port {port.container}"
                if port.container != inside
                else "a second port of the same engine"
            )
            port.item.drop(f"{reason}: a stack has one port")
    return _published(published[0]) if published else Address()


def _published(port: PortMap) -> Address:
    return Address(_as_ip(port.address), port.host, [port.item])


def _drop_worker_ports(container: Container) -> Address:
    for port in container.ports:
        port.item.build_in(
            "clients of FastChat use its API server; workers have no keys, and stay on an internal network"
        )
    return Address()


def _number(flag: Flag | None) -> int:
    return int(flag.text) if flag and flag.text.isdecimal() and not flag.unknown else 0


def _as_ip(host: str) -> str:
    if host.lower() in ("localhost", ""):
        return "127.0.0.1"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "0.0.0.0"
    # `::` and 0.0.0.0 both mean every address
    return "0.0.0.0" if host == "::" else host


def choose_addresses(
    drafts: list[Draft], addresses: dict[int, Address], stack: dict[str, Any], ledger: Ledger
) -> dict[str, Any]:
    """The fields `port`, `bind` and `gateway` of the stack, and `port` of the models."""
    known = [(draft, addresses.get(id(draft), Address())) for draft in drafts]
    found = [(draft, address) for draft, address in known if address.port]
    data: dict[str, Any] = {}
    if not found:
        for _, address in known:
            _explain(address)
        if drafts and "gateway" not in stack:
            ledger.warn(
                "port", "the source publishes no port on this machine, but a stack publishes port 8000 on 127.0.0.1"
            )
        return data
    first = found[0][1]
    exposed = [address for _, address in found if is_exposed(address.bind)]
    bind = (exposed or [first])[0].bind
    data["port"] = first.port
    if bind != "127.0.0.1":
        data["bind"] = bind
    if exposed:
        has_key = any(item.field == f".env: {API_KEY}" for item in ledger.items)
        opened = f"port {exposed[0].port} is open on {bind}" + ("" if has_key else ", and the source needs no key")
        remedy = "The stack's gateway requires a key for every path; remove `bind` if only this machine needs the port"
        ledger.warn(_place(exposed[0]), f"{opened}. {remedy}")
    changed = any(address.bind != bind for _, address in found)
    for item in first.items:
        item.carry("port", None, "the other services of the source have other addresses" if changed else "")
    for _, address in known:
        for item in address.hosts:
            _settle_host(item, bind, "bind" in data)
    ports = {address.port for _, address in found}
    for draft, address in found[1:]:
        # FastChat's API server answers for all workers
        if address is first:
            continue
        # engines without a gateway keep their own ports, but protect fewer paths
        if not exposed and "gateway" not in stack:
            data["gateway"] = False
            draft.fields["port"] = address.port
            for item in address.items:
                item.carry("port", draft)
        else:
            for item in address.items:
                item.drop(f"the gateway answers for all models at port {first.port}, by their names. To keep the "
                    "port, set "
                          f"`gateway: false` and `port: {address.port}`")  # fmt: skip
    if data.get("gateway") is False and len(ports) > 1:
        ledger.warn(
            "gateway",
            "each model keeps its own port, as in the source. Remove `gateway: false` for one URL and keys for all "
            "paths",
        )
    return data


def _settle_host(item: Item, bind: str, is_set: bool) -> None:
    text = item.text.rpartition("=")[2]
    if not is_set and text in ("127.0.0.1", "localhost", "--host"):
        item.build_in("this is the default")
    elif text in (bind, "--host"):
        item.carry("bind")
    else:
        # host names, variables, and the other addresses of several servers
        item.carry("bind" if is_set else "port", None, f"a stack has one IP address for all ports: {bind}")


def _explain(address: Address) -> None:
    for item in (*address.items, *address.hosts):
        if not item.outcome:
            item.build_in("Docker chose a free port; a stack has a fixed one, 8000 by default")


def _place(address: Address) -> str:
    return address.items[0].place if address.items else "port"
