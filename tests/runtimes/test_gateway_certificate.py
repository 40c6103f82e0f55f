"""Generated certificates, created by the real openssl and read by Python's TLS module."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml

from stackgen.cli.main import main
from stackgen.errors import MachineError
from stackgen.providers.endpoints import targets_from_plan
from stackgen.runtimes.compose import addresses, certificate
from stackgen.runtimes.compose.addresses import find_names
from stackgen.runtimes.compose.certificate import certificate_names, ensure_certificate
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
    assert (
        "DNS:Example.org, DNS:*.example.org, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1, DNS:localhost, "
        "IP Address:127.0.0.1\n" in openssl_text(created)
    )
    assert created.stat().st_ino == inode
    assert ensure(stack(tmp_path, names=["example.org", "*.example.org", "10.0.0.1", "::1"])) is None
    # a name that nobody needs is not a reason to make all clients trust another certificate
    assert ensure(stack(tmp_path, names=["example.org"])) is None


def test_an_exposed_gateway_has_the_names_and_addresses_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "gpubox")
    monkeypatch.setattr(addresses, "_ipv4_addresses", lambda: iter(["10.1.2.3", "192.0.2.7", "10.1.2.3"]))
    text = "name: n\nbind: {}\ngateway: {{tls: {}}}\nmodels: [{{model: ./m, engine: vllm}}]\n"
    (tmp_path / "stack.yaml").write_text(text.format("0.0.0.0", "{names: [GPU.example.org, 10.1.2.3]}"))
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    shown = capsys.readouterr().err
    names = "GPU.example.org, 10.1.2.3, localhost, 127.0.0.1, gpubox, gpubox.local, 192.0.2.7"
    assert f"created a self-signed certificate for {names}: " in shown
    assert "curl --cacert site.crt" in shown and "SSL_CERT_FILE=site.crt" in shown
    certificate = tmp_path / "gateway" / "tls" / "site.crt"
    assert (
        "DNS:GPU.example.org, IP Address:10.1.2.3, DNS:localhost, IP Address:127.0.0.1, DNS:gpubox, DNS:gpubox.local, "
        "IP Address:192.0.2.7\n" in openssl_text(certificate)
    )
    # one address: no other one reaches the port
    (tmp_path / "stack.yaml").write_text(text.format("10.1.2.4", "generate"))
    one = open_stack(str(tmp_path))
    assert certificate_names(one.spec) == ("localhost", "127.0.0.1", "gpubox", "gpubox.local", "10.1.2.4")
    # this machine is not the one that clients connect to
    monkeypatch.setenv("DOCKER_HOST", "ssh://gpu-box")
    assert certificate_names(one.spec) == ("localhost", "127.0.0.1")


def test_the_first_of_several_machines_adds_its_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    text = "name: n\nbind: 10.1.2.4\nhosts: {front: {}, box: {address: 10.1.2.5}}\ngateway: {tls: generate}\n"
    (tmp_path / "stack.yaml").write_text(text + "models: [{model: o/m, engine: vllm, gpus: 1, host: box}]\n")
    assert main(["render", str(tmp_path), "--no-validate"]) == 0
    shown = capsys.readouterr().err
    assert "laptop" in shown and "but only after `up` on front" in shown
    certificate = tmp_path / "front" / "gateway" / "tls" / "site.crt"
    assert "DNS:laptop" in openssl_text(certificate)
    # `up` on that machine
    monkeypatch.setattr(socket, "gethostname", lambda: "gpubox")
    here = open_stack(str(tmp_path / "front"))
    assert ensure_certificate(here.spec, here.plan, here.folder) == certificate
    assert "DNS:gpubox" in openssl_text(certificate)


def test_addresses_of_the_machine_are_those_of_its_own_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("no network")
        own = probe.getsockname()[0]
    assert own in find_names("0.0.0.0")
    # as in a container network: no other machine reaches these addresses
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "docker0"), (3, "br-0123456789ab")])
    assert not {one for one in find_names("0.0.0.0") if one.startswith(("127.", "172.17."))} - {own}
    for loopback in ("127.0.0.1", "127.9.9.9", "::1", "[::1]"):
        assert find_names(loopback) == ()


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
