"""What rows need around the proxy: certificates, names that resolve in odd ways, and ports that refuse or swallow.

`surroundings` changes this process once for all rows, so that rows can run concurrently.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SILENT_NAME", "UNKNOWN_NAME", "certificates", "closed_port", "full_port", "has_ipv6", "surroundings"]

UNKNOWN_NAME, SILENT_NAME = "engine.invalid", "engine.example"


def certificates(folder: Path) -> dict[str, Path]:
    """Returns self-signed certificates with their keys, and as `trusted` a bundle of all but the self-signed one."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program is missing (it makes the certificates)")
    kinds = {
        "good": ("IP:127.0.0.1", "20200101000000Z", "20991231000000Z"),
        "selfsigned": ("IP:127.0.0.1", "20200101000000Z", "20991231000000Z"),
        "expired": ("IP:127.0.0.1", "20200101000000Z", "20200201000000Z"),
        "wronghost": ("DNS:elsewhere.example", "20200101000000Z", "20991231000000Z"),
        "soon": ("IP:127.0.0.1", "20200101000000Z", time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + 5e5))),
    }
    (folder / "index").touch()
    (folder / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=own\n[own]\ndir={folder}\ndatabase=$dir/index\nnew_certs_dir=$dir\nrand_serial=yes\n"
        "default_md=sha256\npolicy=any\nunique_subject=no\nx509_extensions=ext\n[any]\ncommonName=supplied\n"
        "[ext]\nbasicConstraints=CA:TRUE\nsubjectAltName=$ENV::SAN\n"
    )
    made, trusted = {}, ""
    for kind, (name, start, end) in kinds.items():
        key, request, both = (folder / f"{kind}.{ending}" for ending in ("key", "csr", "pem"))
        arguments = f"req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={kind}"
        run = partial(subprocess.run, check=True, capture_output=True, text=True, env={"SAN": name, "PATH": "/usr/bin"})
        run(["openssl", *arguments.split(), "-keyout", str(key), "-out", str(request)])
        signed = run(["openssl", "ca", "-batch", "-selfsign", "-notext", "-config", str(folder / "ca.cnf"), "-keyfile",
                      str(key), "-in", str(request), "-startdate", start, "-enddate", end])  # fmt: skip
        both.write_text(key.read_text() + signed.stdout)
        made[kind] = both
        trusted += signed.stdout if kind != "selfsigned" else ""
    (folder / "trusted.pem").write_text(trusted)
    return made | {"trusted": folder / "trusted.pem"}


@contextlib.contextmanager
def surroundings(trusted: Path | None = None) -> Iterator[None]:
    """Removes the proxies of the environment, trusts the bundle `trusted` alone, and resolves the names of rows."""
    ended, real = threading.Event(), socket.getaddrinfo

    def resolve(host: Any, port: Any, *more: Any, **named: Any) -> list[Any]:
        if host == UNKNOWN_NAME:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host == SILENT_NAME:
            ended.wait(30)
            return []
        if host == "localhost":
            # as most machines resolve it
            return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]  # fmt: skip
        return real(host, port, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        if trusted:
            patch.setenv("SSL_CERT_FILE", str(trusted))
        patch.setattr(socket, "getaddrinfo", resolve)
        try:
            yield
        finally:
            ended.set()


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that is taken and does not listen, so that no concurrent row gets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """A port with a full accept queue: it looks like a firewall that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]
