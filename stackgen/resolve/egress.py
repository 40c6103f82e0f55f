"""Proxy and certificate authorities for services and image builds that leave the machine, and NO_PROXY for the rest.

The download service, the chat UI (which downloads a model for document search) and builds use the proxy. HAProxy can't
use an HTTP proxy, so a fallback gets only the certificates. Grafana and the exporter stay in the network, and
Prometheus gets the certificates for an Alertmanager in addons/monitoring.py.

Docker's client can put its own proxy into every container (`proxies` in ~/.docker/config.json). With `NO_PROXY`,
requests between the services of the stack still don't go through a proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from stackgen.plan import Bind, EnvRef, Mount, Plan, Service, Site
from stackgen.resolve.addons import fallback
from stackgen.spec import StackSpec
from stackgen.spec.types import is_loopback

__all__ = ["find_unreachable", "with_egress"]

# set in .env for a proxy with a password, which must not be in rendered files
PROXY = "STACKGEN_PROXY"
LOCAL = "localhost,127.0.0.1,::1"
# requests, httpx and aiohttp all read it as "no proxy at all". Names of services would change with each `scale`, and
# Compose would create every container again.
NO_PROXY = "*"
# services that request other services of the stack with a client that reads these variables
CLIENT_ROLES = ("controller", "worker", "api")
LEAVING_ROLES = ("download", "ui")
# the secret that the Dockerfiles of templates/images read
BUILD_CERTIFICATES = "pip_ca"


def with_egress(stack: StackSpec, site: Site, plan: Plan) -> Plan:
    """Returns the plan with proxy, certificates and NO_PROXY; without proxy, only FastChat gets NO_PROXY."""
    if not site.uses_containers:
        # local processes have the user's own environment
        return plan
    services = tuple(_configure_build(_configure(service, stack, site), stack) for service in plan.services)
    builds = stack.ca_certificates and any(service.build for service in services)
    secrets = ((BUILD_CERTIFICATES, site.host_path(stack.ca_certificates)),) if builds and stack.ca_certificates else ()
    return replace(plan, services=services, build_secrets=secrets)


def find_unreachable(stack: StackSpec, site: Site, plan: Plan) -> list[str]:
    """Warnings about a proxy or a mirror of the Hub on the loopback address, which in a container is the container."""
    if not site.uses_containers:
        return []
    used = {
        "proxy": [one.name for one in plan.services if one.role in LEAVING_ROLES or one.build],
        "storage.hub_endpoint": [one.name for one in plan.services if one.role == "download"],
    }
    urls = {"proxy": stack.proxy, "storage.hub_endpoint": stack.storage.hub_endpoint}
    there = (
        "an address that pods can reach"
        if site.is_cluster
        else ("this machine's IP address in the local network, where the server must listen")
    )
    return [
        f"{field}: in the container of {', '.join(used[field])}, {urlsplit(url).hostname} is the container itself. "
        f"Write {there}"
        for field, url in urls.items()
        if url and used[field] and is_loopback(urlsplit(url).hostname or "")
    ]


def _configure_build(service: Service, stack: StackSpec) -> Service:
    """Adds proxy and certificates to the build of the service's image, if there is one."""
    build = service.build
    if build and stack.proxy:
        # predefined arguments of BuildKit: it also sets the lower-case names, and keeps both out of the image's history
        proxy = EnvRef(PROXY, default=stack.proxy)
        build = replace(build, args=(*build.args, ("HTTP_PROXY", proxy), ("HTTPS_PROXY", proxy), ("NO_PROXY", LOCAL)))
    if build and stack.ca_certificates:
        build = replace(build, secrets=(*build.secrets, BUILD_CERTIFICATES))
    return replace(service, build=build)


def _configure(service: Service, stack: StackSpec, site: Site) -> Service:
    leaves = service.role in LEAVING_ROLES
    values: dict[str, str | EnvRef] = {}
    if stack.proxy and leaves:
        values |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), EnvRef(PROXY, default=stack.proxy))
    if stack.proxy or service.role in CLIENT_ROLES:
        # curl reads the name in lower case, and Python reads it first
        values |= dict.fromkeys(("NO_PROXY", "no_proxy"), _local_names(service) if leaves else NO_PROXY)
    mounts: Sequence[Mount] = service.mounts
    # haproxy.cfg names the file for the fallback
    if stack.ca_certificates and (leaves or (service.role == "gateway" and fallback.is_requested(stack))):
        path = site.local_path(stack.ca_certificates)
        if leaves:
            values |= dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), path)
        # before /tmp, which stays the last mount
        mounts = (*mounts[:-1], Bind(site.host_path(stack.ca_certificates), path), *mounts[-1:])
    # the user's variables take precedence
    return replace(service, environment=tuple((values | dict(service.environment)).items()), mounts=tuple(mounts))


def _local_names(service: Service) -> str:
    """NO_PROXY of a service that leaves the machine: the loopback, and the server that the chat UI uses."""
    url = dict(service.environment).get("OPENAI_API_BASE_URL")
    host = urlsplit(url).hostname if isinstance(url, str) else None
    return f"{LOCAL},{host}" if host else LOCAL
