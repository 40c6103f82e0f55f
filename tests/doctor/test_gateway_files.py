"""The gateway's own certificate, and the address of the chat page."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stackgen.doctor.finding import Finding
from tests.doctor.hosts import NO_GPU, findings, write_stack


def make_pair(folder: Path, name: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=llm.example.org", "-keyout", f"{name}.key", "-out", f"{name}.crt"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def of(id: str, found: tuple[Finding, ...]) -> list[Finding]:
    return [one for one in found if one.id == id]


@pytest.mark.parametrize(
    ("certificate", "key", "place", "message"),
    [
        ("a.crt", "a.key", "", ""),
        ("a.crt", "b.key", "gateway.tls.key", "the private key does not belong to the certificate"),
        # a key of another kind
        ("a.crt", "rsa.key", "gateway.tls.key", "the private key does not belong to the certificate"),
        ("a.key", "a.key", "gateway.tls.certificate", "./a.key contains no certificate in PEM format"),
        ("a.crt", "a.crt", "gateway.tls.key", "./a.crt contains no private key in PEM format"),
        # in one file, as HAProxy reads it too
        ("both.pem", "both.pem", "", ""),
    ],
)
def test_the_private_key_must_belong_to_the_certificate(
    tmp_path: Path, certificate: str, key: str, place: str, message: str
) -> None:
    make_pair(tmp_path, "a")
    make_pair(tmp_path, "b")
    subprocess.run(["openssl", "genrsa", "-out", "rsa.key", "2048"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "both.pem").write_text((tmp_path / "a.key").read_text() + (tmp_path / "a.crt").read_text())
    path = write_stack(tmp_path, stack_gateway={"tls": {"certificate": f"./{certificate}", "key": f"./{key}"}})
    found = of("SG-P058", findings(NO_GPU, path, offline=True))
    failed = [(one.place, one.message) for one in found if one.status == "fail"]
    assert failed == ([(place, message)] if message else [])


@pytest.mark.parametrize(
    ("bind", "tls", "status", "words"),
    [
        ("0.0.0.0", "generate", "ok", "other machines can reach the chat page over TLS"),
        ("0.0.0.0", False, "warn", "the chat page uses plain HTTP"),
        ("127.0.0.1", "generate", "ok", "only this machine can reach the API"),
    ],
)
def test_a_published_chat_page_is_reported(tmp_path: Path, bind: str, tls: object, status: str, words: str) -> None:
    path = write_stack(
        tmp_path, stack_ui={"kind": "open-webui", "bind": bind, "port": 3080}, stack_gateway={"tls": tls}
    )
    found = of("SG-P022", findings(NO_GPU, path, offline=True))
    assert len(found) == (1 if bind == "127.0.0.1" else 2)
    assert any(words in one.message and one.status == status for one in found)


@pytest.mark.parametrize(("page", "count"), [("open-webui", 1), ({"bind": "127.0.0.1"}, 0), ({"bind": "0.0.0.0"}, 0)])
def test_a_page_that_stays_on_this_machine_is_reported(tmp_path: Path, page: object, count: int) -> None:
    path = write_stack(tmp_path, stack_bind="0.0.0.0", stack_ui=page)
    found = [one for one in of("SG-P022", findings(NO_GPU, path, offline=True)) if "this machine only" in one.message]
    assert [(one.status, one.place) for one in found] == [("warn", "ui")] * count
