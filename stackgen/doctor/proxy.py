"""Checks that a stack on a machine behind an HTTP proxy has the field `proxy`."""

from __future__ import annotations

from stackgen.doctor.finding import DoctorInputs, Results, ok, unknown, warn

__all__ = ["check_proxy"]


def check_proxy(inputs: DoctorInputs) -> Results:
    """If this machine uses an HTTP proxy, `proxy` is set for the services and builds that leave the machine."""
    stack, host = inputs.stack, inputs.host
    leaving = [one.name for one in inputs.services() if one.role in ("download", "ui") or one.build]
    if stack is None or not leaving:
        return
    if stack.spec.proxy:
        yield ok("`proxy` is set for the services and builds that access the internet", evidence=", ".join(leaving))
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
