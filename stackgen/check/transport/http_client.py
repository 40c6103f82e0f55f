"""The HTTP client of one target: its timeouts, its proxies and the certificates that it trusts."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING

from stackgen.check.target import Target
from stackgen.lazy import LazyModule

if TYPE_CHECKING:
    import httpx2
else:
    httpx2 = LazyModule("httpx2")

__all__ = ["CONNECT_SECONDS", "client_timeout", "http_client", "set_server_name", "tls_context"]

CONNECT_SECONDS = 10.0


def http_client(target: Target, timeout: float) -> httpx2.Client:
    """A client that follows no redirects. The proxies of the environment apply to other machines only."""
    return httpx2.Client(
        timeout=client_timeout(timeout),
        # many machines set HTTP_PROXY without NO_PROXY, and no proxy reaches the loopback of this machine
        trust_env=not target.loopback,
        # plain HTTP needs no trust store, which takes 20 ms to load
        verify=tls_context(target.ca_file) if target.base_url.startswith("https:") else False,
        # each request opens its own connection, as a new client does
        limits=httpx2.Limits(max_keepalive_connections=0),
        headers={"User-Agent": "stackgen-check"},
        follow_redirects=False,
        event_hooks={"request": [lambda request: set_server_name(request, target)]},
    )


def set_server_name(request: httpx2.Request, target: Target) -> None:
    """Makes the client compare the certificate with the target's `server_name`, if it has one."""
    if target.server_name:
        request.extensions["sni_hostname"] = target.server_name


def client_timeout(timeout: float) -> httpx2.Timeout:
    """The longest silence (s). Connecting takes at most 10 s, because a slow model does not slow down TCP."""
    return httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """A context that trusts `ca_file` alone if given, else SSL_CERT_FILE and SSL_CERT_DIR, else the system's CAs."""
    if ca_file:
        return ssl.create_default_context(cafile=ca_file)
    return _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _tls_context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    # cached: reading the CA bundle takes 20 ms, and a thousand endpoints share it. httpx2 reads the variables itself
    context: ssl.SSLContext = httpx2.create_ssl_context()
    return context
