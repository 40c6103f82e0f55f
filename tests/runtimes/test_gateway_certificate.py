"""Generated certificates, made by the real openssl and read by Python's own TLS."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml

from stackgen.errors import MachineError
from stackgen.providers.endpoints import from_plan
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


def shown(path: Path) -> str:
    return subprocess.run(
        ["openssl", "x509", "-in", str(path), "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout


def test_it_is_made_where_the_gateway_looks_for_it(tmp_path: Path) -> None:
    made = ensure(stack(tmp_path))
    assert made and made.resolve() == tmp_path / "gateway" / "tls" / "site.crt"
    text = shown(made)
    for wanted in ("prime256v1", "DNS:localhost, IP Address:127.0.0.1", "CA:FALSE", "TLS Web Server Authentication"):
        assert wanted in text
    assert (made.parent / "site.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in made.parent.iterdir()) == ["site.crt", "site.key"]
    # HAProxy reads it as it is, and Python takes it for the one it trusts
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, made.parent / "site.key")
    ssl.create_default_context(cafile=made)


def test_one_that_will_do_is_left_alone(tmp_path: Path) -> None:
    made = ensure(stack(tmp_path))
    assert made
    before, inode = made.read_bytes(), made.stat().st_ino
    assert ensure(stack(tmp_path)) is None
    assert made.read_bytes() == before
    # other names, in place: the container holds the file, not its name
    assert ensure(stack(tmp_path, names=["Example.org", "*.example.org", "10.0.0.1", "::1"])) == made
    assert "DNS:Example.org, DNS:*.example.org, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1" in shown(made)
    assert made.stat().st_ino == inode
    assert ensure(stack(tmp_path, names=["example.org", "*.example.org", "10.0.0.1", "::1"])) is None


@pytest.mark.parametrize("harm", ["lost key", "other key", "cut"])
def test_one_that_will_not_do_is_made_anew(tmp_path: Path, harm: str) -> None:
    made = ensure(stack(tmp_path))
    assert made
    key = made.with_suffix(".key")
    if harm == "lost key":
        key.unlink()
    elif harm == "other key":
        new = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        key.write_bytes(subprocess.run(["openssl", *new], capture_output=True, check=True).stdout)
    else:
        made.write_bytes(made.read_bytes()[:100])
    assert ensure(stack(tmp_path)) == made
    assert ensure(stack(tmp_path)) is None


def test_it_is_renewed_a_month_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "DAYS", 29)
    assert ensure(stack(tmp_path))
    monkeypatch.undo()
    assert ensure(stack(tmp_path))
    assert ensure(stack(tmp_path)) is None


def test_ones_own_certificate_is_not_touched(tmp_path: Path) -> None:
    assert ensure(stack(tmp_path, certificate="./own.crt", key="./own.key")) is None
    assert not (tmp_path / "gateway").exists()


def test_without_openssl_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError) as caught:
        ensure(stack(tmp_path))
    assert "openssl" in caught.value.message and "gateway.tls.certificate" in caught.value.hint


def test_the_check_trusts_a_generated_one_for_its_endpoint_only(tmp_path: Path) -> None:
    one = stack(tmp_path)
    assert [target.ca_file for target in from_plan(one.plan, tmp_path)] == [None]
    made = ensure(one)
    assert [target.ca_file for target in from_plan(one.plan, tmp_path)] == [str(made)]
    own = stack(tmp_path, certificate="./own.crt", key="./own.key")
    (tmp_path / "own.crt").write_text("")
    assert [target.ca_file for target in from_plan(own.plan, tmp_path)] == [None]
