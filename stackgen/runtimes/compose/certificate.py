"""Self-signed certificates for `gateway: {tls: generate}`, created with the `openssl` program.

Every client accepts P-256 and 825 days. Python 3.13 verifies strictly (RFC 5280), so the certificate has key
identifiers and key usage. Sources: OpenSSL 3.0, openssl-req(1), openssl-x509(1), x509v3_config(5).
"""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stackgen.errors import MachineError, StackgenError
from stackgen.plan import Bind, Plan
from stackgen.render.write import temporary_folder
from stackgen.resolve.addons.gateway import SERVICE
from stackgen.runtimes.compose.addresses import find_names
from stackgen.spec import StackSpec
from stackgen.stack.project import is_remote_engine

__all__ = ["certificate_names", "ensure_certificate"]

VALID_DAYS = 825
# only the next `up`, `update` or `scale` renews a certificate
RENEW_BEFORE_SECONDS = 30 * 86400
MOUNT_TARGET = "/tls/site.crt"
OPENSSL_CONFIG = """\
[req]
distinguished_name = dn
x509_extensions = ext
prompt = no
[dn]
CN = {name}
[ext]
subjectAltName = {names}
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def ensure_certificate(spec: StackSpec, plan: Plan, folder: Path) -> Path | None:
    """Creates or renews the stack's self-signed certificate, if the stack needs one.

    A certificate is kept if it is valid for 30 more days, has all names and addresses that clients can use, and matches
    its key. Returns the path of a new certificate, or None if nothing was created. Raises MachineError if `openssl` is
    missing.
    """
    tls = spec.gateway.tls if spec.gateway else None
    gateway = next((service for service in plan.services if service.name == SERVICE), None)
    # local processes have no gateway
    if tls is None or tls.certificate or gateway is None:
        return None
    source = next(mount.source for mount in gateway.mounts if isinstance(mount, Bind) and mount.target == MOUNT_TARGET)
    certificate = folder / source
    key = certificate.with_suffix(".key")
    names = certificate_names(spec)
    if _is_usable(certificate, key, names):
        return None
    certificate.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(certificate.parent) as new:
        new_certificate, new_key, config = Path(new, "crt"), Path(new, "key"), Path(new, "request")
        # a CN is limited to 64 characters; clients read only subjectAltName
        config.write_text(OPENSSL_CONFIG.format(name=names[0][:64], names=",".join(map(_san_entry, names))))
        # -nodes, because nobody can type a passphrase when the gateway starts
        _run_openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
                     str(VALID_DAYS), "-config", str(config), "-keyout", str(new_key),
                     "-out", str(new_certificate))  # fmt: skip
        _write_in_place(new_key, key, 0o600)
        _write_in_place(new_certificate, certificate, 0o644)
    return certificate


def certificate_names(spec: StackSpec) -> tuple[str, ...]:
    """Returns the names and addresses of the stack's generated certificate, those of `tls.names` first."""
    own = (spec.gateway.tls.names if spec.gateway and spec.gateway.tls else None) or ()
    # with an engine on another machine, this machine is a client
    binds = (spec.bind, *([spec.ui.bind] if spec.ui else []))
    machine = () if is_remote_engine() else [name for bind in binds for name in find_names(bind)]
    found = dict[object, str]()
    for name in (*own, "localhost", "127.0.0.1", *machine):
        # clients compare names without their case
        found.setdefault(_normalize(name), name)
    return tuple(found.values())


def _write_in_place(new: Path, path: Path, mode: int) -> None:
    # a container mounts the inode, so it would never see a new file with the same name
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    # O_CREAT sets the mode of a new file only, and the umask narrows it
    os.fchmod(handle, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(new.read_bytes())


def _is_usable(certificate: Path, key: Path, names: Sequence[str]) -> bool:
    if not (certificate.is_file() and key.is_file()):
        return False
    try:
        text = _run_openssl(
            "x509", "-in", str(certificate), "-noout", "-checkend", str(RENEW_BEFORE_SECONDS), "-text", "-pubkey"
        )
        public_key = _run_openssl("pkey", "-in", str(key), "-pubout")
    except StackgenError as error:
        # without openssl, the state of the certificate is unknown
        if isinstance(error, MachineError):
            raise
        return False
    present = re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)
    # an address that the machine has no longer does no harm, but every client must trust a new certificate again
    return {_normalize(name) for name in present} >= {_normalize(name) for name in names} and public_key.strip() in text


def _san_entry(name: str) -> str:
    return (
        f"IP:{name}" if isinstance(_normalize(name), ipaddress.IPv4Address | ipaddress.IPv6Address) else f"DNS:{name}"
    )


def _normalize(name: str) -> object:
    # openssl prints IPv6 addresses in its own notation, so addresses are compared as values
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return name.lower()


def _run_openssl(*args: str) -> str:
    """Returns what `openssl` prints. Raises MachineError if it is not installed, StackgenError if it fails."""
    try:
        done = subprocess.run(["openssl", *args], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise MachineError(
            "openssl is not installed, and gateway.tls needs it to generate a certificate",
            "install openssl (Debian: apt install openssl), or set gateway.tls.certificate and gateway.tls.key",
        ) from None
    if done.returncode:
        raise StackgenError(f"openssl {args[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
