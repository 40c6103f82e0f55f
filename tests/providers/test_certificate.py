"""A stack whose gateway presents a certificate of the user: the commands compare it with a name that it contains."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from stackgen.cli import main as cli
from stackgen.providers.certificate import name_in_certificate
from stackgen.stack.envfile import create_env, read_api_key
from tests.check.fake import serve


def make(folder: Path, names: str) -> Path:
    """A self-signed certificate with `names` as subjectAltName, its key, and both in one file."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj /CN=gpu1 -addext"
    )
    files = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    subprocess.run([*command.split(), f"subjectAltName={names}", *files], check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return folder / "cert.pem"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("DNS:gpu1.example.com,DNS:gpu2.example.com", "gpu1.example.com"),
        ("DNS:*.example.com", "stackgen.example.com"),
        ("IP:10.0.0.7,DNS:gpu1.example.com", "gpu1.example.com"),
        ("IP:10.0.0.7", "10.0.0.7"),
        ("DNS:gpu1.example.com,IP:127.0.0.1", None),
        ("DNS:gpu1.example.com,DNS:LocalHost", None),
    ],
)
def test_the_name_is_one_of_the_certificate(names: str, expected: str | None, tmp_path: Path) -> None:
    assert name_in_certificate(make(tmp_path, names)) == expected


def test_no_name_is_known_without_a_readable_certificate(tmp_path: Path) -> None:
    assert name_in_certificate(tmp_path / "missing.pem") is None
    (tmp_path / "broken.pem").write_text("no certificate")
    assert name_in_certificate(tmp_path / "broken.pem") is None


@pytest.mark.parametrize("names", ["DNS:gpu1.example.com", "DNS:*.example.com", "IP:10.0.0.7"])
def test_commands_accept_a_certificate_that_only_names_the_machine(
    names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = make(tmp_path, names)
    # the organization's authority, which the machine trusts
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    folder = tmp_path / "front"
    folder.mkdir()
    create_env(folder)
    with serve("vllm", read_api_key(folder), tmp_path / "both.pem") as fake:
        (folder / "stack.yaml").write_text(json.dumps({
            "name": "front", "port": fake.port,
            "gateway": {"tls": {"certificate": str(certificate), "key": str(tmp_path / "key.pem")}},
            "models": [{"model": "org/tiny", "engine": "vllm", "gpus": 1, "served_names": ["tiny"]}],
        }))  # fmt: skip
        checks = ("resolve", "connect", "tls", "http", "models", "chat")
        code = cli.main(["check", str(folder), "--select", ",".join(checks), "--json"])
        found = json.loads(capsys.readouterr().out)["endpoints"][0]["results"]
        assert {one["name"]: one["status"] for one in found} == dict.fromkeys(checks, "pass"), found
        assert code == 0
        expected = name_in_certificate(certificate)
        assert f"its certificate for {expected} is valid" in next(
            one["message"] for one in found if one["name"] == "tls"
        )
        assert cli.main(["ask", "hi", "--stack", str(folder), "--model", "tiny"]) == 0
        # a client that uses 127.0.0.1 would refuse the certificate
        code = cli.main(["check", "--base-url", f"https://127.0.0.1:{fake.port}/v1", "--select", "tls", "--json"])
        assert code == 1 and "certificate" in capsys.readouterr().out


def test_a_certificate_that_nobody_signed_is_still_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = make(tmp_path, "DNS:gpu1.example.com")
    folder = tmp_path / "front"
    folder.mkdir()
    create_env(folder)
    with serve("vllm", read_api_key(folder), tmp_path / "both.pem") as fake:
        (folder / "stack.yaml").write_text(json.dumps({
            "name": "front", "port": fake.port,
            "gateway": {"tls": {"certificate": str(certificate), "key": str(tmp_path / "key.pem")}},
            "models": [{"model": "org/tiny", "engine": "vllm", "gpus": 1, "served_names": ["tiny"]}],
        }))  # fmt: skip
        assert cli.main(["check", str(folder), "--select", "tls,http", "--json"]) == 1
        assert "is not trusted" in capsys.readouterr().out
        # the key was not sent
        assert all(request.authorization is None for request in fake.seen)
