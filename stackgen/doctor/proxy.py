"""Checks that a stack on a machine behind an HTTP proxy has the field `proxy`."""

from __future__ import annotations

from urllib.parse import urlsplit

from stackgen.doctor.finding import DoctorInputs, Results, ok, unknown, warn
from stackgen.spec.types import is_loopback

__all__ = ["check_proxy"]


def check_proxy(inputs: DoctorInputs) -> Results:
    """If this machine uses an HTTP proxy, `proxy` is set for the services and builds that leave the machine."""
    stack, host = inputs.stack, inputs.host
    leaving = [one.name for one in inputs.services() if one.role in ("download", "ui") or one.build]
    if stack is None or not leaving:
        return
    # as Compose, which prefers the value in .env
    url = (inputs.env.values.get("STACKGEN_PROXY") if inputs.env else None) or stack.spec.proxy
    name = urlsplit(url or "").hostname or ""
    if stack.spec.proxy and is_loopback(name):
        yield warn(
            f"the proxy is on {name}, which in a container is the container itself", evidence=", ".join(leaving),
            fix="write this machine's IP address in the local network, where the proxy must listen", place="proxy",
        )  # fmt: skip
    elif stack.spec.proxy:
        yield ok("`proxy` is set for the services and builds that access the internet", evidence=", ".join(leaving))
    if stack.spec.proxy:
        return
    places = [*(host.proxies or ()), *(["the Docker daemon"] if host.daemon_proxy else [])]
    if places:
        yield warn(
            f"this machine uses an HTTP proxy, and `proxy` is not set in stack.yaml: {', '.join(leaving)} may be "
            "unable to reach the internet",
            evidence=f"set in {', '.join(places)}",
            fix="set `proxy: http://HOST:PORT`, and `ca_certificates` if your network intercepts TLS. A proxy with a "
            "password belongs in .env, as STACKGEN_PROXY",
            place="proxy",
        )
    elif host.proxies is None or host.daemon_proxy is None:
        yield unknown("can't tell whether this machine uses an HTTP proxy")
    else:
        yield ok("no HTTP proxy is set", evidence="environment, Docker's client and daemon")
