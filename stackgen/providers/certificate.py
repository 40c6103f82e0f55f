"""The certificate of a stack's own endpoint: which file it is, and a name that it contains."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache
from pathlib import Path

from stackgen.plan import Bind, Endpoint, Plan

__all__ = ["find_certificate", "is_generated", "name_in_certificate"]

# where `gateway: {tls: generate}` writes its certificate, relative to the stack's folder
GENERATED = ("gateway", "tls", "site.crt")
# the stack's endpoints have one of these hosts in their URLs
LOCAL = {"127.0.0.1", "localhost"}


def find_certificate(plan: Plan, endpoint: Endpoint, folder: Path) -> Path | None:
    """The path of the certificate that the endpoint's service presents; None without TLS or without the file."""
    mounts = plan.service(endpoint.service).mounts
    paths = [folder / one.source for one in mounts if isinstance(one, Bind) and one.target == "/tls/site.crt"]
    return next((path for path in paths if path.exists()), None)


def is_generated(certificate: Path) -> bool:
    """Whether stackgen generated the certificate, so that no authority has signed it."""
    return certificate.parts[-3:] == GENERATED


def name_in_certificate(certificate: Path) -> str | None:
    """A name that the certificate contains, if it does not contain this machine's loopback. None if that is unknown.

    A certificate of an organization names the machine, and a connection to 127.0.0.1 would not match it.
    """
    try:
        return _read_name(certificate, certificate.stat().st_mtime_ns)
    except OSError:
        return None


# an exporter reads the same file in each round
@lru_cache(maxsize=16)
def _read_name(certificate: Path, _changed: int) -> str | None:
    command = ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return None
    # openssl-x509(1), OpenSSL 3.0: `DNS:gpu1.example.com, DNS:*.example.com, IP Address:10.0.0.7`
    found = re.findall(r"(DNS|IP Address):([^,\s]+)", done.stdout)
    if not found or LOCAL & {name.lower() for _, name in found}:
        return None
    # a wildcard matches any one label; clients usually know a machine by its name
    kind, name = next((one for one in found if one[0] == "DNS"), found[0])
    return re.sub(r"^\*\.", "stackgen.", name) if kind == "DNS" else name
