"""Generated certificates, created by the real openssl and read by Python's TLS module."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml

from stackgen.errors import MachineError
from stackgen.providers.endpoints import targets_from_plan
from stackgen.runtimes.compose import certificate
from stackgen.runtimes.compose.certificate import ensure_certificate
from stackgen.stack.folder import Stack, open_stack

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")


def stack(folder: Path, **tls: object) -> Stack:
    data = {"name": "n", "gateway": {"tls": tls or "generate"}, "models": [{"model": "./m", "engine": "vllm"}]}
    (folder / "stack.yaml").write_text(yaml.safe_dump(data))
    return open_stack(str(folder))


def ensure(one: Stack) -> Path | None:
    return ensure_certificate(one.spec, one.plan, one.folder)


def openssl_text(path: Path) -> str:
    return subprocess.run(
        ["openssl", "x509", "-in", str(path), "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout


def test_certificate_is_created_where_the_gateway_reads_it(tmp_path: Path) -> None:
    created = ensure(stack(tmp_path))
    assert created and created.resolve() == tmp_path / "gateway" / "tls" / "site.crt"
    text = openssl_text(created)
    for wanted in ("prime256v1", "DNS:localhost, IP Address:127.0.0.1", "CA:FALSE", "TLS Web Server Authentication"):
        assert wanted in text
    assert (created.parent / "site.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in created.parent.iterdir()) == ["site.crt", "site.key"]
    # HAProxy loads it as it is, and Python accepts it as a CA
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(created, created.parent / "site.key")
    ssl.create_default_context(cafile=created)


def test_usable_certificate_is_kept(tmp_path: Path) -> None:
    created = ensure(stack(tmp_path))
    assert created
    before, inode = created.read_bytes(), created.stat().st_ino
    assert ensure(stack(tmp_path)) is None
    assert created.read_bytes() == before
    # other names, written in place: the container mounts the inode, not the name
    assert ensure(stack(tmp_path, names=["Example.org", "*.example.org", "10.0.0.1", "::1"])) == created
    assert "DNS:Example.org, DNS:*.example.org, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1" in openssl_text(
        created
    )
    assert created.stat().st_ino == inode
    assert ensure(stack(tmp_path, names=["example.org", "*.example.org", "10.0.0.1", "::1"])) is None


@pytest.mark.parametrize("harm", ["lost key", "other key", "cut"])
def test_unusable_certificate_is_recreated(tmp_path: Path, harm: str) -> None:
    created = ensure(stack(tmp_path))
    assert created
    key = created.with_suffix(".key")
    if harm == "lost key":
        key.unlink()
    elif harm == "other key":
        new = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        key.write_bytes(subprocess.run(["openssl", *new], capture_output=True, check=True).stdout)
    else:
        created.write_bytes(created.read_bytes()[:100])
    assert ensure(stack(tmp_path)) == created
    assert ensure(stack(tmp_path)) is None


def test_certificate_is_renewed_a_month_before_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "VALID_DAYS", 29)
    assert ensure(stack(tmp_path))
    monkeypatch.undo()
    assert ensure(stack(tmp_path))
    assert ensure(stack(tmp_path)) is None


def test_own_certificate_is_not_touched(tmp_path: Path) -> None:
    assert ensure(stack(tmp_path, certificate="./own.crt", key="./own.key")) is None
    assert not (tmp_path / "gateway").exists()


def test_missing_openssl_suggests_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError) as caught:
        ensure(stack(tmp_path))
    assert "openssl" in caught.value.message and "gateway.tls.certificate" in caught.value.hint


def test_check_trusts_only_a_generated_certificate_and_only_for_its_endpoint(tmp_path: Path) -> None:
    one = stack(tmp_path)
    assert [target.ca_file for target in targets_from_plan(one.plan, tmp_path)] == [None]
    created = ensure(one)
    assert [target.ca_file for target in targets_from_plan(one.plan, tmp_path)] == [str(created)]
    own = stack(tmp_path, certificate="./own.crt", key="./own.key")
    (tmp_path / "own.crt").write_text("")
    assert [target.ca_file for target in targets_from_plan(own.plan, tmp_path)] == [None]
