"""Finds faults of the gateway's certificate and private key, before HAProxy refuses to start with them."""

from __future__ import annotations

import ssl
from pathlib import Path

from stackgen.spec import StackSpec

__all__ = ["find_tls_problem"]

CERTIFICATE, KEY = "-----BEGIN CERTIFICATE-----", "PRIVATE KEY-----"
# reasons of OpenSSL 3.0 for another key of the same kind, and for a key of another kind (RSA, EC)
MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")


def find_tls_problem(spec: StackSpec, base: Path) -> tuple[str, str]:
    """Returns the field and the message of what is wrong; both empty if all is well, or if a file can't be read."""
    tls = spec.gateway.tls if spec.gateway else None
    if tls is None or not tls.certificate or not tls.key:
        return "", ""
    certificate, key = (base / Path(one).expanduser() for one in (tls.certificate, tls.key))
    try:
        if CERTIFICATE not in certificate.read_text("utf-8", errors="replace"):
            return "gateway.tls.certificate", f"{tls.certificate} contains no certificate in PEM format"
        if KEY not in key.read_text("utf-8", errors="replace"):
            return "gateway.tls.key", f"{tls.key} contains no private key in PEM format"
        # a password, because Python would ask for that of an encrypted key on the terminal
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason in MISMATCH:
            return "gateway.tls.key", "the private key does not belong to the certificate"
    except OSError:
        pass
    return "", ""
